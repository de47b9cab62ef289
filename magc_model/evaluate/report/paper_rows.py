"""Which of our codecs stands where in the paper's tables; rows that nothing was measured for say what to run.

A codec is told by its name in the results, `NAME[:ARGUMENT][,OPTION=VALUE...]`, or by its label, as `ELIC + map` is; of
several that fit, the first pattern and then the first codec is taken.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from magc_model.evaluate.results import CodecInfo


class PaperRow(NamedTuple):
    """A row of one of the paper's tables."""

    name: str
    """As the paper has it."""
    patterns: tuple[str, ...]
    """Of names or labels of codecs that are it, or stand in for it, best first."""
    way_out: str
    """What to measure where there is none."""


_OR_ONE_OF_SEVERAL = r"( \(.*\))?$"
"""Codecs of one label carry their names behind it."""
_MAGC = PaperRow(
    "MAGC", (f"magc{_OR_ONE_OF_SEVERAL}",), "`--codec magc:MODEL` with a model that has a denoiser, or `magc,steps=1`"
)


def _without(part: str) -> tuple[str, ...]:
    """MAGC that lacks one part; else its faithful end."""
    return f"magc, {part}{_OR_ONE_OF_SEVERAL}", f"magc, {part}, faithful{_OR_ONE_OF_SEVERAL}"


_ELIC = PaperRow("ELIC", (r"elic$",), "a baseline `elic` of `magc-train baseline`")
_HIFIC = PaperRow("HiFiC", (r"hific$",), "a baseline fine-tuned as HiFiC by `magc-train baseline`")

TABLE_1 = (
    PaperRow("VTM-23.3", (r"vtm\b", r"vvc\b"), "`--codec vvc`, or `vtm:FOLDER` with VTM's programs"),
    PaperRow("BPG", (r"bpg\b", r"hevc\b"), "`--codec hevc`, or `bpg:FOLDER` with BPG's programs"),
    PaperRow("STF", (r"stf\b",), "`--codec stf:...` with its checkpoint"),
    _ELIC,
    PaperRow("HL-RSCompNet", (r"hl-rscompnet\b",), "`--codec hl-rscompnet:...` with its checkpoint"),
    _HIFIC,
    PaperRow("MS-ILLM", (r"ms-illm$",), "a baseline fine-tuned as MS-ILLM by `magc-train baseline`"),
    _MAGC._replace(patterns=(*_MAGC.patterns, f"magc, faithful{_OR_ONE_OF_SEVERAL}")),
)

TABLE_2 = (
    PaperRow("Pre-trained SD VAE", (r"magc's autoencoder alone",), "`--codec magc:MODEL,only=autoencoder`"),
    PaperRow("MAGC w/o CDM", (f"magc, faithful{_OR_ONE_OF_SEVERAL}",), "`--codec magc:MODEL,steps=0`"),
    PaperRow("MAGC 0.037 bpp", _MAGC.patterns, _MAGC.way_out),
)

TABLE_3 = (
    PaperRow("MAGC w/o map", _without("no map"), "a model trained without a map (`pipelines/ablations.py no-map`)"),
    PaperRow(
        "MAGC w/o SPADE block",
        _without("no SPADE"),
        "a model trained without SPADE (`pipelines/ablations.py no-spade`)",
    ),
    _MAGC,
    _HIFIC,
    PaperRow("HiFiC + map", (r"hific \+ map$",), "a baseline fine-tuned as HiFiC with a map by `magc-train baseline`"),
    _ELIC,
    PaperRow("ELIC + map", (r"elic \+ map$",), "a baseline `elic` with a map by `magc-train baseline`"),
)

PAPER_RATE_BPP = 0.037
"""Of table 2's MAGC."""


def codec_of_row(row: PaperRow, codecs: Sequence[CodecInfo]) -> CodecInfo | None:
    """The codec that is a row's, if one was measured."""
    for pattern in row.patterns:
        for codec in codecs:
            # What a MAGC lacks is in its label alone: `magc` may be either end of a model.
            texts = (codec.label,) if codec.name.startswith("magc") else (codec.name, codec.label)
            if any(re.match(pattern, text, re.IGNORECASE) for text in texts):
                return codec
    return None
