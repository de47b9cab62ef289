"""What a chunk of a Zarr array is stored as. No torch, no Zarr. docs/codec.md says it in words.

    one picture        its .magc stream
    several            magic 2 | version 1 | count | length of each stream | stream | stream | ...

Counts and lengths are varints. Every stream has a check of its own.
"""

from collections.abc import Sequence

from magc_model.errors import BitstreamError
from magc_model.wire import Reader, malformed, require, varint

CHUNK_MAGIC = b"\x8fZ"

VERSION = 1


def pack_chunk(streams: Sequence[bytes]) -> bytes:
    """Bytes of a chunk of one picture or more.

    Raises:
        ValueError: there are none; a programming error.
    """
    require(len(streams) > 0, "count")
    if len(streams) == 1:
        return streams[0]
    lengths = b"".join(varint(len(each)) for each in streams)
    return CHUNK_MAGIC + bytes([VERSION]) + varint(len(streams)) + lengths + b"".join(streams)


def unpack_chunk(data: bytes) -> list[bytes]:
    """The streams of a chunk, which are not looked into.

    Raises:
        BitstreamError: the chunk is damaged, cut short or of another version.
    """
    if not data.startswith(CHUNK_MAGIC):
        return [data]
    reader = Reader(data)
    reader.take(len(CHUNK_MAGIC))
    version = reader.byte()
    if version != VERSION:
        raise BitstreamError(
            f"the chunk is of version {version}, this magc reads version {VERSION}: use the magc that wrote it"
        )
    count = reader.varint()
    if count < 2:
        raise malformed(f"a chunk of {count} pictures has no header of its own")
    if count > reader.left:
        raise malformed("its header is longer than the stream")
    lengths = [reader.varint() for _ in range(count)]
    streams = [reader.take(length) for length in lengths]
    if reader.left:
        raise malformed(f"{reader.left} bytes are left over")
    return streams
