"""Networks and autoencoders that a setting names: a folder, or a repository on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.modeling_utils import ModelMixin

from ..files import one_line


def load_pretrained(setting: str, name: str, **options: Any) -> Any:
    """The network in a folder or on the Hub, of whatever class its configuration says.

    Args:
        setting: what the user named it by, for messages.
        name: a folder, or a repository.
        options: of `from_pretrained`: `subfolder`, `token`.

    Raises:
        ValueError, FileNotFoundError: one sentence on what is not there, is of another kind or lacks weights.
    """
    if not Path(name).is_dir():
        _check_hub_name(setting, name)
    try:
        config: Any = diffusers.UNet2DModel.load_config(name, **options)  # the entries of any class
        model_class: Any = getattr(diffusers, str(config.get("_class_name")), None)
        if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)):
            raise ValueError(f"its class {config.get('_class_name')!r} is not one of diffusers or of this package")
        how: dict[str, Any] = {"output_loading_info": True, "use_safetensors": True, **options}
        network, found = model_class.from_pretrained(name, **how)  # type: ignore[attr-defined]
        if found["missing_keys"]:
            raise ValueError(f"its file has no weights '{found['missing_keys'][0]}'")
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{setting} '{name}' could not be loaded: {one_line(error)[:300]}") from error
    return network


def _check_hub_name(setting: str, name: str) -> None:
    """Raise FileNotFoundError for what can be no name on the Hub, or is below `outputs`, where the recipes write."""
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{setting} '{name}' is neither a folder nor a name on the Hub, 'user/name'.")
    if name.startswith("outputs/"):
        raise FileNotFoundError(f"{setting} '{name}' is not there; train it first, or name another folder.")
