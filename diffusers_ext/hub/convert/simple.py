"""The small U-Net of ict1022's notebook."""

from __future__ import annotations

from typing import Any

from .layouts import Family, Shapes, channels, modules, names_by


def _simple_config(shapes: Shapes) -> dict[str, Any]:
    return {
        "widths": tuple(shapes[f"conv{i}.weight"][0] for i in (1, 2, 3)),
        "time_embed_dim": shapes["time_mlp.0.weight"][0],
        **channels(shapes["conv1.weight"][1], shapes["final.weight"][0], self_condition=False),
    }


_SIMPLE_NAMES = (
    (r"^time_embedding\.", "time_mlp."),
    (r"^conv_in\.conv\.", "conv1."),
    (r"^down1\.conv\.", "conv2."),
    (r"^down2\.conv\.", "conv3."),
    (r"^mid([12])\.conv\.", r"mid_conv\1."),
    (r"^up([12])\.conv\.", r"up\1."),
    (r"^conv_out\.", "final."),
)


SIMPLE = Family(
    lambda weights: {"conv1", "mid_conv1", "final"} <= modules(weights), _simple_config, names_by(_SIMPLE_NAMES)
)
