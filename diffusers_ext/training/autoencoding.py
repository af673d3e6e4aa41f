"""What a run with `--task autoencoder` does instead of a diffusion run: network, loss, scale, measures, files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from .. import figures
from ..data.base import TrainingData
from ..data.randomness import permutation
from ..evaluation.features import compare_sets, extract
from ..evaluation.metrics import peak_signal_to_noise_ratio, structural_similarity
from ..hub.provenance import write_provenance
from ..models.autoencoders import AUTOENCODERS, build_autoencoder
from ..objectives.autoencoder import AutoencoderObjective
from ..pipelines.latent_space import LatentSpace, encoded
from .agreement import Processes
from .arguments import json_option
from .atomic import atomic_write, partial_path
from .callbacks.base import TrainerCallback
from .recording import Recorder
from .weights import Weights

DEFAULT_PRESET = "ae-4x"
BATCH_SIZE = 32  # images that are reconstructed at a time
SCALED_ON = 10_000  # images at most, spread over the training data, whose latents the scale is computed from
SHOWN = 8  # images in the picture of reconstructions


@dataclass
class Reconstruction:
    """What a `TrainableAutoencoder` gives.

    Attributes:
        sample: shaped as the images.
        kl: divergence of each image's latents from a standard normal distribution, (batch,), or None.
    """

    sample: torch.Tensor
    kl: torch.Tensor | None


class TrainableAutoencoder(torch.nn.Module):
    """An autoencoder as one module with a forward pass from images to reconstructions, which training can wrap.

    Args:
        vae: of diffusers, as `LatentSpace` takes it.
    """

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, draw: Callable[[torch.Size], torch.Tensor] | None = None) -> Reconstruction:
        """Reconstructions of images (batch, channels, height, width) in [-1, 1].

        Args:
            images: of the size that the autoencoder divides.
            draw: gives standard normal noise of a shape, for latents that are random; None takes their means.
        """
        vae: Any = self.vae
        output = vae.encode(images)
        if not hasattr(output, "latent_dist"):
            latents = output.latents if hasattr(output, "latents") else output.latent
            return Reconstruction(vae.decode(latents).sample, None)
        distribution = output.latent_dist
        latents = distribution.mean
        if draw is not None:
            latents = latents + distribution.std * draw(latents.shape)
        return Reconstruction(vae.decode(latents).sample, distribution.kl())


def make_autoencoder(model: str, channels: int, size: tuple[int, ...], seed: int, options: dict[str, Any]) -> Any:
    """A freshly initialised autoencoder for images.

    Args:
        model: a preset, or a folder or file with the configuration of an autoencoder of diffusers.
        channels: of the images.
        size: of the images, which the autoencoder must divide.
        seed: of the weights.
        options: entries of its configuration.

    Raises:
        ValueError: one sentence on a name, an option or a size that does not fit.
    """
    torch.manual_seed(seed)
    try:
        vae = build_autoencoder(model, channels, **options) if model in AUTOENCODERS else _from_file(model, options)
    except (TypeError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"The autoencoder's configuration can't be built: {' '.join(str(error).split())}") from error
    space = LatentSpace(vae)
    if space.image_channels != channels:
        raise ValueError(
            f"The autoencoder takes {space.image_channels} channels, but the images have {channels}; set --channels."
        )
    space.size_of(size)
    return vae


def _from_file(model: str, options: dict[str, Any]) -> Any:
    import diffusers

    path = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    if not path.is_file():
        raise ValueError(f"model '{model}' is neither an autoencoder preset ({', '.join(AUTOENCODERS)}) nor a file.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model_class: Any = getattr(diffusers, config["_class_name"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"'{path}' is not the configuration of an autoencoder of diffusers.") from None
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)):
        raise ValueError(f"'{path}' is not the configuration of an autoencoder of diffusers.")
    built: Any = model_class
    return built.from_config({**config, **options})


class AutoencoderTask:
    """The parts of a run that trains an autoencoder.

    Args:
        args: the settings.
    """

    def __init__(self, args: Any):
        self._args = args

    def network(self, data: TrainingData, model: Any = None) -> TrainableAutoencoder:
        """What is trained: an autoencoder by the settings, or the user's."""
        args = self._args
        if model is None:
            name = args.model if "model" in args.given else DEFAULT_PRESET
            options = json_option("model_options", args.model_options)
            model = make_autoencoder(name, data.channels, data.size, args.seed, options)
        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        return TrainableAutoencoder(model)

    def objective(self) -> AutoencoderObjective:
        """The loss."""
        return AutoencoderObjective(self._args.loss, self._args.kl_weight)


# --- scale ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def latent_moments(vae: Any, data: TrainingData, most: int = SCALED_ON) -> tuple[float, float]:
    """(mean, standard deviation) of the latents of at most `most` images, spread over the data."""
    total, count = torch.zeros(2, dtype=torch.float64), 0
    for images in _images(data, most, vae.device):
        mean, std = encoded(vae, images.to(vae.dtype))
        square = mean.double().square() + (0 if std is None else std.double().square())
        total += torch.stack([mean.double().mean(), square.mean()]).cpu() * len(images)
        count += len(images)
    mean_of_all, square_of_all = (total / count).tolist()
    return mean_of_all, max(square_of_all - mean_of_all**2, 0.0) ** 0.5


def set_scale(vae: Any, data: TrainingData) -> None:
    """Write `scaling_factor` = 1 / std and `shift_factor` = mean of the training latents into the configuration."""
    vae.eval()
    mean, std = latent_moments(vae, data)
    vae.register_to_config(scaling_factor=1 / max(std, 1e-6), shift_factor=mean)


def _images(data: TrainingData, most: int, device: Any) -> Iterator[torch.Tensor]:
    chosen = permutation(0, 0, len(data))[:most]
    for start in range(0, len(chosen), BATCH_SIZE):
        keys = [(int(index), 0) for index in chosen[start : start + BATCH_SIZE]]
        yield data.__getitems__(keys)["samples"].to(device)


# --- measures and pictures --------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Reconstructions in [-1, 1] of images on the autoencoder's device, from the means of their latents."""
    mean, _ = encoded(vae, images.to(vae.dtype))
    return vae.decode(mean.to(vae.dtype)).sample.float().clamp(-1, 1)


@torch.no_grad()
def measure_reconstructions(
    vae: Any, data: TrainingData, most: int, features: torch.nn.Module | None = None
) -> dict[str, float]:
    """PSNR and SSIM of reconstructions, and distances of features where a network for them is given.

    Args:
        vae: in evaluation mode.
        data: held-out images.
        most: images that are measured, at most half of the data when features are compared.
        features: network whose features are compared. Real images against other real images are measured beside the
            reconstructions, as `frechet_distance_real`.
    """
    size = min(most, len(data) // 2 if features is not None else len(data))
    real = torch.cat([images.cpu() for images in _images(data, 2 * size if features is not None else size, "cpu")])
    parts = [reconstruct(vae, part.to(vae.device)).cpu() for part in real[:size].split(BATCH_SIZE)]
    fake = torch.cat(parts)
    measures = {
        "reconstruction_samples": float(size),
        "reconstruction_psnr": peak_signal_to_noise_ratio(fake, real[:size]).mean().item(),
        "reconstruction_ssim": structural_similarity(fake, real[:size]).mean().item(),
    }
    if features is None:
        return measures
    sets = {"": fake, "_real": real[size:]}
    own = extract(real[:size].split(BATCH_SIZE), features)
    for suffix, images in sets.items():
        found = compare_sets(extract(images.split(BATCH_SIZE), features), own)
        measures[f"reconstruction_frechet_distance{suffix}"] = found["frechet_distance"]
    return measures


class ReconstructionCallback(TrainerCallback):
    """Pictures of originals beside reconstructions, and the measures of the last weights.

    Args:
        weights: of the run.
        data: held-out images, or the training images where there are none.
        split: what they are called in the records.
        folder: of the run.
        recorder: of the run.
        processes: of the run; the main one draws and measures.
        size: images that are measured.
        features: network whose features are compared, or None.
        least_psnr: a worse reconstruction is warned about, in decibels.
        draws: whether to draw the figures of the finished run.
        is_due: whether to draw after a step.
    """

    def __init__(
        self,
        weights: Weights,
        data: TrainingData,
        split: str,
        folder: Path,
        recorder: Recorder,
        processes: Processes,
        size: int,
        features: torch.nn.Module | None,
        least_psnr: float,
        draws: bool,
        is_due: Callable[[Any, Any, Any], bool],
    ):
        self._weights, self._data, self._split, self._folder = weights, data, split, folder
        self._recorder, self._processes, self._is_due = recorder, processes, is_due
        self._size, self._features, self._least_psnr, self._draws = size, features, least_psnr, draws

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw when it is due."""
        if self._is_due(state, control, kwargs["step"]):
            self._weights.model.eval()
            with self._weights.evaluated() as network, self._processes.main_only("The preview failed"):
                if self._processes.is_main:
                    self._draw(network.vae, self._folder / "samples" / f"step-{state.global_step:06d}.png")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the weights that will be saved."""
        self._weights.model.eval()
        with self._weights.with_best() as network, self._processes.main_only("The measurement failed"):
            if self._processes.is_main:
                network.eval()
                measures = measure_reconstructions(network.vae, self._data, self._size, self._features)
                self._recorder.log(evaluation_split=self._split, **measures)
                self._report(measures)

    def on_export(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the reconstructions and the losses of the finished run."""
        if kwargs["last"] and self._draws and self._processes.is_main:
            (self._folder / "figures").mkdir(exist_ok=True)
            self._draw(kwargs["pipeline"], self._folder / "figures" / "reconstructions.png")
            try:
                figures.plot_losses(self._recorder.file, self._folder / "figures" / "losses.png")
            except (ImportError, ValueError, OSError) as error:
                self._recorder.warn(f"The losses were not drawn ({' '.join(str(error).split())}).")

    def _report(self, measures: dict[str, float]) -> None:
        psnr = measures["reconstruction_psnr"]
        shown = ", ".join(f"{name.removeprefix('reconstruction_')} {value:.4g}" for name, value in measures.items())
        self._recorder.say(f"Reconstructions ({self._split}): {shown}.")
        if psnr < self._least_psnr:
            self._recorder.warn(
                f"The reconstructions have a PSNR of {psnr:.1f} dB, below {self._least_psnr:g} (min_psnr): a diffusion "
                "model on these latents can't be sharper; train longer, or take an autoencoder that compresses less."
            )

    def _draw(self, vae: Any, path: Path) -> None:
        images = torch.cat(list(_images(self._data, 2 * SHOWN, vae.device)))
        both = [images, reconstruct(vae, images)]
        rows = torch.cat([part[start : start + SHOWN] for start in range(0, len(images), SHOWN) for part in both])
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = figures.image_grid(rows.cpu(), columns=min(SHOWN, len(images)), scale=max(1, 64 // images.shape[2]))
        grid.save(path)


# --- files ------------------------------------------------------------------------------------------------------------


def save_autoencoder(vae: Any, output_dir: Path, recipe_file: str, recipe: str) -> None:
    """Save an autoencoder as diffusers loads it by `from_pretrained`, its settings and a card."""
    partial = partial_path(output_dir / "autoencoder")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        vae.save_pretrained(partial)
        for file in sorted(partial.iterdir()):
            file.replace(output_dir / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    write_provenance(output_dir)
    atomic_write(output_dir / recipe_file, recipe)
