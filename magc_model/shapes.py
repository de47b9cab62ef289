"""Names for the tensors that travel between the parts; the tests check every signature that uses them (jaxtyping).

The latent and the symbols have axes of their own: arithmetic such as `height//8` cannot be checked on an argument.
No module that uses these names may import `annotations` from `__future__`.
"""

from jaxtyping import Float, Int, UInt8
from torch import Tensor

Image = Float[Tensor, "batch 3 height width"]
"""RGB in [-1, 1]."""

ClassIds = UInt8[Tensor, "batch height width"]
"""The semantic map as a dataset stores it: class ids."""

MapPlanes = Float[Tensor, "batch planes height width"]
"""The semantic map as the networks read it: one plane a class (one-hot), or RGB in [0, 1]. All zero: no map."""

Latent = Float[Tensor, "batch 4 latent_height latent_width"]
"""Autoencoder latent times its scaling factor, 1/8 of the image's size."""

Symbols = Float[Tensor, "batch symbol_channels symbol_height symbol_width"]
"""y: what the latent compression module transmits, 1/32 of the image's size."""

HyperSymbols = Float[Tensor, "batch symbol_channels hyper_height hyper_width"]
"""h: side information, 1/64 of the image's size."""

Features = Float[Tensor, "batch channels feature_height feature_width"]
"""Features inside a network."""

Timesteps = Int[Tensor, " batch"]
"""Diffusion timesteps, 0 to 999."""

Rates = Float[Tensor, " batch"]
"""Position on the rate axis: 0 is the lowest lambda, number of lambdas - 1 the highest; used by gained models."""
