"""What the paper reports (arXiv 2409.01935): its tables as printed, its curves as read off, for our figures beside.

The curves were read off the published plots, marker by marker, so they carry a reading error; `read_off_table1` says
how far Bjontegaard differences of them are from those that the paper printed.
"""

import json
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from magc_model.evaluate.curves import LEAST_OVERLAP, Curve, Method, bd_metric

ANCHOR = "VTM-23.3"
"""What the paper's Bjontegaard differences are against."""

MAGC = "MAGC"

COLUMN_OF_METRIC = {
    "psnr-y": "PSNR",
    "ms-ssim-y": "SSIM",
    "lpips": "LPIPS",
    "dists": "DISTS",
    "musiq": "MUSIQ",
    "fid": "FID",
}
"""What the paper calls a metric; its PSNR and SSIM, a multi-scale one, are of luma."""

MIOU, MIOU_PREFIX = "mIoU", "miou:"
"""A metric of such a name is an agreement of segmentations, as the paper's with RVSA is."""


def paper_column(metric: str) -> str | None:
    """What the paper calls one of our metrics; None where it has nothing like it."""
    return MIOU if metric.startswith(MIOU_PREFIX) else COLUMN_OF_METRIC.get(metric)


class Table(NamedTuple):
    """A printed table."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


class PaperResults(NamedTuple):
    """Everything taken from the paper."""

    paper: str
    source: str
    table1: Table
    """BD differences against VTM-23.3."""
    table2: Table
    table3: Table
    """BD differences against VTM-23.3."""
    curves: dict[str, dict[str, Curve]]
    """By the paper's name of the metric, then of the codec."""


class ReadOffDelta(NamedTuple):
    """A figure of table 1, and the same from the read-off curves."""

    metric: str
    codec: str
    printed: float
    read_off: float | None
    """By the cubic, however little the curves overlap; None where there is none to be had."""
    refused: str | None
    """Why such a figure of our own curves would not be shown."""


@cache
def paper_results() -> PaperResults:
    """Read them from the package."""
    document = json.loads(resources.files("magc_model.evaluate").joinpath("paper_results.json").read_text("utf-8"))

    def table(name: str) -> Table:
        rows = document[name]["rows"]
        return Table(tuple(document[name]["columns"]), {row: tuple(map(float, values)) for row, values in rows.items()})

    curves = {
        metric: {codec: Curve(*np.array(points, np.float64).T) for codec, points in codecs.items()}
        for metric, codecs in document["curves"].items()
    }
    return PaperResults(
        document["paper"], document["source"], table("table1"), table("table2"), table("table3"), curves
    )


def read_off_table1() -> tuple[ReadOffDelta, ...]:
    """Table 1 from the read-off curves: what the digitisation is worth."""
    paper = paper_results()
    rows = []
    for metric, curves in paper.curves.items():
        if metric not in paper.table1.columns:
            continue
        column = paper.table1.columns.index(metric)
        for codec, values in paper.table1.rows.items():
            if codec == ANCHOR:
                continue
            if codec not in curves:
                rows.append(ReadOffDelta(metric, codec, values[column], None, "its curve was not read off"))
                continue
            any_overlap, delta = (
                bd_metric(curves[ANCHOR], curves[codec], Method.CUBIC, least) for least in (0.0, LEAST_OVERLAP)
            )
            rows.append(ReadOffDelta(metric, codec, values[column], any_overlap.value, delta.refused))
    return tuple(rows)
