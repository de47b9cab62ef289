"""Pictures and maps in plain files without a georeference: PNG, JPEG and WebP."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from jaxtyping import UInt8

from magc_model.errors import DataError, UsageError

Picture = UInt8[np.ndarray[Any, Any], "height width 3"]
ClassMap = UInt8[np.ndarray[Any, Any], "height width"]

READABLE = ("PNG", "JPEG", "WEBP")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_WRITE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}

_COLOUR_MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr")
_ID_MODES = ("P", "L")


def read_picture(data: bytes, name: str) -> Picture:
    """RGB of an encoded picture, turned as its EXIF orientation says; grey becomes RGB.

    Args:
        data: the file's bytes.
        name: what to call it in messages.

    Raises:
        DataError: it cannot be read, has more than 8 bits a channel, or has transparent pixels.
    """
    with _opened(data, name) as picture:
        if picture.mode not in _COLOUR_MODES:
            raise DataError(f"{name} has pixels of kind {picture.mode}: expected 8 bits a channel, grey or RGB")
        if _is_transparent(picture):
            raise DataError(f"{name} has transparent pixels, whose colour nobody knows: fill them, or cut them away")
        return np.array(PIL.ImageOps.exif_transpose(picture).convert("RGB"))


def read_map(data: bytes, name: str) -> ClassMap:
    """Class ids of a map as `magc-data` writes it: an 8-bit palette or grey picture whose pixels are class ids.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """
    with _opened(data, name) as picture:
        if picture.mode not in _ID_MODES or picture.format == "JPEG":
            raise DataError(
                f"{name} is a {picture.format} of kind {picture.mode}: a map is a lossless 8-bit palette or grey "
                "picture whose pixels are class ids, such as `magc-data build` writes"
            )
        return np.array(picture)


def _opened(data: bytes, name: str) -> PIL.Image.Image:
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=READABLE)
        picture.load()
    except PIL.UnidentifiedImageError:
        raise DataError(f"{name} is no picture that can be read: expected {', '.join(READABLE)}") from None
    except (OSError, ValueError, SyntaxError, MemoryError, PIL.Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} cannot be read ({reason}): it is damaged or too large") from None
    return picture


def _is_transparent(picture: PIL.Image.Image) -> bool:
    if not picture.has_transparency_data:
        return False
    return bool(np.asarray(picture.convert("RGBA").getchannel("A")).min() < 255)


def output_format(path: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        UsageError: none that can be written.
    """
    if path.suffix.lower() not in WRITABLE:
        raise UsageError(f"{path} ends in '{path.suffix}': expected one of {', '.join(WRITABLE)}")
    return WRITABLE[path.suffix.lower()]


def encoded_picture(picture: Picture, kind: str, origin: dict[str, Any]) -> bytes:
    """A picture's file, which says what it came from.

    Args:
        picture: RGB.
        kind: PNG, JPEG or WEBP.
        origin: what made it; stored as JSON in a PNG's text `magc`, or in the EXIF description.
    """
    text = json.dumps(origin)
    options = dict(_WRITE_OPTIONS[kind])
    if kind == "PNG":
        options["pnginfo"] = PIL.PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("magc", text)
    else:
        exif = PIL.Image.Exif()
        exif[0x010E] = text  # ImageDescription
        options["exif"] = exif
    stream = io.BytesIO()
    PIL.Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()
