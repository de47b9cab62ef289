"""What `magc evaluate` can be told. No torch here: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from magc_model.errors import UsageError


class On(StrEnum):
    """What a codec is given at a time."""

    TILES = "tiles"
    SCENES = "scenes"


Repeated = Parameter(negative="")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure, on what, and where the report goes."""

    report: Path
    """Folder for report.html, report.md, results.json and the measurements. The same command again continues there."""
    codecs: Annotated[tuple[str, ...], Parameter(name=("--codec", "-c"), negative="")] = ()
    """NAME[:ARGUMENT][,OPTION=VALUE...], several times; `magc codecs` names them; decoded:FOLDER[,streams=FOLDER] for
    pictures that another program has decoded. Default: the model in the box at its realistic and at its faithful
    end, and six standard codecs."""
    split: str | None = None
    """Samples of this split of the dataset only."""
    on: Annotated[tuple[On, ...], Repeated] = (On.TILES, On.SCENES)
    """tiles, scenes (neighbouring tiles as one picture of 1024 px a side and more) or both, which is the default."""
    limit: int | None = None
    """At most so many tiles and so many scenes, from all over the dataset."""
    anchor: str | None = None
    """Codec that Bjontegaard differences are taken against, as --codec has it. Default: vvc where it is one of them,
    else the first."""
    segmenter: Path | None = None
    """Run of `magc-train segmenter`, or its result: for map consistency."""
    segmentation_model: Annotated[tuple[str, ...], Repeated] = ()
    """For mIoU between segmentations of original and decoded picture: torchvision:NAME=FILE, transformers:FOLDER or
    torchscript:FILE."""
    weights_dir: Path | None = None
    """Folder with the weights of LPIPS, DISTS, MUSIQ, CLIP-IQA and FID; what is absent is left out and named."""
    seed: int = 0
    """Of the resampling that intervals come from; a codec's own seed is its option."""
    workers: int = 0
    """Processes that measure side by side; the figures do not depend on it, but for times. 0: one for each core."""
    quiet: Annotated[bool, Repeated] = False
    """No progress bar."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name, least in (("workers", 0), ("seed", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} is {value}: expected {least} or more")
        if not self.on:
            raise UsageError("--on names nothing: expected tiles, scenes or both")
