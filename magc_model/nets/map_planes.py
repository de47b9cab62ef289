"""Class ids -> what the networks read: one plane a class, or the classes' colours."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magc_model.config import SYMBOL_STRIDE, MapConfig, MapInput
from magc_model.errors import DataError
from magc_model.shapes import ClassIds, MapPlanes

_IDS = 256
"""Class ids are bytes."""


def map_planes(class_ids: ClassIds, config: MapConfig) -> MapPlanes:
    """Planes of a semantic map, innermost in memory (channels last).

    Raises:
        DataError: an id is not in the model's class table.
    """
    known = [each.id for each in config.classes]
    counts = torch.bincount(class_ids.flatten(), minlength=_IDS)
    if foreign := sorted(set(counts.nonzero().flatten().tolist()) - set(known)):
        names = ", ".join(f"{each.id} {each.name}" for each in config.classes)
        raise DataError(f"the map holds class {foreign[0]}, which the model does not know: expected one of {names}")
    if config.input is MapInput.RGB:
        table = torch.zeros(_IDS, 3)
        table[known] = torch.tensor([each.color for each in config.classes]) / 255
    else:
        table = torch.eye(_IDS, config.plane_count)
    # A row of the table a pixel, so that planes are innermost: the order in which convolutions take them as they are.
    rows = functional.embedding(class_ids.int(), table.to(class_ids.device))
    return rows.movedim(3, 1)


def class_shares(planes: MapPlanes) -> Float[Tensor, "batch planes symbol_height symbol_width"]:
    """Share of each class in the ground of each symbol, a multiple of 1/1024: exact in float32 and float64."""
    return functional.avg_pool2d(planes, SYMBOL_STRIDE)
