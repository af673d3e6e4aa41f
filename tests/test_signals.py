"""Signals: reading, scaling, training, sampling; and Gaussian processes, whose samplers have exact laws."""

import io
import json
import wave
import zipfile

import datasets
import numpy as np
import pytest
import torch

from diffusers_ext import (
    FlowMapScheduler,
    FlowMatchScheduler,
    SignalPipeline,
    SignalUNet1DModel,
    SubsequenceDDIMScheduler,
    build_sampler,
)
from diffusers_ext.cli import main
from diffusers_ext.data.images import load_image_data
from diffusers_ext.data.signals import SignalOptions
from diffusers_ext.data.sounds import read_wav, wav_bytes
from diffusers_ext.evaluation.signal_metrics import (
    autocorrelation,
    autocorrelation_distance,
    log_spectral_distance,
    power_spectrum,
)
from diffusers_ext.models.lapped import to_bands
from diffusers_ext.proofs import GaussianMixture, MixtureNetwork
from diffusers_ext.proofs.flow_map import ExactFlowMap
from diffusers_ext.schedulers.registry import SAMPLERS
from diffusers_ext.training.report import examples_like

RATE = 8000


def tone(frequency, frames=400, rate=RATE, channels=1):
    times = np.arange(frames) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * frequency * (1 + c) * times) for c in range(channels)]).astype(np.float32)


def written(folder, rate=RATE, **frames):
    """WAV files of two classes by name, with their numbers of frames."""
    for name, count in (frames or {"low_a": 400, "low_b": 300, "high_a": 500, "high_b": 400}).items():
        path = folder / "train" / name.split("_")[0] / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav_bytes(tone(300 if "low" in name else 1500, count, rate), rate))
    return folder


def load(folder, **options):
    return load_image_data(train_data_dir=folder, signals=SignalOptions(**{"length": 256, **options}))


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_of_every_width_hold_what_was_written(width):
    signal, file = tone(440, channels=2), io.BytesIO()
    whole = np.round(signal.T * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    numbers = (whole + 128).astype(np.uint8) if width == 1 else whole.astype("<i4")
    data = numbers.tobytes() if width in (1, 4) else b"".join(n.tobytes()[:width] for n in numbers.reshape(-1))
    with wave.open(file, "wb") as wav:
        wav.setnchannels(2), wav.setsampwidth(width), wav.setframerate(RATE), wav.writeframes(data)
    values, rate = read_wav(file.getvalue())
    assert rate == RATE
    np.testing.assert_allclose(values, signal, atol=1.6 / 2 ** (8 * width - 1) + 1e-7)


def test_a_folder_of_recordings_becomes_signals_of_one_length_with_classes(tmp_path):
    data = load(written(tmp_path), center_crop=True, length=450, normalization="none")
    assert (data.channels, data.size, data.sample_rate, data.label_names) == (1, (450,), RATE, ["high", "low"])
    high = data[0]["samples"][0].numpy()
    np.testing.assert_allclose(high, tone(1500, 500)[0, 25:475], atol=1e-4)
    padded = data[1]["samples"][0]
    assert padded[400:].abs().max() == 0
    assert padded[:400].abs().max() > 0.4


def test_archives_and_arrays_hold_the_same_signals_as_folders(tmp_path):
    folder = load(written(tmp_path / "in"), center_crop=True)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*.wav")):
            archive.write(path, path.relative_to(tmp_path))
    archived = load(tmp_path / "in.zip", center_crop=True)
    arrays = folder.normalization.undo(folder.__getitems__(range(4))["samples"]).numpy()
    np.savez(tmp_path / "in.npz", signals=arrays, labels=["high", "high", "low", "low"])
    from_arrays = load(tmp_path / "in.npz")
    for other in (archived, from_arrays):
        torch.testing.assert_close(other.__getitems__(range(4))["samples"], folder.__getitems__(range(4))["samples"])
        assert other.labels.tolist() == folder.labels.tolist()


def test_random_crops_differ_between_epochs_and_are_the_same_after_a_resume(tmp_path):
    data, again = load(written(tmp_path)), load(tmp_path)
    first, second = data[(0, 0)]["samples"], data[(0, 1)]["samples"]
    assert not torch.equal(first, second)
    assert torch.equal(again[(0, 1)]["samples"], second)


def test_recordings_are_resampled_to_one_rate(tmp_path):
    data = load(
        written(tmp_path, rate=16000, low_a=800, high_a=800), sample_rate=8000, length=400, normalization="none"
    )
    inner = slice(20, 380)  # the filter rings at the ends
    np.testing.assert_allclose(data[1]["samples"][0, inner], tone(300)[0, inner], atol=5e-3)


def test_spectral_normalisation_gives_all_bands_one_power_and_is_undone_by_the_pipeline(tmp_path):
    files = {f"{kind}_{i}": 1024 for kind in ("low", "high") for i in range(8)}
    data = load(written(tmp_path, **files), normalization="spectral", length=1024)
    samples = data.__getitems__(range(len(data)))["samples"]
    power = to_bands(samples[:, 0], 64).square().mean((0, 2))
    heard = to_bands(data.normalization.undo(samples)[:, 0], 64).square().mean((0, 2)) > 1e-6
    torch.testing.assert_close(power[heard], torch.ones(int(heard.sum())), rtol=0.05, atol=0)
    plain = load(tmp_path, normalization="none", length=1024).__getitems__(range(len(data)))["samples"]
    torch.testing.assert_close(data.normalization.undo(samples), plain, atol=2e-3, rtol=0)
    entries = {"sample_rate": RATE, **data.normalization.config()}
    network = SignalUNet1DModel(sample_size=1024, in_channels=1, attention_heads=2, **TINY)
    pipeline = SignalPipeline(network, SubsequenceDDIMScheduler(), signal=entries)
    torch.testing.assert_close(pipeline.in_units_of_data(samples), plain, atol=2e-3, rtol=0)


def test_equal_peaks_take_the_loudness_away(tmp_path):
    for name, loudness in (("low_a", 1.0), ("low_b", 0.01)):
        path = tmp_path / "train" / "low" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav_bytes(loudness * tone(300, 256), RATE))
    samples = load(tmp_path, equal_peaks=True, normalization="none").__getitems__([0, 1])["samples"]
    assert samples.abs().amax((1, 2)).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["standardize", "peak"])
def test_the_normalisation_is_measured_and_undone(tmp_path, name):
    data = load(written(tmp_path, low_a=256, high_a=256), normalization=name)
    samples = data.__getitems__([0, 1])["samples"]
    if name == "standardize":
        assert samples.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    else:
        assert samples.abs().max().item() == pytest.approx(1, abs=1e-6)
    expected = np.stack([tone(1500, 256), tone(300, 256)])
    np.testing.assert_allclose(data.normalization.undo(samples), expected, atol=1e-4)


def test_bad_files_are_named_counted_and_skipped(tmp_path, caplog):
    written(tmp_path)
    bad = {"cut.wav": wav_bytes(tone(300), RATE)[:-100], "empty.wav": b"", "text.wav": b"no sound"}
    for name, content in bad.items():
        (tmp_path / "train" / "low" / name).write_bytes(content)
    np.save(tmp_path / "train" / "low" / "nan.npy", np.full(300, np.nan))
    data = load(tmp_path)
    assert (len(data), data.skipped) == (4, 4)
    assert all(name in caplog.text for name in (*bad, "nan.npy"))
    assert "it is cut short" in caplog.text
    with pytest.raises(ValueError, match=r"signal 'train/low/cut.wav' could not be read"):
        load(tmp_path, skip_unreadable=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": None}, "different lengths, 300 to 500 frames"),
        ({"normalization": "unit"}, "normalization must be one of standardize, spectral, peak, none"),
        ({"columns": ("audio",)}, "a train_data_dir has no columns"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load(written(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_a_table_holds_signals_as_lists_or_one_long_signal(tmp_path):
    rows = {"series": [tone(300 * (1 + i), 64)[0].tolist() for i in range(4)], "label": ["a", "b", "a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "lists" / "train.parquet")
    data = load_image_data(str(tmp_path / "lists"), modality="signal", cache_dir=str(tmp_path / "cache"))
    assert (len(data), data.size, data.labels.tolist()) == (4, (64,), [0, 1, 0, 1])
    (tmp_path / "long").mkdir()
    lines = [f"{i},{i * i % 7}" for i in range(100)]
    (tmp_path / "long" / "train.csv").write_text("first,second\n" + "\n".join(lines))
    signals = SignalOptions(length=20, columns=("first", "second"), normalization="none", center_crop=True)
    windows = load_image_data(str(tmp_path / "long"), signals=signals, cache_dir=str(tmp_path / "cache"))
    assert (len(windows), windows.channels, windows.size) == (5, 2, (20,))
    assert windows[0]["samples"][0].diff().tolist() == [1.0] * 19


def test_a_table_holds_recordings_as_the_hub_stores_them(tmp_path):
    folder, places = load(written(tmp_path / "in")), sorted((tmp_path / "in").rglob("*.wav"))
    rows = {"sound": [{"bytes": place.read_bytes(), "path": None} for place in places], "label": [0, 0, 1, 1]}
    table = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio(decode=False))
    table.cast_column("label", datasets.ClassLabel(names=["high", "low"])).to_parquet(tmp_path / "table/train.parquet")
    signals, cache = SignalOptions(length=256), str(tmp_path / "cache")
    data = load_image_data(str(tmp_path / "table"), signals=signals, cache_dir=cache)
    torch.testing.assert_close(data.__getitems__(range(4))["samples"], folder.__getitems__(range(4))["samples"])
    assert (data.sample_rate, data.label_names, data.labels.tolist()) == (RATE, ["high", "low"], [0, 0, 1, 1])


def test_flac_files_hold_what_was_written(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "train").mkdir()
    soundfile.write(tmp_path / "train" / "a.flac", tone(440).T, RATE)
    data = load(tmp_path, length=400, normalization="none")
    np.testing.assert_allclose(data[0]["samples"], tone(440), atol=1e-4)
    assert data.sample_rate == RATE


# --- training and sampling --------------------------------------------------------------------------------------------

TINY = {"base_channels": 8, "channel_multipliers": [1, 2], "attention_resolutions": [2], "norm_num_groups": 4}


def test_a_run_on_recordings_saves_a_pipeline_that_makes_sounds(tmp_path, tiny_run):
    from diffusers import DiffusionPipeline

    from diffusers_ext.training import Trainer

    run = tiny_run(
        train_data_dir=str(written(tmp_path / "in")), train_split="train", length=512, model="speech", sampler="ddpm",
        model_options=json.dumps({**TINY, "attention_heads": 2}), condition="class", train_batch_size=2,
        max_train_steps=2, save_figures=True,
    )  # fmt: skip
    Trainer(run).train()
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"samples.png", "samples_and_data.png", "spectra.png", "reverse.png", "losses.png", "samples"} <= figures
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run")
    assert (type(pipeline).__name__, pipeline.sample_rate, pipeline.labels) == (
        "SignalPipeline",
        RATE,
        {"high": 0, "low": 1},
    )
    assert not pipeline.scheduler.config.clip_sample  # standardised data leave [-1, 1]
    output = tmp_path / "out" / "samples.png"
    call = [
        "--model",
        str(tmp_path / "run"),
        "--num_images",
        "2",
        "--num_inference_steps",
        "2",
        "--output",
        str(output),
    ]
    assert main(["sample", *call, "--class_labels", "low", "--images_dir", str(tmp_path / "sounds")]) == 0
    values, rate = read_wav((tmp_path / "sounds" / "00001.wav").read_bytes())
    assert (values.shape, rate, output.is_file()) == ((1, 512), RATE, True)


def test_a_network_for_images_is_refused_for_signals(tmp_path, tiny_run):
    from diffusers_ext.training import Trainer

    with pytest.raises(ValueError, match="model small is for images, and the data are signals; choose speech, series"):
        Trainer(tiny_run(train_data_dir=str(written(tmp_path / "in")), train_split="train", length=512))


def tiny_pipeline(**signal):
    torch.manual_seed(0)
    network = SignalUNet1DModel(sample_size=32, in_channels=2, attention_heads=2, **TINY)
    return SignalPipeline(network, SubsequenceDDIMScheduler(timestep_spacing="trailing"), signal=signal or None)


def test_the_output_is_in_the_units_of_the_data_and_of_any_length():
    plain, scaled = tiny_pipeline(), tiny_pipeline(shift=[1.0, 0.0], scale=[2.0, 3.0])
    first, second = (
        p(batch_size=3, length=48, num_inference_steps=2, generator=torch.Generator().manual_seed(1)).audios
        for p in (plain, scaled)
    )
    assert isinstance(first, np.ndarray)
    assert first.shape == (3, 2, 48)
    np.testing.assert_allclose(second, first * [[2.0], [3.0]] + [[1.0], [0.0]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"output_type": "pil"}, "output_type must be one of np, pt, latent"),
        ({"length": 0}, "length must be an integer of at least 1"),
        ({"latents": torch.zeros(1, 2, 8, 8)}, r"latents must have shape \(batch, 2, length\)"),
        ({"length": 31}, "its length must be a multiple of 2"),
    ],
)
def test_a_wrong_call_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_pipeline()(num_inference_steps=1, **arguments)


@pytest.mark.parametrize("words", [["compare"], ["figure", "trajectory"], ["figure", "lengths"]])
def test_pictures_of_images_are_refused_for_signals_in_one_sentence(tmp_path, capsys, words):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    target = ["--output_dir", str(tmp_path / "out")] if words == ["compare"] else ["--output", str(tmp_path / "a.png")]
    assert main([*words, "--model", str(tmp_path / "model"), *target]) == 1
    assert "the model makes signals; `sample` draws them, `evaluate` measures them" in capsys.readouterr().err


# --- conditions -------------------------------------------------------------------------------------------------------


def series(path, number=24, length=64):
    """A file of two-channel sines."""
    times, phases = np.arange(length), np.linspace(0, 6, number)[:, None]
    signals = np.stack([np.sin(0.2 * times + phases), 3 + np.cos(0.4 * times + phases)], axis=1)
    np.savez(path, signals=signals.astype(np.float32), labels=[str(i % 2) for i in range(number)])
    return str(path)


SMALL_SERIES = {"model": "series", "model_options": json.dumps({**TINY, "attention_heads": 2}), "train_split": "train"}


@pytest.mark.parametrize("name", ["inpainting", "super_resolution_4"])
def test_a_signal_is_completed_from_a_part_of_it_in_the_units_of_the_data(tmp_path, tiny_run, name):
    from diffusers import DiffusionPipeline

    from diffusers_ext.training import Trainer

    file = series(tmp_path / "in.npz")
    Trainer(
        tiny_run(train_data_dir=file, condition="image", image_condition=name, max_train_steps=2, **SMALL_SERIES)
    ).train()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run")
    pipeline.set_progress_bar_config(disable=True)
    signal = torch.from_numpy(np.load(file)["signals"][:1])
    mask = (torch.arange(64) < 20).float()
    given = {"image": signal, "mask_image": mask} if name == "inpainting" else {"image": signal[..., ::4]}
    seen = {}
    hook = pipeline.unet.register_forward_pre_hook(lambda m, a, k: seen.update(k), with_kwargs=True)
    result = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(0), **given).audios
    hook.remove()
    assert result.shape == (1, 2, 64)
    condition = seen["image_condition"]
    if name == "inpainting":  # the known part in the network's units, and where it is known
        expected = pipeline.in_units_of_network(signal) * (1 - mask)
        torch.testing.assert_close(condition[:, :2], expected)
        assert torch.equal(condition[0, 2], 1 - mask)
    else:
        assert condition.shape == (1, 2, 64)
        assert condition[:, 1].mean().abs() < 0.5  # the channel's mean of 3 is taken away


def test_a_resumed_run_on_random_crops_ends_with_the_same_weights(tmp_path, tiny_run):
    from safetensors.torch import load_file

    from diffusers_ext.training import Trainer

    options = json.dumps({**TINY, "attention_heads": 2})
    files = {f"{kind}_{i}": 500 + 30 * i for kind in ("low", "high") for i in range(4)}
    folder = str(written(tmp_path / "in", **files))
    settings = {
        "train_data_dir": folder, "train_split": "train", "length": 256, "model": "speech", "model_options": options,
        "train_batch_size": 3, "normalization": "spectral", "equal_peaks": True, "condition": "class",
    }  # fmt: skip
    whole = tiny_run(**settings, max_train_steps=4, output_dir=str(tmp_path / "whole"))
    Trainer(whole).train()
    Trainer(tiny_run(**settings, max_train_steps=2)).train()
    Trainer(tiny_run(**settings, max_train_steps=4, resume_from_checkpoint="latest")).train()
    first, second = (
        load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("whole", "run")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"length": 60}, "60"),
        ({"normalization": "spectral", "length": 60}, "needs a length that is a multiple of 64, got 60"),
        (
            {"normalization": "spectral", "length": 64, "condition": "image", "image_condition": "inpainting"},
            "which normalization spectral mixes",
        ),
        ({"condition": "image", "image_condition": "colorization"}, "colorization needs images of 3 channels, got 2"),
    ],
)
def test_a_run_that_signals_do_not_allow_is_refused_in_one_sentence(tmp_path, tiny_run, settings, sentence):
    from diffusers_ext.training import Trainer

    options = {**TINY, "channel_multipliers": [1, 1, 1, 1], "attention_heads": 2}
    wanted = {**SMALL_SERIES, "model_options": json.dumps(options), **settings}
    with pytest.raises(ValueError, match=sentence) as caught:
        Trainer(tiny_run(train_data_dir=series(tmp_path / "in.npz"), max_train_steps=1, **wanted)).train()
    assert "\n" not in str(caught.value)


# --- exact laws -------------------------------------------------------------------------------------------------------

CHANNELS, LENGTH, DRAWS = 2, 12, 4000


def gaussian_process():
    """Two correlated channels of a stationary process on a circle: a Gaussian in 24 dimensions."""
    distance = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
    distance = torch.minimum(distance, LENGTH - distance).double()
    kernel = 0.8 * torch.exp(-distance / 2) + 0.2 * torch.eye(LENGTH)
    covariance = torch.kron(torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64), kernel)
    return GaussianMixture([1.0], torch.zeros(1, CHANNELS * LENGTH), covariance[None])


def exact_spectrum(process):
    """E |FFT|^2 / length of each channel, (channels, frequencies)."""
    covariance = process.covariances[0].reshape(CHANNELS, LENGTH, CHANNELS, LENGTH)
    waves = torch.fft.rfft(torch.eye(LENGTH, dtype=torch.float64), dim=-1)
    own = torch.stack([covariance[c, :, c] for c in range(CHANNELS)]).to(waves.dtype)
    return torch.einsum("nf,cnm,mf->cf", waves, own, waves.conj()).real / LENGTH


def exact_autocorrelation(process, lags):
    covariance = process.covariances[0].reshape(CHANNELS, LENGTH, CHANNELS, LENGTH)
    return torch.stack(
        [torch.stack([covariance[c, :, c].diagonal(lag).mean() for lag in range(lags)]) for c in range(CHANNELS)]
    )


# Sampling steps and options with which each sampler is exact up to less than the Monte-Carlo error. The others: the
# `-original` rules of the source projects are wrong on purpose, and the flow map has a test of its own below.
EXACT = {name: (200, {}) for name in SAMPLERS if not name.endswith("-original") and name != "flow-map"}
EXACT["langevin"] = (60, {"inner_steps": 40})
EXACT |= {name: (60, {}) for name in ("dpmsolver++", "unipc", "heun", "ode-heun")}


def agrees(signals, spectrum, correlation):
    """Whether signals have these, within five times the largest deviation sqrt(2 / n) of a mean of n squares."""
    bound = 5 * (2 / len(signals)) ** 0.5
    assert (power_spectrum(signals) / spectrum - 1).abs().max() < bound
    found = autocorrelation(signals, correlation.shape[1])
    assert ((found - correlation) / correlation[:, :1]).abs().max() < bound


def drawn(network, scheduler, steps, draws=DRAWS):
    pipeline = SignalPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=draws, num_inference_steps=steps, generator=generator, output_type="pt").audios


@pytest.mark.parametrize("sampler", EXACT)
def test_samplers_of_the_exact_network_have_the_spectrum_of_a_gaussian_process(sampler):
    config = SubsequenceDDIMScheduler(beta_schedule="cosine", clip_sample=False, timestep_spacing="trailing").config
    steps, options = EXACT[sampler]
    scheduler, process = build_sampler(sampler, config, **options), gaussian_process()
    signals = drawn(MixtureNetwork(process, scheduler, shape=(CHANNELS, LENGTH)), scheduler, steps)
    agrees(signals, exact_spectrum(process), exact_autocorrelation(process, 6))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "ode-heun"])
def test_so_they_have_on_the_straight_lines_of_rectified_flow(sampler):
    scheduler, process = build_sampler(sampler, FlowMatchScheduler().config), gaussian_process()
    signals = drawn(MixtureNetwork(process, scheduler, shape=(CHANNELS, LENGTH)), scheduler, 200)
    agrees(signals, exact_spectrum(process), exact_autocorrelation(process, 6))


def test_two_steps_of_the_exact_flow_map_give_white_noise_its_flat_spectrum():
    line = GaussianMixture([1.0], torch.zeros(1, 1), torch.full((1, 1, 1), 0.25))
    signals = drawn(ExactFlowMap(line, sample_size=LENGTH), FlowMapScheduler(), 2)
    flat = torch.full((1, LENGTH // 2 + 1), 0.25, dtype=torch.float64)
    agrees(signals, flat, 0.25 * torch.eye(6, dtype=torch.float64)[:1])


def test_a_network_trained_for_seconds_has_nearly_the_spectrum_of_the_process():
    process, generator = gaussian_process(), torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    network = SignalUNet1DModel(
        sample_size=LENGTH, in_channels=CHANNELS, base_channels=16, channel_multipliers=(1, 1), layers_per_level=1,
        attention_heads=2, norm_num_groups=4, input_skip=True,
    )  # fmt: skip
    scheduler = SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    truth = process.sample(1000, generator).reshape(-1, CHANNELS, LENGTH)
    untrained = log_spectral_distance(drawn(network, scheduler, 4, 1000), truth)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(300):
        x0 = process.sample(96, generator).reshape(-1, CHANNELS, LENGTH).float()
        noise, t = torch.randn(x0.shape, generator=generator), torch.randint(0, 1000, (96,), generator=generator)
        target = scheduler.get_velocity(x0, noise, t)
        loss = (network(scheduler.add_noise(x0, noise, t), t).sample - target).square().mean()
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 300)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    signals = drawn(network, scheduler, 20, 1000)
    assert log_spectral_distance(signals, truth) < 0.6 < untrained
    assert autocorrelation_distance(signals, truth, 6) < 0.15


def test_the_spectrum_of_other_signals_is_told_apart():
    process, generator = gaussian_process(), torch.Generator().manual_seed(0)
    draws = [process.sample(DRAWS, generator).reshape(-1, CHANNELS, LENGTH) for _ in range(2)]
    assert log_spectral_distance(*draws) < 0.3
    assert log_spectral_distance(draws[0], 2 * draws[1]) == pytest.approx(6.02, abs=0.3)
    torch.testing.assert_close(power_spectrum(draws[0]), exact_spectrum(process), rtol=5 * (2 / DRAWS) ** 0.5, atol=0)


def test_real_examples_beside_samples_are_spread_over_each_class():
    data = load_image_data(split="train[:200]")
    chosen = examples_like({"class_labels": [3, 5, 3, 3]}, data)
    assert data.labels[chosen].tolist() == [3, 5, 3, 3]
    places = (data.labels == 3).nonzero()[:, 0].tolist()
    assert [chosen[0], chosen[3]] == [places[0], places[-1]]  # not the first three, which may be of one speaker
