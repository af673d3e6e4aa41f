"""Linear measurements y = A x of images or signals x `(n, channels, *size)`: ready ones, and a user's own.

A transposed operator gives <A x, y> = <x, A^T y>, and a pseudo-inverse A^+ gives A A^+ A = A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..conditions.image_transforms import LUMA_WEIGHTS

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LinearOperator:
    """y = A x.

    Args:
        forward: A, from `(n, channels, *size)` to (n, ...).
        transpose: A^T, from (n, ...) to `(n, channels, *size)`; by PyTorch's differentiation of `forward` if not given.
        pseudo_inverse: A^+, in the same shapes as `transpose`; where it is missing, equations are solved by conjugate
            gradients.
        name: for messages.
    """

    forward: Map
    transpose: Map | None = None
    pseudo_inverse: Map | None = None
    name: str = "operator"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A x."""
        return self.forward(x)

    def pulled_back(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A^T y in the shape of x; the derivative at x where A is not linear.

        Raises:
            ValueError: for an operator without a transpose that PyTorch can't differentiate.
        """
        if self.transpose is not None:
            return self.transpose(y)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            measured = self.forward(x)
            if not measured.requires_grad:
                raise ValueError(
                    f"'{self.name}' has no transpose, and PyTorch can't differentiate it; give LinearOperator a "
                    "transpose or a pseudo_inverse."
                )
            return torch.autograd.grad(measured, x, y)[0]


def as_operator(operator: Any) -> LinearOperator:
    """A `LinearOperator` of one or of a callable. Raises ValueError for anything else."""
    if isinstance(operator, LinearOperator):
        return operator
    if not callable(operator):
        raise ValueError(f"operator must be a LinearOperator or a function of images, got {operator!r:.60}.")
    return LinearOperator(operator, name=getattr(operator, "__name__", type(operator).__name__))


def masking(known: torch.Tensor) -> LinearOperator:
    """x where `known` is 1, and 0 where it is 0: a tensor that broadcasts over x."""

    def keep(x: torch.Tensor) -> torch.Tensor:
        return x * known.to(x)

    return LinearOperator(keep, keep, keep, "mask")


def down_sampling(factor: int) -> LinearOperator:
    """The mean over blocks of `factor` pixels along every side.

    Raises:
        ValueError: for a factor that is no integer of at least 2, and in use for sizes that it does not divide.
    """
    if not isinstance(factor, int) or factor < 2:
        raise ValueError(f"factor must be an integer of at least 2, got {factor!r}.")

    def forward(x: torch.Tensor) -> torch.Tensor:
        for dim in range(2, x.ndim):
            if x.shape[dim] % factor:
                raise ValueError(f"down_sampling by {factor} needs sizes it divides, got {tuple(x.shape[2:])}.")
            x = x.unflatten(dim, (-1, factor)).mean(dim + 1)
        return x

    def repeated(y: torch.Tensor) -> torch.Tensor:
        for dim in range(2, y.ndim):
            y = y.repeat_interleave(factor, dim)
        return y

    def transpose(y: torch.Tensor) -> torch.Tensor:
        return repeated(y) / factor ** (y.ndim - 2)

    return LinearOperator(forward, transpose, repeated, "down_sampling")


def blur(std: float, smallest: float = 1e-2) -> LinearOperator:
    """A Gaussian blur; the image continues periodically at its borders.

    Args:
        std: of the Gaussian in pixels, above 0.
        smallest: the pseudo-inverse leaves out frequencies that the blur multiplies by less.

    Raises:
        ValueError: for std of 0 or below.
    """
    if not std > 0:
        raise ValueError(f"std must be above 0, got {std}.")

    def filtered(x: torch.Tensor, change: Map) -> torch.Tensor:
        dims = tuple(range(2, x.ndim))
        response = torch.ones((), dtype=torch.float64)
        for dim in dims:
            frequencies = torch.fft.fftfreq(x.shape[dim], dtype=torch.float64)
            row = torch.exp(-2 * (torch.pi * std * frequencies) ** 2)
            response = response[..., None] * row
        weights = change(response).to(device=x.device, dtype=x.dtype)
        return torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * weights, dim=dims).real

    def forward(x: torch.Tensor) -> torch.Tensor:
        return filtered(x, lambda response: response)

    def inverse(y: torch.Tensor) -> torch.Tensor:
        return filtered(y, lambda response: torch.where(response < smallest, 0.0, 1 / response))

    return LinearOperator(forward, forward, inverse, "blur")


def grey() -> LinearOperator:
    """The luma of an RGB image, as the condition `colorization` has it."""

    def weights(like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(LUMA_WEIGHTS, dtype=like.dtype, device=like.device).reshape(3, *(1,) * (like.ndim - 2))

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != 3:
            raise ValueError(f"grey needs images of 3 channels, got {x.shape[1]}.")
        return (x * weights(x)).sum(1, keepdim=True)

    def transpose(y: torch.Tensor) -> torch.Tensor:
        return y * weights(y)

    def inverse(y: torch.Tensor) -> torch.Tensor:
        return y * weights(y) / weights(y).square().sum()

    return LinearOperator(forward, transpose, inverse, "grey")


def random_projection(numbers: int, shape: tuple[int, ...], seed: int = 0) -> LinearOperator:
    """`numbers` random linear combinations of all entries of x, with weights of variance 1 / entries.

    Args:
        numbers: of the measurement.
        shape: of one x, `(channels, *size)`.
        seed: of the weights.

    Raises:
        ValueError: for fewer than 1 or more than as many as x has entries.
    """
    entries = torch.Size(shape).numel()
    if not 1 <= numbers <= entries:
        raise ValueError(f"numbers must be between 1 and {entries}, the entries of an image, got {numbers}.")
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(numbers, entries, generator=generator, dtype=torch.float64) / entries**0.5
    return of_matrix(matrix, shape, "random_projection")


def of_matrix(matrix: torch.Tensor, shape: tuple[int, ...], name: str = "matrix") -> LinearOperator:
    """A matrix (m, entries of x) for x of `shape` = `(channels, *size)`; y has the shape (n, m)."""
    matrix = torch.as_tensor(matrix)
    inverse = torch.linalg.pinv(matrix.double())

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ matrix.to(x).mT

    def transpose(y: torch.Tensor) -> torch.Tensor:
        return (y @ matrix.to(y)).reshape(-1, *shape)

    def pseudo_inverse(y: torch.Tensor) -> torch.Tensor:
        return (y @ inverse.to(y).mT).reshape(-1, *shape)

    return LinearOperator(forward, transpose, pseudo_inverse, name)
