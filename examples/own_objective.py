"""An objective of your own: any callable (net, batch, generator) that gives the loss of every sample.

python examples/own_objective.py          # a few minutes on two cores: samples in outputs/own-objective
python examples/own_objective.py --fast   # a few steps, to see that it runs
"""

import argparse

import torch

from diffusers_ext.objectives.randomness import rand_shared, randn_shared
from diffusers_ext.training import TrainingArguments, train


class ImmiscibleFlow:
    """Flow matching in which every image is paired with the nearest of several noises (arXiv:2505.18521).

    Args:
        candidates: noises drawn for each image.
    """

    def __init__(self, candidates: int = 4):
        self.candidates = candidates

    def __call__(self, net, batch, generator):
        """Losses of shape (batch,). `net` is conditioned already: `net(sample, timestep)` gives a tensor."""
        x0 = batch["samples"]  # (batch, channels, height, width) in [-1, 1]
        # The helpers draw for the batch of all processes and give this one its part, so N processes equal one.
        noises = randn_shared((len(x0), self.candidates, *x0.shape[1:]), generator, x0.device)
        distances = (noises - x0[:, None]).flatten(2).norm(dim=2)
        noise = noises[torch.arange(len(x0)), distances.argmin(dim=1)]
        t = rand_shared((len(x0),), generator, x0.device)
        weight = t.reshape(-1, *(1,) * (x0.ndim - 1))
        output = net((1 - weight) * x0 + weight * noise, 1000 * t)  # timesteps as the sampler will give them
        return (output.float() - (noise - x0)).square().flatten(1).mean(dim=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="take a few steps only")
    parser.add_argument("--output_dir", default="outputs/own-objective", help="where the pipeline is saved")
    flags = parser.parse_args()
    arguments = TrainingArguments(
        output_dir=flags.output_dir,
        overwrite_output_dir=True,
        dataset_name="embedded",
        train_split="train[:64]" if flags.fast else "train",
        model="small",
        model_options='{"base_channels": 8}' if flags.fast else '{"base_channels": 32}',
        schedule="rectified_flow",  # what the pipeline samples with has to fit the objective
        prediction_type="flow",
        train_batch_size=4 if flags.fast else 32,
        max_train_steps=3 if flags.fast else 3000,
        ddpm_num_inference_steps=2 if flags.fast else 25,
        save_figures=not flags.fast,
        logger="none",
    )
    train(arguments, objective=ImmiscibleFlow())
