"""RePaint: inpainting with any unconditional model (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor

from .levels import ListedPath


class RepaintCall(NamedTuple):
    """A step from place `t` of the path to place `s`, and then back up to place `back_to` if that is not None."""

    t: int
    s: int
    back_to: int | None


class RepaintScheduler:
    """DDPM's steps in which the known part is replaced, at each level, by the known data noised to that level.

    After every `jump_length` steps the sample is noised again to where these steps began, and they are repeated,
    `resamplings` times in all, so that both parts come to agree. A step from t to s meets the known part at level s,
    and noising from s to t draws from q(x_t | x_s).

    Args:
        path: the places to visit.
        known: clean samples of the network, (n, channels, *size).
        repaint: 1 where to sample and 0 where the known part stays; broadcasts over `known`.
        resamplings: U of the paper, at least 1.
        jump_length: j of the paper, at least 1.
        clip: bound of the predicted x0, or None.
    """

    order = 1

    def __init__(
        self,
        path: ListedPath,
        known: torch.Tensor,
        repaint: torch.Tensor,
        resamplings: int = 10,
        jump_length: int = 1,
        clip: float | None = None,
    ):
        for name, value in (("resamplings", resamplings), ("jump_length", jump_length)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
        self.path, self.known, self.repaint, self.clip = path, known, repaint, clip
        self.calls = _calls(len(path), resamplings, jump_length)
        self.timesteps = torch.tensor([path.times[call.t] for call in self.calls], device=known.device)
        self._next = 0

    def start(self, generator: Any = None) -> torch.Tensor:
        """Noise at the first level."""
        noise = self._noise(generator)
        return noise * math.hypot(self.path.alpha(0), self.path.sigma(0))

    def scale_model_input(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        """The network's input."""
        return sample * self.path.levels.input_scale(timestep)

    def _noise(self, generator: Any) -> torch.Tensor:
        return randn_tensor(self.known.shape, generator=generator, device=self.known.device, dtype=self.known.dtype)

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: Any = None) -> Any:
        """The next call's step; `timestep` is known from the count."""
        call = self.calls[self._next]
        self._next += 1
        x0 = self.path.levels.x0(model_output, sample, self.path.times[call.t])
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        c0, ct, variance = self.path.posterior(call.t, call.s)
        unknown = c0 * x0 + ct * sample
        known = self.known
        if call.s != self.path.clean:
            unknown = unknown + math.sqrt(variance) * self._noise(generator)
            known = self.path.alpha(call.s) * known + self.path.sigma(call.s) * self._noise(generator)
        sample = torch.where(self.repaint > 0, unknown, known)
        if call.back_to is not None:
            ratio, variance = self.path.transition(call.back_to, call.s)
            sample = ratio * sample + math.sqrt(variance) * self._noise(generator)
        return SimpleNamespace(prev_sample=sample, pred_original_sample=x0)


def _calls(places: int, resamplings: int, jump_length: int) -> list[RepaintCall]:
    calls = []
    for first in range(0, places, jump_length):
        block = range(first, min(first + jump_length, places))
        for repeat in range(resamplings):
            last = block[-1]
            ends = [(t, t + 1 if t + 1 < places else -1) for t in block]
            again = first if repeat + 1 < resamplings else None
            calls += [RepaintCall(t, s, again if t == last else None) for t, s in ends]
    return calls
