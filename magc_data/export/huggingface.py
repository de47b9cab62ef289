"""A Hugging Face dataset: Parquet files that `datasets.load_dataset(OUT)` reads, with pictures inside, and a card.

    OUT/README.md                             the card: licence, splits, datasheet
    OUT/data/train-00000-of-00003.parquet     at most about 256 MB each

Splits are called as the hub calls them: `val` becomes `validation`, a dataset without splits is all `train`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from magc_data.atomic import write_atomically
from magc_data.export.job import UNSPLIT
from magc_data.metadata.datasheet import datasheet
from magc_data.metadata.facts import LICENCE_URLS
from magc_data.shards.index import FRACTION_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from magc_data.export.job import ExportJob, Side
    from magc_data.metadata.facts import Facts

FILE_BYTES = 256_000_000
"""Images and maps in one Parquet file, at most (one sample at least)."""
ROWS_PER_GROUP = 100
"""As the `datasets` library writes pictures: a reader of one row reads no more than this."""

HUB_SPLITS = {UNSPLIT: "train", "val": "validation"}
HUB_LICENCES = {"CC-BY-4.0": "cc-by-4.0", "CC-BY-SA-4.0": "cc-by-sa-4.0", "CC0-1.0": "cc0-1.0", "ODbL-1.0": "odbl"}

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = {
    "key": pa.string(),
    "image": _PICTURE,
    "map": _PICTURE,
    "z": pa.uint8(),
    "x": pa.int32(),
    "y": pa.int32(),
    "lon": pa.float64(),
    "lat": pa.float64(),
    "gsd_m": pa.float64(),
    "capture_date": pa.string(),
    "osm_timestamp": pa.string(),
    "image_sha256": pa.string(),
    "map_sha256": pa.string(),
}
_NAMES_OF_TYPES = {pa.uint8(): "uint8", pa.int32(): "int32", pa.float32(): "float32", pa.float64(): "float64"}


def write_huggingface(job: ExportJob) -> None:
    """Write all sides and the card."""
    (job.folder / "data").mkdir()
    for side in job.sides:
        _write_side(job, side)
    write_atomically(job.folder / "README.md", _card(job.facts, [_hub_name(side) for side in job.sides]).encode())


def _hub_name(side: Side) -> str:
    return HUB_SPLITS.get(side.name, side.name)


def _schema(rows: pa.Table) -> pa.Schema:
    """Columns of a file; the library reads from the metadata which of them are pictures."""
    fractions = {name: pa.float32() for name in rows.column_names if name.startswith(FRACTION_PREFIX)}
    columns = _COLUMNS | fractions
    features = {
        name: {"_type": "Image"}
        if kind == _PICTURE
        else {"_type": "Value", "dtype": _NAMES_OF_TYPES.get(kind, "string")}
        for name, kind in columns.items()
    }
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _write_side(job: ExportJob, side: Side) -> None:
    schema = _schema(side.rows)
    counts = _rows_of_files(side.rows)
    samples = job.samples(side)
    for number, count in enumerate(counts):
        name = f"{_hub_name(side)}-{number:05d}-of-{len(counts):05d}.parquet"
        with pq.ParquetWriter(job.folder / "data" / name, schema, compression="snappy") as writer:
            for start in range(0, count, ROWS_PER_GROUP):
                rows = []
                for _ in range(min(ROWS_PER_GROUP, count - start)):
                    sample = next(samples)
                    key, image = sample.row["key"], sample.image
                    pictures = {
                        "image": image and _picture(f"{key}.{sample.row['image_format']}", image),
                        "map": _picture(f"{key}.png", sample.semantic_map),
                    }
                    rows.append(sample.row | pictures)
                    job.sample_done()
                writer.write_table(pa.Table.from_pylist(rows, schema))


def _picture(name: str, content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": name}


def _rows_of_files(rows: pa.Table) -> list[int]:
    """How many samples go into each file, in order."""

    def sizes() -> Iterator[int]:
        for image, semantic_map in zip(rows["image_size"].to_pylist(), rows["map_size"].to_pylist(), strict=True):
            yield (image or 0) + semantic_map

    counts, filled = [0], 0
    for size in sizes():
        if counts[-1] and filled + size > FILE_BYTES:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += size
    return counts


def _card(facts: Facts, splits: list[str]) -> str:
    """README.md: what the hub reads, how to load, the datasheet."""
    licences = [source["licence"] for source in facts.manifest["sources"].values()]
    known = all(licence in HUB_LICENCES for licence in licences)
    fields: dict[str, Any] = {
        "pretty_name": facts.title,
        "license": sorted({HUB_LICENCES[licence] for licence in licences}) if known else "other",
        **({} if known else {"license_name": "see-attribution", "license_link": "ATTRIBUTION.md"}),
        "task_categories": ["image-segmentation"],
        "tags": ["remote-sensing", "openstreetmap", "geospatial"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits],
            }
        ],
    }
    links = [f"- {name}: {LICENCE_URLS[name]}" for name in sorted(set(licences)) if name in LICENCE_URLS]
    usage = [
        "```python",
        "import numpy as np",
        "from datasets import load_dataset",
        "",
        f'sample = load_dataset("PATH_OR_NAME", split="{splits[0]}")[0]',
        'image = np.asarray(sample["image"].convert("RGB"))  # uint8 [256, 256, 3]' if facts.image_formats else "",
        'class_ids = np.asarray(sample["map"])  # uint8 [256, 256]; the class table is below',
        "```",
    ]
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return "\n".join(["---", front + "---", "", *filter(None, usage), "", datasheet(facts), *links, ""])
