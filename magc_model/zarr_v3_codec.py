"""`MagcZarrCodec`: `MagcNumcodec` for Zarr format 3, where it is what makes bytes of a chunk (the `serializer`)."""

import asyncio
import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from magc_model.errors import BitstreamError
from magc_model.zarr_codec import MagcNumcodec


@dataclasses.dataclass(frozen=True)
class MagcZarrCodec(ArrayBytesCodec):  # type: ignore[misc]  # Zarr is optional
    """Fields, limits and errors are those of `MagcNumcodec`; a chunk's bytes are the same."""

    model: str
    fingerprint: str | None = None
    quality: float | None = None
    steps: int = 0
    seed: int = 0

    is_fixed_size = False

    def __post_init__(self) -> None:
        """Refuse what `MagcNumcodec` refuses, and keep what it keeps."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, getattr(self._numcodec, field.name))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MagcZarrCodec":
        """The codec of an array's metadata."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """What an array's metadata say of the codec."""
        return {"name": MagcNumcodec.codec_id, "configuration": dataclasses.asdict(self)}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Depends on what is in the chunk: by this error Zarr is told so."""
        raise NotImplementedError

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        chunk = np.ascontiguousarray(chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(await asyncio.to_thread(self._numcodec.encode, chunk))

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        shape = tuple(chunk_spec.shape)
        chunk = await asyncio.to_thread(self._numcodec.decode, chunk_data.to_bytes())
        if shape not in (chunk.shape, (1, *chunk.shape)):
            found, expected = (" x ".join(map(str, each)) for each in (chunk.shape, shape))
            raise BitstreamError(f"a chunk is of shape {found}, the array's are {expected}: get the array again")
        return chunk_spec.prototype.nd_buffer.from_numpy_array(chunk.reshape(shape))

    @cached_property
    def _numcodec(self) -> MagcNumcodec:
        return MagcNumcodec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
