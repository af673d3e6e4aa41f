"""A condition of your own: the share of ink in a digit, as a few lines that training and sampling both follow.

python examples/own_condition.py [--fast]
"""

import argparse
import tempfile

import torch

from diffusers_ext.conditions import Condition
from diffusers_ext.data.images import load_image_data
from diffusers_ext.models import build_model
from diffusers_ext.training import TrainingArguments, train


class Ink(Condition):
    """The mean brightness of an image. The data have a column `ink`, the network and the pipeline an argument `ink`."""

    name = "ink"
    null_value = -1.0  # what the network's argument holds for "no condition"


class InkNetwork(torch.nn.Module):
    """A network of this package that turns the ink into one of its 20 classes, and -1 into none."""

    def __init__(self, **config):
        super().__init__()
        self.unet = build_model("small", num_class_embeds=20, **config)

    def forward(self, sample, timestep, ink):
        level = (ink[:, 0] * 40).long().clamp(0, 19)
        return self.unet(sample, timestep, torch.where(ink[:, 0] < 0, 20, level)).sample


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps, to see that everything runs")
    fast = parser.parse_args().fast
    digits = load_image_data("embedded")
    images = digits.__getitems__(range(200 if fast else len(digits)))["samples"]
    rows = [{"samples": image, "ink": image.mean().item() / 2 + 0.5} for image in images]
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        schedule="cosine",
        prediction_type="v_prediction",
        learning_rate=2e-3,
        max_train_steps=3 if fast else 600,
        train_batch_size=8 if fast else 64,
        lr_warmup_steps=1 if fast else 100,
        ddpm_num_inference_steps=2 if fast else 20,
        logger="none",
    )
    network = InkNetwork(base_channels=8 if fast else 32)
    pipeline = train(settings, model=network, train_dataset=rows, condition=Ink())
    for ink in (0.05, 0.25):
        request = {"ink": ink, "guidance_scale": 1.5, "num_inference_steps": settings.ddpm_num_inference_steps}
        print(f"asked for {ink}: {pipeline(batch_size=8, output_type='pt', **request).images.mean().item():.3f}")
