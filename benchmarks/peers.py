"""The peers that benchmarks measure against: their packages, networks and training loops, as they stand there.

denoising-diffusion-pytorch, smalldiffusion and torch-fidelity import torchvision, for image folders, data sets and
pictures of samples; none of that is used here, and where it is missing a module without contents stands in for it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

# The network of unit 1 and 2 of Hugging Face's diffusion course, but for its channels: 1.7 million parameters.
COURSE_NETWORK: dict[str, Any] = {
    "sample_size": 28,
    "layers_per_block": 2,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
FOREVER = 10**9


def load(package: str) -> Any:
    """`denoising_diffusion_pytorch`, `smalldiffusion` or `torch_fidelity`, or a module of theirs."""
    missing = {} if importlib.util.find_spec("torchvision") else _vision()
    sys.modules.update(missing)
    try:
        return importlib.import_module(package)
    finally:
        for name in missing:  # other libraries would take it for the real one
            del sys.modules[name]


def _vision() -> dict[str, types.ModuleType]:
    """What takes torchvision's place: its names, without their contents."""
    names = ("datasets", "transforms", "transforms.functional", "utils")
    modules = {f"torchvision.{name}": types.ModuleType(f"torchvision.{name}") for name in names}
    modules["torchvision"] = types.ModuleType("torchvision")
    for name, module in modules.items():
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(modules[parent], own, module)
    for name in ("Compose", "Lambda", "RandomHorizontalFlip", "ToTensor"):
        setattr(modules["torchvision.transforms"], name, torch.nn.Identity)
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(modules["torchvision.datasets"], name, torch.utils.data.Dataset)
    return modules


def course_network() -> UNet2DModel:
    """Hugging Face's course's, without classes."""
    return UNet2DModel(in_channels=1, out_channels=1, **COURSE_NETWORK)


def cifar10_network() -> UNet2DModel:
    """google/ddpm-cifar10-32: the network of Ho et al. 2020 for CIFAR-10, 35.7 million parameters."""
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
    )


def example_network() -> UNet2DModel:
    """The network of examples/unconditional_image_generation/train_unconditional.py, 113.7 million parameters."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(
            "DownBlock2D",
            "DownBlock2D",
            "DownBlock2D",
            "DownBlock2D",
            "AttnDownBlock2D",
            "DownBlock2D",
        ),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def tiny_network() -> UNet2DModel:
    """A network of diffusers for trying the benchmarks out: 3 channels, 8x8."""
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, add_attention=False, **blocks
    )


def package_network(dim: int = 28, dim_mults: tuple[int, ...] = (1, 2, 4), channels: int = 1, **options: Any) -> Any:
    """A U-Net of denoising-diffusion-pytorch; by default of 2.0 million parameters, for one channel."""
    return load("denoising_diffusion_pytorch").Unet(dim=dim, dim_mults=dim_mults, channels=channels, **options)


class ForeignNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Any module(x, t) -> tensor, called and configured as diffusers' networks are."""

    @register_to_config
    def __init__(self, sample_size: int = 28, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        self.inner: Any = torch.nn.Identity()

    @classmethod
    def around(cls, inner: torch.nn.Module) -> ForeignNetwork:
        network = cls()
        network.inner = inner
        return network

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> UNet2DOutput:
        return UNet2DOutput(sample=self.inner(sample, timestep))


class PackageAdapter(torch.nn.Module):
    """A network of diffusers, as denoising-diffusion-pytorch calls its own."""

    self_condition = False

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner
        self.channels = self.out_dim = inner.config.in_channels

    def forward(self, x: torch.Tensor, time: torch.Tensor, x_self_cond: None = None) -> torch.Tensor:
        return self.inner(x, time).sample


# --- loops: iterators that have taken one more step at every `next` --------------------------------------------------


def diffusers_example(
    network: Any, images: torch.Tensor, batch_size: int, precision: str, folder: str
) -> Iterator[EMAModel]:
    """examples/unconditional_image_generation/train_unconditional.py with `--use_ema` and its other defaults.

    Its lines from the dataloader on, but for resuming, saving and sampling. Images (number, channels, height, width) in
    [-1, 1] are there already, where its transforms would make them one by one. Every step gives the averaged weights.
    """
    accelerator = Accelerator(mixed_precision=precision, log_with="tensorboard", project_dir=folder)
    model = network
    ema_model = EMAModel(
        model.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=3 / 4,
        model_cls=type(model),
        model_config=model.config,
    )
    weight_dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    dataset = [{"input": image} for image in images]
    train_dataloader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=0)  # type: ignore[arg-type,var-annotated]
    lr_scheduler = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=len(train_dataloader) * 100
    )
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    ema_model.to(accelerator.device)
    accelerator.init_trackers("train_unconditional")
    global_step = 0
    for epoch in range(FOREVER):
        model.train()
        progress_bar = tqdm(total=len(train_dataloader), disable=not accelerator.is_local_main_process)
        progress_bar.set_description(f"Epoch {epoch}")
        for batch in train_dataloader:
            clean_images = batch["input"].to(weight_dtype)
            noise = torch.randn(clean_images.shape, dtype=weight_dtype, device=clean_images.device)
            bsz = clean_images.shape[0]
            timesteps = torch.randint(
                0, noise_scheduler.config.num_train_timesteps, (bsz,), device=clean_images.device
            ).long()
            noisy_images = noise_scheduler.add_noise(clean_images, noise, timesteps)
            with accelerator.accumulate(model):
                model_output = model(noisy_images, timesteps).sample
                loss = F.mse_loss(model_output.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema_model.step(model.parameters())
                progress_bar.update(1)
                global_step += 1
            logs = {"loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0], "step": global_step}
            logs["ema_decay"] = ema_model.cur_decay_value
            progress_bar.set_postfix(**logs)
            accelerator.log(logs, step=global_step)
            yield ema_model
        progress_bar.close()


def forget_precision() -> None:
    """Let the next loop choose its precision: another loop of this process may have chosen another one."""
    AcceleratorState._reset_state()


def package_trainer(diffusion: Any, images: Any, folder: str, **options: Any) -> Any:
    """denoising-diffusion-pytorch's `Trainer` around its diffusion, without scores and samples on the way.

    Its loader takes `images`, (channels, height, width) in [0, 1] each, where it would read image files.
    """
    package = load("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    forget_precision()
    own, package.Dataset = package.Dataset, lambda *arguments, **keywords: images
    try:
        return package.Trainer(
            diffusion,
            folder,
            train_num_steps=0,
            calculate_fid=False,
            save_and_sample_every=FOREVER,
            results_folder=str(Path(folder) / "results"),
            **options,
        )
    finally:
        package.Dataset = own


def smalldiffusion_loop(network: Any, images: torch.Tensor, batch_size: int, precision: str) -> Iterator[None]:
    """smalldiffusion's `training_loop` on the DDPM's noise levels, for a network that takes times (`.sample`)."""
    small = load("smalldiffusion")
    schedule = small.ScheduleDDPM(N=1000)

    class SigmaNetwork(torch.nn.Module, small.ModelMixin):
        """As the project's examples/diffusers_wrapper.py calls a network of diffusers."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, cond: None = None) -> torch.Tensor:
            times = torch.searchsorted(schedule.sigmas, sigma.flatten())
            return self.inner(x / (1 + sigma**2).sqrt(), times).sample

    loader = torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=True)  # type: ignore[arg-type]
    accelerator = Accelerator(mixed_precision=precision)
    for _ in small.training_loop(loader, SigmaNetwork(), schedule, accelerator, epochs=FOREVER):
        yield
