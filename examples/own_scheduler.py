"""A scheduler of your own: a diffusers class that the pipeline samples with and `prove` checks against exact answers.

python examples/own_scheduler.py [--fast]
"""

import argparse
import math
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from diffusers_ext import GenerationPipeline, NoisePath, build_model
from diffusers_ext.proofs import prove, table


class TwoStepScheduler(SchedulerMixin, ConfigMixin):
    """DPM-Solver++ (2M): a step of second order from two predictions of x0 (Lu et al. 2022, arXiv:2211.01095)."""

    order, convergence_order, init_noise_sigma = 1, 2, 1.0  # network calls per step; the error falls as 1 / steps^2

    @register_to_config
    def __init__(self, num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon"):
        self.path = NoisePath.from_schedule(beta_schedule, num_train_timesteps)
        self.alphas_cumprod = torch.tensor(self.path.alphas_cumprod)  # says which noise level a timestep means
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps, device=None):
        """Choose timesteps from the noisiest down; all are integers."""
        self.timesteps = torch.linspace(len(self.path) - 1, 0, num_inference_steps + 1)[:-1].round().long().to(device)
        self.earlier = None  # (x0, step in log(alpha / sigma)) of the step before

    def scale_model_input(self, sample, timestep=None):
        return sample

    def step(self, model_output, timestep, sample, return_dict=True):
        """From `timestep` to the next one in the list; the last step gives the predicted x0."""
        t = int(timestep)
        x0, _ = self.path.to_x0_epsilon(self.config.prediction_type, model_output, sample, torch.tensor(t))
        later = self.timesteps[self.timesteps < t]
        if len(later) == 0:
            return SimpleNamespace(prev_sample=x0, pred_original_sample=x0)
        s = int(later[0])
        h = math.log(self.path.alpha(s) / self.path.sigma(s)) - math.log(self.path.alpha(t) / self.path.sigma(t))
        target = x0 if self.earlier is None else x0 + h / self.earlier[1] / 2 * (x0 - self.earlier[0])
        self.earlier = x0, h
        ratio = self.path.sigma(s) / self.path.sigma(t)
        previous = ratio * sample - self.path.alpha(s) * math.expm1(-h) * target
        return SimpleNamespace(prev_sample=previous, pred_original_sample=x0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="fewer steps")
    counts = (5, 10, 20, 40, 80) if parser.parse_args().fast else (5, 10, 20, 40, 80, 160)
    print(table([prove(TwoStepScheduler(), counts=counts)]))
    network = build_model("small", base_channels=8)  # untrained; or load a pipeline and set `pipeline.scheduler`
    pipeline = GenerationPipeline(network, TwoStepScheduler())
    print(pipeline(batch_size=4, num_inference_steps=5, output_type="pt").images.shape)
