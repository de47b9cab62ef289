"""A VRT: many mosaics that a program opens as one picture. Only text; the mosaics stay where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from magc_data.atomic import write_atomically
from magc_data.grid import TILE_SIZE_PX

if TYPE_CHECKING:
    from pathlib import Path

    from magc_data.export.geotiff import MapLook, TileWindow

_IMAGE_BANDS = ("Red", "Green", "Blue", "Alpha")
_MAX_SIDE_PX = 2**31 - 1


def write_vrt(path: Path, folder: str, windows: dict[str, TileWindow], look: MapLook | None) -> None:
    """Write a VRT over the files of a folder beside it.

    Where they lie so far apart that no raster can hold them all (the whole world at zoom 23), there is none.

    Args:
        path: of the VRT.
        folder: of the mosaics, from the VRT's folder.
        windows: file name -> the tiles that it covers, all of one pixel grid.
        look: of maps; None for images.
    """
    west, north = min(each.x for each in windows.values()), min(each.y for each in windows.values())
    columns = max(each.x + each.columns for each in windows.values()) - west
    rows = max(each.y + each.rows for each in windows.values()) - north
    if max(columns, rows) * TILE_SIZE_PX > _MAX_SIDE_PX:
        return
    first = next(iter(windows.values()))
    root = ET.Element("VRTDataset", rasterXSize=str(columns * TILE_SIZE_PX), rasterYSize=str(rows * TILE_SIZE_PX))
    ET.SubElement(root, "SRS").text = first.pixels.crs
    corner = first._replace(x=west, y=north).transform
    ET.SubElement(root, "GeoTransform").text = ", ".join(map(repr, corner.to_gdal()))
    for number, interpretation in enumerate(_IMAGE_BANDS if look is None else ("Palette",), 1):
        band = ET.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number))
        ET.SubElement(band, "ColorInterp").text = interpretation
        if look is not None:
            _describe_classes(band, look)
        for name, window in windows.items():
            source = ET.SubElement(band, "SimpleSource")
            ET.SubElement(source, "SourceFilename", relativeToVRT="1").text = f"{folder}/{name}"
            ET.SubElement(source, "SourceBand").text = str(number)
            size = {"xSize": window.columns * TILE_SIZE_PX, "ySize": window.rows * TILE_SIZE_PX}
            place = {"xOff": (window.x - west) * TILE_SIZE_PX, "yOff": (window.y - north) * TILE_SIZE_PX}
            for element, offset in (("SrcRect", {"xOff": 0, "yOff": 0}), ("DstRect", place)):
                ET.SubElement(source, element, {key: str(value) for key, value in (offset | size).items()})
    ET.indent(root)
    write_atomically(path, ET.tostring(root, encoding="utf-8") + b"\n")


def _describe_classes(band: ET.Element, look: MapLook) -> None:
    ET.SubElement(band, "NoDataValue").text = str(look.nodata)
    categories = ET.SubElement(band, "CategoryNames")
    table = ET.SubElement(band, "ColorTable")
    for number in range(max(look.names) + 1):
        ET.SubElement(categories, "Category").text = look.names.get(number, "")
        colour = look.colours.get(number, (0, 0, 0, 0))
        ET.SubElement(table, "Entry", {f"c{place}": str(value) for place, value in enumerate(colour, 1)})
