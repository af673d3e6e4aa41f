"""Flags and recipes."""

import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from diffusers_ext.models import PRESETS
from diffusers_ext.models.autoencoders import AUTOENCODERS
from diffusers_ext.schedulers import PREDICTION_TYPES, SCHEDULES, NoisePath
from diffusers_ext.settings import HelpRequested, check, make_settings_class, parse, settings_of, shipped_recipes
from diffusers_ext.training import TrainingArguments, parse_arguments
from diffusers_ext.training.arguments import json_option

RECIPES_BY_NAME = {path.stem: path for path in (ROOT / "diffusers_ext" / "recipes").glob("*.yaml")}
RECIPES = sorted((ROOT / "diffusers_ext" / "recipes").glob("*.yaml"))

# Every flag of diffusers' own unconditional example with its default there, where the default is a choice of theirs.
FLAGS_OF_DIFFUSERS_EXAMPLE = {
    "dataset_name": None,
    "dataset_config_name": None,
    "model_config_name_or_path": None,
    "train_data_dir": None,
    "output_dir": "ddpm-model-64",
    "overwrite_output_dir": False,
    "cache_dir": None,
    "center_crop": False,
    "random_flip": False,
    "train_batch_size": 16,
    "eval_batch_size": 16,
    "dataloader_num_workers": 0,
    "num_epochs": 100,
    "save_images_epochs": 10,
    "save_model_epochs": 10,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 500,
    "adam_beta1": 0.95,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-6,
    "adam_epsilon": 1e-8,
    "use_ema": False,
    "ema_inv_gamma": 1.0,
    "ema_power": 0.75,
    "ema_max_decay": 0.9999,
    "push_to_hub": False,
    "hub_token": None,
    "hub_model_id": None,
    "hub_private_repo": False,
    "logger": "tensorboard",
    "logging_dir": "logs",
    "local_rank": -1,
    "prediction_type": "epsilon",
    "ddpm_num_steps": 1000,
    "ddpm_num_inference_steps": 1000,
    "ddpm_beta_schedule": "linear",
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
    "enable_xformers_memory_efficient_attention": False,
    "preserve_input_precision": False,
}


def test_takes_the_flags_of_diffusers_example_with_their_defaults():
    arguments = parse_arguments([])
    assert {name: getattr(arguments, name) for name in FLAGS_OF_DIFFUSERS_EXAMPLE} == FLAGS_OF_DIFFUSERS_EXAMPLE


def test_a_command_line_of_the_example_is_understood():
    line = (
        "--dataset_name=huggan/flowers-102-categories --resolution=64 --center_crop --random_flip "
        "--output_dir=ddpm-ema-flowers-64 --train_batch_size=16 --num_epochs=100 --gradient_accumulation_steps=1 "
        "--use_ema --learning_rate=1e-4 --lr_warmup_steps=500 --mixed_precision=no --push_to_hub"
    )
    arguments = parse_arguments(line.split())
    assert (arguments.resolution, arguments.use_ema, arguments.mixed_precision) == (64, True, "no")
    assert arguments.center_crop
    assert arguments.push_to_hub


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_names_what_exists(recipe):
    arguments = TrainingArguments.from_recipe(recipe)
    if arguments.task == "autoencoder":
        assert arguments.model in AUTOENCODERS
        return
    preset = PRESETS[arguments.model]
    assert set(json_option("model_options", arguments.model_options)) <= set(
        inspect.signature(preset.model_class).parameters
    )
    if arguments.objective == "diffusion" and arguments.schedule in SCHEDULES and preset.beta_schedule is not None:
        options = json_option("schedule_options", arguments.schedule_options)
        path = NoisePath.from_schedule(arguments.schedule, arguments.ddpm_num_steps, options=options)
        path.check_prediction_type(arguments.prediction_type)


def test_a_list_in_yaml_is_a_list(tmp_path):
    arguments = TrainingArguments(ema_sigma_rel=[0.06, 0.12, 0.2])
    (tmp_path / "r.yaml").write_text(arguments.to_yaml())
    assert TrainingArguments.from_recipe(tmp_path / "r.yaml") == arguments
    assert parse_arguments(["--ema_sigma_rel", "0.06", "0.12", "0.2"]) == arguments


def test_a_bare_no_in_yaml_is_the_precision(tmp_path):
    (tmp_path / "r.yaml").write_text("mixed_precision: no\n")
    assert TrainingArguments.from_recipe(tmp_path / "r.yaml").mixed_precision == "no"


def test_flags_beside_a_recipe_win():
    recipe = ["--recipe", str(RECIPES[0]), "--train_batch_size", "3", "--channels_last=false"]
    for order in (recipe, [*recipe[2:], *recipe[:2]]):
        arguments = parse_arguments(order)
        assert (arguments.train_batch_size, arguments.channels_last) == (3, False)


def test_none_takes_back_an_optional_number_of_a_recipe():
    flags = ["--recipe", "mnist", "--max_train_steps", "50"]
    assert parse_arguments(flags).max_train_seconds is not None
    for word in ("none", "None"):
        assert parse_arguments([*flags, "--max_train_seconds", word]).max_train_seconds is None
    with pytest.raises(ValueError, match="learning_rate must be a number, got 'none'"):
        parse_arguments(["--learning_rate", "none"])


@pytest.mark.parametrize("recipe", ["mnist", "ict1022"])
def test_a_folder_of_images_takes_the_place_of_a_recipes_data_set(recipe):
    path = str(ROOT / "diffusers_ext" / "recipes" / f"{recipe}.yaml")
    assert parse_arguments(["--recipe", path]).dataset_name is not None
    by_flag = parse_arguments(["--recipe", path, "--train_data_dir", "photos"])
    for arguments in (by_flag, TrainingArguments.from_recipe(path, train_data_dir="photos")):
        assert (arguments.dataset_name, arguments.image_column, arguments.train_data_dir) == (None, None, "photos")
        assert not arguments.uses_embedded_data
        assert "dataset_name" not in arguments.given


def test_a_recipe_written_out_is_the_same_and_holds_no_token():
    arguments = TrainingArguments(
        model_options='{"a": 1}', hub_token="secret", random_resized_crop=0.5, use_ema=True, schedule="cosine"
    )
    text = arguments.to_yaml()
    assert "ema_sigma_rel" not in text
    assert "secret" not in text
    assert "use_ema: true" in text
    assert "overwrite" not in TrainingArguments(overwrite_output_dir=True).to_yaml()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_every_prediction_type_is_a_setting(prediction_type):
    assert TrainingArguments(prediction_type=prediction_type).prediction_type == prediction_type


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--nope", "1"], "Unknown flag --nope"),
        (["--learning_rat", "1"], "Unknown flag --learning_rat; did you mean --learning_rate?"),
        (["--train_batch_size", "many"], "train_batch_size must be a whole number, got 'many'"),
        (["--train_batch_size", "0"], "train_batch_size must be at least 1, got 0"),
        (["--learning_rate", "-1"], "learning_rate must be greater than 0, got -1.0"),
        (["--learning_rate", "nan"], "learning_rate must be greater than 0, got nan"),
        (["--recipe", "a.yaml", "--recipe", "b.yaml"], "Give one --recipe"),
        (["--lr_warmup_steps", "-1"], "lr_warmup_steps must be at least 0, got -1"),
        (["--adam_beta1", "1.5"], "adam_beta1 must be at least 0 and below 1, got 1.5"),
        (["--adam_weight_decay", "-1"], "adam_weight_decay must be at least 0, got -1.0"),
        (["--dataloader_num_workers", "-1"], "dataloader_num_workers must be at least 0, got -1"),
        (["--recipe"], "recipe takes a YAML file or the name of a recipe, got nothing"),
        (["--loss", "l3"], "loss must be one of l2, l1, huber, got 'l3'"),
        (["--loss_weighting", "p3"], "loss_weighting must be one of none, snr"),
        (["--ema_sigma_rel", "0.05", "0.3"], "ema_sigma_rel must be greater than 0 and below 0.288675, got 0.3"),
        (["--ema_snapshots", "9", "--ema_sigma_rel", "0.1"], "ema_snapshots needs two lengths in ema_sigma_rel"),
        (["--ema_sigma_rel", "0.1", "0.1"], "several that differ in 6 digits, got [0.1, 0.1]"),
        (["--ema_sigma_rel", "0.1", "0.10000001"], "several that differ in 6 digits"),
        (["--ema_kind", "power"], "ema_kind power averages nothing by itself; add use_ema"),
        (["--logit_normal_mean", "nan"], "logit_normal_mean must be a finite number that float32 can hold, got nan"),
        (["--sigmoid_bias=-inf"], "sigmoid_bias must be a finite number that float32 can hold, got -inf"),
        (["--logit_normal_std", "1e39"], "logit_normal_std must be a finite number that float32 can hold, got 1e+39"),
        (["--p2_k", "0"], "p2_k must be greater than 0, got 0.0"),
        (["--p2_gamma", "-1"], "p2_gamma must be at least 0, got -1.0"),
        (["--timestep_sampling", "normal"], "timestep_sampling must be one of uniform, stratified, logit_normal"),
        (["--lr_scheduler", "sine"], "lr_scheduler must be one of linear, cosine"),
        (["--recipe", "none.yaml"], "There is no recipe 'none.yaml'"),
        (["--train_data_dir", "x", "--early_stopping_patience", "2"], "needs a validation_split"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence):
    with pytest.raises((ValueError, OSError)) as caught:
        parse_arguments(flags)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_length_of_an_average_is_one_too_few():
    with pytest.raises(ValueError, match=r"ema_sigma_rel takes one length or several .*, got \[\]"):
        TrainingArguments(ema_sigma_rel=[])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "must hold `name: value` lines"),
        ("a: [1\n", "is not valid YAML"),
        ("speed: 3\n", "Unknown setting 'speed' in recipe 'r'"),
        ("caf\xe9: 1\n", "r.yaml' is not valid YAML"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "r.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=sentence) as caught:
        TrainingArguments.from_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


def test_channels_last_is_left_open_unless_it_is_given():
    given = ([], ["--channels_last"], ["--channels_last", "--use_ema"], ["--channels_last", "false"])
    assert [parse_arguments(flags).channels_last for flags in given] == [None, True, True, False]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"learning_rate": "high"}, "learning_rate must be a number, got 'high'."),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'."),
        ({"train_batch_size": 2.5}, "train_batch_size must be a whole number, got 2.5."),
        ({"train_batch_size": True}, "train_batch_size must be a whole number, got True."),
        ({"train_batch_size": 10**400}, "train_batch_size must fit into 64 bits, got a number of 401 digits."),
        ({"use_ema": 1}, "use_ema must be true or false, got 1."),
        ({"model": None}, "model must be a text, got None."),
        ({"output_dir": ""}, "output_dir must not be empty; leave it out to take its default."),
        ({"dataset_name": " "}, "dataset_name must not be empty; leave it out to take its default."),
        ({"ema_sigma_rel": 0.1}, "ema_sigma_rel must be a list, got 0.1."),
        ({"ema_sigma_rel": ["long", 0.1]}, "ema_sigma_rel must be a number, got 'long'."),
        ({"model_options": "[1]"}, "model_options must be a JSON object such as"),
        ({"model_options": {"a": {1}}}, "model_options must hold what JSON can hold"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_end must be at least beta_start, got 0.1 below 0.5."),
    ],
)
def test_wrong_values_in_python_are_one_sentence(settings, sentence):
    with pytest.raises(ValueError) as caught:
        TrainingArguments(**settings)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


def test_values_of_like_types_are_taken(tmp_path):
    arguments = TrainingArguments(
        output_dir=tmp_path, learning_rate=1, seed=np.int64(3), ema_sigma_rel=(0.1, 0.2), model_options={"dropout": 0.1}
    )
    assert (arguments.output_dir, arguments.learning_rate, arguments.seed) == (str(tmp_path), 1.0, 3)
    assert arguments.ema_sigma_rel == [0.1, 0.2]
    assert json_option("model_options", arguments.model_options) == {"dropout": 0.1}


def test_tokens_are_stripped_and_not_shown():
    arguments = TrainingArguments(hub_token="hf_secret\r\n")
    assert arguments.hub_token == "hf_secret"
    assert "hf_secret" not in repr(arguments)


def test_a_setting_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="There is no setting 'speed'"):
        TrainingArguments.from_recipe("mnist", speed=3)


def test_recipes_of_the_package_are_used_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TrainingArguments.from_recipe("mnist") == TrainingArguments.from_recipe(RECIPES_BY_NAME["mnist"])
    assert parse_arguments(["--recipe", "mnist-classes"]).condition == "class"
    (tmp_path / "mnist").write_text("seed: 7\n")
    assert TrainingArguments.from_recipe("mnist").seed == 7  # a file by that name wins


def test_a_recipe_begins_with_another_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").write_text("recipe: mnist\nseed: 7\nmax_train_seconds: null\n")  # its own name is no circle
    expected = TrainingArguments.from_recipe(RECIPES_BY_NAME["mnist"], seed=7, max_train_seconds=None)
    assert TrainingArguments.from_recipe("mnist") == expected
    assert TrainingArguments.from_recipe("mnist").given["optimizer"] == "recipe"
    assert len(shipped_recipes()) == len(RECIPES)  # the file is none of them


def test_what_a_recipe_names_puts_settings_of_its_base_out_of_use(tmp_path):
    (tmp_path / "r.yaml").write_text("recipe: mnist\ntrain_data_dir: photos\nobjective: flow_map\n")
    arguments = TrainingArguments.from_recipe(tmp_path / "r.yaml")
    assert (arguments.dataset_name, arguments.train_data_dir) == (None, "photos")
    assert (arguments.schedule, arguments.prediction_type) == ("rectified_flow", "flow")


@pytest.mark.parametrize("name", ["minst", "mnist.yml", "diffusers_ext/recipes/mnist-clases.yaml"])
def test_an_unknown_recipe_names_the_closest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no recipe '.*'; did you mean mnist"):
        TrainingArguments.from_recipe(name)


def test_recipes_of_the_package_say_what_they_are():
    for recipe in shipped_recipes():
        assert set(recipe.about) == {"description", "time", "data"}, recipe.name


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &a [x]\nmodel: *a\n", "aliases"),
        (f"model_options: {'[' * 50}{']' * 50}\n", "nest deeper than"),
        ("seed: 1\nseed: 2\n", "sets seed twice"),
        ("model: !!python/object/apply:os.system ['true']\n", "model must be a text"),
        ("model_options: {a: !!python/name:os.system }\n", "could not determine a constructor"),
        ("model: [[small]]\n", "must be a list of plain values"),
        ("[seed]: 1\n", "must hold `name: value` lines"),
        ("recipe: minst\n", "begins with 'minst', which is no recipe of the package; did you mean mnist"),
        ("recipe: [mnist]\n", r"begins with '\['mnist'\]', which is no recipe of the package"),
        ("recipe: ../mnist.yaml\n", "which is no recipe of the package"),
        (f"model: {'x' * 2**21}\n", "larger than 1 MiB"),
    ],
)
def test_a_hostile_recipe_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        TrainingArguments.from_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


def test_a_recipe_is_utf_8_in_every_locale(environment, tmp_path):
    (tmp_path / "r.yaml").write_text("\ufeffoutput_dir: Übung\n", encoding="utf-8")
    code = "from diffusers_ext.settings import read_recipe\nprint(ascii(read_recipe('r.yaml').settings['output_dir']))"
    ran = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        env={**environment, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "'\\xdcbung'\n", ran.stderr


def test_flags_beside_a_script_are_not_read(tmp_path, monkeypatch):
    """A file `mytrain.args` beside a script named mytrain.py is no command line."""
    (tmp_path / "mytrain.args").write_text("--seed 7", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mytrain.py"])
    assert TrainingArguments.from_recipe("mnist").seed == 0


def test_help_shows_what_people_change_first_and_all_of_it_when_asked():
    def shown(*words):
        with pytest.raises(HelpRequested) as caught:
            parse_arguments(words)
        return str(caught.value)

    names = set(settings_of(TrainingArguments))
    flags = {words: set(re.findall(r"^  --(\w+) ", shown(*words), re.M)) for words in [("--help",), ("--help-all",)]}
    assert flags["--help-all",] == names | {"recipe"}
    assert {"recipe", "learning_rate", "output_dir"} <= flags["--help",]
    assert 15 <= len(flags["--help",]) <= 30
    condition = set(re.findall(r"^  --(\w+) ", shown("--help", "condition"), re.M))
    assert {"condition", "condition_dropout", "caption_column", "image_condition"} <= condition
    assert "learning_rate" not in condition
    with pytest.raises(ValueError, match="There is no group of settings 'speed'; the groups are data, "):
        parse_arguments(["--help", "speed"])


def test_a_condition_brings_its_settings():
    declared = {"columns": {"type": list[str] | None, "default": None, "text": "Columns with the numbers."}}
    brought = make_settings_class("Brought", declared, __name__)
    values, others = parse(brought, ["--columns", "a", "b"], "train")
    assert (brought(**values).columns, others) == (["a", "b"], [])
    with pytest.raises(ValueError, match="columns must be a text, got 3"):
        check(brought(columns=[3]))
