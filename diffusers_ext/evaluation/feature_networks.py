"""Feature networks, given by the file, folder or Hub name of their weights.

- A folder of an `ImageClassifier` or a `SignalClassifier`: its penultimate features.
- A folder or Hub name of a vision model of transformers, with its image processor, from safetensors: the image features
  of a model that has text features too, such as CLIP; else the pooled output; else the mean of the tokens.
- A file with the weights of FID's Inception (.pth, .pt or .safetensors): 2,048 features by `inception.Inception`. Of an
  archive of TorchScript only the weights are read.
- `inception-2015-12-05.pt` of the StyleGAN projects, which is recognised by its SHA-256.

No other program in a file is run: TorchScript can write any file that the user can write.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..files import one_line
from ..hub.safe_loading import is_torchscript, read_tensors, zip_entries
from .inception import NUM_FEATURES, Inception
from .signal_classifier import CLASSIFIERS, classifier_of

Function = Callable[[torch.Tensor], torch.Tensor]

# SHA-256 of archives of TorchScript that are trusted: `forward(uint8 images, return_features=True)` gives features.
KNOWN_PROGRAMS = {
    # nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
}


class FeatureNetwork(torch.nn.Module):
    """A network that turns images into features, with the name that reports use.

    Args:
        network: the module with the weights.
        function: images (batch, channels, height, width) in [-1, 1] -> features (batch, dimensions).
        name: one line that says which network it is and which of its features are used.
        channels: number of channels that `function` takes; greyscale images are repeated.
        dims: 2 for images, 1 for signals (batch, channels, length).
    """

    def __init__(self, network: torch.nn.Module, function: Function, name: str, channels: int = 3, dims: int = 2):
        super().__init__()
        self.network, self.function, self.name, self.channels, self.dims = network, function, name, channels, dims

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features (batch, dimensions) of images (batch, channels, height, width) in [-1, 1].

        Raises ValueError for images with another number of channels, unless they are greyscale.
        """
        if images.ndim != 2 + self.dims:
            raise ValueError(f"The feature network takes {'images' if self.dims == 2 else 'signals'} only.")
        if images.shape[1] not in (1, self.channels):
            raise ValueError(
                f"The feature network takes {self.channels} channels, and the images have {images.shape[1]}."
            )
        return self.function(images.expand(-1, self.channels, *images.shape[2:]))


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8, as a file stores them."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_feature_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """Load the feature network at a path or of a name on the Hub; see the module for the kinds.

    Raises:
        ValueError: one sentence, if there is no such network or it gives no features of images.
    """
    path = Path(name)
    network = (_of_file(path) if path.is_file() else _of_folder(name)).to(device).eval().requires_grad_(False)
    _try(network, name, device)
    return network


@torch.no_grad()
def _try(network: FeatureNetwork, name: str, device: torch.device | str) -> None:
    """Raises ValueError unless the network gives one row of numbers per image, and the same ones twice."""
    sizes = (32, 32) if network.dims == 2 else (1024,)
    noise = torch.rand(2, network.channels, *sizes, generator=torch.Generator().manual_seed(0))
    try:
        first, second = (network((2 * noise - 1).to(device)) for _ in range(2))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(f"'{name}' gives no features of images ({_short(error)}).") from None
    if not isinstance(first, torch.Tensor) or first.ndim < 2 or len(first) != 2:
        shape = tuple(first.shape) if isinstance(first, torch.Tensor) else type(first).__name__
        raise ValueError(f"'{name}' must give one row of features per image, got {shape} for 2 images.")
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise ValueError(f"'{name}' gives different features for the same image each time, so they can't be compared.")


def _short(error: BaseException) -> str:
    return one_line(error)[:300]


# --- files ------------------------------------------------------------------------------------------------------------


def _of_file(path: Path) -> FeatureNetwork:
    if path.suffix.lower() != ".safetensors":
        _refuse_exported(path)
        if is_torchscript(path) and (known := _of_known_program(path)) is not None:
            return known
    try:
        content = read_tensors(path)
        inception = Inception.from_weights(content if isinstance(content, dict) else {})
    except ValueError as error:
        raise ValueError(f"'{path}' has no weights of a feature network: {error}") from None
    name = f"{NUM_FEATURES:,} features of FID's Inception, {_identity(path)}"
    return FeatureNetwork(inception, lambda images: inception(as_bytes(images)), name)


def _refuse_exported(path: Path) -> None:
    entries = [entry.partition("/")[2] for entry in zip_entries(path)]
    if path.suffix == ".pt2" or "archive_format" in entries:
        raise ValueError(
            f"'{path}' is a program of torch.export, and loading it could run any code; save the network's state dict "
            "instead."
        )


def _of_known_program(path: Path) -> FeatureNetwork | None:
    """The network of an archive of TorchScript if it is one of `KNOWN_PROGRAMS`; nothing of another one is run."""
    content = path.read_bytes()  # once, so that what is run is what was hashed
    if hashlib.sha256(content).hexdigest() not in KNOWN_PROGRAMS:
        return None
    script = torch.jit.load(io.BytesIO(content), map_location="cpu")
    name = f"features of the TorchScript archive {_identity(path)}"
    return FeatureNetwork(script, lambda images: script(as_bytes(images), return_features=True), name)


def _identity(path: Path) -> str:
    """A file's name and the start of its SHA-256."""
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
    if config.get("_class_name") in CLASSIFIERS:
        return _of_classifier(name)
    if "model_type" not in config:
        raise ValueError(
            f"'{name}' is neither a classifier of `diffusers-ext classifier train` nor a model of transformers."
        )
    return _of_vision_model(name)


def _of_classifier(name: str) -> FeatureNetwork:
    network = classifier_of(name)
    description = f"penultimate features of {Path(name).name}, a {network.description()}"
    return FeatureNetwork(network, network.features, description, network.config.in_channels, network.dims)


def _of_vision_model(name: str) -> FeatureNetwork:
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        network, loading = AutoModel.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ValueError(f"'{name}' can't be loaded as a vision model of transformers ({_short(error)}).") from None
    # A checkpoint trained for another task may have no pooler; transformers then fills it with random numbers.
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
    description = f"{kind} of {Path(name).name}, a {type(network).__name__}"
    return FeatureNetwork(network, lambda images: of_pixels(pixels(images).to(images)), description)


@torch.no_grad()
def _kind(network: Any, pixels: Function, has_pooler: bool) -> tuple[str, Function]:
    """The name of the features, and the function from pixel values to them."""
    if hasattr(network, "get_image_features"):
        return "image features", lambda values: _pooled(network.get_image_features(pixel_values=values))
    if has_pooler and _pooled(network(pixel_values=pixels(torch.zeros(1, 3, 32, 32)))) is not None:
        return "pooled output", lambda values: _pooled(network(pixel_values=values))
    return "mean of the tokens", lambda values: _mean_of_tokens(network(pixel_values=values))


def _pooled(output: Any) -> Any:
    return output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)


def _mean_of_tokens(output: Any) -> torch.Tensor:
    """Mean over the tokens of (batch, tokens, channels) or over the pixels of (batch, channels, height, width)."""
    hidden = output.last_hidden_state
    return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
