"""Restoring held-out images from the condition of an image-conditional pipeline."""

import csv

import pytest
import torch

from diffusers_ext import GenerationPipeline, SubsequenceDDIMScheduler, build_model
from diffusers_ext.cli import main
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.randomness import permutation
from diffusers_ext.evaluation.metrics import peak_signal_to_noise_ratio


def test_psnr_of_a_known_error():
    images = torch.zeros(2, 1, 4, 4)
    ratio = peak_signal_to_noise_ratio(images, images + torch.tensor([0.2, 0.02])[:, None, None, None])
    torch.testing.assert_close(ratio, torch.tensor([20.0, 40.0], dtype=torch.float64), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="must have one shape"):
        peak_signal_to_noise_ratio(images, images[:1])


def test_restore_measures_the_condition_beside_the_samples(tmp_path, capsys):
    unet = build_model(
        "small-adm", base_channels=8, norm_num_groups=4, channel_multipliers=(1,), attention_resolutions=(),
        in_channels=1, condition_channels=1, sample_size=28,
    )  # fmt: skip
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    model = str(tmp_path / "model")
    GenerationPipeline(unet, scheduler, condition="super_resolution_4").save_pretrained(model)
    flags = ["--num_images", "5", "--num_samples", "2", "--num_inference_steps", "2", "--output_dir", str(tmp_path)]
    assert main(["restore", "--model", model, *flags]) == 0
    assert (tmp_path / "restoration.png").stat().st_size > 0
    with open(tmp_path / "restoration.csv") as file:
        rows = list(csv.DictReader(file))
    data = load_image_data("embedded", split="test")
    targets = data.__getitems__(permutation(0, 0, len(data))[:5].tolist())["samples"]
    small = torch.nn.functional.avg_pool2d(targets, 4)
    bicubic = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(-1, 1)
    expected = 10 * torch.log10(4 / (bicubic - targets).square().mean(dim=(1, 2, 3)))
    assert [float(row["condition"]) for row in rows] == pytest.approx(expected.tolist(), abs=2e-3)
    assert all(float(row["sample"]) < float(row["condition"]) for row in rows)  # this network has learnt nothing
    assert "super_resolution_4 of 5 images (test), 2 samples each" in capsys.readouterr().out


def test_restore_needs_a_condition_made_from_the_target(tmp_path, capsys):
    unet = build_model("small-adm", base_channels=8, norm_num_groups=4, in_channels=1)
    GenerationPipeline(unet, SubsequenceDDIMScheduler()).save_pretrained(tmp_path / "model")
    assert main(["restore", "--model", str(tmp_path / "model")]) == 1
    assert "was not trained on a condition made from its target" in capsys.readouterr().err
