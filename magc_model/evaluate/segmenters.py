"""Which segmenters `magc evaluate` was told of, and the dataset's own as one that answers with places, not ids."""

import hashlib
from pathlib import Path

import numpy as np

from magc_data.schema.classes import SemanticClass
from magc_model.errors import DataError
from magc_model.evaluate.metrics.patches import Pictures
from magc_model.evaluate.metrics.semantic import ClassIdMaps, SemanticMaps
from magc_model.segmenter_model import SegmenterModel

_NOT_COUNTED = 255
"""Of a map: pixels of classes that the segmenter has never learnt."""


def segmenter_digest(text: str) -> str:
    """Sha256 of what `open_segmenters` would read: what tells one content of a file or folder from another."""
    kind, _, argument = text.partition(":")
    path = Path(argument.partition("=")[2] if kind == "torchvision" else argument)
    sha256 = hashlib.sha256(text.encode())
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            sha256.update(hashlib.file_digest(stream, "sha256").digest())
    return sha256.hexdigest()


class MapSegmenter:
    """A segmenter of `magc-train segmenter`, for data of the class table that it was trained on.

    Raises:
        DataError: the data have no maps, or call one of its classes otherwise.
    """

    def __init__(self, model: SegmenterModel, classes: tuple[SemanticClass, ...]) -> None:
        names = {each.id: each.name for each in classes}
        for number, name in zip(model.class_ids, model.classes, strict=True):
            if names.get(number) != name:
                found = f"class {number} is {names[number]}" if number in names else f"there is no class {number}"
                raise DataError(
                    f"the segmenter was trained with class {number} {name}, but in these data {found}: train one on a "
                    "dataset of the same scheme"
                )
        self._model = model
        self.name, self.classes = model.name, model.classes
        self._places = np.full(256, _NOT_COUNTED, np.uint8)
        self._places[list(model.class_ids)] = np.arange(len(model.class_ids), dtype=np.uint8)

    def predict(self, pictures: Pictures) -> ClassIdMaps:
        """The class of every pixel: its place in `classes`."""
        return np.asarray(self._places[self._model.predict(pictures)])

    def reference(self, semantic_maps: SemanticMaps) -> ClassIdMaps:
        """Maps in the same terms; what the segmenter does not know is outside of its classes."""
        return np.asarray(self._places[semantic_maps])
