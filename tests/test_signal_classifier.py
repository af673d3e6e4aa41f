"""Signals are measured by a classifier of their own, by spectra and by autocorrelations."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_ext import SignalClassifier, SignalPipeline, SubsequenceDDIMScheduler
from diffusers_ext.cli import evaluate as evaluate_command
from diffusers_ext.cli import main
from diffusers_ext.evaluation.feature_networks import load_feature_network
from diffusers_ext.evaluation.signal_classifier import RandomShift, classifier_of

LENGTH, KINDS = 256, ("low", "high", "both")


def tones(number, seed):
    """(signals (number, 1, LENGTH), class names): a low tone, a high one or both, at any phase and loudness."""
    generator = np.random.default_rng(seed)
    kinds = np.arange(number) % 3
    phases, times = generator.uniform(0, 2 * np.pi, (2, number, 1)), np.arange(LENGTH)
    low, high = (np.sin(frequency * times + phase) for frequency, phase in zip((0.2, 1.1), phases))
    parts = low * (kinds != 1)[:, None] + high * (kinds != 0)[:, None]
    loudness = generator.uniform(0.05, 1, (number, 1))
    noise = 0.02 * generator.standard_normal((number, LENGTH))
    return (loudness * (parts + noise))[:, None].astype(np.float32), [KINDS[kind] for kind in kinds]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of tones; its last quarter is held out."""
    path = tmp_path_factory.mktemp("tones") / "tones.npz"
    signals, labels = tones(480, seed=0)
    np.savez(path, signals=signals, labels=labels)
    return str(path)


@pytest.fixture(scope="module")
def classifier(data, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("classifier") / "out")
    flags = ["--train_data_dir", data, "--train_split", "train[:360]", "--test_split", "train[360:]"]
    more = ["--block_channels", "8", "16", "--num_epochs", "6", "--train_batch_size", "24", "--mixed_precision", "no"]
    assert main(["classifier", "train", *flags, *more, "--output_dir", folder]) == 0
    return folder


def test_a_classifier_learns_signals_and_says_how_well(classifier):
    loaded = classifier_of(classifier)
    assert type(loaded) is SignalClassifier
    assert loaded.config.test_accuracy > 0.95
    assert "trained on 360 signals of tones.npz" in loaded.description()
    assert loaded.label_names() == sorted(KINDS)


@torch.no_grad()
def test_loudness_and_small_shifts_do_not_change_its_answer(classifier):
    loaded = classifier_of(classifier)
    signals = torch.from_numpy(tones(30, seed=5)[0])
    answers = loaded(signals).argmax(1)
    assert torch.equal(loaded(0.01 * signals).argmax(1), answers)
    moved = RandomShift(shift=0.1)(signals, torch.Generator().manual_seed(0))
    assert (loaded(moved).argmax(1) == answers).float().mean() > 0.9


def test_its_features_compare_signals_and_refuse_images(classifier):
    network = load_feature_network(classifier)
    assert network(torch.zeros(2, 1, LENGTH)).shape == (2, 16)
    with pytest.raises(ValueError, match="takes signals only"):
        network(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"must have shape \(batch, 1, length\)"):
        classifier_of(classifier)(torch.zeros(2, 3, LENGTH))


class Tones(torch.nn.Module):
    """A network that knows the data: it predicts as x0 real signals of the class, whatever the noise."""

    def __init__(self, amplitude=1.0):
        super().__init__()
        signals, labels = tones(240, seed=7)
        self.signals = amplitude * torch.from_numpy(signals)
        self.numbers = torch.tensor([sorted(KINDS).index(label) for label in labels])
        self.config = SimpleNamespace(in_channels=1, sample_size=LENGTH, num_class_embeds=3)

    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, sample, timestep, class_labels):
        picked = [self.signals[self.numbers == int(label)][i % 80] for i, label in enumerate(class_labels)]
        return SimpleNamespace(sample=torch.stack(picked))


def evaluated(monkeypatch, data, classifier, tmp_path, network):
    scheduler = SubsequenceDDIMScheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    names = dict(enumerate(sorted(KINDS)))
    pipeline = SignalPipeline(network, scheduler, id2label=names)
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: pipeline)
    output = tmp_path / "report.json"
    flags = ["--model", "known", "--classifier", classifier, "--train_data_dir", data, "--output", str(output)]
    splits = ["--split", "train[360:]", "--baseline_split", "train[:360]", "--num_images", "60"]
    assert main(["evaluate", *flags, *splits, "--num_inference_steps", "2"]) == 0
    return json.loads(output.read_text())["measures"]


def test_signals_like_the_data_measure_as_real_signals_do(monkeypatch, data, classifier, tmp_path, capsys):
    measures = evaluated(monkeypatch, data, classifier, tmp_path, Tones())
    samples, real = measures["samples"], measures["real_images"]
    assert samples["class_accuracy"] > 0.95
    assert samples["frechet_distance"] < 5 * real["frechet_distance"] + 0.05
    for name in ("log_spectral_distance", "autocorrelation_distance"):
        assert samples[name] < 4 * real[name] + 0.1
    printed = capsys.readouterr().out
    assert "real signals (train[360:])" in printed
    assert "log_spectral_distance" in printed


def test_signals_twice_as_loud_are_found_out_by_their_spectrum(monkeypatch, data, classifier, tmp_path):
    samples = evaluated(monkeypatch, data, classifier, tmp_path, Tones(2.0))["samples"]
    assert samples["class_accuracy"] > 0.95
    assert samples["log_spectral_distance"] == pytest.approx(6, abs=1.5)
    assert samples["autocorrelation_distance"] > 2


def test_a_classifier_of_images_is_refused_for_signals(monkeypatch, data, corners_classifier, tmp_path, capsys):
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: SignalPipeline(Tones(), scheduler()))
    flags = ["--model", "known", "--classifier", corners_classifier, "--train_data_dir", data, "--split", "train"]
    assert main(["evaluate", *flags, "--num_images", "4"]) != 0
    assert "The classifier is of images, and the pipeline makes signals." in capsys.readouterr().err


def scheduler():
    return SubsequenceDDIMScheduler(prediction_type="sample", clip_sample=False)
