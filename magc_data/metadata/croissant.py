"""`croissant.json`: Croissant 1.1 with the geographic extension, so that catalogues and loaders can read the dataset.

Croissant: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
GeoCroissant 1.0: https://docs.mlcommons.org/croissant/docs/croissant-geo-spec.html (namespace
http://mlcommons.org/croissant/geo/, prefix `geocr`; conformance is declared beside Croissant's own).

What only a publisher knows (`url`, `creator`, `datePublished`) is left out: who publishes the dataset adds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from magc_data.metadata.facts import LICENCE_URLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from magc_data.metadata.facts import Facts

CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/geo/1.0")

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "geocr": "http://mlcommons.org/croissant/geo/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field", "fileObject"),
            *("fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath", "key", "md5"),
            *("parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
            *("separator", "source", "subField", "transform"),
        )
    },
}

_SPLIT_TYPE = "cr:Split"
_COLUMNS: dict[str, tuple[str | list[str], str]] = {
    "key": ("sc:Text", "z_x_y of the web-mercator tile; the members in the shard begin with it."),
    "z": ("sc:Integer", "Zoom level."),
    "x": ("sc:Integer", "Column of the tile, from the west."),
    "y": ("sc:Integer", "Row of the tile, from the north."),
    "lon": ("sc:Float", "Longitude of the tile's centre, degrees."),
    "lat": ("sc:Float", "Latitude of the tile's centre, degrees."),
    "split": (["sc:Text", _SPLIT_TYPE], "train, val, test, or null."),
    "shard": ("sc:Text", "Path of the tar that holds the sample."),
    "gsd_m": ("sc:Float", "Metres on the ground a pixel, at the tile's centre."),
    "image_format": ("sc:Text", "jpg or png."),
    "image_sha256": ("sc:Text", "Digest of the image's bytes."),
    "map_sha256": ("sc:Text", "Digest of the map's bytes."),
    "capture_date": ("sc:Text", "When the image was taken, where the source knows it."),
    "osm_timestamp": ("sc:Text", "Time of the OpenStreetMap database that the map was drawn from."),
}
_GROUND_COLUMNS: dict[str, tuple[str | list[str], str]] = {
    "key": ("sc:Text", "gMILLIMETRES_x_y of the tile; the members in the shard begin with it."),
    "z": ("sc:Integer", "Null: tiles of constant ground resolution have no zoom level."),
}
"""What is said otherwise of tiles of constant ground resolution."""
"""Columns of the index that the metadata describes, with their types."""


def croissant(facts: Facts, index_sha256: str) -> dict[str, Any]:
    """The document.

    Args:
        facts: of the dataset.
        index_sha256: digest of `index.parquet`, from which records are read.
    """
    manifest = facts.manifest
    west, south, east, north = facts.bounds_lonlat
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": facts.name,
        "alternateName": facts.title,
        "description": facts.description,
        "keywords": ["aerial imagery", "OpenStreetMap", "semantic segmentation"],
        "license": [_licence(source) for source in manifest["sources"].values()],
        "version": f"{manifest['format_version']}.0.0",
        "isAccessibleForFree": facts.redistributable,
        "creditText": "; ".join(source["attribution"] for source in manifest["sources"].values()),
        "spatialCoverage": {
            "@type": "sc:Place",
            # schema.org: latitude before longitude, the lower corner first.
            "geo": {"@type": "sc:GeoShape", "box": f"{south} {west} {north} {east}"},
        },
        "geocr:coordinateReferenceSystem": facts.crs,
        "geocr:samplingStrategy": facts.sampling,
        "geocr:spatialBias": f"One area alone, {facts.place}: nothing is claimed of other places.",
        "distribution": _distribution(facts, index_sha256),
        "recordSet": [_samples(facts), _classes(facts)],
    }
    if facts.gsd_m_mean is not None:
        document["geocr:spatialResolution"] = {
            "@type": "sc:QuantitativeValue",
            "value": facts.gsd_m_mean,
            "minValue": manifest["gsd_m"]["min"],
            "maxValue": manifest["gsd_m"]["max"],
            "unitText": "m",
        }
    if manifest["shards"]:
        key_regex = "^([0-9_]+)" if "zoom" in manifest else "^(g[0-9_]+)"
        document["recordSet"] += [_pixels(member, key_regex) for member in _members(facts)]
    if facts.captured.samples:
        document["temporalCoverage"] = f"{facts.captured.first}/{facts.captured.last}"
    return document


def _licence(source: Mapping[str, Any]) -> str:
    licence: str = source["licence"]
    return LICENCE_URLS.get(licence, licence)


def _distribution(facts: Facts, index_sha256: str) -> list[dict[str, Any]]:
    shards = facts.manifest["shards"]
    return [
        {
            "@type": "cr:FileObject",
            "@id": "index.parquet",
            "name": "index.parquet",
            "description": "One row a sample: place, digests, class shares, and where its members lie in the shards.",
            "contentUrl": "index.parquet",
            "encodingFormat": "application/x-parquet",
            "sha256": index_sha256,
        },
        *[
            {
                "@type": "cr:FileObject",
                "@id": entry["path"],
                "name": entry["path"],
                "description": f"WebDataset shard of {entry['samples']} samples.",
                "contentUrl": entry["path"],
                "contentSize": f"{entry['size']} B",
                "encodingFormat": "application/x-tar",
                "sha256": entry["sha256"],
            }
            for entry in shards
        ],
        *[
            {
                "@type": "cr:FileSet",
                "@id": f"{member.name}-files",
                "name": f"{member.name}-files",
                "description": f"Members of the shards: {member.description}",
                "containedIn": [{"@id": entry["path"]} for entry in shards],
                "encodingFormat": list(member.encodings),
                "includes": member.pattern,
            }
            for member in _members(facts)
            if shards
        ],
    ]


def _samples(facts: Facts) -> dict[str, Any]:
    fields = {
        **_COLUMNS,
        **({} if "zoom" in facts.manifest else _GROUND_COLUMNS),
        **{
            f"fraction_{name}": ("sc:Float", f"Share of the map's pixels that are {name}.")
            for name in facts.class_shares
        },
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "One record a sample, from the index.",
        "key": {"@id": "samples/key"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"samples/{name}",
                "name": name,
                "description": description,
                "dataType": data_type,
                "source": {"fileObject": {"@id": "index.parquet"}, "extract": {"column": name}},
            }
            for name, (data_type, description) in fields.items()
        ],
    }


class _Member(NamedTuple):
    """Pixels of a sample, as files in the shards."""

    name: str
    pattern: str
    encodings: tuple[str, ...]
    bands: tuple[str, ...]
    description: str


_IMAGE = _Member(
    *("image", "*.image.*", ("image/jpeg", "image/png"), ("red", "green", "blue")),
    description="The picture as the source gave it.",
)
_MAP = _Member(
    *("map", "*.map.png", ("image/png",), ("class id",)),
    description="Class ids on the pixel grid of the image; the palette has the colours.",
)


_RESAMPLED = _IMAGE._replace(
    description="The source's picture, resampled once to the same ground resolution everywhere."
)


def _members(facts: Facts) -> tuple[_Member, ...]:
    image = _IMAGE if "zoom" in facts.manifest else _RESAMPLED
    return (image, _MAP) if "imagery" in facts.manifest["sources"] else (_MAP,)


def _pixels(member: _Member, key_regex: str) -> dict[str, Any]:
    """The records of one kind of member: its key and its pixels."""
    source = {"fileSet": {"@id": f"{member.name}-files"}}
    return {
        "@type": "cr:RecordSet",
        "@id": f"{member.name}s",
        "name": f"{member.name}s",
        "description": member.description,
        "key": {"@id": f"{member.name}s/key"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{member.name}s/key",
                "name": "key",
                "dataType": "sc:Text",
                "references": {"field": {"@id": "samples/key"}},
                "source": source | {"extract": {"fileProperty": "filename"}, "transform": {"regex": key_regex}},
            },
            {
                "@type": "cr:Field",
                "@id": f"{member.name}s/{member.name}",
                "name": member.name,
                "description": member.description,
                "dataType": "sc:ImageObject",
                "source": source | {"extract": {"fileProperty": "content"}},
                "geocr:bandConfiguration": {
                    "@type": "geocr:BandConfiguration",
                    "geocr:totalBands": len(member.bands),
                    "geocr:bandNameList": list(member.bands),
                },
            },
        ],
    }


def _classes(facts: Facts) -> dict[str, Any]:
    """The class table, whole."""
    types = {"id": "sc:Integer", "name": "sc:Text", "color": "sc:Text"}
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": f"The class table of scheme '{facts.manifest['scheme']}'.",
        "key": {"@id": "classes/id"},
        "field": [
            {"@type": "cr:Field", "@id": f"classes/{name}", "name": name, "dataType": data_type}
            for name, data_type in types.items()
        ],
        "data": [
            {
                "classes/id": each["id"],
                "classes/name": each["name"],
                "classes/color": "#{:02x}{:02x}{:02x}".format(*each["color"]),
            }
            for each in facts.manifest["classes"]
        ],
    }
