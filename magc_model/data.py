"""Training data: where samples come from, and which samples, symmetries and crops each step sees.

Nothing here has a state: what a step reads is a function of the seed and the step's number alone, so a run that goes
on after a kill needs to know its step and nothing else.
"""

import functools
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from magc_data.dataset import MagcDataset, TileSample, is_dataset, sample_order
from magc_data.errors import MagcDataError
from magc_data.schema.classes import SemanticClass
from magc_model.config import IMAGE_STRIDE, LATENT_STRIDE, MapClass, MapConfig, ModelConfig
from magc_model.errors import DataError, MagcModelError, UsageError
from magc_model.shapes import ClassIds, Image, Latent

PICTURE_SUFFIXES = (".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PICTURE_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
PICTURE_MODES = ("RGB", "L")

SYMMETRIES = 8
"""Of the square: four rotations, each plain and mirrored."""

_SAMPLING = 0
"""Names the stream of random numbers of crops and symmetries; that of orders is 1 (sample_order)."""


# --- where samples come from -----------------------------------------------------------------------------------------


class ImageFolder:
    """Pictures of a folder and its subfolders, 8-bit RGB or grey, as samples without a map.

    Maps are all zero and there are no classes, so that no sample is taken to have one.

    Raises:
        DataError: no folder, no picture in it, or one that cannot be read; also when a sample is read.
    """

    classes: tuple[SemanticClass, ...] = ()

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: give one with a dataset made by `magc-data build`, or of pictures")
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        visible = (path for path in found if not any(part.startswith(".") for part in path.parts))
        self.keys = sorted(path.as_posix() for path in visible if (folder / path).is_file())
        if not self.keys:
            kinds = ", ".join(each.removeprefix(".") for each in PICTURE_SUFFIXES)
            raise DataError(f"{folder} holds neither a dataset made by `magc-data build` nor pictures ({kinds})")
        self.sizes_px: NDArray[np.int64] = np.array(
            [_look(folder / key, lambda picture: (picture.height, picture.width)) for key in self.keys]
        )
        """Height and width of every picture, [samples, 2]."""

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> TileSample:
        key = self.keys[number]
        image = _look(self._folder / key, lambda picture: np.asarray(picture.convert("RGB")))
        return TileSample(key, image, np.zeros(image.shape[:2], np.uint8), float("nan"))

    def read_map(self, number: int) -> NDArray[np.uint8]:
        """All zero, of the picture's size."""
        return np.zeros(self.sizes_px[number], np.uint8)

    @functools.cached_property
    def digest(self) -> str:
        """Sha256 of the pictures' names and contents."""
        sha256 = hashlib.sha256()
        for key in self.keys:
            with (self._folder / key).open("rb") as stream:
                sha256.update(f"{key}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return sha256.hexdigest()


Seen = TypeVar("Seen")


class Part:
    """Some samples of a dataset or folder, as a source of its own.

    Args:
        whole: the samples to choose from.
        numbers: which of them, in order.
    """

    def __init__(self, whole: MagcDataset | ImageFolder, numbers: range) -> None:
        self._whole, self._numbers = whole, numbers
        self.classes = whole.classes
        self.keys = whole.keys[numbers.start : numbers.stop]
        self.sizes_px: NDArray[np.int64] = whole.sizes_px[numbers.start : numbers.stop]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> TileSample:
        return self._whole[self._numbers[number]]

    def read_map(self, number: int) -> NDArray[np.uint8]:
        """The sample's map alone."""
        return self._whole.read_map(self._numbers[number])

    @property
    def digest(self) -> str:
        """Sha256 that identifies the samples."""
        return hashlib.sha256(f"{self._whole.digest} {self._numbers}".encode()).hexdigest()


class Joined:
    """Several sources with the same class table as one.

    Raises:
        DataError: their class tables differ.
    """

    def __init__(self, parts: Sequence[MagcDataset | ImageFolder | Part]) -> None:
        self._parts = tuple(parts)
        self.classes = self._parts[0].classes
        for each in self._parts:
            for ours, theirs in itertools.zip_longest(self.classes, each.classes):
                if ours is None or theirs is None or ours[:2] != theirs[:2]:
                    raise DataError(
                        f"one dataset has {_class_text(ours)} where another has {_class_text(theirs)}: give datasets "
                        "of one scheme"
                    )
        self.keys = [key for each in self._parts for key in each.keys]
        self.sizes_px: NDArray[np.int64] = np.concatenate([each.sizes_px for each in self._parts])
        self._ends = np.cumsum([len(each) for each in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> TileSample:
        part, place = self._find(number)
        return part[place]

    def read_map(self, number: int) -> NDArray[np.uint8]:
        """The sample's map alone."""
        part, place = self._find(number)
        return part.read_map(place)

    @property
    def digest(self) -> str:
        """Sha256 that identifies the samples and their order."""
        return hashlib.sha256(" ".join(each.digest for each in self._parts).encode()).hexdigest()

    def _find(self, number: int) -> tuple[MagcDataset | ImageFolder | Part, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part], number - (int(self._ends[part - 1]) if part else 0)


Source = MagcDataset | ImageFolder | Part | Joined


def _look(path: Path, look: Callable[[PIL.Image.Image], Seen]) -> Seen:
    """What is seen in a picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=PICTURE_FORMATS) as picture:
                mode, seen = picture.mode, look(picture)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):
        raise DataError(
            f"{path} has more than {PIL.Image.MAX_IMAGE_PIXELS} pixels, too many to decode for every crop: "
            "cut it into smaller pictures"
        ) from None
    # Pillow's plugins raise whatever they come across in damaged files.
    except Exception as error:  # noqa: BLE001 - see above
        raise DataError(f"{path} cannot be read as a picture ({type(error).__name__}): mend or remove it") from None
    if mode not in PICTURE_MODES:
        raise DataError(f"{path} is of mode {mode}, expected 8-bit RGB or grey: convert or remove it")
    return seen


def open_source(path: Path) -> MagcDataset | ImageFolder:
    """A dataset, or else a folder of pictures.

    Raises:
        DataError: it is neither, or empty.
        DatasetError: the dataset is unfinished or damaged.
    """
    if not is_dataset(path):
        return ImageFolder(path)
    dataset = MagcDataset(path)
    if not len(dataset):
        raise DataError(f"{path} holds no sample to train on: `magc-data stats {path}` says why tiles were rejected")
    if not dataset.has_images:
        raise DataError(
            f"{path} has no images to train on: it was built with --imagery none and holds maps alone; "
            "build one with imagery"
        )
    return dataset


def require_maps(source: Source, config: MapConfig) -> None:
    """Check that the source has the maps that the model reads; a model without a map takes any source.

    Raises:
        DataError: there are none, or their classes are others than the model's.
    """
    if not config.is_used:
        return
    if not source.classes:
        raise DataError(
            "the pictures have no maps, which this model reads: train on a dataset made by `magc-data build`, "
            "or switch every use of the map off"
        )
    if not config.classes:
        return
    for theirs, ours in itertools.zip_longest(source.classes, config.classes):
        if theirs is None or ours is None or theirs[:2] != ours[:2]:
            raise DataError(
                f"the dataset has {_class_text(theirs)} where the model was trained with {_class_text(ours)}: "
                "build the dataset with the model's scheme, or train a new model"
            )


def _class_text(each: SemanticClass | MapClass | None) -> str:
    return "no more classes" if each is None else f"class {each.id} {each.name}"


def adopt_classes(config: ModelConfig, source: Source) -> ModelConfig:
    """The config with the source's class table where it has none yet."""
    if config.map.classes:
        return config
    classes = tuple(MapClass(*each) for each in source.classes)
    return replace(config, map=replace(config.map, classes=classes))


# --- symmetries ------------------------------------------------------------------------------------------------------


@overload
def symmetry(picture: NDArray[np.uint8], number: int) -> NDArray[np.uint8]: ...
@overload
def symmetry(picture: Tensor, number: int) -> Tensor: ...
def symmetry(picture: NDArray[np.uint8] | Tensor, number: int) -> NDArray[np.uint8] | Tensor:
    """One of the eight symmetries of the square: flip down, flip across, transpose, by the bits of its number.

    Args:
        picture: an array [height, width, ...] or a tensor [..., height, width].
        number: 0 (as it is) to 7.
    """
    flips = tuple(axis for axis in (0, 1) if number >> axis & 1)
    if isinstance(picture, np.ndarray):
        flipped: NDArray[np.uint8] = np.flip(picture, flips)
        return flipped.swapaxes(0, 1) if number & 4 else flipped
    turned = picture.flip([axis - 2 for axis in flips])
    return turned.mT if number & 4 else turned


# --- which samples, symmetries and crops -----------------------------------------------------------------------------


class Draws(NamedTuple):
    """What chance decides for a batch, each [batch]."""

    samples: NDArray[np.int64]
    """Numbers in the source."""
    symmetries: NDArray[np.int64]
    down: NDArray[np.float64]
    """Where the crop begins: share, in [0, 1), of the places that there are."""
    across: NDArray[np.float64]
    map_chances: NDArray[np.float64]
    """Uniform in [0, 1): the map is left out where this is below the dropout."""


def draws(seed: int, step: int, rank: int, batch_size: int, world_size: int, count: int) -> Draws:
    """What one process reads in one step.

    Steps and processes take the samples in turn, so that none comes twice in an epoch. A draw depends on its place in
    that order alone: two processes with batches of 8 see what one with batches of 16 does.
    """
    first = (step * world_size + rank) * batch_size
    epochs, places = np.divmod(np.arange(first, first + batch_size), count)
    orders = [sample_order(seed, epoch, count)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    key = np.random.SeedSequence((seed, _SAMPLING)).generate_state(2, np.uint64)
    # Philox gives four words a count: a sample's place is its count.
    words = np.random.Philox(key=key, counter=first).random_raw(4 * batch_size).reshape(batch_size, 4)
    shares: NDArray[np.float64] = (words >> 11).astype(np.float64) * 2.0**-53
    return Draws(np.concatenate(orders), (words[:, 0] >> 61).astype(np.int64), shares[:, 1], shares[:, 2], shares[:, 3])


# --- batches ---------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A square crop; its corner is a multiple of 8, so that latents can be cropped alike."""

    top_px: int
    left_px: int
    side_px: int


def window(down: float, across: float, height_px: int, width_px: int, side_px: int) -> Window:
    """The crop at these shares of the places that it has in a picture."""
    top, left = (
        int(share * ((room_px - side_px) // LATENT_STRIDE + 1)) * LATENT_STRIDE
        for share, room_px in ((down, height_px), (across, width_px))
    )
    return Window(top, left, side_px)


def image_tensor(pixels: NDArray[np.uint8]) -> Image:
    """Pixels [batch, height, width, 3] as the networks read them."""
    # A copy, as decoded pixels are read-only and turned ones run backwards, which torch does not take.
    return torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


class Batch(NamedTuple):
    """One step of one process. Images or latents, never both."""

    images: Image | None
    latents: Latent | None
    class_ids: ClassIds
    has_map: Bool[Tensor, " batch"]
    """False where the source has no map, or map dropout took it."""
    step: int
    """Which step of the training it is for, from 0."""


@runtime_checkable
class LatentSource(Protocol):
    """Latents that were computed before."""

    def crop(self, sample: int, symmetry: int, window: Window) -> NDArray[np.floating[Any]]:
        """[4, side / 8, side / 8], cut from the latent of the sample under the symmetry."""
        ...


class TrainingBatches(Dataset[Batch]):
    """Step number -> batch, for as many steps as one likes; see `load`.

    A sample is turned first and cropped then, so a crop of the picture and one of its latent show the same.

    Raises:
        UsageError: the crop's side is not a multiple of 64.
        DataError: a picture is smaller than the crop; also when one cannot be read.
    """

    def __init__(
        self,
        source: Source,
        *,
        crop_px: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        map_dropout: float = 0.0,
        latents: LatentSource | None = None,
    ) -> None:
        if crop_px <= 0 or crop_px % IMAGE_STRIDE:
            raise UsageError(f"the crop is {crop_px} px: expected a multiple of {IMAGE_STRIDE}")
        if (small := np.flatnonzero(source.sizes_px.min(axis=1) < crop_px)).size:
            height_px, width_px = source.sizes_px[small[0]]
            raise DataError(
                f"{source.keys[small[0]]} is {width_px}x{height_px} pixels, smaller than the crop of {crop_px}: "
                "choose a smaller crop or remove the picture"
            )
        self._source, self._latents = source, latents
        self._crop_px, self._map_dropout = crop_px, map_dropout
        self._batch_size, self._seed, self._rank, self._world_size = batch_size, seed, rank, world_size

    def __getitem__(self, step: int) -> Batch:
        drawn = draws(self._seed, step, self._rank, self._batch_size, self._world_size, len(self._source))
        has_map = torch.from_numpy(drawn.map_chances >= self._map_dropout) & bool(self._source.classes)
        images, latents, maps = [], [], []
        for number, turn, down, across in zip(*(each.tolist() for each in drawn[:4]), strict=True):
            if self._latents is None:
                _, image, semantic_map, *_ = self._source[number]
            else:
                image, semantic_map = None, self._source.read_map(number)
            semantic_map = symmetry(semantic_map, turn)
            place = window(down, across, semantic_map.shape[0], semantic_map.shape[1], self._crop_px)
            maps.append(_cut(semantic_map, place))
            if image is not None:
                images.append(_cut(symmetry(image, turn), place))
            if self._latents is not None:
                latents.append(self._latents.crop(number, turn, place))
        return Batch(
            image_tensor(np.stack(images)) if images else None,
            torch.from_numpy(np.stack(latents)).float() if latents else None,
            torch.from_numpy(np.stack(maps)),
            has_map,
            step,
        )


def _cut(picture: NDArray[np.uint8], place: Window) -> NDArray[np.uint8]:
    return picture[place.top_px : place.top_px + place.side_px, place.left_px : place.left_px + place.side_px]


class _Answers(Dataset[Batch | Exception]):
    """Hands expected errors over as values: a worker would wrap what it raises in its traceback."""

    def __init__(self, batches: TrainingBatches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Batch | Exception:
        try:
            return self._batches[step]
        except (MagcDataError, MagcModelError) as error:
            return error


def load(batches: TrainingBatches, steps: range, workers: int = 0) -> Iterator[Batch]:
    """The batches of these steps, read ahead by so many processes (0: in this one, as they are asked for).

    Raises:
        DataError, DatasetError: a sample cannot be read.
    """
    loader = DataLoader(
        _Answers(batches),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    for answer in loader:
        if isinstance(answer, Exception):
            raise answer
        yield answer
