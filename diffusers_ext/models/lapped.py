"""The modified discrete cosine transform on a circle: blocks of a signal that overlap, as bands, and back.

The transform is orthogonal, so white noise stays white: it changes what a network sees, and neither the noise path nor
the objective. Its windows overlap by half, so that no edges of blocks are heard.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor


def lapped_basis(bands: int, like: Tensor) -> Tensor:
    """Rows cos(pi / M (n + 1/2 + M/2) (m + 1/2)) sqrt(2 / M) sin(pi (n + 1/2) / (2 M)), (bands M, 2 M), float32.

    Princen, Johnson and Bradley 1987 (ICASSP, 2161-2164), with the sine window.
    """
    n = torch.arange(2 * bands, device=like.device, dtype=torch.float32) + 0.5
    m = torch.arange(bands, device=like.device, dtype=torch.float32) + 0.5
    waves = torch.cos(math.pi / bands * m[:, None] * (n + bands / 2))
    return waves * torch.sin(math.pi / (2 * bands) * n) * math.sqrt(2 / bands)


def to_bands(x: Tensor, bands: int) -> Tensor:
    """Signals (..., length) as (..., bands, length / bands), float32; the end of a signal meets its start."""
    with _without_autocast(x):
        x = x.float()
        blocks = torch.cat((x, x[..., :bands]), dim=-1).unfold(-1, 2 * bands, bands)
        return (blocks @ lapped_basis(bands, x).T).transpose(-1, -2)


def from_bands(bands: Tensor) -> Tensor:
    """The inverse of `to_bands`: (..., bands, blocks) as (..., bands * blocks), float32."""
    count = bands.shape[-2]
    with _without_autocast(bands):
        blocks = bands.float().transpose(-1, -2) @ lapped_basis(count, bands)
        first, second = blocks.split(count, dim=-1)
        return (first + second.roll(1, dims=-2)).flatten(-2)


def _without_autocast(x: Tensor) -> Any:
    """The transform is computed in float32; devices such as `meta` have no autocast to switch off."""
    device = x.device.type
    return (
        torch.autocast(device, enabled=False) if device in ("cpu", "cuda", "mps", "xpu") else contextlib.nullcontext()
    )


def compress(x: Tensor, scale: Tensor, exponent: float) -> Tensor:
    """Signals (..., channels, length) whose coefficients c become sign(c) |c|^exponent / scale; the shape stays.

    `scale` is (channels, bands), one number a band. An exponent below 1 brings loud and quiet parts nearer to one
    another, as Richter et al. 2023 (arXiv:2208.05830), section III-B, do with Fourier coefficients.
    """
    bands = to_bands(x, scale.shape[-1])
    return from_bands(bands.sign() * bands.abs() ** exponent / scale[..., None])


def expand(x: Tensor, scale: Tensor, exponent: float) -> Tensor:
    """The inverse of `compress`."""
    bands = to_bands(x, scale.shape[-1]) * scale[..., None]
    return from_bands(bands.sign() * bands.abs() ** (1 / exponent))
