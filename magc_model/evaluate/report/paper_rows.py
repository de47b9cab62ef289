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


_ABLATIONS = r"(map=(none|off)|without=|spade=off|diffusion=off|cdm=off)"
_MAGC = PaperRow("MAGC", (rf"magc\b(?!.*{_ABLATIONS})",), "`--codecs magc:MODEL`")
_ELIC = PaperRow("ELIC", (r"elic$",), "a baseline `elic` of `magc-train baseline`")
_HIFIC = PaperRow("HiFiC", (r"hific$",), "a baseline fine-tuned as HiFiC by `magc-train baseline`")

TABLE_1 = (
    PaperRow("VTM-23.3", (r"vtm\b", r"vvc\b"), "`--codecs vvc`, or `vtm:FOLDER` with VTM's programs"),
    PaperRow("BPG", (r"bpg\b", r"hevc\b"), "`--codecs hevc`, or `bpg:FOLDER` with BPG's programs"),
    PaperRow("STF", (r"stf\b",), "`--codecs stf:...` with its checkpoint"),
    _ELIC,
    PaperRow("HL-RSCompNet", (r"hl-rscompnet\b",), "`--codecs hl-rscompnet:...` with its checkpoint"),
    _HIFIC,
    PaperRow("MS-ILLM", (r"ms-illm$",), "a baseline fine-tuned as MS-ILLM by `magc-train baseline`"),
    _MAGC,
)

TABLE_2 = (
    PaperRow("Pre-trained SD VAE", (r"(sd-)?vae\b", r"autoencoder\b"), "a codec of the autoencoder alone"),
    PaperRow(
        "MAGC w/o CDM", (r"magc\b.*(without=cdm|diffusion=off|cdm=off)",), "a MAGC model decoded without its diffusion"
    ),
    PaperRow("MAGC 0.037 bpp", _MAGC.patterns, _MAGC.way_out),
)

TABLE_3 = (
    PaperRow("MAGC w/o map", (r"magc\b.*(map=(none|off)|without=map)",), "a MAGC model trained without a map"),
    PaperRow("MAGC w/o SPADE block", (r"magc\b.*(without=spade|spade=off)",), "a MAGC model trained without SPADE"),
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
            if any(re.match(pattern, text, re.IGNORECASE) for text in (codec.name, codec.label)):
                return codec
    return None
