"""What a `.magc` stream says of itself, without a model."""

from typing import Any

from magc_model.bitstream import RATE_STEPS, MapKind, TileStream, unpack_tile
from magc_model.errors import BitstreamError
from magc_model.scene.georeference import Georeference, unpack_georeference
from magc_model.scene.stream import SCENE_MAGIC, SceneIndex, unpack_chunk, unpack_header


def described(data: bytes) -> dict[str, Any]:
    """Fields of a tile's or a scene's stream, ready for JSON.

    Raises:
        BitstreamError: it is damaged, or no stream.
    """
    return _scene(data) if data.startswith(SCENE_MAGIC) else _tile(data, unpack_tile(data))


def _tile(data: bytes, tile: TileStream) -> dict[str, Any]:
    return {
        "kind": "tile",
        **_size(data, tile.width_px, tile.height_px),
        "entropy_model": tile.entropy_model.hex(),
        "rate": None if tile.rate is None else round(tile.rate / RATE_STEPS, 4),
        "seed": tile.seed,
        "map": {
            MapKind.NONE: "none",
            MapKind.DIGEST: f"digest {tile.map_data.hex()}",
            MapKind.EMBEDDED: f"embedded, {len(tile.map_data)} bytes",
        }[tile.map_kind],
        "payload_bytes": len(tile.payload),
    }


def _scene(data: bytes) -> dict[str, Any]:
    index = unpack_header(data)
    header, place = index.header, unpack_georeference(index.header.georeference)
    chunks, damaged = _chunks(data, index, place)
    rates = [chunk.rate for chunk in chunks if chunk.rate is not None]
    return {
        "kind": "scene",
        **_size(data, header.width_px, header.height_px),
        "entropy_model": header.entropy_model.hex(),
        "rate": [round(each(rates) / RATE_STEPS, 4) for each in (min, max)] if rates else None,
        "seed": header.seed,
        "map": header.map_kind.name.lower(),
        "payload_bytes": sum(len(chunk.payload) for chunk in chunks),
        "chunk_px": header.chunk_px,
        "chunks": header.chunk_rows * header.chunk_columns,
        "damaged_chunks": damaged,
        "crs": f"EPSG:{place.epsg}" if place.epsg is not None else place.wkt,
        "transform": None if place.transform is None else list(place.transform),
        "missing": place.missing.name.lower(),
        "nodata": place.nodata,
        "tags": dict(place.tags),
    }


def _chunks(data: bytes, index: SceneIndex, place: Georeference) -> tuple[list[Any], list[int]]:
    chunks, damaged = [], []
    for number, (start, stop) in enumerate(zip(index.offsets[:-1], index.offsets[1:], strict=True)):
        if start == stop:
            continue
        try:
            chunks.append(unpack_chunk(data[start:stop], number, index, has_mask=bool(place.missing)))
        except BitstreamError:
            damaged.append(number)
    return chunks, damaged


def _size(data: bytes, width_px: int, height_px: int) -> dict[str, Any]:
    return {
        "bytes": len(data),
        "bpp": round(8 * len(data) / (width_px * height_px), 5),
        "width_px": width_px,
        "height_px": height_px,
    }
