"""The Muon optimizer for networks with convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .precision import cpu_multiplies_bf16

# Newton-Schulz: a quintic steep at zero, whose fixed points lie near 1 (Jordan et al. 2024, "Muon").
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Momentum made orthogonal for the matrices inside a network, AdamW for everything else.

    The update of a matrix is U V^T of its momentum's U S V^T, times 0.2 sqrt(max(rows, columns)), which gives it the
    size of an update of AdamW, so that one learning rate and weight decay serve both (Jordan et al. 2024; Liu et al.
    2025, arXiv:2502.16982, eq. 4). A convolution's filters are the rows of one matrix. `matrices_of` chooses them.

    Args:
        module: whose parameters are trained.
        lr, betas, eps, weight_decay: as AdamW has them.
        momentum: of the matrices, with Nesterov's look-ahead.
        fused: run AdamW's part in one kernel.
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        fused: bool = False,
    ):
        matrices = matrices_of(module)
        inside = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in module.parameters() if id(parameter) not in inside]
        self.momentum = momentum
        super().__init__(
            [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=fused,
        )
        # A step whose gradients overflowed has to be left out for the matrices too, which only the scaler itself does.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update. Gradients of the matrices are gone after it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group.get("orthogonal"):
                self._step_matrices(group)
        super().step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        if not matrices:
            return
        gradients, averages = [matrix.grad for matrix in matrices], [self._momentum_of(matrix) for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - self.momentum)
        ahead = torch._foreach_lerp(gradients, averages, self.momentum)
        sizes = [-group["lr"] * 0.2 * max(m.shape[0], m[0].numel()) ** 0.5 for m in matrices]
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, torch._foreach_mul(orthogonalized(ahead), sizes))
        for matrix in matrices:
            matrix.grad = None

    def _momentum_of(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(matrix)
        state["step"] += 1  # AdamW looks for it in every state it loads
        return state["momentum"]


def matrices_of(module: nn.Module) -> list[nn.Parameter]:
    """Weights of linear maps and convolutions, as matrices of a row an output and a column an input pixel's channel.

    Embeddings are tables, and a matrix of fewer than 16 rows or columns, such as the last one of a U-Net to the pixels,
    has little spectrum to even out.
    """
    found: dict[int, nn.Parameter] = {}
    for part in _inner(module):
        weight = part.weight
        if weight.requires_grad and min(weight.shape[0], weight[0].numel()) >= 16:
            found[id(weight)] = weight
    return list(found.values())


def _inner(module: nn.Module) -> Iterable[Any]:
    return [part for part in module.modules() if isinstance(part, (nn.Linear, nn.modules.conv._ConvNd))]


def orthogonalized(updates: Sequence[Tensor]) -> list[Tensor]:
    """The nearest orthogonal matrices, roughly: singular values go to between 0.7 and 1.2.

    Args:
        updates: each (rows, ...), the rest taken as columns, in any memory format.

    Returns:
        The same shapes, float32.
    """
    views = [_as_matrix(update) for update in updates]
    # Matrices of one shape go together, lying ones and standing ones alike: many small products make a few large ones.
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, (matrix, _) in enumerate(views):
        alike.setdefault(tuple(sorted(matrix.shape)), []).append(i)
    results: dict[int, Tensor] = {}
    for (rows, _), members in alike.items():
        lying = [views[i][0] if views[i][0].shape[0] == rows else views[i][0].T for i in members]
        stacked = _newton_schulz(torch.stack([m.to(_matmul_dtype(m.device)) for m in lying]))
        for i, result in zip(members, stacked.float()):
            results[i] = result if views[i][0].shape[0] == rows else result.T
    return [
        results[i].reshape(updates[i].permute(order).shape).permute(_inverse(order))
        for i, (_, order) in enumerate(views)
    ]


def _as_matrix(update: Tensor) -> tuple[Tensor, list[int]]:
    """(rows, columns) without a copy, columns in the order in which memory has them, which a spectrum doesn't mind."""
    order = [0, *sorted(range(1, update.ndim), key=update.stride, reverse=True)]
    return update.permute(order).flatten(1), order


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def _newton_schulz(wide: Tensor) -> Tensor:
    """Orthogonal rows for matrices (number, rows, columns >= rows)."""
    wide = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, polynomial, wide, beta=a)
    return wide


def _matmul_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" and not cpu_multiplies_bf16() else torch.bfloat16
