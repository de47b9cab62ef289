"""How probable a rounded value is: a learned density a channel, and Gaussians with given mean and scale.

    P(x) = c(x + 1/2) - c(x - 1/2),  c a cumulative distribution

In training, x carries uniform noise in [-1/2, 1/2] in place of the rounding, so that its likelihood has a gradient
(Balle et al. 2018). The learned density is the factorised one of their appendix 6.1: c is the sigmoid of a small
monotone network. Both are CompressAI's to the last weight (docs/decisions/0006).
"""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from magc_model.shapes import HyperSymbols

LIKELIHOOD_BOUND = 1e-9
"""Nothing is thought less probable than this, so that no logarithm runs away."""

SCALE_BOUND = 0.11
"""Smallest scale of a Gaussian: a narrower one is coded as if it were this wide."""

TAIL_MASS = 1e-9
"""Probability outside of the outer quantiles of a learned density."""

_HIDDEN = (3, 3, 3, 3)
_START_SCALE = 10.0
"""Half the width of the density at the start."""

Values = Float[Tensor, "batch channels feature_height feature_width"]


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient also passes below the bound where it would raise x."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bound = bound  # type: ignore[attr-defined]
        return values.clamp(min=bound)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        return gradient * ((values >= ctx.bound) | (gradient < 0)), None  # type: ignore[attr-defined]


def lower_bound(values: Tensor, bound: float) -> Tensor:
    """max(values, bound), from which training can come back."""
    return torch.as_tensor(_LowerBound.apply(values, bound))


def with_noise(values: Values) -> Values:
    """Uniform noise in place of rounding."""
    return values + torch.empty_like(values).uniform_(-0.5, 0.5)


def gaussian_likelihood(values: Values, means: Values, scales: Values) -> Values:
    """Probability of each rounding cell of a Gaussian; `values` are rounded about the means, or noisy.

    In float32 at least: half precision knows no number between 1 and 0.996, and no probability near 1e-9.
    """
    values, means, scales = (_precise(each) for each in (values, means, scales))
    scales = lower_bound(scales, SCALE_BOUND)
    distance = (values - means).abs()
    factor = -math.sqrt(0.5) / scales
    # Both ends lie in the lower tail, where erfc keeps its precision.
    likelihood = 0.5 * (torch.erfc(factor * (0.5 - distance)) - torch.erfc(factor * (-0.5 - distance)))
    return lower_bound(likelihood, LIKELIHOOD_BOUND)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class EntropyBottleneck(nn.Module):
    """A learned density a channel, and the quantiles (lower, median, upper) that coding needs.

    All in float32 at least, under autocast too.

    The quantiles are not trained by the rate: `quantile_loss` moves them, with an optimiser of its own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (1, *_HIDDEN, 1)
        scale = _START_SCALE ** (1 / (len(widths) - 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(widths):
            start = math.log(math.expm1(1 / scale / after))
            self.matrices.append(nn.Parameter(torch.full((channels, after, before), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, after, 1).uniform_(-0.5, 0.5)))
            if len(self.factors) < len(_HIDDEN):  # none after the last matrix
                self.factors.append(nn.Parameter(torch.zeros(channels, after, 1)))
        self.quantiles = nn.Parameter(torch.tensor([[[-_START_SCALE, 0.0, _START_SCALE]]] * channels))

    def cumulative_logits(
        self, values: Float[Tensor, "channels 1 points"], *, frozen: bool = False
    ) -> Float[Tensor, "channels 1 points"]:
        """Logit of the cumulative distribution at points of each channel; `frozen` leaves the density alone."""

        def weight(parameter: Tensor) -> Tensor:
            return parameter.detach() if frozen else parameter

        values = _precise(values)
        with torch.autocast(values.device.type, enabled=False):
            for index, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
                values = functional.softplus(weight(matrix)) @ values + weight(bias)
                if index < len(self.factors):
                    values = values + torch.tanh(weight(self.factors[index])) * torch.tanh(values)
        return values

    def likelihood(self, values: HyperSymbols) -> HyperSymbols:
        """Probability of the unit cell about each value."""
        values = _precise(values)
        points = values.transpose(0, 1).flatten(1).unsqueeze(1)
        lower, upper = self.cumulative_logits(points - 0.5), self.cumulative_logits(points + 0.5)
        # Both ends on the side where the sigmoid is small, where it keeps its precision; either, about the middle.
        sign = torch.where(lower + upper > 0, -1.0, 1.0)
        likelihood = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        swapped = values.transpose(0, 1)
        return lower_bound(likelihood.reshape(swapped.shape).transpose(0, 1), LIKELIHOOD_BOUND)

    def medians(self) -> Float[Tensor, "1 channels 1 1"]:
        """Values are rounded about these."""
        return self.quantiles[:, 0, 1].detach().reshape(1, -1, 1, 1)

    def quantile_loss(self) -> Float[Tensor, ""]:
        """Distance of the quantiles from where the density puts them; moves the quantiles alone.

        Without it the medians and the tails stay where they started, whatever the density has become.
        """
        tail = math.log(2 / TAIL_MASS - 1)
        target = torch.tensor([-tail, 0.0, tail], device=self.quantiles.device)
        return (self.cumulative_logits(self.quantiles, frozen=True) - target).abs().sum()
