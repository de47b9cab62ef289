"""What a segmenter learns from: pictures in changed colours, and most of them as a codec may leave them.

    image ─► colours ─► blurred or not ─► 8x8 blocks quantised or not ─► noise or not ─► image

The symmetries of the square are drawn with the crop (`magc_model.data`). The draws are torch's own, which the training
loop seeds for each step.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from magc_model.shapes import Image

BLUR_PX = 2.0
"""Largest standard deviation."""
QUANTISER_STEP = 60.0
"""Largest step of the constant component, of 255: JPEG's example table has 16, and 60 at quality 13."""
NOISE = 6.0
"""Largest standard deviation, of 255."""
SHARE = 0.4
"""How many pictures each of the three is done to; a fifth are left as they are."""

CONTRAST = (0.7, 1.4)
BRIGHTNESS = 0.25
"""Of a range of 2, as the next."""
TINT = 0.1
SATURATION = (0.5, 1.5)

_BLOCK_PX = 8
_REACH_PX = 6
_RANGE = 2.0 / 255

PerPicture = Float[Tensor, "batch 1 1 1"]


def as_seen_in_use(images: Image) -> Image:
    """Pictures in other colours and of other quality, each its own."""
    images = recoloured(images)
    images = blurred(images, _some(images) * _uniform(images, 0.0, BLUR_PX))
    steps = _some(images) * torch.exp(_uniform(images, math.log(2), math.log(QUANTISER_STEP)))
    images = quantised(images, steps)
    return (images + torch.randn_like(images) * _some(images) * _uniform(images, 0.0, NOISE * _RANGE)).clamp(-1, 1)


def recoloured(images: Image) -> Image:
    """Another contrast, brightness, saturation and tint."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * _uniform(images, *CONTRAST) + mean + _uniform(images, -BRIGHTNESS, BRIGHTNESS)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * _uniform(images, *SATURATION)
    return (images + (torch.rand(len(images), 3, 1, 1, device=images.device) * 2 - 1) * TINT).clamp(-1, 1)


def blurred(images: Image, deviations_px: PerPicture) -> Image:
    """A Gaussian blur; 0 leaves a picture as it is."""
    batch, channels = images.shape[:2]
    offsets = torch.arange(-_REACH_PX, _REACH_PX + 1.0, device=images.device)
    weights = torch.exp(-0.5 * (offsets / deviations_px.view(-1, 1).clamp(min=0.01)).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, 0)[:, None, :, None]
    # One convolution for all: a channel of a picture is a group.
    stacked = functional.pad(images, (_REACH_PX,) * 4, mode="reflect").flatten(0, 1)[None]
    down = functional.conv2d(stacked, weights, groups=batch * channels)
    return functional.conv2d(down, weights.mT, groups=batch * channels).view(images.shape)


def quantised(images: Image, steps: PerPicture) -> Image:
    """What block transform codecs do, JPEG first of all: the cosine transform of 8x8 blocks, in steps.

    In YCbCr, colour twice as coarse as brightness, and coarser the higher the frequency, as in the example tables of
    ITU-T T.81 (annex K). No entropy coding, since nobody asks for the bytes.

    Args:
        images: sides are multiples of 8.
        steps: of the constant component, of 255; 0 leaves a picture as it is.
    """
    batch, channels, height, width = images.shape
    to_ycc, cosines = _YCC.to(images.device), _COSINES.to(images.device)
    ycc = torch.einsum("oc,bchw->bohw", to_ycc, images)
    blocks = ycc.view(batch, channels, height // _BLOCK_PX, _BLOCK_PX, width // _BLOCK_PX, _BLOCK_PX)
    spectra = torch.einsum("ui,bcyixj,vj->bcyuxv", cosines, blocks, cosines)
    frequencies = torch.arange(_BLOCK_PX, device=images.device)
    slope = 1 + (frequencies[:, None] + frequencies) / 3
    coarseness = torch.tensor([1.0, 2.0, 2.0], device=images.device)
    table = slope[:, None, :] * coarseness.view(3, 1, 1, 1, 1)
    table = table * steps[..., None, None].clamp(min=1e-3) * _RANGE
    coded = torch.einsum("ui,bcyuxv,vj->bcyixj", cosines, torch.round(spectra / table) * table, cosines)
    rgb = torch.einsum("oc,bchw->bohw", torch.linalg.inv(to_ycc), coded.reshape(images.shape))
    return torch.where(steps > 0, rgb, images)


_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""ITU-T T.871, without the offset."""


def _cosine_transform() -> Tensor:
    """DCT-II, orthonormal: [frequency, place]."""
    places = torch.arange(_BLOCK_PX, dtype=torch.float64)
    waves = torch.cos(math.pi / _BLOCK_PX * (places + 0.5) * places[:, None]) * math.sqrt(2 / _BLOCK_PX)
    waves[0] /= math.sqrt(2)
    return waves.float()


_COSINES = _cosine_transform()


def _uniform(images: Image, least: float, most: float) -> PerPicture:
    return torch.rand(len(images), 1, 1, 1, device=images.device) * (most - least) + least


def _some(images: Image) -> PerPicture:
    """1 for those pictures that something is done to, 0 for the others."""
    return (torch.rand(len(images), 1, 1, 1, device=images.device) < SHARE).float()
