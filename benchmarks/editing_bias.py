"""The bias of every editing method against the exact posterior of a mixture, as a function of the steps.

    python benchmarks/editing_bias.py

Two Gaussians in the plane, and the measurement y = x_1 + x_2 / 2 + noise, or x_1 itself for inpainting.
"""

from __future__ import annotations

import argparse

import torch

from diffusers_ext import AncestralDDPMScheduler, EditingPipeline
from diffusers_ext.editing import of_matrix
from diffusers_ext.pipelines import SignalPipeline
from diffusers_ext.proofs import GaussianMixture, MixtureNetwork, posterior_bias

MIXTURE = GaussianMixture([0.4, 0.6], [[-0.5, 0.3], [0.5, -0.2]], [0.04, 0.02])
MATRIX, MEASUREMENT, NOISE_STD = torch.tensor([[1.0, 0.5]], dtype=torch.float64), 0.1, 0.2
KNOWN = 0.1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_samples", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100, 200])
    arguments = parser.parse_args()
    scheduler = AncestralDDPMScheduler(clip_sample=False, timestep_spacing="linspace")
    editor = EditingPipeline(SignalPipeline(MixtureNetwork(MIXTURE, scheduler, shape=(1, 2)), scheduler))
    editor.pipeline.set_progress_bar_config(disable=True)
    measured = MIXTURE.posterior(MATRIX, [MEASUREMENT], NOISE_STD)
    known = MIXTURE.posterior([[1.0, 0.0]], [KNOWN], 1e-3)
    y = torch.full((arguments.num_samples, 1), MEASUREMENT, dtype=torch.float64)
    x = torch.tensor([[[KNOWN, 0.0]]], dtype=torch.float64).repeat(arguments.num_samples, 1, 1)
    print("| method | steps | mean, standard deviations | covariance, relative | weight |\n|---|---|---|---|---|")
    for steps in arguments.steps:
        call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        operator = of_matrix(MATRIX, (1, 2))
        for name, method, options in (
            ("PiGDM", "pigdm", {}),
            ("DPS, step size 0.1", "dps", {"step_size": 0.1}),
        ):
            found = editor.restore(y, operator, NOISE_STD, method, options=options, **call).audios
            print(row(name, steps, posterior_bias(found, measured)), flush=True)
        for resamplings in (1, 10):
            found = editor.inpaint(x, torch.tensor([0, 1]), resamplings, **call).audios[..., 1]
            name = f"RePaint, {resamplings} resampling{'s' * (resamplings > 1)}"
            print(row(name, steps, posterior_bias(found, marginal(known))), flush=True)
    print(f"chance: mean {2 / arguments.num_samples**0.5:.3f}, weight {0.5 / arguments.num_samples**0.5:.3f}")


def marginal(mixture: GaussianMixture) -> GaussianMixture:
    """The second coordinate."""
    return GaussianMixture(mixture.weights, mixture.means[:, 1:], mixture.covariances[:, 1:, 1:])


def row(name: str, steps: int, bias: object) -> str:
    """A row of the table."""
    return f"| {name} | {steps} | {bias.mean:.2f} | {bias.covariance:+.2f} | {bias.weights:.3f} |"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
