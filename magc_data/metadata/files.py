"""The metadata files of a dataset, name by name: what `build` writes and `verify` expects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from magc_data.metadata.croissant import croissant
from magc_data.metadata.datasheet import datasheet
from magc_data.metadata.stac import stac_collection

if TYPE_CHECKING:
    from magc_data.metadata.facts import Facts

CROISSANT_NAME = "croissant.json"
STAC_NAME = "collection.json"
DATASHEET_NAME = "DATASHEET.md"
METADATA_NAMES = (CROISSANT_NAME, STAC_NAME, DATASHEET_NAME)


def metadata_files(facts: Facts, index_sha256: str) -> dict[str, bytes]:
    """Content of each metadata file, by name: the same for the same dataset."""
    return {
        CROISSANT_NAME: _json(croissant(facts, index_sha256)),
        STAC_NAME: _json(stac_collection(facts)),
        DATASHEET_NAME: datasheet(facts).encode(),
    }


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
