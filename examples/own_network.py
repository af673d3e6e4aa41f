"""A network of your own: any module called as `net(sample, timestep, **conditions)`, trained on the classes of digits.

python examples/own_network.py [--fast]
"""

import argparse
import tempfile

import torch
from torch import nn

from diffusers_ext.models.layers import sinusoidal_embedding
from diffusers_ext.training import TrainingArguments, train


class Mixer(nn.Module):
    """Convolutions of growing reach at one size, each modulated by the time and the class."""

    def __init__(self, width=64, depth=6, classes=10):
        super().__init__()
        self.width = width
        self.classes = nn.Embedding(classes + 1, width)  # the last row is for no class
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.stem, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        reach = [1, 2, 4, 8, 4, 2][:depth]
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=r, dilation=r) for r in reach)
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in reach)

    def forward(self, sample, timestep, class_labels):
        """The prediction, shaped as `sample` (batch, 1, height, width)."""
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        embedding = self.time(sinusoidal_embedding(timestep, self.width)) + self.classes(class_labels)
        x = self.stem(sample)
        for block, shift in zip(self.blocks, self.shifts):
            x = x + nn.functional.silu(block(x) + shift(embedding)[:, :, None, None])
        return self.head(x)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps, to see that everything runs")
    fast = parser.parse_args().fast
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        condition="class",
        schedule="cosine",
        prediction_type="v_prediction",
        learning_rate=2e-3,
        max_train_steps=3 if fast else 2000,
        train_batch_size=8 if fast else 64,
        lr_warmup_steps=1 if fast else 100,
        ddpm_num_inference_steps=2 if fast else 50,
        logger="none",
    )
    pipeline = train(settings, model=Mixer(width=16 if fast else 64))
    for label in (3, 8):
        image = pipeline(class_labels=label, num_inference_steps=settings.ddpm_num_inference_steps).images[0]
        image.save(f"own_network_{label}.png")
