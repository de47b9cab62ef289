"""Writes compressai_likelihoods.npz: what CompressAI's entropy models say of random weights and values.

Run with compressai 1.2.8 installed (it wants numpy below 2): python tests/golden/make_compressai_likelihoods.py
"""

from pathlib import Path

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional

CHANNELS = 5


def main() -> None:
    torch.manual_seed(1)
    bottleneck = EntropyBottleneck(CHANNELS).eval()
    start = {f"start.{name}": value.clone() for name, value in bottleneck.named_parameters()}
    for parameter in bottleneck.parameters():
        parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    values = 4 * torch.randn(2, CHANNELS, 4, 3)
    rounded, likelihood = bottleneck(values)
    means, scales = torch.randn_like(values), torch.rand_like(values) * 3 - 0.2
    gaussian_rounded, gaussian_likelihood = GaussianConditional(None, scale_bound=0.11).eval()(values, scales, means)
    arrays = {
        **start,
        **{f"weight.{name}": value for name, value in bottleneck.named_parameters()},
        "values": values,
        "rounded": rounded,
        "likelihood": likelihood,
        "quantile_loss": bottleneck.loss(),
        "means": means,
        "scales": scales,
        "gaussian_rounded": gaussian_rounded,
        "gaussian_likelihood": gaussian_likelihood,
    }
    path = Path(__file__).with_name("compressai_likelihoods.npz")
    np.savez_compressed(path, **{name: value.detach().numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
