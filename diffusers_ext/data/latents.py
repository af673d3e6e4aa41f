"""Latents in the place of images: encoded once, kept on disk, sampled anew in every epoch.

The cache is a folder named by a hash of the autoencoder and of all pixels that were encoded, so latents of another
autoencoder, of other images or of images that were prepared otherwise are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .base import Batch, Key, TrainingData
from .images import ExampleData, indices_and_epochs
from .randomness import CROP, FLIP, LATENT, counter_hash, uniforms
from .transforms import Arrays

BATCH_SIZE = 32  # images that are encoded at a time
DESCRIPTION = "latents.json"
FORMAT = 1  # of the files; another number makes all older caches stale
Encoder = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class LatentOptions:
    """How latents are encoded and kept.

    Args:
        folder: of all caches.
        crops: how many random preparations of each image are encoded; an image prepared at random then has so many
            versions instead of a new one in each epoch.
        mirror: encode each image mirrored too, and draw one of both.
        max_memory_bytes: latents that take more than this are read from the disk when they are needed.
        seed: of what is drawn in training.
    """

    folder: Path
    crops: int = 1
    mirror: bool = False
    max_memory_bytes: int = 2 * 1024**3
    seed: int = 0

    @property
    def views(self) -> int:
        """Versions of an image that are encoded."""
        return self.crops * (2 if self.mirror else 1)


class LatentExamples:
    """The latents in a cache, as the `Examples` of `LatentData`.

    A latent is drawn from the encoder's distribution, with numbers that are a function of (seed, epoch, index).

    Args:
        images: that were encoded; neither mirrored nor streamed.
        arrays: of the cache, see `LatentCache.arrays`.
        options: how they were encoded.
        key: of the cache.
    """

    def __init__(self, images: TrainingData, arrays: dict[str, np.ndarray], options: LatentOptions, key: str):
        self._images, self._options, self._key = images, options, key
        self.mean, self.std, self._rows = arrays["mean"], arrays.get("std"), arrays["rows"]
        self.positions = np.arange(len(images))
        self.where = "read from disk" if isinstance(self.mean, np.memmap) else "in memory"

    @property
    def skipped(self) -> int:
        """How many images could not be read."""
        return self._images.skipped

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, indices: np.ndarray, epochs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents of the images at `indices`, and the indices of the images that were encoded."""
        views = self._views(epochs, indices)
        samples = np.ascontiguousarray(self.mean[views, indices])
        if self.std is not None:
            std = torch.from_numpy(np.ascontiguousarray(self.std[views, indices]))
            samples = (torch.from_numpy(samples) + std * self._noise(epochs, indices, samples.shape[1:])).numpy()
        return samples, self._rows[views, indices].astype(np.int64)

    def digest(self) -> bytes:
        """Changes with the autoencoder and with the pixels that it encoded."""
        return f"{self._key} {self._images.fingerprint()}".encode()

    def images_of(self, indices: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """The images whose latents `read` gives, as "images", and those of the companion, if any, as "condition"."""
        views = self._views(epochs, indices)
        crops, mirrored = np.divmod(views, 2) if self._options.mirror else (views, np.zeros_like(views))
        batch = self._images.__getitems__(list(zip(indices.tolist(), crops.tolist())))
        chosen = torch.from_numpy(mirrored.astype(bool))[:, None, None, None]
        names = {"samples": "images", "condition": "condition"}
        return {names[key]: torch.where(chosen, x.flip(-1), x) for key, x in batch.items() if key in names}

    def _views(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Which version of each image is drawn, int64 (B,)."""
        options = self._options
        views = (uniforms(options.seed, CROP, epochs, indices, 1)[:, 0] * options.crops).astype(np.int64)
        if options.mirror:
            views = 2 * views + (uniforms(options.seed, FLIP, epochs, indices, 1)[:, 0] < 0.5)
        return views

    def _noise(self, epochs: np.ndarray, indices: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal numbers (B, *shape), a function of (seed, epoch, index) for each sample."""
        seeds = counter_hash(self._options.seed, LATENT, epochs, indices) >> np.uint64(1)
        generator = torch.Generator()
        return torch.stack([torch.randn(*shape, generator=generator.manual_seed(int(seed))) for seed in seeds])


class LatentData(ExampleData):
    """The latents of images, as `TrainingData` with the same labels, captions and columns.

    Args:
        images, arrays, options, key: see `LatentExamples`.
        autoencoder: that encoded them, with the name by which the description calls it.

    Attributes:
        images: the same.
        vae: the autoencoder.
        gives_images: whether batches hold the images themselves too, as "images", and those beside them as "condition".
    """

    gives_images = False

    def __init__(
        self,
        images: TrainingData,
        arrays: dict[str, np.ndarray],
        options: LatentOptions,
        key: str,
        autoencoder: tuple[Any, str],
    ):
        self._latents = LatentExamples(images, arrays, options, key)
        super().__init__(
            self._latents,
            _as_they_are,
            None if images.labels is None else images.labels.numpy(),
            images.label_names,
            captions=images.captions,
            columns={name: values.numpy() for name, values in images.columns.items()},
        )
        self.images, (self.vae, name) = images, autoencoder
        shape = "x".join(map(str, (self.channels, *self.size)))
        self.description = f"{images.description}; encoded by '{name}' to latents of {shape}, {self._latents.where}"

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A batch of latents; see `TrainingData`."""
        batch = super().__getitems__(keys)
        return {**batch, **self._latents.images_of(*indices_and_epochs(keys))} if self.gives_images else batch

    def number_classes_as(self, names: Sequence[str]) -> None:
        """Give each class the number that its name has in `names`, here and in the images."""
        super().number_classes_as(names)
        self.images.number_classes_as(names)

    def spread(self) -> float:
        """Standard deviation of the latents: 1 when the autoencoder's scale fits these images."""
        means, deviations, total = self._latents.mean, self._latents.std, np.zeros(2)
        for views in range(len(means)):
            for start in range(0, len(self), 1024):
                part = means[views, start : start + 1024].astype(np.float64)
                square = np.square(part).mean()
                if deviations is not None:
                    square += np.square(deviations[views, start : start + 1024].astype(np.float64)).mean()
                total += np.array([part.mean(), square]) * len(part)
        mean, square = total / (len(means) * len(self))
        return float(np.sqrt(max(square - mean**2, 0.0)))


def _as_they_are(arrays: Arrays, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The preparation of latents: none."""
    return np.asarray(arrays)


class LatentCache:
    """The latents of some images on disk.

    Args:
        images: to encode.
        autoencoder_hash: changes when the weights or the configuration of the autoencoder change.
        options: how they are encoded and kept.

    Attributes:
        key: hash of the autoencoder, the options and all pixels.
        path: of the folder.

    Raises:
        ValueError: for a stream, which has no end that could be encoded.
    """

    def __init__(self, images: TrainingData, autoencoder_hash: str, options: LatentOptions):
        if images.stream is not None:
            raise ValueError(
                "vae encodes all images before the first step, and a stream has no end; leave streaming out."
            )
        self.images, self.options = images, options
        digest = hashlib.sha256(f"{FORMAT} {autoencoder_hash} {options.crops} {options.mirror}".encode())
        for _, batch in self._batches("Reading images", crops=options.crops):
            digest.update(batch["samples"].numpy().tobytes() + batch["index"].numpy().tobytes())
        self.key = digest.hexdigest()[:32]
        self.path = options.folder / self.key

    def _batches(self, title: str, crops: int) -> Iterator[tuple[tuple[int, slice], Batch]]:
        """((crop, where), images) of all images in order, with a progress bar."""
        count = len(self.images)
        with tqdm(total=count * crops, desc=title, unit="img", leave=False, mininterval=1) as bar:
            for crop in range(crops):
                for start in range(0, count, BATCH_SIZE):
                    where = slice(start, min(start + BATCH_SIZE, count))
                    yield (crop, where), self.images.__getitems__([(i, crop) for i in range(where.start, where.stop)])
                    bar.update(where.stop - where.start)

    def arrays(self, encode: Encoder, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """`mean` and `std` (views, images, channels, *size), and `rows` (views, images), the images that were read.

        Args:
            encode: images -> (mean, standard deviation or None), on any device.
            shape: of one latent.

        Raises:
            ValueError: when the folder can't be written, or has no room for them.
        """
        found = self._read()
        if found is None:
            self._write(encode, shape)
            found = self._read()
        if found is None:
            raise ValueError(f"The latents in '{self.path}' could not be read back; remove that folder.")
        return found

    def _read(self) -> dict[str, np.ndarray] | None:
        """The arrays; None where there are none, or not those that the description tells of."""
        try:
            described = json.loads((self.path / DESCRIPTION).read_text(encoding="utf-8"))
            if described["key"] != self.key:
                return None
            size = sum((self.path / f"{name}.npy").stat().st_size for name in described["arrays"])
            mode: Any = "r" if size > self.options.max_memory_bytes else None
            arrays = {name: np.load(self.path / f"{name}.npy", mmap_mode=mode) for name in described["arrays"]}
            whole = all(list(arrays[name].shape) == shape for name, shape in described["arrays"].items())
            return arrays if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _write(self, encode: Encoder, shape: tuple[int, ...]) -> None:
        """Encode everything into a folder beside the cache, and rename that: a killed run leaves no half of one."""
        views, count = self.options.views, len(self.images)
        self._check_room(2 * views * count * int(np.prod(shape)) * 4)
        partial = self.path.with_name(f".{self.key}-{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            arrays = self._encode(encode, partial, (views, count, *shape))
            shapes = {name: list(array.shape) for name, array in arrays.items()}
            for array in arrays.values():
                array.flush()
            text = json.dumps({"key": self.key, "arrays": shapes, "images": self.images.description}, indent=2)
            (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
            if self._read() is None:  # else another run has written them meanwhile
                shutil.rmtree(self.path, ignore_errors=True)
                os.replace(partial, self.path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _encode(self, encode: Encoder, folder: Path, shape: tuple[int, ...]) -> dict[str, np.memmap]:
        def new(name: str, shape: tuple[int, ...], dtype: Any) -> np.memmap:
            array = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            _reserve(folder / f"{name}.npy")
            return array

        arrays = {"mean": new("mean", shape, np.float32), "rows": new("rows", shape[:2], np.int64)}
        mirrored = (False, True) if self.options.mirror else (False,)
        for (crop, where), batch in self._batches("Encoding images", self.options.crops):
            for number, mirror in enumerate(mirrored):
                view = crop * len(mirrored) + number
                mean, std = encode(batch["samples"].flip(-1) if mirror else batch["samples"])
                arrays["mean"][view, where], arrays["rows"][view, where] = mean.cpu().numpy(), batch["index"].numpy()
                if std is not None:
                    if "std" not in arrays:
                        arrays["std"] = new("std", shape, np.float32)
                    arrays["std"][view, where] = std.cpu().numpy()
        return arrays

    def _check_room(self, needed: int) -> None:
        folder = self.options.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"latent_cache_dir '{folder.parent}' can't be written ({error.strerror}); name another folder."
            ) from error
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"The latents take up to {needed / 1e9:.1f} GB, and '{folder}' has {free / 1e9:.1f} GB free; name "
                "another latent_cache_dir, or encode fewer latent_crops."
            )


def _reserve(file: Path) -> None:
    """Take the room on the disk that a new file will fill: a full disk is then an error, not the end of the process."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
