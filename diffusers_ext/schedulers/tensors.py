"""Arithmetic on samples: float32 or wider inside, rounded once on the way out."""

from __future__ import annotations

from typing import Any

import torch

_CARRIED = "_carried_in_full_precision"


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype in which tensors of these dtypes are combined: float64 if any is, float32 otherwise."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_tensors(**named: Any) -> None:
    """Raise ValueError, naming it, for what is no tensor of floating-point numbers."""
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a tensor of floating-point numbers, got {found}.")


def combine(a: Any, x: torch.Tensor, b: Any, y: torch.Tensor) -> torch.Tensor:
    """a * x + b * y as a new tensor in working precision. a and b are floats, or tensors that broadcast against x."""
    dtype = working_dtype(x.dtype, y.dtype)
    x, y = x.to(dtype), y.to(dtype)
    # Two passes and one new tensor: the second multiplication is fused with the addition, in place.
    if isinstance(b, torch.Tensor):
        return torch.mul(x, a).addcmul_(y, b)
    return torch.mul(x, a).add_(y, alpha=b)


def weighted_sum(onto: torch.Tensor | None, *terms: tuple[float, torch.Tensor]) -> torch.Tensor:
    """onto + the sum of weight * tensor, one fused pass per term.

    The result is written into `onto`, which must be the caller's own tensor in working precision, or into a new tensor
    without it: fresh memory costs a step as much as a pass over it.
    """
    if onto is None:
        (weight, tensor), *terms = terms  # type: ignore[assignment]
        onto = torch.mul(tensor.to(working_dtype(tensor.dtype)), weight)
    for weight, tensor in terms:
        onto.add_(tensor, alpha=weight)
    return onto


def rounded(sample: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The sample in `dtype`, as a step returns it; `carried` finds the unrounded one again.

    Small steps on a sample of half precision are rounded away, so that more steps would give a worse result. The
    rounded tensor therefore holds a reference to the unrounded one. A scheduler keeps nothing.
    """
    result = sample.to(dtype)
    # Tensors made in inference mode count no versions, so that a change in place could not be seen.
    if result is not sample and result.element_size() < sample.element_size() and not result.is_inference():
        setattr(result, _CARRIED, (result._version, sample))
    return result


def carried(sample: torch.Tensor) -> torch.Tensor:
    """The unrounded sample behind a tensor that `rounded` made, unless it was changed in place; else the tensor.

    Raises ValueError for a sample that is no tensor of floating-point numbers.
    """
    check_tensors(sample=sample)
    version, unrounded = getattr(sample, _CARRIED, (None, None))
    if unrounded is None or sample.is_inference() or version != sample._version:
        return sample
    return unrounded


def previous_sample(step: Any) -> torch.Tensor:
    """The sample that a scheduler's `step` gave: itself, the first entry of a tuple, or the attribute `prev_sample`."""
    first = step[0] if isinstance(step, tuple) else step
    return first if isinstance(first, torch.Tensor) else first.prev_sample
