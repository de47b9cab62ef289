"""What every codec under evaluation offers: a picture to the bytes of a file, and back from these bytes alone."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray[Any, Any], "_height _width 3"]
"""RGB."""
ClassMap = UInt8[np.ndarray[Any, Any], "_height _width"]
"""Class ids on the picture's own grid."""


class Encoded(NamedTuple):
    """A compressed picture."""

    data: bytes
    """The whole file: what bits a pixel are counted of."""
    stream_bytes: int | None = None
    """How many of them are the elementary stream, without the file format around it; none where that is not known."""


@runtime_checkable
class ImageCodec(Protocol):
    """A codec with a scale of rates. One object serves one process; it is made there by `registry.open_codec`."""

    @property
    def name(self) -> str:
        """What it is asked for by, with its options: what tells two codecs apart in the results."""
        ...

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        ...

    @property
    def version(self) -> str:
        """Of the library, program or weights that do the work: part of what a result belongs to."""
        ...

    @property
    def rates(self) -> tuple[float, ...]:
        """Settings to measure, from the smallest files to the largest; what the numbers mean is the codec's own."""
        ...

    @property
    def uses_map(self) -> bool:
        """Whether it looks at the map; its bytes are not counted, as the receiver has it."""
        ...

    def encode(self, picture: Picture, semantic_map: ClassMap | None, rate: float) -> Encoded:
        """Compress one picture of any size at one of the rates."""
        ...

    def decode(self, data: bytes, semantic_map: ClassMap | None) -> Picture:
        """The picture again, of its own size, from nothing but the file's bytes and the map."""
        ...
