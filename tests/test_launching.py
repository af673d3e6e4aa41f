"""What Accelerate's launcher asked for and did not start is said, and nothing is started in its place."""

import json
import logging
import os

import pytest
from accelerate.commands.launch import launch_command, launch_command_parser

from diffusers_ext.cli.train import run_script
from diffusers_ext.training.launching import check_launcher

LAUNCHER = ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION")


@pytest.fixture
def launched(monkeypatch):
    """Set the environment that a launcher would."""

    def set_variables(**variables):
        for name in LAUNCHER:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_processes_that_were_not_started_are_refused(launched, tmp_path, capsys):
    """In the environment that the launcher gives to its one process."""
    script, told = tmp_path / "script.py", tmp_path / "told.json"
    script.write_text("import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[1], 'w'))\n")
    launch_command(launch_command_parser().parse_args(["--cpu", "--num_processes=2", str(script), str(told)]))
    launched(**{name: value for name, value in json.loads(told.read_text()).items() if os.environ.get(name) != value})
    assert run_script(["--output_dir", str(tmp_path / "run"), "--logger", "none"]) == 1
    shown = capsys.readouterr().err
    assert "error: accelerate launch starts one process on CPUs" in shown
    assert "torchrun --nproc_per_node N" in shown
    assert not (tmp_path / "run").exists()


def test_fsdp_on_cpus_is_refused(launched):
    launched(ACCELERATE_USE_CPU="true", ACCELERATE_USE_FSDP="true", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    with pytest.raises(ValueError, match="FSDP was asked for together with --cpu"):
        check_launcher()


def test_one_thread_of_several_cores_is_said(launched, monkeypatch, caplog):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    launched(ACCELERATE_MIXED_PRECISION="no", OMP_NUM_THREADS="1")
    with caplog.at_level(logging.WARNING):
        check_launcher()
    assert "1 thread of 3 cores; add --num_cpu_threads_per_process 3" in caplog.text


@pytest.mark.parametrize("variables", [{}, {"OMP_NUM_THREADS": "1"}, {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}])
def test_what_was_started_as_asked_is_left_alone(launched, variables, caplog):
    launched(**variables)
    check_launcher()
    assert not caplog.text
