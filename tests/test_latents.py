"""Latent diffusion: autoencoders, the cache of latents, training on them, and pipelines that decode."""

import errno
import json
import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import records_of
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from diffusers_ext import GenerationPipeline, SubsequenceDDIMScheduler, build_model, figures
from diffusers_ext.cli import main
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.latents import LatentCache, LatentData, LatentOptions
from diffusers_ext.evaluation import process_figures
from diffusers_ext.evaluation.comparison import compare
from diffusers_ext.evaluation.metrics import structural_similarity
from diffusers_ext.models.autoencoders import AUTOENCODERS, build_autoencoder
from diffusers_ext.objectives.adversarial import AdversarialAutoencoderObjective
from diffusers_ext.objectives.autoencoder import AutoencoderObjective
from diffusers_ext.objectives.network import ConditionedNetwork
from diffusers_ext.pipelines.batched_generation import image_shape
from diffusers_ext.pipelines.latent_space import LatentSpace
from diffusers_ext.training import Trainer, TrainingArguments, train
from diffusers_ext.training.autoencoding import TrainableAutoencoder, latent_moments, measure_reconstructions
from diffusers_ext.training.latents import LatentEncoder, load_vae, vae_hash

TINY_VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "mid_block_add_attention": False,
}


def tiny_vae(channels=1, seed=0, **config):
    torch.manual_seed(seed)
    return AutoencoderKL(channels, channels, latent_channels=2, **{**TINY_VAE, "scaling_factor": 1.0, **config}).eval()


@pytest.fixture
def vae_folder(tmp_path):
    """The folder of a small autoencoder whose latents of digits have about unit variance."""
    vae = tiny_vae()
    mean, std = latent_moments(vae, load_image_data(split="train[:64]"))
    vae.register_to_config(scaling_factor=1 / std, shift_factor=mean)
    vae.save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


@pytest.fixture
def latent_run(tiny_run, vae_folder, tmp_path):
    def make(**overrides):
        options = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4, "patch_size": 1}
        settings = {
            "vae": vae_folder,
            "latent_cache_dir": str(tmp_path / "cache"),
            "model_options": json.dumps(options),
            "validation_split": "test[:16]",
            "min_psnr": 0.0,
        }
        return tiny_run(**{**settings, **overrides})

    return make


def counting(encode, calls):
    def count(images):
        calls.append(len(images))
        return encode(images)

    return count


# --- autoencoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_presets_have_the_stated_size_and_down_sampling(name):
    preset, vae = AUTOENCODERS[name], build_autoencoder(name)
    assert sum(parameter.numel() for parameter in vae.parameters()) == preset.parameter_count
    assert LatentSpace(vae).factor == preset.factor
    mean, _ = LatentSpace(vae).encode(torch.zeros(1, 3, 32, 32))
    assert mean.shape == (1, LatentSpace(vae).channels, 32 // preset.factor, 32 // preset.factor)


def test_a_preset_takes_other_channels_and_no_unknown_entries():
    assert build_autoencoder("ae-tiny-4x", 1).config.in_channels == 1
    with pytest.raises(ValueError, match="no autoencoder preset 'ae-3x'; choose one of"):
        build_autoencoder("ae-3x")
    with pytest.raises(ValueError, match="AutoencoderKL takes no depth"):
        build_autoencoder("ae-4x", depth=3)


def test_the_loss_is_the_mean_error_and_the_divergence_of_each_image():
    vae, images = tiny_vae(), torch.rand(3, 1, 8, 8) * 2 - 1
    batch = {"samples": images, "index": torch.arange(3)}
    net = ConditionedNetwork(TrainableAutoencoder(vae))
    losses = AutoencoderObjective("l1", kl_weight=0.1)(net, batch, torch.Generator().manual_seed(0))
    distribution = vae.encode(images).latent_dist
    noise = torch.randn(distribution.mean.shape, generator=torch.Generator().manual_seed(0))
    error = vae.decode(distribution.mean + distribution.std * noise).sample - images
    mean, variance = distribution.mean, distribution.var
    divergence = 0.5 * (mean**2 + variance - 1 - variance.log()).flatten(1).sum(1)
    torch.testing.assert_close(losses, error.abs().flatten(1).mean(1) + 0.1 * divergence / 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adversarial_gradients_have_the_stated_share_of_the_errors_gradients(dtype):
    vae, images = TrainableAutoencoder(tiny_vae()).train(), torch.rand(3, 1, 16, 16) * 2 - 1
    batch, draws = {"samples": images}, torch.Generator()
    objective = AdversarialAutoencoderObjective("l2", 0.0, adversarial_weight=0.25, adversarial_start=0, channels=1)

    class Kept(torch.nn.Module):  # gives the reconstructions as leaves, to read their gradients
        def forward(self, images, draw):
            output = vae(images, draw)
            self.sample = output.sample = output.sample.detach().to(dtype).requires_grad_()
            return output

    net = ConditionedNetwork(Kept().train())
    objective(net, batch, draws.manual_seed(0)).sum().backward()
    both = net.module.sample.grad
    AutoencoderObjective("l2", 0.0)(net, batch, draws.manual_seed(0)).sum().backward()
    error = net.module.sample.grad
    ratio = (both.float() - error.float()).flatten(1).norm(dim=1) / error.float().flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full((3,), 0.25), rtol=1e-4 if dtype == torch.float32 else 0.02, atol=0)


def test_the_discriminator_learns_to_tell_reconstructions_from_images():
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(16, 1, 16, 16, generator=generator) < 0.5).float() * 2 - 1  # noise, which blurs when encoded
    objective = AdversarialAutoencoderObjective(adversarial_start=2, channels=1)
    net = ConditionedNetwork(TrainableAutoencoder(tiny_vae()).train())
    for _ in range(20):
        objective(net, {"samples": images}, generator)
    with torch.no_grad():
        assert (
            objective.discriminator(images).mean()
            > 0.5
            > -0.5
            > objective.discriminator(net.module.vae(images).sample).mean()
        )


def test_a_resumed_adversarial_run_ends_with_the_same_weights(tmp_path, tiny_run):
    def run(name, steps, **overrides):
        return train(
            tiny_run(
                task="autoencoder",
                model="ae-4x",
                model_options=json.dumps({"block_out_channels": [8, 8, 8], "norm_num_groups": 4}),
                adversarial_weight=0.5,
                adversarial_start=1,
                max_train_steps=steps,
                checkpointing_steps=3,
                output_dir=str(tmp_path / name),
                **overrides,
            )
        )

    whole = run("whole", 6)
    run("parts", 3)
    resumed = run("parts", 6, resume_from_checkpoint="latest")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_structural_similarity_is_one_for_equal_images_and_falls_with_noise():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    values = [structural_similarity(images + amount * noise, images).mean().item() for amount in (0, 0.1, 0.5)]
    assert values[0] == pytest.approx(1)
    assert values[0] > values[1] > values[2] > 0
    # A shift of the mean alone: the first factor of eq. 13, exactly.
    flat = torch.full((1, 1, 16, 16), 0.5)
    c1 = (0.01 * 2) ** 2
    assert structural_similarity(flat + 0.2, flat).item() == pytest.approx((2 * 0.35 + c1) / (0.49 + 0.25 + c1))


@pytest.mark.parametrize("preset", ["ae-4x", "ae-tiny-4x"])
def test_an_autoencoder_trains_and_loads_with_diffusers_alone(tmp_path, tiny_run, preset, caplog):
    narrow = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}
    if preset == "ae-tiny-4x":
        narrow = {"encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8]}
    arguments = tiny_run(
        task="autoencoder",
        model=preset,
        model_options=json.dumps(narrow),
        loss="l1",
        max_train_steps=3,
        save_figures=preset == "ae-4x",
        evaluation_size=16,
        validation_split="test[:32]",
        min_psnr=60.0,
    )
    trained = train(arguments)
    assert "evaluation_size" not in caplog.text  # it counts the reconstructions, without classifier or features
    loaded = AUTOENCODERS[preset].model_class.from_pretrained(arguments.output_dir)
    images = load_image_data(split="train[:128]").__getitems__(range(128))["samples"]
    latents = torch.cat(LatentSpace(loaded).encode(images[:64])[:1] + LatentSpace(loaded).encode(images[64:])[:1])
    assert latents.mean().item() == pytest.approx(0, abs=0.05)
    _, std = latent_moments(loaded, load_image_data(split="train[:128]"))
    assert loaded.config.scaling_factor == pytest.approx(1 / std, rel=1e-4)
    torch.testing.assert_close(loaded.state_dict(), {n: v.cpu() for n, v in trained.state_dict().items()})
    measured = next(record for record in records_of(tmp_path / "run") if "reconstruction_psnr" in record)
    assert measured["evaluation_split"] == "test[:32]"
    assert 0 < measured["reconstruction_psnr"] < 60
    if preset == "ae-tiny-4x":
        return
    picture = Image.open(tmp_path / "run" / "figures" / "reconstructions.png")
    assert picture.width > picture.height * 1.5  # rows of eight originals and eight reconstructions


def test_reconstructions_are_measured_beside_other_real_images():
    class Perfect(AutoencoderTiny):
        def encode(self, x, return_dict=True):
            return type("Output", (), {"latents": x})()

        def decode(self, x, generator=None, return_dict=True):
            return type("Output", (), {"sample": x + 0.02})()

    features = torch.nn.AvgPool2d(7)
    measures = measure_reconstructions(Perfect(1, 1), load_image_data(split="test[:64]"), 32, features)
    assert measures["reconstruction_samples"] == 32
    assert measures["reconstruction_psnr"] > 30
    assert measures["reconstruction_frechet_distance"] < 0.1 * measures["reconstruction_frechet_distance_real"]


# --- latents ----------------------------------------------------------------------------------------------------------


def cached(folder, vae, images, calls, **options):
    settings = LatentOptions(folder, **options)
    cache = LatentCache(images, vae_hash(vae), settings)
    with torch.no_grad():
        arrays = cache.arrays(counting(LatentSpace(vae).encode, calls), (2, 14, 14))
    return LatentData(images, arrays, settings, cache.key, (vae, "vae"))


def test_latents_are_encoded_once_and_drawn_as_a_function_of_seed_epoch_and_index(tmp_path):
    images, vae, calls = load_image_data(split="train[:40]"), tiny_vae(), []
    data = cached(tmp_path, vae, images, calls)
    assert sum(calls) == 40
    again = cached(tmp_path, vae, images, calls)
    assert sum(calls) == 40
    first, second = data.__getitems__([(3, 0), (7, 5)]), again.__getitems__([(7, 5), (3, 0)])
    assert torch.equal(first["samples"], second["samples"].flip(0))
    assert first["labels"].tolist() == [images.labels[3].item(), images.labels[7].item()]
    assert not torch.equal(data[3, 0]["samples"], data[3, 1]["samples"])
    draws = torch.stack([data[3, epoch]["samples"] for epoch in range(400)])
    with torch.no_grad():
        mean, std = LatentSpace(vae).encode(images[3]["samples"][None])
    assert ((draws.mean(0) - mean[0]).abs() < 5 * std[0] / 20).all()
    torch.testing.assert_close((draws.std(0) / std[0]).mean(), torch.tensor(1.0), atol=0.01, rtol=0)


def test_mirrored_images_are_encoded_too(tmp_path):
    images, vae, calls = load_image_data(split="train[:8]"), tiny_vae(), []
    data = cached(tmp_path, vae, images, calls, mirror=True)
    assert sum(calls) == 16
    pixels = images[2]["samples"][None]
    with torch.no_grad():
        plain, mirrored = (LatentSpace(vae).encode(view)[0][0] for view in (pixels, pixels.flip(-1)))
        deviation = LatentSpace(vae).encode(pixels)[1].max().item()
    nearest = [min((0, 1), key=lambda k: (data[2, e]["samples"] - (plain, mirrored)[k]).norm()) for e in range(40)]
    assert 8 < sum(nearest) < 32 or deviation > 1


@pytest.mark.parametrize("change", ["weights", "scale", "images", "size", "damage", "foreign"])
def test_a_stale_or_foreign_cache_is_never_used(tmp_path, change):
    images, vae, calls = load_image_data(split="train[:8]"), tiny_vae(), []
    before = cached(tmp_path, vae, images, calls)
    folder = next(tmp_path.iterdir())
    if change == "weights":
        vae = tiny_vae(seed=1)
    elif change == "scale":
        vae.register_to_config(scaling_factor=2.0)
    elif change == "images":
        images = load_image_data(split="train[1:9]")
    elif change == "size":
        images = load_image_data(split="train[:9]")
    elif change == "damage":
        (folder / "mean.npy").write_bytes((folder / "mean.npy").read_bytes()[:1000])
    else:
        (folder / "latents.json").write_text('{"key": "another"}')
    after = cached(tmp_path, vae, images, calls)
    assert sum(calls) == 8 + len(images)
    same = torch.equal(before[0]["samples"], after[0]["samples"])
    assert same == (change in ("size", "damage", "foreign"))


def test_latents_that_take_too_much_memory_stay_on_disk(tmp_path):
    images, vae = load_image_data(split="train[:8]"), tiny_vae()
    held, read = cached(tmp_path, vae, images, []), cached(tmp_path, vae, images, [], max_memory_bytes=100)
    assert "in memory" in held.description
    assert "read from disk" in read.description
    assert torch.equal(held[5]["samples"], read[5]["samples"])


def test_autoencoders_without_a_random_encoder_work(tmp_path):
    torch.manual_seed(0)
    deep = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.5,
    )
    space, images = LatentSpace(deep), torch.rand(1, 3, 16, 16)
    latents, std = space.encode(images)
    assert std is None
    assert latents.shape == (1, 4, 16 // space.factor, 16 // space.factor)
    torch.testing.assert_close(latents, deep.encode(images).latent * 0.5)
    torch.testing.assert_close(space.decode(latents), deep.decode(latents / 0.5).sample)


def test_statistics_of_each_channel_take_the_place_of_the_shift():
    vae, images = tiny_vae(latents_mean=(1.0, 2.0), latents_std=(4.0, 5.0)), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        mean, _ = LatentSpace(vae).encode(images)
        own = vae.encode(images).latent_dist.mean
    expected = (own - torch.tensor([1.0, 2.0]).reshape(-1, 1, 1)) / torch.tensor([4.0, 5.0]).reshape(-1, 1, 1)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(LatentSpace(vae).decode(mean, at_once=1), vae.decode(own).sample.detach())


# --- training and sampling --------------------------------------------------------------------------------------------


def test_scale_and_shift_are_applied_once_in_training_and_once_in_the_pipeline(latent_run, vae_folder):
    """What the network sees is (latent - shift) * scale, and images are decoded from its inverse."""
    seen = []

    def objective(net, batch, generator):
        seen.append(batch)
        return net(batch["samples"], torch.zeros(len(batch["samples"]), dtype=torch.long)).flatten(1).mean(1)

    trainer = Trainer(latent_run(max_train_steps=1, num_epochs=1), objective=objective)
    pipeline, vae = trainer.train(), load_vae(vae_folder)
    batch = seen[0]
    images = load_image_data(split="train[:128]").__getitems__(batch["index"].tolist())["samples"]
    with torch.no_grad():
        distribution = vae.encode(images).latent_dist
        shift, scale = vae.config.shift_factor, vae.config.scaling_factor
        noise = (batch["samples"] / scale + shift - distribution.mean) / distribution.std
        assert noise.abs().max() < 6
        assert noise.std().item() == pytest.approx(1, abs=0.05)
        latents = torch.randn(3, 2, 14, 14, generator=torch.Generator().manual_seed(0))
        decoded = (vae.decode(latents / scale + shift).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipeline.to_images(latents), decoded)
    ends = pipeline(
        batch_size=2, num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="latent"
    )
    shown = pipeline(batch_size=2, num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="pt")
    assert ends.images.shape == (2, 2, 14, 14)
    assert shown.images.shape == (2, 1, 28, 28)
    torch.testing.assert_close(pipeline.to_images(ends.images), shown.images)


def test_a_latent_run_by_class_saves_a_pipeline_that_loads_and_samples(latent_run, tmp_path):
    arguments = latent_run(condition="class", save_figures=True, random_flip=True)
    pipeline = train(arguments)
    loaded = DiffusionPipeline.from_pretrained(arguments.output_dir)
    request = {"class_labels": ["3", 5], "guidance_scale": 2.0, "num_inference_steps": 2, "output_type": "np"}
    ours, theirs = (p(generator=torch.Generator().manual_seed(0), **request).images for p in (pipeline, loaded))
    assert np.array_equal(ours, theirs)
    assert ours.shape == (2, 28, 28, 1)
    assert loaded(height=56, width=28, num_inference_steps=1, output_type="np").images.shape == (1, 56, 28, 1)
    assert image_shape(loaded) == (1, 28, 28)
    folder = tmp_path / "run"
    assert Image.open(folder / "figures" / "samples.png").width >= 28
    assert Image.open(folder / "figures" / "reverse.gif").n_frames == 2
    assert "greyscale images of 28x28 pixels" in (folder / "README.md").read_text()
    with pytest.raises(
        ValueError, match="height must be divisible by 2, the down-sampling of the vae, got 27; use 26 or"
    ):
        loaded(height=27)


def test_a_resumed_latent_run_ends_with_the_same_weights(latent_run, tmp_path):
    train(latent_run(max_train_steps=4))
    whole = load_file(tmp_path / "run" / "unet" / "diffusion_pytorch_model.safetensors")
    train(latent_run(max_train_steps=4, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")))
    resumed = load_file(tmp_path / "run" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_samples_of_a_latent_run_are_measured_as_images(latent_run, tmp_path):
    from diffusers_ext import ImageClassifier

    ImageClassifier(in_channels=1, num_classes=10, block_channels=(8, 8)).save_pretrained(tmp_path / "classifier")
    train(latent_run(classifier=str(tmp_path / "classifier"), evaluation_size=8, max_train_steps=2))
    records = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "frechet_distance_real" in records


def test_a_network_of_diffusers_and_a_latent_run_give_what_its_own_latent_pipeline_gives(vae_folder):
    """diffusers' LDMPipeline undoes the scale and knows no shift: without one, the images are the same."""
    from diffusers import LDMPipeline

    vae = load_vae(vae_folder)
    vae.register_to_config(shift_factor=None)
    torch.manual_seed(0)
    unet = UNet2DModel(
        14,
        2,
        2,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        layers_per_block=1,
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    ).eval()
    scheduler = DDIMScheduler(clip_sample=False)
    ours = GenerationPipeline(unet, scheduler, vae=vae)
    request = {"batch_size": 2, "num_inference_steps": 3}
    mine = ours(generator=torch.Generator().manual_seed(0), output_type="np", **request).images
    theirs = LDMPipeline(vae, unet, scheduler)(generator=torch.Generator().manual_seed(0), output_type="np", **request)
    np.testing.assert_allclose(mine, theirs.images, atol=1e-5)


@pytest.mark.parametrize("made", ["super_resolution_2", "inpainting"])
def test_a_latent_run_on_a_condition_image_samples_for_an_image_in_pixels(latent_run, tmp_path, made):
    network = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4, "patch_size": 1}
    arguments = latent_run(
        model="small-adm",
        model_options=json.dumps({**network, "attention_resolutions": []}),
        condition="image",
        image_condition=made,
        condition_dropout=0.0,
        max_train_steps=2,
    )
    train(arguments)
    pipeline = DiffusionPipeline.from_pretrained(arguments.output_dir)
    pipeline.set_progress_bar_config(disable=True)
    side = 14 if made == "super_resolution_2" else 28
    given = {"image": Image.new("L", (side, side), "grey")}
    if made == "inpainting":
        given["mask_image"] = Image.new("L", (28, 28), "white")
    result = pipeline(**given, num_inference_steps=2, output_type="np").images
    assert result.shape == (1, 28, 28, 1)
    card = (tmp_path / "run" / "README.md").read_text()
    assert f'Image.new("L", ({side}, {side}), "grey")' in card
    with pytest.raises(ValueError, match="image"):
        pipeline(image=Image.new("L", (7, 7)), num_inference_steps=2)


def test_the_condition_of_a_latent_is_made_from_the_view_that_was_encoded(vae_folder, tmp_path):
    images = load_image_data(split="train[:8]")
    encoder = LatentEncoder(vae_folder, "cpu", str(tmp_path / "cache"), mirror=True)
    data = encoder(images)
    data.gives_images = True
    batch = data.__getitems__([(index, epoch) for index in range(8) for epoch in range(4)])
    means = LatentSpace(encoder.vae).encode(batch["images"])
    noise = (batch["samples"] - means[0]) / means[1]
    assert noise.abs().max() < 5  # the drawn latent belongs to this image, mirrored or not
    mirrored = (batch["images"] != images.__getitems__(batch["index"])["samples"]).flatten(1).any(1)
    assert 0 < mirrored.sum() < len(mirrored)


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_latents_far_from_unit_variance_and_bad_reconstructions_are_warned_about(latent_run, vae_folder, caplog):
    vae = load_vae(vae_folder)
    good = vae.config.scaling_factor
    vae.register_to_config(scaling_factor=0.18215 * good)
    vae.save_pretrained(vae_folder)
    with caplog.at_level(logging.WARNING):
        Trainer(latent_run(min_psnr=60.0))
    assert "have a standard deviation of 0.18" in caplog.text
    assert f"to {good:.3g}" in caplog.text
    assert "below 60 (min_psnr)" in caplog.text


def test_data_that_do_not_fit_the_vae_are_refused(vae_folder, tmp_path):
    encode = LatentEncoder(vae_folder, "cpu", str(tmp_path))
    with pytest.raises(ValueError, match="takes images of 1 channels, but the data have 3; set --channels 1"):
        encode(load_image_data(split="train[:4]", channels=3))
    with pytest.raises(ValueError, match="height must be divisible by 2, the down-sampling of the vae, got 27"):
        encode(load_image_data(split="train[:4]", resolution=27))


def test_a_network_that_does_not_divide_the_latents_is_refused(latent_run):
    options = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4, "patch_size": 2}
    with pytest.raises(ValueError, match=r"multiples of 4, and the samples are 14x14; .* an autoencoder that scales"):
        Trainer(latent_run(model_options=json.dumps(options)))


def test_a_vae_folder_of_another_kind_is_one_sentence(vae_folder, tmp_path, latent_run):
    (tmp_path / "pipeline" / "vae").mkdir(parents=True)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a pipeline; give its autoencoder, '.*pipeline/vae'"):
        load_vae(str(tmp_path / "pipeline"))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_vae(str(tmp_path / "pipeline" / "vae"))
    with pytest.raises(FileNotFoundError, match=r"neither a folder nor a name on the Hub"):
        load_vae(str(tmp_path / "nothing"))
    vae = tiny_vae(scaling_factor=None)
    vae.save_pretrained(tmp_path / "unscaled")
    with pytest.raises(ValueError, match="neither scaling_factor nor latents_std; set"):
        load_vae(str(tmp_path / "unscaled"))
    UNet2DModel(
        14, 1, 1, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    ).save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match="vae must be an autoencoder of diffusers, got UNet2DModel"):
        load_vae(str(tmp_path / "unet"))


def test_a_pipeline_refuses_a_vae_of_other_channels(vae_folder):
    unet = UNet2DModel(
        14, 3, 3, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    with pytest.raises(ValueError, match="latents of the vae have 2 channels, but the network takes 3"):
        GenerationPipeline(unet, DDIMScheduler(), vae=load_vae(vae_folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "autoencoder", "vae": "folder"}, "leave vae out"),
        ({"task": "autoencoder", "condition": "class"}, "leave condition out"),
        ({"vae": "folder", "streaming": True, "dataset_name": "x", "max_train_steps": 1}, "a stream has no end"),
        ({"vae": "folder", "dequantize": True}, "latents have none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments(**settings)


def test_a_damaged_autoencoder_is_one_sentence(vae_folder):
    file = f"{vae_folder}/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.conv_in.weight")
    save_file(weights, file)
    with pytest.raises(ValueError, match="could not be loaded"):
        load_vae(vae_folder)


def test_a_checkpoint_of_an_autoencoder_takes_no_pass_over_the_data(tiny_run):
    vae, calls = tiny_vae(), []
    encode = vae.encode

    def counted(images):
        calls.append(0 if torch.is_grad_enabled() else len(images))
        return encode(images)

    vae.encode = counted
    train(tiny_run(task="autoencoder", max_train_steps=3, checkpointing_steps=1, evaluation_size=8), model=vae)
    assert 128 <= sum(calls) < 2 * 128  # the scale, once, and what is measured


def test_the_scale_takes_the_place_of_statistics_in_the_configuration(tiny_run):
    data = load_image_data(split="train[:128]")
    vae = tiny_vae(latents_mean=(5.0, 5.0), latents_std=(9.0, 9.0), scaling_factor=None)
    trained = train(tiny_run(task="autoencoder", max_train_steps=1, evaluation_size=8), model=vae)
    mean, _ = LatentSpace(trained).encode(data.__getitems__(range(128))["samples"])
    assert mean.mean().item() == pytest.approx(0, abs=0.05)
    assert 0.1 < mean.std().item() < 1.1


def test_the_codebook_of_a_vq_model_is_trained(tiny_run, tmp_path):
    torch.manual_seed(0)
    blocks = {name: value for name, value in TINY_VAE.items() if name != "mid_block_add_attention"}
    vae = VQModel(1, 1, latent_channels=2, num_vq_embeddings=16, **blocks)
    before = vae.quantize.embedding.weight.clone()
    trained = train(tiny_run(task="autoencoder", max_train_steps=3, evaluation_size=8), model=vae)
    assert not torch.equal(trained.quantize.embedding.weight, before)
    loaded = VQModel.from_pretrained(tmp_path / "run")
    data = LatentEncoder(str(tmp_path / "run"), "cpu", str(tmp_path))(load_image_data(split="train[:4]"))
    assert data[0]["samples"].shape == (2, 14, 14)
    assert loaded.config.shift_factor == pytest.approx(trained.config.shift_factor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_options": '{"out_channels": 3}'}, "The autoencoder gives 3 channels, but the images have 1"),
        ({"model_options": '{"in_channels": 3}'}, "takes 3 channels, but the images have 1; set --channels"),
        (
            {"model_options": '{"block_out_channels": [8, 12, 8]}'},
            "can't be built with these options: .*divisible",
        ),
        ({"model_options": '{"latent_channels": 0}'}, "latent_channels"),
        ({"model_options": '{"layers_per_block": -1}'}, "layers_per_block must be a whole number of at least 1"),
        ({"model_options": '{"block_out_channels": []}'}, "can't be built with these options"),
        ({"model": "ae-3x"}, "model 'ae-3x' is neither a preset"),
        ({"resolution": 30}, "height must be divisible by 4, the down-sampling of the vae, got 30; use 28 or 32"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused(tiny_run, settings, message):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_run(**{"task": "autoencoder", "model": "ae-4x", "model_options": None, **settings}))


def test_signals_have_no_autoencoder(tiny_run, vae_folder, tmp_path):
    signals = [{"samples": np.zeros((1, 32), dtype=np.float32)} for _ in range(8)]
    with pytest.raises(ValueError, match="An autoencoder is trained on images, and the data are not"):
        Trainer(tiny_run(task="autoencoder", model_options=None), train_dataset=signals)
    with pytest.raises(ValueError, match="vae encodes images, and the data are not"):
        Trainer(tiny_run(vae=vae_folder, latent_cache_dir=str(tmp_path)), train_dataset=signals)


def test_an_autoencoder_replaces_nothing_that_somebody_else_wrote(tiny_run, vae_folder, tmp_path):
    kept = load_file(f"{vae_folder}/diffusion_pytorch_model.safetensors")
    settings = {"task": "autoencoder", "model_options": None, "output_dir": vae_folder}
    with pytest.raises(FileExistsError, match=r"config\.json, diffusion_pytorch_model\.safetensors, which no run"):
        Trainer(tiny_run(**settings))
    assert load_file(f"{vae_folder}/diffusion_pytorch_model.safetensors").keys() == kept.keys()


def test_a_finished_autoencoder_without_checkpoints_is_an_earlier_run(tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json").write_text("{}")
    Trainer(tiny_run(task="autoencoder", model_options=None))  # a run that wrote nothing else
    (tmp_path / "run" / "config.json").write_text("{}")
    for task in ("autoencoder", "generation"):
        with pytest.raises(FileExistsError, match="holds an earlier run"):
            Trainer(tiny_run(task=task, model_options=None))


def test_large_images_are_decoded_one_at_a_time():
    vae, calls = tiny_vae(), []

    def decode(latents):
        calls.append(len(latents))
        return SimpleNamespace(sample=torch.zeros(len(latents), 1, 2, 2))

    vae.decode = decode
    for side in (32, 256):
        assert len(LatentSpace(vae).decode(torch.zeros(3, 2, side, side))) == 3
    assert calls == [3, 1, 1, 1]


def test_a_vae_that_can_not_encode_the_images_is_one_sentence(vae_folder, tmp_path):
    vae = load_vae(vae_folder)
    vae.register_to_config(block_out_channels=(8, 8, 8))
    vae.encoder.conv_in = torch.nn.Conv3d(1, 8, 3)
    encoder = LatentEncoder(vae_folder, "cpu", str(tmp_path))
    encoder.vae = vae
    with pytest.raises(ValueError, match=r"vae '.*' can't encode these images: "):
        encoder(load_image_data(split="train[:4]"))
    encoder.vae = tiny_vae(block_out_channels=(8, 8))
    encoder.vae.register_to_config(block_out_channels=(8, 8, 8))
    with pytest.raises(ValueError, match=r"gives latents of 2x14x14, and its config\.json says 2x7x7"):
        encoder(load_image_data(split="train[:4]"))
    vae.register_to_config(latent_channels=None)
    with pytest.raises(ValueError, match="AutoencoderKL has no latent_channels"):
        LatentSpace(vae)


def test_a_cache_that_can_not_be_written_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    images, vae = load_image_data(split="train[:4]"), tiny_vae()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"latent_cache_dir '.*file' can't be written \(Not a directory\)"):
        cached(tmp_path / "file" / "latents", vae, images, [])

    def full(*words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        cached(tmp_path / "latents", vae, images, [])
    assert not list((tmp_path / "latents").iterdir())


def test_a_missing_autoencoder_of_a_recipe_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="vae 'outputs/nothing' is not there; train it first"):
        load_vae("outputs/nothing")


# --- a latent model on the command line -------------------------------------------------------------------------------


@pytest.fixture
def latent_model(vae_folder, tmp_path):
    """The folder of an untrained latent pipeline with classes, which makes images of 28x28."""
    torch.manual_seed(0)
    options = {"base_channels": 8, "channel_multipliers": [1, 2], "norm_num_groups": 4, "patch_size": 1}
    network = build_model("small", **options, in_channels=2, out_channels=2, sample_size=14, num_class_embeds=3)
    path = {"beta_schedule": "cosine", "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = SubsequenceDDIMScheduler(**path, clip_sample=False, num_train_timesteps=20)
    GenerationPipeline(network, scheduler, vae=load_vae(vae_folder)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("name", ["forward", "denoiser", "trajectory", "lengths", "gamma", "guidance"])
def test_figures_of_a_latent_model_show_images(name, latent_model, tmp_path, monkeypatch):
    drawn = []
    for function in ("strip", "comparison_grid"):
        place = 0 if function == "strip" else 2
        monkeypatch.setattr(figures, function, lambda *words, place=place, **more: drawn.extend(words[place]))
    few = ["--num_images", "2", "--num_inference_steps", "2", "--lengths", "2", "--gammas", "0", "1"]
    times = ["--times", "3", "15"] if name in ("forward", "denoiser") else []
    assert main(["figure", name, "--model", latent_model, *few, *times, "--output", str(tmp_path / "a.png")]) == 0
    flat = [batch for entry in drawn for batch in (entry if isinstance(entry, list) else [entry])]
    assert flat
    assert all(batch.shape[-3:] == (1, 28, 28) for batch in flat)


def test_the_denoiser_figure_shows_what_the_autoencoder_gives_of_the_clean_images(latent_model, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "comparison_grid", lambda *words, **more: drawn.extend(words[2]))
    pipeline = GenerationPipeline.from_pretrained(latent_model)
    images = load_image_data(split="train[:2]").__getitems__(range(2))["samples"]
    process_figures.denoiser(pipeline, images, [3], "a.png")
    space = LatentSpace(pipeline.vae)
    torch.testing.assert_close(drawn[2][0], space.decode(space.encode(images)[0]).clamp(-1, 1))


def test_samples_and_comparisons_of_a_latent_model_show_images(latent_model, tmp_path, monkeypatch):
    frames = []
    monkeypatch.setattr(figures, "save_gif", lambda found, *words, **more: frames.extend(found))
    flags = ["--num_images", "2", "--num_inference_steps", "3", "--frames", "2", "--gif", str(tmp_path / "a.gif")]
    assert main(["sample", latent_model, *flags, "--output", str(tmp_path / "a.png")]) == 0
    assert [frame.shape for frame in frames] == [(2, 1, 28, 28)] * 2
    pipeline = GenerationPipeline.from_pretrained(latent_model)
    latents = torch.randn(2, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    runs, samples = compare(pipeline, latents, ["ddim"], [2], ["uniform"], torch.zeros(2, 1, 28, 28))
    ends = pipeline(latents=latents, num_inference_steps=2, output_type="pt").images * 2 - 1
    assert samples[0].shape == ends.shape == (2, 1, 28, 28)
    assert runs[0].rms_error == pytest.approx(samples[0].square().mean().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("made", ["inpainting", "super_resolution_2"])
def test_a_latent_model_restores_held_out_images(vae_folder, tmp_path, made):
    channels = 4 * (2 if made == "inpainting" else 1)  # of 2x2 pixels
    network = build_model(
        "small-adm", base_channels=8, norm_num_groups=4, channel_multipliers=(1,), attention_resolutions=(),
        in_channels=2, out_channels=2, condition_channels=channels, sample_size=14,
    )  # fmt: skip
    scheduler = SubsequenceDDIMScheduler(beta_schedule="cosine", clip_sample=False)
    pipeline = GenerationPipeline(network, scheduler, condition=made, vae=load_vae(vae_folder))
    pipeline.save_pretrained(tmp_path / "model")
    flags = ["--num_images", "2", "--num_samples", "1", "--num_inference_steps", "1", "--output_dir", str(tmp_path)]
    assert main(["restore", "--model", str(tmp_path / "model"), *flags]) == 0
    assert (tmp_path / "restoration.csv").read_text().count("\n") == 3


def test_an_autoencoder_is_not_taken_for_a_pipeline(vae_folder, tmp_path, capsys):
    for words in (["sample", vae_folder], ["export", "--model", vae_folder, "--output_dir", str(tmp_path / "export")]):
        assert main(words) == 1
        assert f"'{vae_folder}' is an autoencoder" in capsys.readouterr().err


def test_a_latent_pipeline_whose_parts_are_offloaded_gives_the_same_images(latent_model):
    plain, offloaded = (GenerationPipeline.from_pretrained(latent_model) for _ in range(2))
    offloaded.enable_model_cpu_offload(device="cpu")
    request = {"batch_size": 2, "num_inference_steps": 2, "output_type": "pt"}
    images = [each(**request, generator=torch.Generator().manual_seed(0)).images for each in (plain, offloaded)]
    assert torch.equal(*images)
