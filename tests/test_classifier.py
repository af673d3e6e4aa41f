"""The classifier: a classifier that learns real classes, and says in its configuration how well."""

import pytest
import torch

from diffusers_ext import ImageClassifier
from diffusers_ext.cli import main
from diffusers_ext.evaluation.classifier_training import RandomAffine, accuracy, fit, one_cycle

SMALL = {"block_channels": [8, 16]}


def squares(number, seed, size=12):
    """Images with a bright square in one of four corners, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (number,), generator=generator)
    images = -1 + 0.3 * torch.rand(number, 1, size, size, generator=generator)
    half = size // 2
    for image, label in zip(images, labels.tolist()):
        top, left = half * (label // 2), half * (label % 2)
        image[:, top + 1 : top + half - 1, left + 1 : left + half - 1] += 1.5
    return images, labels


def batches(count, **options):
    return [squares(32, seed, **options) for seed in range(count)]


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    classifier = ImageClassifier(num_classes=4, **SMALL)
    before = accuracy(classifier, [squares(200, 99)])[0]
    assert fit(classifier, batches(40), num_steps=40) == 40
    return classifier, before


def test_fitting_learns_and_is_measured_on_other_images(fitted):
    classifier, before = fitted
    share, count = accuracy(classifier, [squares(150, 99), squares(50, 98)])
    assert count == 200
    assert before < 0.6 < 0.97 < share
    assert not classifier.training


def test_accuracy_counts_right_answers():
    answers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
    answers[1].weight.data = torch.eye(3)
    images = torch.eye(3)[torch.tensor([0, 1, 2, 2])].reshape(4, 3, 1, 1)
    assert accuracy(answers, [(images, torch.tensor([0, 1, 2, 0]))]) == (0.75, 4)
    with pytest.raises(ValueError, match="at least one image"):
        accuracy(answers, [])


def test_saved_and_loaded_it_says_the_same(fitted, tmp_path):
    classifier, _ = fitted
    classifier.register_to_config(test_accuracy=0.5, num_test_images=200, id2label={"0": "top left"})
    classifier.save_pretrained(tmp_path)
    again = ImageClassifier.from_pretrained(tmp_path)
    images = squares(5, 7)[0]
    with torch.no_grad():
        assert torch.equal(again(images), classifier(images))
    assert again.config.test_accuracy == 0.5
    assert again.label_names() == ["top left", "1", "2", "3"]
    assert not again.training
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 32), (3, 17, 40)])
def test_any_size_and_features_lead_to_the_logits(channels, height, width):
    classifier = ImageClassifier(in_channels=channels, num_classes=5, dropout=0.5, **SMALL).eval()
    images = torch.rand(3, channels, height, width) * 2 - 1
    features = classifier.features(images)
    assert features.shape == (3, classifier.num_features) == (3, 16)
    assert torch.equal(classifier(images), classifier.logits_of_features(features))
    assert classifier(images).shape == (3, 5)


def test_what_makes_no_classifier_is_one_sentence():
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        ImageClassifier(num_classes=1)
    with pytest.raises(ValueError, match=r"must have shape \(batch, 1, height, width\), got \(2, 3, 8, 8\)"):
        ImageClassifier(**SMALL)(torch.zeros(2, 3, 8, 8))


def test_random_affine_moves_within_its_limits():
    images = torch.rand(4, 1, 20, 30)
    assert torch.allclose(RandomAffine(0, 0, 0)(images), images, atol=1e-5)
    spot = torch.zeros(64, 1, 40, 20)
    spot[:, :, 20:22, 10:12] = 1
    moved = RandomAffine(0.1, 0, 0)(spot, torch.Generator().manual_seed(0))
    rows = (moved.sum((1, 3)) * torch.arange(40)).sum(1) / moved.sum((1, 2, 3))
    assert 3 < (rows - 20.5).abs().max() <= 4.01
    again = RandomAffine(0.1, 0, 0)(spot, torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)


def test_a_turn_keeps_lengths_on_images_that_are_not_square():
    bar = torch.zeros(32, 1, 30, 60)
    bar[:, :, 14:16, 20:40] = 1
    turned = RandomAffine(0, 90, 0)(bar, torch.Generator().manual_seed(1))
    assert (turned.sum((1, 2, 3)) / bar[0].sum() - 1).abs().max() < 0.06


def test_the_learning_rate_rises_and_ends_at_nothing():
    rates = [one_cycle(k / 100) for k in range(101)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0.97 < max(rates) <= 1
    assert rates[-1] == 0


def test_the_clock_ends_a_run():
    classifier = ImageClassifier(num_classes=4, **SMALL)
    assert fit(classifier, batches(2), num_steps=1000, max_seconds=1e-9) == 0


FLAGS = [
    "--train_split",
    "train[:640]",
    "--test_split",
    "test[:200]",
    "--num_epochs",
    "4",
    "--block_channels",
    "8",
    "16",
]


def test_the_command_trains_saves_and_tells_its_accuracy(tmp_path, capsys):
    quick = ["--train_batch_size", "16", "--learning_rate", "0.02"]
    assert main(["classifier", "train", *FLAGS, *quick, "--output_dir", str(tmp_path)]) == 0
    classifier = ImageClassifier.from_pretrained(tmp_path)
    assert classifier.config.num_train_images == 640
    assert classifier.config.num_test_images == 200
    assert (classifier.config.dataset, classifier.config.train_split) == ("embedded", "train[:640]")
    assert classifier.config.id2label == {str(digit): str(digit) for digit in range(10)}
    assert classifier.config.test_accuracy > 0.7
    told = f"{100 * classifier.config.test_accuracy:.2f} % right on 200 (test[:200])"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max_train_seconds", "0"], "max_train_seconds must be greater than 0, got 0.0"),
        (["--mixed_precision", "int8"], "mixed_precision must be one of auto, no, bf16, got 'int8'"),
        (["--dataset_name", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_words_are_one_sentence(capsys, words, sentence):
    assert main(["classifier", "train", *FLAGS, *words]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert sentence in error
