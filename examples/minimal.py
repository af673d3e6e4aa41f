"""Handwritten digits from noise in about a minute on two CPU cores: data, network, objective, training loop, sampling.

    python examples/minimal.py [--seconds 60] [--output minimal.png] [--fast]

This is the whole of training a diffusion model, in plain PyTorch. `diffusers_ext.training.Trainer` does the same and
adds what longer runs need: checkpoints, validation, several processes, mixed precision.
"""

import argparse
import time

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusers_ext import GenerationPipeline, NoisePath, SubsequenceDDIMScheduler, build_model
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.schedule import BatchSchedule
from diffusers_ext.figures import image_grid
from diffusers_ext.objectives.diffusion import DiffusionObjective
from diffusers_ext.objectives.network import ConditionedNetwork
from diffusers_ext.objectives.timestep_sampling import TimestepSampler
from diffusers_ext.training.muon import Muon
from diffusers_ext.training.precision import resolve_mixed_precision

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--seconds", type=float, default=60, help="how long to train")
parser.add_argument("--output", default="minimal.png", help="the picture to write")
parser.add_argument("--fast", action="store_true", help="a few small steps, to see that everything runs")
args = parser.parse_args()
torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"

# Data: 10,000 digits that come with the package. A batch has "samples" (64, 1, 28, 28) in [-1, 1] and "labels" (64,).
data = load_image_data("embedded")
batches = BatchSchedule(len(data), batch_size=64, seed=0)

# Network: a small U-Net that is conditioned on the class of the digit.
network = build_model("small", base_channels=8 if args.fast else 48, num_class_embeds=10).to(device)
average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99))

# Objective: predict the velocity at a random noise level (Salimans and Ho 2022, arXiv:2202.00512).
path = NoisePath.from_schedule("cosine", 1000)
levels = TimestepSampler("stratified_logit_normal", num_levels=1000)
objective = DiffusionObjective(path, prediction_type="v_prediction", sampler=levels)

# Training loop, in bfloat16 where the machine multiplies it natively.
bfloat16 = resolve_mixed_precision("auto") == "bf16"
peak, warm_up = 5e-3, 50
optimizer = Muon(network, lr=peak)
generator = torch.Generator(device).manual_seed(0)
began, step = time.monotonic(), 0
for keys in batches:
    batch = {name: values.to(device) for name, values in data.__getitems__(keys).items()}
    progress = step / 3 if args.fast else (time.monotonic() - began) / args.seconds
    if progress >= 1:
        break
    optimizer.param_groups[0]["lr"] = peak * min(step / warm_up, 1 - progress)
    net = ConditionedNetwork(network, {"class_labels": batch["labels"]})
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        loss = objective(net, batch, generator).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update_parameters(network)
    step += 1
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}, {step * 64 / (time.monotonic() - began):.0f} images/s")

# Sampling: a row of eight for every digit.
scheduler = SubsequenceDDIMScheduler(
    beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing"
)
pipeline = GenerationPipeline(average.module, scheduler)
pipeline.set_progress_bar_config(disable=True)
labels = [digit for digit in range(10) for _ in range(1 if args.fast else 8)]
images = pipeline(class_labels=labels, num_inference_steps=2 if args.fast else 25, output_type="pt").images
image_grid(images.cpu() * 2 - 1, columns=len(labels) // 10, scale=2).save(args.output)
print(f"{step} steps; samples in {args.output}")
