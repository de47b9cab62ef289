"""`collection.json`: a STAC 1.1 collection of the whole dataset.

https://github.com/radiantearth/stac-spec/blob/v1.1.0/collection-spec/collection-spec.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magc_data.metadata.facts import LICENCE_URLS

if TYPE_CHECKING:
    from magc_data.metadata.facts import Facts

STAC_VERSION = "1.1.0"
_PARQUET = "application/vnd.apache.parquet"


def stac_collection(facts: Facts) -> dict[str, Any]:
    """The collection. Its temporal extent is that of the pictures; open on both sides where no source dates them."""
    manifest = facts.manifest
    captured = facts.captured
    interval = [f"{day}T00:00:00Z" if day else None for day in (captured.first, captured.last)]
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [],
        "id": facts.name,
        "title": facts.title,
        "description": f"{facts.description} {facts.sampling}",
        "keywords": ["aerial imagery", "OpenStreetMap", "semantic segmentation", "WebDataset"],
        # Two sources, two licences: STAC says "other" and links to them.
        "license": "other",
        "providers": [
            {"name": source["name"], "description": source["attribution"], "roles": ["producer", "licensor"]}
            for source in manifest["sources"].values()
        ],
        "extent": {"spatial": {"bbox": [list(facts.bounds_lonlat)]}, "temporal": {"interval": [interval]}},
        "summaries": {
            "gsd": _range(manifest["gsd_m"]),
            "magc:crs": [facts.crs],
            **({"magc:zoom": [manifest["zoom"]]} if "zoom" in manifest else {"magc:gsd": [manifest["gsd"]]}),
            "magc:classes": [each["name"] for each in manifest["classes"]],
        },
        "links": [
            {"rel": "self", "href": "./collection.json", "type": "application/json"},
            {"rel": "root", "href": "./collection.json", "type": "application/json"},
            {"rel": "license", "href": "./ATTRIBUTION.md", "type": "text/markdown"},
            *[
                {"rel": "license", "href": LICENCE_URLS[source["licence"]], "title": f"{role}: {source['licence']}"}
                for role, source in manifest["sources"].items()
                if source["licence"] in LICENCE_URLS
            ],
        ],
        "assets": {
            "manifest": {"href": "./dataset.json", "type": "application/json", "roles": ["metadata"]},
            "index": {"href": "./index.parquet", "type": _PARQUET, "roles": ["metadata"], "title": "One row a sample"},
            "rejected": {
                "href": "./rejected.parquet",
                "type": _PARQUET,
                "roles": ["metadata"],
                "title": "One row a tile that was not kept",
            },
            **{
                entry["path"]: {
                    "href": f"./{entry['path']}",
                    "type": "application/x-tar",
                    "roles": ["data"],
                    "title": f"{entry['samples']} samples",
                }
                for entry in manifest["shards"]
            },
        },
    }


def _range(gsd_m: dict[str, Any]) -> Any:
    """A summary of a number: its range, or nothing known."""
    return [] if gsd_m["min"] is None else {"minimum": gsd_m["min"], "maximum": gsd_m["max"]}
