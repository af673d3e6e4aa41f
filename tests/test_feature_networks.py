"""Networks whose features are compared: each as its own library computes it, and what is none in one sentence."""

import hashlib
import json
from pathlib import Path

import corners
import numpy as np
import peers
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification, ViTModel

from diffusers_ext import ImageClassifier
from diffusers_ext.cli import evaluate as evaluate_command
from diffusers_ext.cli import main
from diffusers_ext.evaluation import feature_networks
from diffusers_ext.evaluation.feature_networks import as_bytes, load_feature_network
from diffusers_ext.evaluation.features import extract
from diffusers_ext.evaluation.inception import Inception, resize_as_tensorflow_1

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_IMAGE = {**TINY, "image_size": 16, "patch_size": 8}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def random_images(number=3, channels=3, side=16, seed=0):
    """Images in [-1, 1] of values that 8 bits hold."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (number, channels, side, side), generator=generator)
    return pixels / 127.5 - 1


# --- Inception --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_weights():
    """A random state dict in which every layer and every branch has a part in the features."""
    generator = torch.Generator().manual_seed(1)
    weights = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, value in Inception().state_dict().items():
        if name.endswith("conv.weight"):
            weights[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            weights[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif value.is_floating_point():
            weights[name] = torch.randn(value.shape, generator=generator) * 0.2
        else:
            weights[name] = value
    return weights


@pytest.fixture(scope="module")
def inception_file(inception_weights, tmp_path_factory):
    file = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    torch.save(inception_weights, file)
    return file


def load_or_skip(name):
    try:
        return peers.load(name)
    except ModuleNotFoundError:
        pytest.skip("torch-fidelity is not installed")


@torch.no_grad()
def test_inception_is_torch_fidelitys(inception_file):
    peer = load_or_skip("torch_fidelity.feature_extractor_inceptionv3")
    theirs = peer.FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(inception_file))
    ours = load_feature_network(str(inception_file))
    images = torch.cat([random_images(2, side=28), torch.zeros(1, 3, 28, 28)])
    found, expected = ours(images), theirs(as_bytes(images))[0]
    assert found.shape == (3, 2048)
    assert expected.std() > 1  # weights that make all features alike would prove nothing
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(28, 28), (37, 61), (299, 299), (500, 320)])
def test_resizing_is_tensorflows(shape):
    peer = load_or_skip("torch_fidelity.interpolate_compat_tensorflow")
    images = 255 * torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    theirs = peer.interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    assert (resize_as_tensorflow_1(images, 299) - theirs).abs().max() < 1e-3


def test_resizing_of_a_ramp():
    """Place i of n is i * width / n of a line that is its own place, held at its last pixel."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    expected = torch.tensor([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    assert torch.equal(resize_as_tensorflow_1(ramp, 8), expected.expand(1, 1, 8, 8))
    assert torch.equal(resize_as_tensorflow_1(ramp, 2), torch.tensor([0.0, 2.0]).expand(1, 1, 2, 2))


@torch.no_grad()
def test_inception_from_either_kind_of_file_and_of_grey_images(inception_file, inception_weights, tmp_path):
    file = tmp_path / "inception.safetensors"
    save_file(inception_weights, file)
    first, second = load_feature_network(str(inception_file)), load_feature_network(str(file))
    grey = random_images(2, channels=1)
    assert torch.equal(first(grey), second(grey.repeat(1, 3, 1, 1)))
    assert first.name.startswith("2,048 features of FID's Inception, pt_inception-2015-12-05-6726825d.pth (SHA-256 ")
    assert not first.training
    with pytest.raises(ValueError, match="takes 3 channels, and the images have 2"):
        first(torch.zeros(1, 2, 8, 8))


# --- TorchScript ------------------------------------------------------------------------------------------------------


class Archived(torch.nn.Module):
    """What `inception-2015-12-05.pt` takes and gives, in small."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert img.dtype == torch.uint8
        features = self.layer(img.float().mean(dim=[2, 3]))
        return features if return_features else features.softmax(dim=1)


class Moody(Archived):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return torch.rand(img.shape[0], 5)


class Whole(Archived):
    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return img.float().mean()


def archive(folder, network, name="inception-2015-12-05.pt"):
    torch.jit.save(torch.jit.script(network), folder / name)
    return str(folder / name)


@pytest.fixture
def trusted(monkeypatch, tmp_path):
    """Makes an archive of TorchScript whose SHA-256 is known; its path."""

    def make(network):
        file = archive(tmp_path, network)
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        monkeypatch.setattr(feature_networks, "KNOWN_PROGRAMS", {digest})
        return file

    return make


@torch.no_grad()
def test_a_known_archive_of_torchscript_gets_bytes_and_is_asked_for_features(trusted):
    network, images = Archived(), random_images(channels=1)
    loaded = load_feature_network(trusted(network))
    assert torch.allclose(loaded(images), network(as_bytes(images.repeat(1, 3, 1, 1)), return_features=True))
    assert "TorchScript archive inception-2015-12-05.pt (SHA-256 " in loaded.name


@torch.no_grad()
def test_of_another_archive_the_weights_are_read_and_the_program_is_not_run(inception_weights, tmp_path):
    """The program of this archive gives ones; its tensors are those of Inception."""

    class Ones(Inception):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.ones(pixels.shape[0], 2048)

    network = Ones.from_weights(inception_weights)
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 8, 8)), tmp_path / "traced.pt")
    torch.save(inception_weights, tmp_path / "weights.pth")
    found, expected = (load_feature_network(str(tmp_path / name)) for name in ("traced.pt", "weights.pth"))
    images = random_images(1)
    assert torch.equal(found(images), expected(images))
    assert found.name.startswith("2,048 features of FID's Inception, traced.pt")


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Moody, "gives different features for the same image each time"),
        (Whole, r"must give one row of features per image, got \(\) for 2"),
        (lambda: torch.nn.Linear(2, 2), "gives no features of images"),
    ],
)
def test_a_known_archive_without_features_is_one_sentence(trusted, network, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_feature_network(trusted(network()))


# --- transformers -----------------------------------------------------------------------------------------------------


def save_processor(folder, kind="ViTImageProcessor", **settings):
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3}
    scale = {"image_mean": MEAN, "image_std": STD, "size": {"height": 16, "width": 16}}
    text = json.dumps({"image_processor_type": kind, **common, **scale, **settings})
    (folder / "preprocessor_config.json").write_text(text)


@pytest.fixture
def vision_model(tmp_path):
    def make(model_class=ViTModel, config=None, kind="ViTImageProcessor", **settings):
        torch.manual_seed(0)
        network = model_class(config or ViTConfig(**TINY_IMAGE)).eval()
        network.save_pretrained(tmp_path / "tiny-vit")
        save_processor(tmp_path / "tiny-vit", kind, **settings)
        return network, str(tmp_path / "tiny-vit")

    return make


def normalized(images):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return ((images + 1) / 2 - mean) / std


@torch.no_grad()
def test_a_vision_model_gets_its_processors_values_and_gives_its_pooled_output(vision_model):
    network, folder = vision_model()
    images, loaded = random_images(), load_feature_network(folder)
    expected = network(pixel_values=normalized(images)).pooler_output
    assert torch.allclose(loaded(images), expected, atol=1e-5)
    grey = images[:, :1]
    assert torch.allclose(
        loaded(grey), network(pixel_values=normalized(grey.repeat(1, 3, 1, 1))).pooler_output, atol=1e-5
    )
    assert loaded.name == "pooled output of tiny-vit, a ViTModel"


@torch.no_grad()
def test_images_of_another_size_are_resized_by_the_processor(vision_model):
    network, folder = vision_model()
    large = random_images(side=40)
    pictures = [Image.fromarray(array) for array in as_bytes(large).permute(0, 2, 3, 1).numpy()]
    small = np.stack([np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC)) for picture in pictures])
    values = normalized(torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1)
    expected = network(pixel_values=values).pooler_output
    assert torch.allclose(load_feature_network(folder)(large), expected, atol=1e-4)
    assert expected.std(dim=0).min() > 1e-3


@torch.no_grad()
def test_a_pooler_that_the_weights_lack_is_not_used(vision_model):
    network, folder = vision_model(ViTForImageClassification)
    images, loaded = random_images(), load_feature_network(folder)
    expected = network.vit(pixel_values=normalized(images)).last_hidden_state.mean(dim=1)
    assert torch.allclose(loaded(images), expected, atol=1e-5)
    assert loaded.name.startswith("mean of the tokens of tiny-vit")


@torch.no_grad()
@pytest.mark.parametrize("part", ["whole", "vision"])
def test_clip(vision_model, part):
    text = {**TINY, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config=TINY_IMAGE, projection_dim=12)
    crop = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}
    network, folder = vision_model(CLIPModel, config, "CLIPImageProcessor", **crop)
    if part == "vision":
        network.vision_model.save_pretrained(folder)
    images, loaded = random_images(), load_feature_network(folder)
    expected = network.vision_model(pixel_values=normalized(images)).pooler_output
    if part == "whole":
        expected = network.visual_projection(expected)
    assert torch.allclose(loaded(images), expected, atol=1e-5)
    assert loaded.name.startswith("image features" if part == "whole" else "pooled output")


# --- classifiers of ours ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_classifier_of_colours_sees_grey_images_in_three_channels(tmp_path):
    classifier = ImageClassifier(in_channels=3, block_channels=[4, 8]).eval()
    classifier.save_pretrained(tmp_path / "colours")
    loaded, grey = load_feature_network(str(tmp_path / "colours")), random_images(channels=1)
    assert torch.equal(loaded(grey), classifier.features(grey.repeat(1, 3, 1, 1)))
    assert loaded.name.startswith("penultimate features of colours, a classifier of 10 classes")
    assert torch.equal(extract([grey], loaded).features, loaded(grey))


# --- what is none -----------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_a_pickle_is_not_run(tmp_path):
    torch.save({"network": Malicious(tmp_path / "touched")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="could run any code, so it is not loaded"):
        load_feature_network(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "touched").exists()


def test_a_program_of_torch_export_is_not_loaded(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    for name in ("program.pt2", "program.pt"):
        torch.export.save(program, tmp_path / name)
        with pytest.raises(ValueError, match=r"program of torch\.export, and loading it could run any code"):
            load_feature_network(str(tmp_path / name))


def of_another_network(folder, weights):
    torch.save({"layer.weight": torch.zeros(2)}, folder / "other.pth")
    return folder / "other.pth"


def of_imagenet(folder, weights):
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048)}, folder / "imagenet.pth")
    return folder / "imagenet.pth"


def of_other_shapes(folder, weights):
    torch.save({**weights, "Mixed_7c.branch_pool.bn.bias": torch.zeros(3)}, folder / "shapes.pth")
    return folder / "shapes.pth"


def text(folder, weights):
    (folder / "text.pt").write_text("not a network")
    return folder / "text.pt"


def cut_off(folder, weights):
    whole = folder / "whole.pt"
    torch.jit.save(torch.jit.script(Archived()), whole)
    (folder / "cut.pt").write_bytes(whole.read_bytes()[:-200])
    return folder / "cut.pt"


def misnamed(folder, weights):
    """What torch.save wrote, under the name of another kind."""
    torch.save(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def empty_folder(folder, weights):
    return folder


def without_processor(folder, weights):
    ViTModel(ViTConfig(**TINY_IMAGE)).save_pretrained(folder)
    return folder


def without_safetensors(folder, weights):
    network = ViTModel(ViTConfig(**TINY_IMAGE))
    network.config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    save_processor(folder)
    return folder


def without_a_layer(folder, weights):
    network = ViTModel(ViTConfig(**TINY_IMAGE))
    network.save_pretrained(folder)
    save_file({k: v for k, v in network.state_dict().items() if "layernorm" not in k}, folder / "model.safetensors")
    save_processor(folder)
    return folder


def of_text(folder, weights):
    BertModel(BertConfig(**TINY, vocab_size=50)).save_pretrained(folder)
    save_processor(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder, weights: "/nowhere", "There is no network '/nowhere'"),
        (of_another_network, "not the weights of FID's Inception: Conv2d_1a_3x3.bn.bias is missing"),
        (of_imagenet, "weights for 1,000 classes, and FID's Inception has 1,008"),
        (of_other_shapes, r"Mixed_7c.branch_pool.bn.bias has shape \(3,\) instead of \(192,\)"),
        (text, "text.pt' has no weights of a feature network: .* is not a file that torch.save wrote"),
        (cut_off, "cut.pt' .*is cut off"),
        (empty_folder, "nor a model of transformers"),
        (without_processor, "can't be loaded as a vision model of transformers"),
        (without_safetensors, "can't be loaded as a vision model of transformers"),
        (without_a_layer, "lacks weights of ViTModel: layernorm.bias, layernorm.weight"),
        (of_text, "is a BertModel, which takes input_ids, not images"),
        (lambda folder, weights: archive(folder, Archived()), "not the weights of FID's Inception: .* is missing"),
        (misnamed, r"weights.safetensors' is not a whole safetensors file"),
    ],
)
def test_what_is_no_network_of_features_is_one_sentence(tmp_path, inception_weights, make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        load_feature_network(str(make(tmp_path, inception_weights)))
    assert "\n" not in str(caught.value)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluate(monkeypatch, corners_data, tmp_path):
    """The report of a perfect pipeline of grey images."""
    pipeline = corners.perfect_pipeline()
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: pipeline)
    flags = ["--model", "perfect", "--train_data_dir", corners_data, "--output", str(tmp_path / "report.json")]
    few = ["--num_images", "40", "--num_inference_steps", "20", "--sampler", "reverse-sde:50"]

    def run(*words):
        assert main(["evaluate", *flags, *few, *words]) == 0
        return json.loads((tmp_path / "report.json").read_text())

    return run


def test_evaluate_compares_by_any_of_them_and_says_by_which(
    evaluate, vision_model, corners_classifier, trusted, capsys
):
    report = evaluate("--features", vision_model()[1])
    assert report["features"] == {"name": "pooled output of tiny-vit, a ViTModel", "dimensions": 16}
    assert report["classifier"] is None
    measures = report["measures"]
    assert measures["samples"]["frechet_distance"] < 3 * measures["real_images"]["frechet_distance"]
    printed = capsys.readouterr().out
    assert "features: pooled output of tiny-vit, a ViTModel" in printed
    assert "no more images than" not in printed
    report = evaluate("--features", trusted(Archived()), "--classifier", corners_classifier)
    assert report["features"]["name"].startswith("features of the TorchScript archive")
    assert report["measures"]["samples"]["class_accuracy"] > 0.95
    assert evaluate("--classifier", corners_classifier)["features"] == {"name": "the classifier's", "dimensions": 16}


def test_evaluate_warns_of_fewer_images_than_dimensions(evaluate, vision_model, capsys):
    evaluate("--features", vision_model()[1], "--num_images", "16")
    assert "There are no more images than the features have dimensions, 16" in capsys.readouterr().out


def test_evaluate_says_in_one_sentence_that_there_is_no_such_network(corners_data, capsys, monkeypatch):
    monkeypatch.setattr(evaluate_command, "load_pipeline", lambda *_: corners.perfect_pipeline())
    assert main(["evaluate", "--model", "x", "--train_data_dir", corners_data, "--features", "/nowhere"]) == 1
    assert capsys.readouterr().err.strip() == "error: There is no network '/nowhere'."
