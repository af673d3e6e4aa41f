"""Networks whose features are compared, by the file, folder or Hub name of their weights; nothing is unpickled.

- a folder of a classifier of ours (`ImageClassifier`): its penultimate features;
- a folder or Hub name of a vision model of transformers, with its image processor, from safetensors: its image
  features where it has those of a text, too, as CLIP does, else its pooled output, else the mean of its tokens;
- a state dict of FID's Inception (.pth, .pt or .safetensors): 2,048 features by `inception.Inception`;
- a TorchScript archive whose `forward(uint8 images, return_features=True)` gives features, such as
  `inception-2015-12-05.pt` of the StyleGAN family.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..hub.safe_loading import read_tensors
from .classifier import ImageClassifier
from .inception import NUM_FEATURES, Inception

Function = Callable[[torch.Tensor], torch.Tensor]


class FeatureNetwork(torch.nn.Module):
    """Features of images, with the name by which a report calls them.

    Args:
        network: holds the weights.
        function: images (batch, channels, height, width) in [-1, 1] -> features (batch, dimensions), by the network.
        name: one line: which network, and which of its features.
        channels: that the function takes; grey images are repeated.
    """

    def __init__(self, network: torch.nn.Module, function: Function, name: str, channels: int = 3):
        super().__init__()
        self.network, self.function, self.name, self.channels = network, function, name, channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (batch, dimensions) of images (batch, channels, height, width) in [-1, 1].

        Raises ValueError for images of another number of channels, unless they are grey.
        """
        if images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"The network of the features takes {self.channels} channels, and the images have {images.shape[1]}."
            )
        return self.function(images.expand(-1, self.channels, -1, -1))


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as a file holds them, uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_feature_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network at a path, or of a name on the Hub.

    Raises:
        ValueError: one sentence on what is not there, or gives no features of images.
    """
    path = Path(name)
    network = (_of_file(path) if path.is_file() else _of_folder(name)).to(device).eval().requires_grad_(False)
    _try(network, name, device)
    return network


@torch.no_grad()
def _try(network: FeatureNetwork, name: str, device: torch.device | str) -> None:
    """Raises ValueError unless the network gives a row of numbers an image, the same ones twice."""
    noise = torch.rand(2, network.channels, 32, 32, generator=torch.Generator().manual_seed(0))
    try:
        first, second = (network((2 * noise - 1).to(device)) for _ in range(2))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"'{name}' gives no features of images ({_short(error)}).") from None
    if not isinstance(first, torch.Tensor) or first.ndim < 2 or len(first) != 2:
        shape = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        raise ValueError(f"'{name}' must give a row of features an image, got {shape} for 2 images.")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise ValueError(f"'{name}' gives other features of the same image every time, so they can't be compared.")


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


# --- files ------------------------------------------------------------------------------------------------------------


def _of_file(path: Path) -> FeatureNetwork:
    entries = [Path(entry).parts[1:] for entry in _entries(path)]
    if path.suffix == ".pt2" or ("archive_format",) in entries:
        raise ValueError(
            f"'{path}' is a program of torch.export, whose loading unpickles and so could run any code; save a "
            "TorchScript archive or a state dict instead."
        )
    if any(parts[:1] == ("code",) for parts in entries):
        return _of_archive(path)
    try:
        content = read_tensors(path)
        inception = Inception.from_weights(content if isinstance(content, dict) else {})
    except ValueError as error:
        raise ValueError(f"'{path}' holds no network of features: {error}") from None
    name = f"{NUM_FEATURES:,} features of FID's Inception, {_identity(path)}"
    return FeatureNetwork(inception, lambda images: inception(as_bytes(images)), name)


def _entries(path: Path) -> list[str]:
    try:
        return zipfile.ZipFile(path).namelist()
    except zipfile.BadZipFile:
        return []


def _of_archive(path: Path) -> FeatureNetwork:
    """A program of TorchScript: its interpreter runs it, and Python code has no part in it."""
    try:
        script = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"'{path}' is not a whole TorchScript archive ({_short(error)}).") from None
    name = f"features of the TorchScript archive {_identity(path)}"
    return FeatureNetwork(script, lambda images: script(as_bytes(images), return_features=True), name)


def _identity(path: Path) -> str:
    """A file's name, and the start of its digest, as weights of torchvision and others carry it in their name."""
    with path.open("rb") as file:
        return f"{path.name} (SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()[:8]})"


# --- folders, and names on the Hub ------------------------------------------------------------------------------------


def _of_folder(name: str) -> FeatureNetwork:
    from transformers import PretrainedConfig

    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ValueError(f"There is no network '{name}'.")
    try:
        config, _ = PretrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no network '{name}' ({_short(error)}).") from None
    if config.get("_class_name") == ImageClassifier.__name__:
        return _of_classifier(name)
    if "model_type" not in config:
        raise ValueError(
            f"'{name}' is no classifier of `diffusers-ext classifier train`, and no model of transformers."
        )
    return _of_vision_model(name)


def _of_classifier(name: str) -> FeatureNetwork:
    network = ImageClassifier.from_pretrained(name)
    told = f"penultimate features of {Path(name).name}, a {network.description()}"
    return FeatureNetwork(network, network.features, told, network.config.in_channels)


def _of_vision_model(name: str) -> FeatureNetwork:
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        network, loading = AutoModel.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ValueError(f"'{name}' can't be loaded as a vision model of transformers ({_short(error)}).") from None
    # A pooler that a checkpoint of another task lacks is random.
    lacking = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if lacking:
        raise ValueError(f"'{name}' lacks weights of {type(network).__name__}: {', '.join(lacking[:3])}.")
    if not hasattr(network, "get_image_features") and network.main_input_name != "pixel_values":
        raise ValueError(f"'{name}' is a {type(network).__name__}, which takes {network.main_input_name}, not images.")
    network = network.float().eval()

    def pixels(images: torch.Tensor) -> torch.Tensor:
        arrays = list(as_bytes(images).permute(0, 2, 3, 1).cpu().numpy())
        return processor(images=arrays, return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    kind, of_pixels = _kind(network, pixels, has_pooler=not loading["missing_keys"])
    told = f"{kind} of {Path(name).name}, a {type(network).__name__}"
    return FeatureNetwork(network, lambda images: of_pixels(pixels(images).to(images)), told)


@torch.no_grad()
def _kind(network: Any, pixels: Function, has_pooler: bool) -> tuple[str, Function]:
    """What of the network's output are its features, and the function of pixel values that gives them."""
    if hasattr(network, "get_image_features"):
        return "image features", lambda values: _pooled(network.get_image_features(pixel_values=values))
    if has_pooler and _pooled(network(pixel_values=pixels(torch.zeros(1, 3, 32, 32)))) is not None:
        return "pooled output", lambda values: _pooled(network(pixel_values=values))
    return "mean of the tokens", lambda values: _mean_of_tokens(network(pixel_values=values))


def _pooled(output: Any) -> Any:
    return output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)


def _mean_of_tokens(output: Any) -> torch.Tensor:
    """The mean over tokens (batch, tokens, channels), or over places (batch, channels, height, width)."""
    hidden = output.last_hidden_state
    return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
