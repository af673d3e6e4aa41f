"""The demo: runs step by step, the page in a browser, wrong input, two users at once."""

import copy
import threading

import browser
import pytest
import torch

from diffusers_ext.cli import main
from diffusers_ext.demo.mixture import draw_curves, draw_points, error_table, run_mixture
from diffusers_ext.demo.sampling import (
    EVERY_CLASS,
    NO_CLASS,
    SAVED,
    Setting,
    class_labels,
    class_names,
    follow,
    pictures,
    sampler_names,
)
from diffusers_ext.models import AnnotatedUNet2DModel
from diffusers_ext.pipelines import GenerationPipeline
from diffusers_ext.schedulers import FlowMatchScheduler, SubsequenceDDIMScheduler


def network(**more):
    sizes = {"base_channels": 8, "channel_multipliers": [1, 2], "level_attention": ["linear", "linear"]}
    net = AnnotatedUNet2DModel(sample_size=8, in_channels=1, **sizes, **more)
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data.normal_(0, 0.1, generator=generator)
    return net.eval()


def scheduler():
    return SubsequenceDDIMScheduler(
        beta_schedule="cosine", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )


@pytest.fixture(scope="module")
def digits():
    return GenerationPipeline(network(num_class_embeds=3), scheduler(), id2label={"0": "a", "1": "b", "2": "c"})


@pytest.fixture(scope="module")
def plain():
    return GenerationPipeline(network(), scheduler())


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [SAVED, "ddim", "ddpm", "dpmsolver++", "unipc", "heun", "predictor-corrector"])
def test_a_run_ends_at_the_samples_of_the_pipeline(digits, sampler):
    setting = Setting(sampler, 4, guidance_scale=2.0)
    process = follow(digits, setting, 2, 5, class_labels=[0, 2])
    own = copy.copy(digits)
    own.scheduler = setting.build(digits.scheduler)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(2, 1, 8, 8, generator=generator)
    expected = own(
        latents=noise, class_labels=[0, 2], guidance_scale=2.0, num_inference_steps=4, generator=generator,
        output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(process.samples, expected)
    assert [process.frames[0].step, process.frames[-1].timestep] == [0, None]


def test_the_estimate_of_a_state_is_the_networks_x0(plain):
    process = follow(plain, Setting("ddim", 4), 2, 0)
    for frame in process.frames[:-1]:
        path = plain.scheduler.path
        t = int(frame.timestep)
        with torch.no_grad():
            v = plain.unet(frame.sample, t).sample
        torch.testing.assert_close(frame.x0, path.alpha(t) * frame.sample - path.sigma(t) * v, atol=1e-4, rtol=1e-4)


def test_estimates_follow_a_rectified_flow():
    pipeline = GenerationPipeline(network(), FlowMatchScheduler())
    for sampler in ("ddim", "dpmsolver++"):
        first = follow(pipeline, Setting(sampler, 3), 1, 0).frames[0]
        with torch.no_grad():
            velocity = pipeline.unet(first.sample, torch.tensor(1000.0)).sample
        torch.testing.assert_close(first.x0, first.sample - velocity, atol=2e-2, rtol=2e-2)


def test_states_of_heun_are_shown_in_the_networks_scale(plain):
    first, *_ = follow(plain, Setting("heun", 6), 4, 0).frames
    assert first.sample.std().item() == pytest.approx(1, abs=0.15)


def test_pictures_are_images(digits):
    process = follow(digits, Setting("ddim", 3), 2, 0)
    shown = pictures(digits, process.frames, process.scheduler)
    assert len(shown) == 4
    assert all(each.shape == (2, 1, 8, 8) and each.abs().max() <= 1 for pair in shown for each in pair)


def test_choices_come_from_the_model(digits, plain):
    assert class_names(digits) == ["a", "b", "c"]
    assert class_names(plain) == []
    assert class_labels(digits, EVERY_CLASS, 4) == [0, 1, 2, 0]
    assert class_labels(digits, "c", 2) == [2, 2]
    assert class_labels(plain, NO_CLASS, 2) is None
    assert sampler_names(digits)[:2] == [SAVED, "ddim"]
    assert "flow-map" not in sampler_names(digits)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting("ddim", 0), "steps must be a whole number from 1 to 1000, got 0"),
        (Setting("ddim", None), "steps must be a whole number"),
        (Setting("no such", 4), "sampler must be one of"),
        (Setting("file.py:Class", 4), "sampler must be one of"),
        (Setting("ddpm", 4, "exp"), "subsequence has no effect"),
        (Setting(SAVED, 4, "exp"), "subsequence has no effect"),
        (Setting("ddim", 4, guidance_scale=2.0), "guidance_scale 2.0 needs a condition"),
        (Setting("ddim", 4, guidance_scale=None), "guidance_scale must be a number"),
    ],
)
def test_a_wrong_setting_is_one_sentence(plain, setting, message):
    with pytest.raises(ValueError, match=message):
        follow(plain, setting, 1, 0)


def test_threads_that_share_a_pipeline_get_what_each_gets_alone(digits):
    settings = [Setting("ddim", 6, guidance_scale=2.0), Setting("dpmsolver++", 3), Setting("ddpm", 5)]
    alone = [follow(digits, setting, 2, seed, class_labels=[1, 2]).samples for seed, setting in enumerate(settings)]
    together = {}

    def run(seed):
        together[seed] = follow(digits, settings[seed], 2, seed, class_labels=[1, 2]).samples

    threads = [threading.Thread(target=run, args=[seed]) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[seed], alone[seed]) for seed in range(3))


# --- the mixture ------------------------------------------------------------------------------------------------------


def test_the_mixture_shows_orders_and_distances():
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    runs = run_mixture([Setting("ddim", 10), Setting("ddpm", 10)], 0)
    assert not runs.processes[0].stochastic
    assert runs.processes[1].stochastic
    ((_, curve),) = runs.curves.items()
    assert curve[-1][1] < 0.3 * curve[1][1]  # of first order: an eighth as many calls, about an eighth of the error
    assert "| A | ddim | 10 | 10 |" in error_table(runs)
    assert "draws noise" in error_table(runs)
    assert draw_points(runs, 50).size[0] > 300
    assert draw_curves(runs).size[0] > 300


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(digits, plain, tmp_path_factory):
    """The address of a running page with two models."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'diffusers_ext[demo]'")
    from diffusers_ext.cli.demo import app_of
    from diffusers_ext.demo.app import serve

    folder = tmp_path_factory.mktemp("models")
    names = {"digits": digits, "plain": plain}
    for name, pipeline in names.items():
        pipeline.save_pretrained(folder / name)
    app = app_of([str(folder / name) for name in names])
    _, address, _ = serve(app, "127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield address, folder
    app.close()


A, B = ["ddim", 3, "default", 1.0], ["ddim", 5, "exp", 1.0]


def client(page):
    from gradio_client import Client

    return Client(page[0], verbose=False)


def sampled(user, page, model="digits", condition="b", count=2, seed=0, a=A, b=B):
    name = str(page[1] / model) if model else model
    return user.predict(name, condition, count, seed, 100, *a, *b, api_name="/sample")


def pixels(path):
    from PIL import Image

    with Image.open(path) as picture:
        return list(picture.convert("L").tobytes())


def test_the_page_samples_and_moves_through_the_steps(page):
    user = client(page)
    words, noisy, x0, *_ = sampled(user, page)
    assert "ddim, 3 network calls" in words
    assert "end, after 3 steps" in words
    assert pixels(noisy) == pixels(x0)
    words, noisy, x0, *_ = user.predict(0, api_name="/show")
    assert "step 0 of 3, t = 999" in words
    assert pixels(noisy) != pixels(x0)


WRONG = [
    ({"a": ["ddim", 0, "default", 1.0]}, "steps must be a whole number from 1 to 1000, got 0."),
    ({"model": "missing"}, "There is no pipeline"),
    ({"model": ""}, "Choose a model first"),
    ({"condition": "x"}, "The model has no class 'x'; it knows a, b, c."),
    ({"count": 100}, "images must be a whole number from 1 to 16, got 100."),
    ({"seed": -1}, "seed must be a whole number"),
    ({"model": "plain", "condition": "none", "b": ["ddim", 2, "default", 2.5]}, "guidance_scale 2.5 needs a condition"),
]


def test_wrong_input_is_one_sentence_in_the_page(page, capsys):
    user = client(page)
    for given, message in WRONG:
        with pytest.raises(Exception) as caught:
            sampled(user, page, **given)
        assert message in str(caught.value)
    assert "Traceback" not in capsys.readouterr().err


def test_two_users_at_once_see_what_each_sees_alone(page):
    def both(users):
        jobs = [
            user.submit(
                str(page[1] / "digits"), "b", 2, seed, 100, "ddim", steps, "default", 1.0, *B, api_name="/sample"
            )
            for seed, (user, steps) in enumerate(zip(users, (20, 4)))
        ]
        return [pixels(job.result(60)[1]) for job in jobs]

    first, second = client(page), client(page)
    alone = [both([first])[0], pixels(sampled(second, page, seed=1, a=["ddim", 4, "default", 1.0])[1])]
    assert both([first, second]) == alone
    assert "of 20" in first.predict(50, api_name="/show")[0]
    assert "of 4" in second.predict(50, api_name="/show")[0]


def test_two_users_sample_in_a_browser_and_wrong_input_is_said_there(page, tmp_path):
    if browser.chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    with browser.Browser(tmp_path / "profile") as chromium:
        first, second = chromium.open(page[0]), chromium.open(page[0])
        for user in (first, second):
            user.wait_for("Setting B")
        second.fill("Steps", 4)
        for user in (first, second):
            user.click("Sample")
        first.wait_for("end, after 5 steps")
        second.wait_for("end, after 4 steps")
        first.fill("Steps", 0)
        first.click("Sample")
        first.wait_for("steps must be a whole number from 1 to 1000, got 0.")


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_model_is_refused_before_the_page_opens(tmp_path, capsys):
    pytest.importorskip("gradio")
    assert main(["demo", "--model", str(tmp_path)]) == 1
    assert "holds no pipeline" in capsys.readouterr().err


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert main(["demo"]) == 1
    assert "pip install 'diffusers_ext[demo]'" in capsys.readouterr().err


def test_a_space_holds_app_requirements_card_and_model(plain, tmp_path, capsys):
    import yaml

    plain.save_pretrained(tmp_path / "model")
    words = ["export", "--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / "space"), "--space"]
    assert main(words) == 0, capsys.readouterr().err
    space = tmp_path / "space"
    assert (space / "model" / "model_index.json").is_file()
    assert (space / "diffusers_ext" / "demo" / "app.py").is_file()
    compile((space / "app.py").read_text(), "app.py", "exec")
    front = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert any(line.startswith("torch>=") for line in (space / "requirements.txt").read_text().splitlines())
