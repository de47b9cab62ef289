"""The colour spaces that metrics look at pictures in."""

from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

PicturePixels = UInt8[np.ndarray[Any, Any], "height width 3"]
Plane = Float64[np.ndarray[Any, Any], "height width"]

_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# sRGB primaries and the white D65, IEC 61966-2-1.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(axis=1)


def yiq_planes(picture: PicturePixels) -> tuple[Plane, Plane, Plane]:
    """Luma in 0..255 (full-range BT.601) and the two NTSC colour differences."""
    red, green, blue = (picture[..., channel].astype(np.float64) for channel in range(3))
    y, i, q = (row[0] * red + row[1] * green + row[2] * blue for row in _YIQ)
    return y, i, q


def lab_of(colours: Float64[np.ndarray[Any, Any], "*places 3"]) -> Float64[np.ndarray[Any, Any], "*places 3"]:
    """CIE L*a*b* of sRGB colours in 0..255, under D65."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _XYZ.T / _WHITE
    cube = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube[..., 0], cube[..., 1], cube[..., 2]
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)
