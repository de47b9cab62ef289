"""What is known of one picture after one codec has had it at one rate; figures and reports are made of these alone.

A tile is its own only cut; a scene is measured in cuts of 256 px, so that what is averaged and resampled is the same
kind of thing in both.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from magc_model.evaluate.request import On as On

CUT_PX = 256
"""Side of the squares that figures are averages over: the paper's pictures."""

ORIGINAL = "original"
"""In a codec's place: the pictures themselves, whose scores are the ceiling."""


UNKNOWN_SIZE = -1
"""Bytes of a picture that was decoded elsewhere, of which no stream was given."""


class Cost(NamedTuple):
    """What it took."""

    bytes: int
    """Of the file, or UNKNOWN_SIZE."""
    stream_bytes: int | None
    encode_s: float
    decode_s: float
    """On one thread, beside the other processes of the evaluation; 0 for what was not done here."""


class Measurement(NamedTuple):
    """One picture, one codec, one rate."""

    codec: str
    rate: float
    on: On
    key: str
    """Of the tile or scene."""
    width_px: int
    height_px: int
    cost: Cost
    values: dict[str, Float64[np.ndarray[Any, Any], " cuts"]]
    """By the metric's name: one figure a cut. Not finite where it is not defined."""
    features: dict[str, Float32[np.ndarray[Any, Any], "patches dimensions"]]
    """By the distance's name: what patches look like to its network."""
    confusions: dict[str, Int64[np.ndarray[Any, Any], "cuts classes classes"]]
    """By the score's name: pixels by their reference class (rows) and by what is seen in the decoded picture."""


class Footprint(NamedTuple):
    """Time and memory of a codec in a process that does nothing else, on one item at its middle rate."""

    encode_s: float
    decode_s: float
    peak_mb: float
    """Largest resident memory of the process and of the largest program that it ran, together."""
