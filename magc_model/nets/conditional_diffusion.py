"""The conditional diffusion model (CDM): predicts the noise in a latent, told by the transmitted latent and the map.

    noisy latent ─┬───────────────► cat ─► conv_in (8) ─► encoder ─► middle ─► decoder ─► noise
    guide ────────│────────────────►┘                       ▲
    planes ─► SemanticAdapter ──────────────────────────────┘  a feature tensor a level
    timestep, constant text ─► every block

The guide is the latent that the latent compression module transmits. The UNet is diffusers'; with the default config it
is Stable Diffusion 2.1-base's, whose first convolution is widened from 4 to 8 channels. The text never changes: it is
the embedding of the empty prompt, stored as one tensor. A model trained from scratch keeps it at zero, so that
cross-attention adds no more than its bias.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from magc_model.config import LATENT_CHANNELS, DenoiserConfig, FineTune, PublishedQuirks
from magc_model.errors import BaseModelError, UsageError
from magc_model.nets.semantic_adapter import ScaleFeatures, SemanticAdapter
from magc_model.nets.semantic_encoder import MapFeatures
from magc_model.shapes import Latent, MapPlanes, Timesteps

FIRST_WEIGHT = "conv_in.weight"
ATTENTION_PARTS = (".attn1.", ".attn2.", ".proj_in.", ".proj_out.")
"""What the paper trains of a pre-trained UNet, besides the first convolution's weight: 14.4 % of it."""


class ConditionalDenoiser(nn.Module):
    """Epsilon prediction in latent space (paper 3.3)."""

    text: Float[Tensor, "1 tokens text_channels"]
    """Embedding of the empty prompt."""

    def __init__(self, config: DenoiserConfig, map_planes: int | None, quirks: PublishedQuirks) -> None:
        super().__init__()
        self.fine_tune = config.fine_tune
        self.unet = _unet(config)
        self.adapter = None if map_planes is None else SemanticAdapter(config, map_planes, quirks)
        self.register_buffer("text", torch.zeros(1, config.text_tokens, config.text_channels))
        self._entrances: list[_Entrance] = []
        if self.adapter is not None and quirks.adapter_before_blocks:
            self._entrances = [_Entrance(block) for block in self.unet.down_blocks]

    def encode_map(self, planes: MapPlanes | None) -> MapFeatures | None:
        """What the map gives to every step of a picture; nothing for a denoiser without a map.

        Raises:
            UsageError: the denoiser reads a map and there is none.
        """
        if self.adapter is None:
            return None
        if planes is None:
            raise UsageError("this denoiser reads a semantic map and got none: give one, or all-zero planes for no map")
        return self.adapter.encode_map(planes.to(self._weight_dtype))

    def forward(
        self, noisy_latent: Latent, timesteps: Timesteps, guide: Latent, map_features: MapFeatures | None
    ) -> Latent:
        """Predict the noise in `noisy_latent`, in its dtype whatever the weights or autocast compute in.

        Raises:
            UsageError: the denoiser reads a map and `map_features` is none, or it has no text embedding.
        """
        if not self.text.shape[1]:
            # Attention over no tokens would give zeros without a word.
            raise UsageError(
                "this model has no embedding of the empty prompt: convert the checkpoint again with --base-model"
            )
        noisy, told = noisy_latent.to(self._weight_dtype), guide.to(self._weight_dtype)
        features = self._features(map_features, noisy)
        if self._entrances and features is not None:
            for entrance, feature in zip(self._entrances, features, strict=True):
                entrance.feature = feature
            features = None
        (noise,) = self.unet(
            torch.cat([noisy, told], dim=1),
            timesteps,
            self.text.expand(len(noisy), -1, -1),
            down_intrablock_additional_residuals=features,
            return_dict=False,
        )
        return torch.as_tensor(noise).to(noisy_latent.dtype)

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that stage 2 trains: the whole adapter, and of the UNet what `fine_tune` says."""
        for name, parameter in self.named_parameters():
            if (
                self.fine_tune is FineTune.ALL
                or name.startswith("adapter.")
                or name == f"unet.{FIRST_WEIGHT}"
                or any(part in name for part in ATTENTION_PARTS)
            ):
                yield name, parameter

    def enable_gradient_checkpointing(self) -> None:
        """Compute the UNet's activations twice instead of keeping them.

        Raises:
            UsageError: a converted model, whose features enter through hooks that a second computation would not see.
        """
        if self._entrances:
            raise UsageError(
                "gradient checkpointing cannot be used with a model in the published adapter layout: turn it off"
            )
        self.unet.enable_gradient_checkpointing()

    def load_base(self, unet: Mapping[str, Tensor], text: Float[Tensor, "_ _ _"]) -> None:
        """Take over a pre-trained UNet of 4 input channels and the embedding of its empty prompt [1, tokens, channels].

        The weights of the guide's channels start at zero, so that at first the UNet predicts what it did before.

        Raises:
            BaseModelError: they are not of this denoiser's shape.
        """
        if text.shape != self.text.shape:
            raise BaseModelError(_misfit("the empty prompt's embedding", text.shape, self.text.shape))
        expected = {name: weight.shape for name, weight in self.unet.state_dict().items()}
        first = expected[FIRST_WEIGHT]
        expected[FIRST_WEIGHT] = torch.Size((first[0], LATENT_CHANNELS, *first[2:]))
        for name in sorted(expected.keys() ^ unet.keys()):
            found = "lacks" if name in expected else "has an unknown"
            raise BaseModelError(
                f"the base model's UNet {found} '{name}': expected Stable Diffusion 2.1-base or its shape"
            )
        for name, weight in unet.items():
            if weight.shape != expected[name]:
                raise BaseModelError(_misfit(f"the base model's '{name}'", weight.shape, expected[name]))
        widened = torch.zeros(first, dtype=unet[FIRST_WEIGHT].dtype, device=unet[FIRST_WEIGHT].device)
        widened[:, :LATENT_CHANNELS] = unet[FIRST_WEIGHT]
        self.unet.load_state_dict({**unet, FIRST_WEIGHT: widened})
        self.text.copy_(text)

    @property
    def _weight_dtype(self) -> torch.dtype:
        return torch.as_tensor(self.unet.conv_in.weight).dtype

    def _features(self, map_features: MapFeatures | None, noisy: Latent) -> list[ScaleFeatures] | None:
        if self.adapter is None:
            return None
        if map_features is None:
            raise UsageError("this denoiser reads a semantic map: give it what encode_map returns")
        return list(self.adapter(map_features, noisy))


class _Entrance:
    """Adds a level's features before the first resnet whose input has their shape, as the published code does.

    Skip connections that were taken before that resnet stay without the features.
    """

    def __init__(self, block: nn.Module) -> None:
        self.feature: Tensor | None = None
        resnets: Any = block.resnets
        fitting = [resnet for resnet in resnets if resnet.in_channels == resnet.out_channels]
        if not fitting:
            raise UsageError(
                "the published adapter layout needs a resnet that keeps its channels at every level: "
                "use 2 layers a block or more"
            )
        fitting[0].register_forward_pre_hook(self)

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        feature, self.feature = self.feature, None
        if feature is None:
            raise UsageError("the UNet of a converted model was run outside its denoiser: call the denoiser instead")
        return (inputs[0] + feature, *inputs[1:])


def _unet(config: DenoiserConfig) -> Any:
    """Attention everywhere but at the coarsest level, as in Stable Diffusion 2.1-base.

    No other level may go without: diffusers adds features to such a block after its downsampler, and only the last
    block has none.
    """
    # Imported here: it takes seconds, for which what is decoded without a denoiser does not wait.
    from diffusers import UNet2DConditionModel

    attended = len(config.channels) - 1
    return UNet2DConditionModel(
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=(*["CrossAttnDownBlock2D"] * attended, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * attended),
        cross_attention_dim=config.text_channels,
        # Named for the channels of a head, read as the number of heads (diffusers keeps the misnomer for old models).
        attention_head_dim=config.attention_heads,
        norm_num_groups=config.norm_groups,
        use_linear_projection=True,
    )


def _misfit(what: str, found: torch.Size, expected: torch.Size) -> str:
    return f"{what} is of shape {list(found)}, expected {list(expected)}: use Stable Diffusion 2.1-base or its shape"
