"""Of how many samples the capture date is known, and why not of the others: what the manifest and the commands say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from magc_data.schema.sample import CaptureUnknown

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELD = "capture_dates"
"""In the manifest: `known`, and the others by reason; absent where the imagery tells no captures."""
COLUMN = "capture_unknown"

_REASONS = {
    CaptureUnknown.NO_LAYER: "the service has no layer that tells dates",
    CaptureUnknown.NOT_ANSWERED: "the service did not answer; run the same command again to ask once more",
    CaptureUnknown.NOT_COVERED: "the service tells of no picture there",
    CaptureUnknown.OTHER_TIME: "they were fetched more than a week from when the service was asked for dates",
    CaptureUnknown.NOT_DATED: "the service does not say when the picture was taken",
}


def count_captures(tables: Iterable[pa.Table]) -> dict[str, Any]:
    """What the manifest says of some index rows that have the columns of captures."""
    known = 0
    unknown: dict[str, int] = {}
    for table in tables:
        for each in pc.value_counts(table[COLUMN]).to_pylist():
            if each["values"] is None:
                known += each["counts"]
            else:
                unknown[each["values"]] = unknown.get(each["values"], 0) + each["counts"]
    return {"known": known, "unknown": dict(sorted(unknown.items()))}


def captures_to_ask_again(manifest: dict[str, Any]) -> int:
    """Samples whose date may come yet: the service did not answer when it was asked."""
    unknown = manifest.get(FIELD, {}).get("unknown", {})
    return int(unknown.get(CaptureUnknown.NOT_ANSWERED, 0))


def has_captures_to_ask_again(samples: pa.Table) -> bool:
    """The same of some index rows, which need not have the column."""
    if COLUMN not in samples.column_names:
        return False
    return bool(pc.any(pc.equal(samples[COLUMN], str(CaptureUnknown.NOT_ANSWERED))).as_py())


def captures_as_text(manifest: dict[str, Any]) -> list[str]:
    """A line a reason why dates are not known; nothing where all are, or where the imagery tells none."""
    unknown = manifest.get(FIELD, {}).get("unknown", {})
    return [
        f"{count} samples without a capture date: {_REASONS.get(reason, reason)}" for reason, count in unknown.items()
    ]
