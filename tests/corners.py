"""Four classes that are known exactly: noisy images with a bright square in one corner, as files and as a network."""

from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from diffusers_ext import GenerationPipeline, SubsequenceDDIMScheduler
from diffusers_ext.proofs import GaussianMixture

SIZE, CLASSES, SPREAD = 8, 4, 0.15


def templates():
    """The mean of each class, (4, 1, 8, 8)."""
    images = torch.full((CLASSES, 1, SIZE, SIZE), -0.5)
    for label, image in enumerate(images):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[:, top : top + 4, left : left + 4] = 0.5
    return images


def draw(number, seed):
    """(images, labels); every class as often."""
    labels = torch.arange(number) % CLASSES
    noise = torch.randn(number, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return templates()[labels] + SPREAD * noise, labels


def write_files(folder, train=256, test=160):
    """The classes as PNG files in a folder with splits."""
    for seed, (split, number) in enumerate([("train", train), ("test", test)]):
        images, labels = draw(number, seed)
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        for index, (image, label) in enumerate(zip(pixels, labels.tolist())):
            path = folder / split / f"corner{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image[0])).save(path)


class PerfectClassNetwork(torch.nn.Module):
    """What a perfect network predicts (v), given the class or, without one, for all of them together."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.config = SimpleNamespace(in_channels=1, sample_size=SIZE, num_class_embeds=CLASSES)
        means = templates().flatten(1)
        whole = GaussianMixture([1.0] * CLASSES, means, [SPREAD**2] * CLASSES)
        self.mixtures = [*map(whole.conditional, range(CLASSES)), whole]

    def forward(self, sample, timestep, class_labels=None):
        level = self.path.alpha(int(timestep)), self.path.sigma(int(timestep))
        labels = torch.full((len(sample),), CLASSES) if class_labels is None else class_labels
        output = torch.empty_like(sample)
        for label in labels.unique().tolist():
            chosen = labels == label
            output[chosen] = self.mixtures[label].output("v_prediction", sample[chosen], level).to(sample.dtype)
        return SimpleNamespace(sample=output)


def perfect_pipeline():
    """A pipeline that samples the classes exactly, up to its sampler's error."""
    scheduler = SubsequenceDDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="cosine",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    pipeline = GenerationPipeline(PerfectClassNetwork(scheduler.path), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
