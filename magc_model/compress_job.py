"""What `magc compress` does with what it is given: a picture, a scene, a folder of these, or a dataset.

A file that GDAL places, or that only GDAL reads, becomes a scene stream; so does a picture too large for a tile stream.
What only datasets or OpenStreetMap need is imported with them: a single picture does not wait for it.
"""

import contextlib
import csv
import functools
import glob
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from magc_data.atomic import write_atomically
from magc_data.errors import MagcDataError
from magc_data.sources.raster import RASTER_SUFFIXES
from magc_model.codec import MAX_PIXELS, ClassMap, MagcCodec, Picture, Rate, padded_pixels
from magc_model.errors import DataError, MagcModelError, UsageError
from magc_model.picture_files import read_map, read_picture
from magc_model.scene.budget import compress_scene_to_size
from magc_model.scene.compress import MapSource, PixelSource, compress_scene
from magc_model.scene.grid import Window
from magc_model.scene.raster_files import ArrayMap, ArrayPixels, RasterMap, RasterPixels
from magc_model.scene.stream import MAX_CHUNK_PX

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
REPORT_NAME = "report.csv"
STREAM_SUFFIX = ".magc"

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, kw_only=True)
class MapChoice:
    """Where the map comes from; at most one of the three."""

    file: Path | None = None
    """Of the same grid; for a folder of pictures, a folder of maps of the same names."""
    osm: str | None = None
    """A vector source of `magc-data`: rasterised on the scene's own grid."""
    none: bool = False
    """There is no map of this ground."""
    scheme: str | None = None
    """Class scheme for `osm`; found by the model's classes if not given."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the stream is to be like."""

    rate: Rate
    max_bytes: int | None = None
    bpp: float | None = None
    embed_map: bool = False
    seed: int = 0

    def bytes_for(self, width_px: int, height_px: int) -> int | None:
        """The limit for a picture of a size."""
        return self.max_bytes if self.bpp is None else int(self.bpp * width_px * height_px / 8)


class Figures(NamedTuple):
    """What a stream costs."""

    bytes: int
    bpp: float
    ideal_bytes: float
    """Information content of its symbols."""
    embedded_map_bytes: int
    mask_bytes: int
    georeference_bytes: int
    width_px: int
    height_px: int
    lambda_: float | None
    """Of the model that was chosen, where it has one rate."""


class Result(NamedTuple):
    """A stream and what it cost."""

    stream: bytes
    figures: Figures


class Failure(NamedTuple):
    """A picture of a folder of which there is no stream."""

    name: str
    reason: str


class _Opened(NamedTuple):
    """A picture with its map, ready for windows."""

    pixels: PixelSource
    maps: MapSource | None
    is_scene: bool


def compress_one(
    codecs: Sequence[MagcCodec], image: Path, data: bytes | None, choice: MapChoice, wish: Wish, *, quiet: bool
) -> Result:
    """The stream of one picture or scene.

    Args:
        codecs: one; or several of one rate each, of which that is taken whose stream comes nearest to the size from
            below.
        image: the file, or what to call it.
        data: its bytes where they come from elsewhere.
        choice: of the map.
        wish: rate or size.
        quiet: no bar.

    Raises:
        MagcModelError, MagcDataError: in one sentence.
    """
    _check_maps(codecs, choice)
    with contextlib.ExitStack() as stack:
        opened = _open(stack, codecs[0], image, data, choice, quiet=quiet)
        results = [_compressed(codec, opened, wish, quiet=quiet) for codec in codecs]
    limit = wish.bytes_for(opened.pixels.width_px, opened.pixels.height_px)
    if limit is None or codecs[0].is_gained:
        return results[0]
    return _nearest(results, limit)


def compress_folder(
    codec: MagcCodec, folder: Path, out: Path, choice: MapChoice, wish: Wish, *, split: str | None, quiet: bool
) -> tuple[list[Figures], list[Failure]]:
    """Streams of all pictures of a folder, or of all samples of a dataset, with a report.

    A picture that cannot be compressed is named in what this returns; the others are done.

    Raises:
        MagcModelError, MagcDataError: nothing can be done at all.
    """
    from magc_data.dataset import is_dataset

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give a folder for the streams")
    jobs = (
        _dataset_jobs(codec, folder, choice, wish, split)
        if is_dataset(folder)
        else _folder_jobs(codec, folder, choice, wish)
    )
    out.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, Figures]] = []
    failures: list[Failure] = []
    with _bar(len(jobs), "compress", "picture", quiet=quiet) as bar:
        for name, work in jobs:
            try:
                for key, result in work():
                    write_atomically(out / f"{key}{STREAM_SUFFIX}", result.stream)
                    rows.append((key, result.figures))
            except (MagcModelError, MagcDataError) as error:
                failures.append(Failure(name, str(error)))
            bar.update()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["key", *(name.strip("_") for name in Figures._fields), "error"])
    writer.writerows([key, *figures, ""] for key, figures in rows)
    writer.writerows([each.name, *[""] * len(Figures._fields), each.reason] for each in failures)
    write_atomically(out / REPORT_NAME, text.getvalue().encode())
    return [figures for _, figures in rows], failures


_Jobs = list[tuple[str, Callable[[], Iterator[tuple[str, Result]]]]]


def _dataset_jobs(codec: MagcCodec, folder: Path, choice: MapChoice, wish: Wish, split: str | None) -> _Jobs:
    if choice.file is not None or choice.osm is not None:
        raise UsageError("a dataset brings its own maps: leave --map and --osm away")
    from magc_data.dataset import MagcDataset

    dataset = MagcDataset(folder, split)
    known = {(each.id, each.name) for each in codec.model.config.map.classes}
    if (
        codec.model.config.map.is_used
        and not choice.none
        and not {tuple(each)[:2] for each in dataset.classes} <= known
    ):
        raise DataError(f"{folder} has other classes than the model: build it with the scheme that the model knows")

    def work(number: int) -> Iterator[tuple[str, Result]]:
        sample = dataset[number]
        class_ids = None if choice.none else sample.semantic_map
        yield sample.key, _tile(codec, sample.image, class_ids, wish)

    return [(key, functools.partial(work, number)) for number, key in enumerate(dataset.keys)]


def _folder_jobs(codec: MagcCodec, folder: Path, choice: MapChoice, wish: Wish) -> _Jobs:
    suffixes = PICTURE_SUFFIXES | RASTER_SUFFIXES
    pictures = sorted(each for each in folder.iterdir() if each.suffix.lower() in suffixes and each.is_file())
    if not pictures:
        raise UsageError(f"{folder} holds no picture: expected files ending in {' '.join(sorted(suffixes))}")
    names = [each.stem for each in pictures]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{folder} has several pictures named {twice[0]}: their streams would have one name")
    _check_maps([codec], choice)
    if choice.file is not None and not choice.file.is_dir():
        raise UsageError(f"{choice.file} is no folder: for a folder of pictures, give one of maps of the same names")

    def work(picture: Path) -> Iterator[tuple[str, Result]]:
        own = choice
        if choice.file is not None:
            maps = [each for each in sorted(choice.file.glob(f"{glob.escape(picture.stem)}.*")) if each.is_file()]
            if len(maps) != 1:
                raise DataError(f"there are {len(maps)} maps for {picture.name} in {choice.file}: expected one")
            own = MapChoice(file=maps[0])
        yield picture.stem, compress_one([codec], picture, None, own, wish, quiet=True)

    return [(each.name, functools.partial(work, each)) for each in pictures]


def _check_maps(codecs: Sequence[MagcCodec], choice: MapChoice) -> None:
    given = {"--map": choice.file is not None, "--osm": choice.osm is not None, "--no-map": choice.none}
    if len(chosen := [name for name, is_given in given.items() if is_given]) > 1:
        raise UsageError(f"{' and '.join(chosen)} were given: expected one of them")
    if not chosen and any(codec.model.config.map.is_used for codec in codecs):
        raise UsageError("this model reads a map: give --map FILE, --osm FILE, or --no-map if there is none")
    if len(codecs) > 1 and any(codec.is_gained for codec in codecs):
        raise UsageError("several models were given and one of them has many rates: that one alone can aim at a size")


def _open(
    stack: contextlib.ExitStack,
    codec: MagcCodec,
    image: Path,
    data: bytes | None,
    choice: MapChoice,
    *,
    quiet: bool,
) -> _Opened:
    if data is None and is_raster(image):
        pixels = stack.enter_context(contextlib.closing(RasterPixels(image)))
        return _Opened(pixels, open_maps(stack, codec, choice, pixels, quiet=quiet), is_scene=True)
    content = image.read_bytes() if data is None else data
    if content.startswith(_TIFF):
        raise UsageError(f"{image} is a TIFF, which is read by windows: give the path of a file")
    picture = ArrayPixels(read_picture(content, str(image)))
    is_scene = padded_pixels(picture.width_px, picture.height_px) > MAX_PIXELS  # what a reader takes as a tile
    return _Opened(picture, open_maps(stack, codec, choice, picture, quiet=quiet), is_scene)


def is_raster(path: Path) -> bool:
    """Whether a file is read by GDAL rather than by Pillow: a TIFF, or of another format that has a place."""
    if path.suffix.lower() in RASTER_SUFFIXES:
        return True
    with path.open("rb") as stream:
        return stream.read(4) in _TIFF


def open_maps(
    stack: contextlib.ExitStack, codec: MagcCodec, choice: MapChoice, pixels: Any, *, quiet: bool
) -> MapSource | None:
    """The map of something with a size and a georeference."""
    if choice.osm is not None:
        from magc_model.scene.osm_map import open_osm_map

        return stack.enter_context(
            open_osm_map(codec.model.config.map.classes, pixels, choice.osm, choice.scheme, quiet=quiet)
        )
    if choice.file is None:
        return None
    if choice.file.suffix.lower() in PICTURE_SUFFIXES:
        class_ids = read_map(choice.file.read_bytes(), str(choice.file))
        if class_ids.shape != (pixels.height_px, pixels.width_px):
            raise DataError(
                f"the map has {class_ids.shape[1]}x{class_ids.shape[0]} pixels, the picture "
                f"{pixels.width_px}x{pixels.height_px}: they must cover the same ground at the same size"
            )
        return ArrayMap(class_ids)
    maps = RasterMap(choice.file, pixels.width_px, pixels.height_px, pixels.georeference)
    return stack.enter_context(contextlib.closing(maps))


def _compressed(codec: MagcCodec, opened: _Opened, wish: Wish, *, quiet: bool) -> Result:
    pixels, maps = opened.pixels, opened.maps
    if not opened.is_scene:
        assert isinstance(pixels, ArrayPixels)  # noqa: S101  (only these are no scenes)
        return _tile(
            codec,
            pixels.rgb,
            None if maps is None else maps.read(Window(0, 0, pixels.width_px, pixels.height_px)),
            wish,
        )
    limit = wish.bytes_for(pixels.width_px, pixels.height_px)
    chunks = -(-pixels.width_px // MAX_CHUNK_PX) * -(-pixels.height_px // MAX_CHUNK_PX)
    with _bar(chunks, "compress", "chunk", quiet=quiet or chunks == 1) as bar:
        if limit is None or not codec.is_gained:
            scene = compress_scene(
                codec, pixels, maps, rate=wish.rate, seed=wish.seed, embed_map=wish.embed_map, on_chunk=bar.update
            )
        else:
            scene = compress_scene_to_size(
                codec,
                pixels,
                maps,
                max_bytes=limit,
                seed=wish.seed,
                embed_map=wish.embed_map,
                on_chunk=bar.update,
            )
    cost = scene.cost
    parts = (cost.embedded_map, cost.mask, cost.georeference)
    return Result(scene.stream, _figures(codec, cost.total, cost.ideal, parts, pixels.width_px, pixels.height_px))


def _tile(codec: MagcCodec, picture: Picture, class_ids: ClassMap | None, wish: Wish) -> Result:
    height, width = picture.shape[:2]
    limit = wish.bytes_for(width, height)
    if limit is None or not codec.is_gained:
        [result] = codec.compress_batch(
            [picture], [class_ids], rate=wish.rate, seed=wish.seed, embed_map=wish.embed_map
        )
    else:
        result = codec.compress_to_size(picture, class_ids, max_bytes=limit, seed=wish.seed, embed_map=wish.embed_map)
    cost = result.cost
    return Result(result.stream, _figures(codec, cost.total, cost.ideal, (cost.embedded_map, 0, 0), width, height))


def _figures(
    codec: MagcCodec, total: int, ideal: float, parts: tuple[int, int, int], width_px: int, height_px: int
) -> Figures:
    lambda_ = None if codec.is_gained else codec.model.config.rate.lambdas[0]
    bpp = round(8 * total / (width_px * height_px), 5)
    return Figures(total, bpp, round(ideal, 2), *parts, width_px, height_px, lambda_)


def _nearest(results: Sequence[Result], limit: int) -> Result:
    fitting = [each for each in results if each.figures.bytes <= limit]
    if not fitting:
        smallest = min(each.figures.bytes for each in results)
        raise UsageError(
            f"the smallest stream has {smallest} bytes, {limit} were asked for, and a model of one rate cannot aim at "
            "a size: allow more, give --model of a lower lambda as well, or a model trained with --rate gained"
        )
    return max(fitting, key=lambda each: each.figures.bytes)


def _bar(total: int, what: str, unit: str, *, quiet: bool) -> Any:
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=unit, mininterval=interval, disable=quiet, file=sys.stderr)
