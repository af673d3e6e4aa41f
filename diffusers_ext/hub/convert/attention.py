"""The attention U-Net of ddpm_accelerate's README."""

from __future__ import annotations

from typing import Any

from .layouts import STACKED_QKV, WITHOUT_NULL, Family, Shapes, channels, modules, names_by


def _attention_config(shapes: Shapes) -> dict[str, Any]:
    width, in_channels = shapes["inc.double_conv.0.weight"][:2]
    downs = [shapes[f"down{i}.maxpool_conv.2.double_conv.0.weight"][0] for i in (1, 2, 3)]
    classes = shapes.get("label_emb.weight")
    return {
        "down_widths": (width, *downs),
        "mid_width": shapes["bot1.double_conv.0.weight"][0],
        "up_widths": tuple(shapes[f"up{i}.conv.1.double_conv.3.weight"][0] for i in (1, 2, 3)),
        "time_embed_dim": shapes["down1.emb_layer.1.weight"][1],
        "num_class_embeds": None if classes is None else classes[0],
        **channels(in_channels, shapes["outc.weight"][0], self_condition=False),
    }


_ATTENTION_NAMES = (
    (r"^class_embedding\.", "label_emb."),
    (r"^conv_in\.", "inc.double_conv."),
    (r"^conv_out\.", "outc."),
    (r"^mid\.(\d)\.", lambda m: f"bot{int(m[1]) + 1}.double_conv."),
    (r"^(down|up)_transformers\.(\d)\.", lambda m: f"sa{int(m[2]) + (1 if m[1] == 'down' else 4)}."),
    (r"^downs\.(\d)\.conv([12])\.", lambda m: f"down{int(m[1]) + 1}.maxpool_conv.{m[2]}.double_conv."),
    (r"^ups\.(\d)\.conv([12])\.", lambda m: f"up{int(m[1]) + 1}.conv.{int(m[2]) - 1}.double_conv."),
    (r"^(down|up)s\.(\d)\.time_proj\.", lambda m: f"{m[1]}{int(m[2]) + 1}.emb_layer.1."),
    (r"^(.*double_conv)\.conv1\.", r"\1.0."),
    (r"^(.*double_conv)\.norm1\.", r"\1.1."),
    (r"^(.*double_conv)\.conv2\.", r"\1.3."),
    (r"^(.*double_conv)\.norm2\.", r"\1.4."),
    (r"^(sa\d)\.norm1\.", r"\1.ln."),
    (r"^(sa\d)\.norm2\.", r"\1.ff_self.0."),
    (r"^(sa\d)\.linear1\.", r"\1.ff_self.1."),
    (r"^(sa\d)\.linear2\.", r"\1.ff_self.3."),
    (r"\.attention\.to_out\.0\.", ".mha.out_proj."),
    (r"\.attention\.to_[qkv]\.", ".mha.in_proj_"),
)


ATTENTION = Family(
    lambda weights: {"inc", "bot1", "outc"} <= modules(weights),
    _attention_config,
    names_by(_ATTENTION_NAMES),
    lambda config: [(r"\.to_[qkv]\.", STACKED_QKV), (r"^class_embedding\.", WITHOUT_NULL)],
)
