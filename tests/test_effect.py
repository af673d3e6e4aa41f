"""Settings without an effect: told of in one sentence, or refused; what a flag only puts out of use is not told of."""

import dataclasses
import json

import pytest
import torch
from conftest import ROOT
from local_processes import run_processes

from diffusers_ext.models import build_model
from diffusers_ext.settings import settings_of, without_effect
from diffusers_ext.training import Trainer, TrainingArguments, parse_arguments
from diffusers_ext.training.building import make_objective

RECIPES = sorted((ROOT / "diffusers_ext" / "recipes").glob("*.yaml"))
FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}


def told_of(line, **defaults):
    return without_effect(parse_arguments(line.split(), **defaults))


def recipe(name):
    return f"--recipe {ROOT}/diffusers_ext/recipes/{name}.yaml"


def test_the_table_speaks_of_settings_that_exist():
    for setting in settings_of(TrainingArguments).values():
        for need in setting.needs:
            assert set(need.switches) <= FIELDS
            assert setting.name not in need.switches


# Another length of the run, another machine, and what another setting speaks for.
FREE_TO_CHANGE = (
    "model_config_name_or_path guidance_scale ddpm_beta_schedule num_epochs max_train_steps max_train_seconds "
    "local_rank enable_xformers_memory_efficient_attention"
)


def test_a_resumed_run_refuses_or_names_every_setting_that_training_depends_on():
    settings = settings_of(TrainingArguments).values()
    # The contents of the data are compared themselves, wherever they come from.
    groups = "model", "condition", "objective", "optimisation", "ema"
    learning = [each for each in settings if each.group.name in groups]
    assert {each.on_resume for each in learning} == {"refused", "named", "free"}
    free = {each.name for each in learning if each.on_resume == "free"}
    assert free <= set(FREE_TO_CHANGE.split()), "other settings are refused or named"
    refused = {each.name for each in settings if each.on_resume == "refused"}
    assert {"prediction_type", "schedule", "ddpm_num_steps", "optimizer", "condition", "model"} <= refused
    assert {"text_encoder", "image_condition", "vector_columns"} <= refused  # conditions declare them


@pytest.mark.parametrize(
    ("line", "names", "reason"),
    [
        ("--model playground-toy --loss_weighting p2 --p2_k 2", "loss_weighting and p2_k", "the toy network knows no"),
        ("--model playground-toy --timestep_sampling stratified", "timestep_sampling", "the toy network knows no time"),
        ("--model playground-toy --schedule cosine", "schedule", "the toy network knows"),
        ("--toy_amounts normal", "toy_amounts", "the network is not the toy network"),
        ("--guidance_scale 2", "guidance_scale", "there is no condition"),
        ("--schedule cosine --beta_end 0.1", "beta_end", "only linear, linear_rescaled, scaled_linear"),
        ("--min_snr_gamma 5", "min_snr_gamma", "loss_weighting is not min_snr"),  # the default, but asked for
        ("--min-snr-gamma=3", "min_snr_gamma", "loss_weighting is not min_snr"),
        ("--loss_weighting snr --p2_gamma 2 --p2_k 2", "p2_gamma and p2_k", "loss_weighting is not p2"),
        ("--loss_weighting p2 --sigmoid_bias=-1", "sigmoid_bias", "loss_weighting is not sigmoid"),
        ("--edm_sigma_data 1", "edm_sigma_data", "loss_weighting is not edm"),
        ("--logit_normal_mean 1", "logit_normal_mean", "timestep_sampling is not (stratified_)logit_normal"),
        ("--dataset_name some --train_data_dir other", "train_data_dir", "dataset_name takes its place"),
        ("--train_data_dir some --dataset_config_name other", "dataset_config_name", "names no data set"),
        ("--shuffle_buffer_size 9", "shuffle_buffer_size", "streaming is off"),
        ("--dataset_name some --streaming --max_train_steps 9 --num_epochs 2", "num_epochs", "one epoch of max_train"),
        ("--lr_scheduler constant --lr_warmup_steps 9", "lr_warmup_steps", "constant_with_warmup has one"),
        ("--ema_max_decay 0.99", "ema_max_decay", "no average by use_ema with ema_kind warmup"),
        ("--use_ema --ema_kind power --ema_power 1", "ema_power", "no average by use_ema with ema_kind warmup"),
        ("--ema_kind warmup", "ema_kind", "use_ema is off"),
        ("--use_ema --ema_sigma_rel 0.1", "ema_sigma_rel", "no average by use_ema with ema_kind power, and no"),
        ("--train_data_dir some --validation_size 9", "validation_size", "there is no validation_split"),
        ("--validation_steps 9 --save_images_epochs 2", "save_images_epochs", "validation_steps takes its place"),
        ("--early_stopping_min_delta 0.1", "early_stopping_min_delta", "early_stopping_patience is not set"),
        ("--evaluation_size 9", "evaluation_size", "there is neither classifier nor features"),
        ("--sampler dpmsolver++ --subsequence exp", "subsequence", "only ddim and ddim-original visit a subsequence"),
        ("--logger none --logging_dir there", "logging_dir", "logger is not tensorboard"),
        ("--hub_private_repo", "hub_private_repo", "push_to_hub is off"),
        ("--overwrite_output_dir --resume_from_checkpoint latest", "overwrite_output_dir", "goes on with the run"),
        (f"{recipe('mnist')} --ddpm_num_steps 9 --beta_start 0.1", "beta_start", "of the schedules"),
        (f"{recipe('playground-toy')} --p2_k 2", "p2_k", "the toy network"),
    ],
)
def test_what_has_no_effect_is_told_of_in_one_sentence(line, names, reason):
    (sentence,) = told_of(line)
    assert sentence.startswith(f"{names} ha{'ve' if ' and ' in names else 's'} no effect: ")
    assert reason in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--model small --model_config_name_or_path some", "model has no effect: model_config_name_or_path takes"),
        ("--schedule cosine --ddpm_beta_schedule linear", "ddpm_beta_schedule has no effect: schedule takes its place"),
        (f"{recipe('mnist')} --ddpm_beta_schedule linear", "ddpm_beta_schedule has no effect: schedule takes its"),
        ("--condition class --caption_column text", "caption_column has no effect: condition is not text"),
        ("--model playground-toy --sampler ddim", "sampler has no effect: the toy network is sampled by"),
        ("--image_condition inpainting", "image_condition has no effect: condition is not image"),
        ("--condition text --label_column label", "label_column has no effect: condition is not class"),
    ],
)
def test_contradictions_are_refused(line, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        told_of(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--loss_weighting min_snr --min_snr_gamma 3",
        # On a rectified flow, this is the weighting of `sample`.
        "--schedule rectified_flow --prediction_type sample --min_snr_gamma 3",
        "--loss_weighting sigmoid --sigmoid_bias 0 --timestep_sampling logit_normal --logit_normal_std 2",
        "--schedule sigmoid --beta_end 0.1",
        "--sampler ddim --subsequence exp",
        "--use_ema --ema_power 1 --ema_snapshots 9 --ema_sigma_rel 0.1 0.2",
        "--use_ema --ema_kind power --ema_sigma_rel 0.1",
        "--use_ema false --push_to_hub false --hub_private_repo false",
        "--dataset_name some --streaming --max_train_steps 9 --shuffle_buffer_size 9 --validation_steps 3",
        "--condition text --caption_column some --max_text_tokens 9",
        "--features some --evaluation_steps 9 --evaluation_size 9",
        "--model playground-toy --loss l1 --prediction_type sample",
        # What a flag puts out of use was not asked for.
        f"{recipe('mnist')} --use_ema false",
        f"{recipe('mnist')} --model playground-toy",
        f"{recipe('mnist')} --model_config_name_or_path some",
        f"{recipe('mnist')} --ema_snapshots 100",
        f"{recipe('super-resolution')} --condition class",
        f"{recipe('super-resolution')} --loss_weighting snr",
        f"{recipe('playground-ddpm')} --lr_scheduler cosine --lr_warmup_steps 9",
        f"{recipe('emoji-text')} --dataset_name some --condition class",
    ],
)
def test_what_has_an_effect_or_is_only_put_out_of_use_is_not_told_of(line):
    assert told_of(line) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_everything_in_a_recipe_has_an_effect(path):
    assert without_effect(TrainingArguments.from_recipe(path)) == []
    data = {} if TrainingArguments.from_recipe(path).dataset_name else {"dataset_name": "some"}
    assert without_effect(TrainingArguments.from_recipe(path, **data, output_dir="there", seed=1)) == []


def test_a_recipe_that_contradicts_itself_is_told_of_and_runs(tmp_path):
    """A run whose condition a flag changed writes such a one."""
    (tmp_path / "r.yaml").write_text("condition: class\nimage_condition: inpainting\nuse_ema: false\nema_power: 1.0\n")
    assert sorted(without_effect(TrainingArguments.from_recipe(tmp_path / "r.yaml"))) == [
        "ema_power has no effect: there is no average by use_ema with ema_kind warmup.",
        "image_condition has no effect: condition is not image.",
    ]


def test_in_python_what_is_not_the_default_was_asked_for():
    assert without_effect(TrainingArguments(min_snr_gamma=5.0)) == []
    (sentence,) = without_effect(TrainingArguments(min_snr_gamma=6.0))
    assert sentence == "min_snr_gamma has no effect: loss_weighting is not min_snr."
    with pytest.raises(ValueError, match="model has no effect: model_config_name_or_path takes its place"):
        without_effect(TrainingArguments(model="unet2d", model_config_name_or_path="some"))


def test_a_toy_from_a_configuration_is_known_as_one(tmp_path):
    build_model("playground-toy").save_config(tmp_path)
    assert "toy" in told_of(f"--model {tmp_path} --schedule cosine")[0]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AnnotatedUNet2DModel"}))
    assert told_of(f"--model {tmp_path} --schedule cosine") == []


def test_the_toy_takes_no_epsilon_that_was_asked_for():
    toy = build_model("playground-toy")
    make_objective(parse_arguments(["--model", "playground-toy"]), toy)
    with pytest.raises(ValueError, match="The toy network predicts 'sample', not 'epsilon'"):
        make_objective(parse_arguments(["--model", "playground-toy", "--prediction_type", "epsilon"]), toy)


def test_objects_take_the_place_of_settings_and_meet_their_needs():
    arguments = TrainingArguments(guidance_scale=2.0, image_column="pixels", train_split="all")
    told = without_effect(arguments, ["condition", "train_dataset"])
    assert told == ["train_split and image_column have no effect: train_dataset is given."]


def begin(rank, arguments, folder, caplog):
    torch.set_num_threads(1)
    Trainer(arguments)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("building.run")]
    (folder / f"{rank}.json").write_text(json.dumps(told))


def test_a_run_says_it_once_on_the_main_process(tiny_run, tmp_path, caplog):
    assert run_processes(2, begin, tiny_run(min_snr_gamma=3.0), tmp_path, caplog) == 0
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == ["min_snr_gamma has no effect: loss_weighting is not min_snr."]
    assert second == []
