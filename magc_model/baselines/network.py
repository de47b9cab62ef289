"""A baseline codec as a network: CompressAI's encoder and entropy model, its decoder, and the adapter where it has one.

    image ─► body: analysis, entropy model ─► symbols as the decoder has them ─► synthesis ─► image
                                                                                    ▲
                                                                      planes ─► adapter

The body is what bitstreams depend on; fine-tunes leave it as it is, bit by bit, and train the rest.
"""

import hashlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.baselines.architectures import build_body
from magc_model.baselines.config import BaselineConfig
from magc_model.baselines.map_adapter import MapAdapter
from magc_model.errors import DataError
from magc_model.shapes import Features, Image, MapPlanes

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
"""Buffers that follow from the weights: made again where they are needed, never stored."""

_UPSAMPLERS = ("ConvTranspose2d", "ResidualBlockUpsample")


class Analysed(NamedTuple):
    """What the body makes of images."""

    symbols: Features
    """What the decoder reads, rounded (or disturbed, in training) as the architecture does it."""
    bits: Float[Tensor, " batch"]
    """By the entropy model's likelihoods."""


class _Tap(nn.Module):
    """Stands where the decoder was, to be shown what it would read."""

    seen: Tensor

    def forward(self, symbols: Tensor) -> Tensor:
        """Keep the symbols; the answer is nobody's."""
        self.seen = symbols
        return symbols.new_zeros(1)


class BaselineCodec(nn.Module):
    """Freshly initialised networks of a config.

    Raises:
        EvaluationError: CompressAI is not installed.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        body: Any = build_body(config)
        self.synthesis: nn.Sequential = body.g_s
        self.body = body
        body.g_s = _Tap()
        channels = (config.symbol_channels, *_widths(self.synthesis))
        self.adapter = (
            MapAdapter(config.map.plane_count, channels, config.adapter_blocks) if config.map.is_used else None
        )

    def analyse(self, images: Image) -> Analysed:
        """Symbols of images in [-1, 1]; noise or rounding as the body's mode is."""
        result = self.body((images + 1) / 2)
        bits = sum(each.log2().flatten(1).sum(dim=1) for each in result["likelihoods"].values())
        return Analysed(self.body.g_s.seen, -torch.as_tensor(bits))

    def synthesise(self, symbols: Features, planes: MapPlanes | None) -> Image:
        """Images about in [-1, 1] of symbols.

        Raises:
            DataError: there is no map, and the adapter reads one.
        """
        if self.adapter is not None and planes is None:
            raise DataError("this baseline's decoder reads the map: give it with the picture")
        scales = [] if self.adapter is None or planes is None else self.adapter(planes)
        decoded = symbols + scales.pop(0) if scales else symbols
        for layer in self.synthesis:
            decoded = layer(decoded)
            if scales and type(layer).__name__ in _UPSAMPLERS:
                decoded = decoded + scales.pop(0)
        return decoded * 2 - 1

    def decompress(self, strings: list[list[bytes]], shape: Any, planes: MapPlanes | None) -> Image:
        """Images in [-1, 1] of what CompressAI's decoder reads."""
        self.body.decompress(strings, shape)
        return self.synthesise(self.body.g_s.seen, planes).clamp(-1, 1)

    def freeze_body(self) -> None:
        """Let the bitstreams be: no gradients, and rounding instead of noise. Call `body.eval()` after `train()`."""
        self.body.requires_grad_(False).eval()

    def stored(self) -> dict[str, Tensor]:
        """Weights and statistics by name, without what follows from them."""
        # CompressAI masks the weights of its context convolutions whenever they run: what never ran would differ.
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d) and isinstance(mask := getattr(module, "mask", None), Tensor):
                module.weight.data.mul_(mask)
        return {name: each for name, each in self.state_dict().items() if not name.endswith(_TABLES)}

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of `stored`."""
        self.load_state_dict(self.state_dict() | tensors)

    def stream_digest(self) -> str:
        """Sha256 over what a bitstream depends on: fine-tunes read and write the streams of their base."""
        return digest({name: each for name, each in self.stored().items() if name.startswith("body.")})


def _widths(synthesis: nn.Sequential) -> list[int]:
    """Channels after each step up but the last, which gives the picture."""
    # The last one is the last layer, or not one of these (a pixel shuffle in Cheng 2020).
    steps = [layer for layer in list(synthesis)[:-1] if type(layer).__name__ in _UPSAMPLERS]
    return [_channels(each) for each in steps]


def _channels(layer: nn.Module) -> int:
    convolution = layer if isinstance(layer, nn.ConvTranspose2d) else layer.get_submodule("conv")
    return int(convolution.out_channels)  # type: ignore[arg-type]


def quantiles_of(codec: BaselineCodec) -> frozenset[str]:
    """Names of the parameters that only the tables' bounds depend on: CompressAI's auxiliary loss moves them."""
    return frozenset(name for name, _ in codec.named_parameters() if name.endswith(".quantiles"))


def digest(tensors: dict[str, Tensor]) -> str:
    """Sha256 over names, shapes and values."""
    sha256 = hashlib.sha256()
    for name, each in sorted(tensors.items()):
        sha256.update(f"{name} {each.dtype} {tuple(each.shape)}\n".encode())
        sha256.update(each.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()
