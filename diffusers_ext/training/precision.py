"""Which precision a machine trains in."""

from __future__ import annotations

import torch


def resolve_mixed_precision(wanted: str | None) -> str | None:
    """`auto` becomes what the machine multiplies natively: bf16, or fp16 on older GPUs, or no; others stay.

    None stays None, which leaves the choice to Accelerate's launcher.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if torch.backends.mps.is_available():
        return "no"
    return "bf16" if cpu_multiplies_bf16() else "no"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bfloat16 matrix or dot-product instructions; without them bf16 is slower than float32."""
    features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if features:
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
