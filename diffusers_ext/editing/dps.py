"""DPS: diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch

from ..pipelines.call_arguments import is_number
from .posterior import PosteriorScheduler, Predict


class DPSScheduler(PosteriorScheduler):
    """After each step, x_s is moved by -step_size * grad |y - A x0(x_t)|, the gradient with respect to x_t.

    The step size does not depend on the number of steps or on the noise, so the samples are not draws from the
    posterior: with more steps they fit the measurement better, and vary less. A need not be linear.

    Args:
        step_size: zeta' of the paper, appendix D.1, at least 0; images there take 0.3 to 1 with 1,000 steps.
        others: of `PosteriorScheduler`; `noise_std` has no effect.

    Raises:
        ValueError: for another step_size.
    """

    name = "dps"

    def __init__(self, *others: Any, step_size: float = 1.0):
        if not is_number(step_size) or step_size < 0:
            raise ValueError(f"step_size must be a number of at least 0, got {step_size!r}.")
        super().__init__(*others)
        self.step_size = step_size
        self._gradient: torch.Tensor | float = 0.0

    def guide(self, predict: Predict, network_input: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The network's output as it is; the gradient is kept for `step`."""
        with torch.enable_grad():
            x, output, x0 = self.predicted(predict, network_input, timestep)
            residual = self.residual(x0.detach())
            norm = residual.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *(1,) * (residual.ndim - 1))
            # The gradient of the norm with respect to x0 is -A^T residual / norm.
            towards = self.residual_pulled_back(x0, residual / norm)
            (gradient,) = torch.autograd.grad(x0, x, towards.to(x0.dtype))
        self._gradient = gradient
        return output.detach()

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: Any = None, eta: Any = None
    ) -> Any:
        """The scheduler's own step, and the move towards the measurement."""
        result = super().step(model_output, timestep, sample, generator, eta)
        result.prev_sample = result.prev_sample + self.step_size * self._gradient
        return result
