"""Class ids -> what the networks read: one plane a class, or the classes' colours."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magc_model.config import SYMBOL_STRIDE, MapConfig, MapInput
from magc_model.errors import DataError
from magc_model.shapes import ClassIds, MapPlanes


def map_planes(class_ids: ClassIds, config: MapConfig) -> MapPlanes:
    """Planes of a semantic map.

    Raises:
        DataError: an id is not in the model's class table.
    """
    known = torch.zeros(256, dtype=torch.bool, device=class_ids.device)
    known[[each.id for each in config.classes]] = True
    if not bool(known[class_ids.long()].all()):
        foreign = int(class_ids[~known[class_ids.long()]][0])
        names = ", ".join(f"{each.id} {each.name}" for each in config.classes)
        raise DataError(f"the map holds class {foreign}, which the model does not know: expected one of {names}")
    if config.input is MapInput.RGB:
        palette = torch.zeros(256, 3, device=class_ids.device)
        for each in config.classes:
            palette[each.id] = torch.tensor(each.color, device=class_ids.device) / 255
        return palette[class_ids.long()].permute(0, 3, 1, 2).contiguous()
    planes = torch.zeros(len(class_ids), config.plane_count, *class_ids.shape[1:], device=class_ids.device)
    return planes.scatter_(1, class_ids.long().unsqueeze(1), 1.0)


def class_shares(planes: MapPlanes) -> Float[Tensor, "batch planes symbol_height symbol_width"]:
    """Share of each class in the ground of each symbol, a multiple of 1/1024: exact in float32 and float64."""
    return functional.avg_pool2d(planes, SYMBOL_STRIDE)
