"""diffusers' autoencoder with the weights of one of ours: what ours is held against."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderTiny

from magc_model.config import LATENT_CHANNELS, AutoencoderKind
from magc_model.nets.autoencoder import LEVELS, ImageAutoencoder


def library_autoencoder(autoencoder: ImageAutoencoder) -> Any:
    """The network itself where it is the library's; of a tiny one, the library's with all its weights."""
    config = autoencoder.config
    if config.kind is not AutoencoderKind.TINY:
        return autoencoder.network
    blocks = (1, *[config.blocks_per_level] * (LEVELS - 1))
    twin = AutoencoderTiny(
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        latent_channels=LATENT_CHANNELS,
    )
    twin.load_state_dict(autoencoder.network.state_dict())
    return twin.eval()
