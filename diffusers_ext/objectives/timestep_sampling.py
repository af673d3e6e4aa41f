"""Which noise levels a step trains on."""

from __future__ import annotations

import math

import torch

TIMESTEP_SAMPLINGS = ("uniform", "stratified", "logit_normal", "stratified_logit_normal", "importance")
LOGIT_NORMAL = ("logit_normal", "stratified_logit_normal")

HISTORY = 10  # losses kept of each level, as in Nichol and Dhariwal 2021
UNIFORM_SHARE = 1e-3  # of the draws: no level is ever left out, so that no sample counts too much


class TimestepSampler:
    """Draws positions on a noise path, numbers from 0 (the data) to T (the noise).

    Args:
        kind: `uniform`; `stratified`: one draw from each of batch-size equal parts; `logit_normal`: T times the
            sigmoid of a normal variable (Esser et al. 2024, arXiv:2403.03206, eq. 19); `stratified_logit_normal`: one
            draw from each of batch-size equally likely parts of that.
        num_levels: T.
        mean, std: of that normal variable; a positive mean prefers noise. std is above 0.
    """

    def __init__(self, kind: str, num_levels: int, mean: float = 0.0, std: float = 1.0):
        self.kind, self.num_levels, self.mean, self.std = kind, num_levels, mean, std

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        """Positions of shape (count,), float32."""
        if self.kind == "logit_normal":
            normal = torch.randn(count, generator=generator, device=device)
            return torch.sigmoid(self.mean + self.std * normal) * self.num_levels
        u = torch.rand(count, generator=generator, device=device)
        if self.kind != "uniform":
            u = (torch.arange(count, device=device) + u) / count
        if self.kind == "stratified_logit_normal":
            u = torch.sigmoid(self.mean + self.std * math.sqrt(2) * torch.erfinv(2 * u - 1))
        return u * self.num_levels


class ImportanceSampler(TimestepSampler):
    """Draws a level in proportion to the root of the second moment of its last losses, and counts it less for that.

    Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. 18: p_t ~ sqrt(E[L_t^2]), and a loss counts 1 / (T * p_t), which
    leaves its expectation as it is under uniform draws. Draws are uniform until every level has `HISTORY` losses.

    Args:
        num_levels: T.
    """

    def __init__(self, num_levels: int):
        super().__init__("importance", num_levels)
        # One place more than there are losses, for those that are not kept.
        self._losses = torch.zeros(num_levels * HISTORY + 1)
        self._seen = torch.zeros(num_levels, dtype=torch.int64)

    def probabilities(self) -> torch.Tensor:
        """Of the levels, shape (T,); float64 where the device has it."""
        # Its own precision: a cumulative sum in float32 would misplace the rarest levels.
        dtype = torch.float32 if self._losses.device.type == "mps" else torch.float64
        second_moments = self._losses[:-1].reshape(-1, HISTORY).to(dtype).square().mean(1)
        # Losses that are all zero leave nothing to prefer.
        root = second_moments.sqrt() + torch.finfo(dtype).tiny
        learned = (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / self.num_levels
        uniform = torch.full_like(learned, 1 / self.num_levels)
        return torch.where((self._seen >= HISTORY).all(), learned, uniform)

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        """Positions of shape (count,), float32."""
        self._move(device)
        edges = self.probabilities().cumsum(0)
        u, within = torch.rand(2, count, generator=generator, device=device, dtype=edges.dtype)
        level = torch.searchsorted(edges, u * edges[-1], right=True).clamp_(max=self.num_levels - 1)
        return (level + within).float()

    def factors(self, positions: torch.Tensor) -> torch.Tensor:
        """1 / (T * p) of the levels of positions, float32: what makes losses drawn here count as uniform draws would.

        Args:
            positions: shape (count,), as `draw` gave them, before the next `update`.
        """
        return (1 / (self.num_levels * self.probabilities()[self._level(positions)])).float()

    def update(self, positions: torch.Tensor, losses: torch.Tensor) -> None:
        """Remember losses, the last ones of a level in place of its oldest.

        Args:
            positions, losses: shape (count,), of the global batch in the same order on every process.
        """
        level, order = self._level(positions).sort(stable=True)
        counts = torch.bincount(level, minlength=self.num_levels)
        rank = torch.arange(len(level), device=level.device) - (counts.cumsum(0) - counts)[level]
        place = level * HISTORY + (self._seen[level] + rank) % HISTORY
        kept = rank >= counts[level] - HISTORY
        self._losses[torch.where(kept, place, len(self._losses) - 1)] = losses[order].float()
        self._seen += counts

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What the next draws depend on."""
        return {"losses": self._losses[:-1].reshape(-1, HISTORY).clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what `state_dict` gave. Raises ValueError when it is of another number of levels."""
        if state["seen"].shape != self._seen.shape:
            raise ValueError(f"The losses kept are of {len(state['seen'])} levels, not of {self.num_levels}.")
        self._losses[:-1] = state["losses"].flatten()
        self._seen.copy_(state["seen"])

    def _level(self, positions: torch.Tensor) -> torch.Tensor:
        return positions.long().clamp(max=self.num_levels - 1)

    def _move(self, device: torch.device) -> None:
        self._losses, self._seen = self._losses.to(device), self._seen.to(device)
