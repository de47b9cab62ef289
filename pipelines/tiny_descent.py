"""Steps of training: an optimiser with averages, and a step as one CUDA graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


class Averages:
    """Moving averages of weights, which is what is kept in the end."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._means = [each.detach().clone() for each in parameters]

    def update(self) -> None:
        """After a step."""
        torch._foreach_lerp_(self._means, [each.detach() for each in self._parameters], 1 - self._decay)

    def apply(self) -> None:
        """Put the averages in the weights' place."""
        with torch.no_grad():
            for parameter, mean in zip(self._parameters, self._means, strict=True):
                parameter.copy_(mean)


class Descent:
    """AdamW over some weights, whose averages are kept in the end."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        largest_norm: float = 1.0,
        average_decay: float = 0.999,
    ) -> None:
        self.parameters, self._learning_rate, self._largest_norm = parameters, learning_rate, largest_norm
        self._on_gpu = parameters[0].is_cuda
        # A captured graph reads the rate where it is.
        rate = torch.tensor(learning_rate, device=parameters[0].device) if self._on_gpu else learning_rate
        self._optimiser = torch.optim.AdamW(
            parameters, lr=rate, betas=betas, weight_decay=weight_decay, capturable=self._on_gpu, foreach=self._on_gpu
        )
        self._averages = Averages(parameters, average_decay)

    def set_rate(self, factor: float) -> None:
        """So much of the learning rate."""
        for group in self._optimiser.param_groups:
            if self._on_gpu:
                group["lr"].fill_(self._learning_rate * factor)
            else:
                group["lr"] = self._learning_rate * factor

    def down(self, loss: Tensor) -> None:
        """A step down a loss, by these weights alone."""
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, self._largest_norm, foreach=self._on_gpu)
        self._optimiser.step()
        self._averages.update()

    def settle(self) -> None:
        """Put the averages in the weights' place."""
        self._averages.apply()


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as one CUDA graph: its thousands of small kernels take longer to start than to run."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay
