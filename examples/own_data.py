"""Train on a data set of your own: any torch `Dataset` whose rows are dictionaries.

python examples/own_data.py          # a minute or two on two cores: samples in outputs/own-data
python examples/own_data.py --fast   # a few steps, to see that it runs
"""

import argparse

import torch

from diffusers_ext.training import TrainingArguments, train


class Disks(torch.utils.data.Dataset):
    """White disks on black. A row has `images` (a Pillow image, or pixels as uint8 or floats in [0, 1]) or `samples`
    (a tensor in [-1, 1] of any size); `labels`, `captions` and columns of numbers are for conditions."""

    label_names = ["small", "large"]

    def __len__(self) -> int:
        return 2048

    def __getitem__(self, index: int) -> dict:
        # Random numbers of PyTorch, NumPy and Python depend on (seed, epoch, index) here, also after a resume.
        label = index % 2
        radius = 3 + 3 * label + torch.rand(())
        middle = 7.5 + 4 * (torch.rand(2) - 0.5)
        rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        distance = torch.hypot(rows - middle[0], columns - middle[1])
        return {"images": (radius - distance + 0.5).clamp(0, 1)[None], "labels": label, "radius": float(radius)}


def main() -> None:
    """Train a small network on `Disks`, conditioned on their class, and save it as a pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="take a few steps only")
    parser.add_argument("--output_dir", default="outputs/own-data", help="where the pipeline is saved")
    flags = parser.parse_args()
    arguments = TrainingArguments(
        output_dir=flags.output_dir,
        condition="class",
        model="small",
        model_options='{"base_channels": 32}',
        train_batch_size=4 if flags.fast else 32,
        max_train_steps=3 if flags.fast else 600,
        schedule="cosine",
        prediction_type="v_prediction",
        learning_rate=1e-3,
        sampler="ddim",
        ddpm_num_inference_steps=2 if flags.fast else 25,
        ema_max_decay=0.99,
        guidance_scale=1.0,
    )
    train(arguments, train_dataset=Disks())


if __name__ == "__main__":
    main()
