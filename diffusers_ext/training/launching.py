"""From a command line to a training run: the body of the training scripts."""

from __future__ import annotations

import os
import sys
from typing import Any

import psutil
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from .arguments import parse_arguments
from .interruption import TrainingInterrupted
from .trainer import TrainingDiverged, train

# Set by every launcher that really started several processes, torchrun's and MPI's.
_RANK_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def run_script(argv: list[str], **defaults: Any) -> int:
    """Train as the flags say; the exit status, after one sentence on what went wrong.

    Args:
        argv: the flags.
        defaults: values of settings that neither the recipe nor a flag names.
    """
    debug = "--debug" in argv
    try:
        train(parse_arguments(argv, **defaults))
    except TrainingInterrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return 128 + interrupted.signal_number
    except (ValueError, OSError, ImportError, TrainingDiverged) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def start_missing_processes() -> None:
    """Start the processes that `accelerate launch --cpu --num_processes N` was asked for and did not start.

    Accelerate starts several CPU processes under MPI only; without it, it starts one and says nothing. This replaces
    the current process by torchrun with N of them. Under any other launcher, or none, it does nothing.
    """
    count = _missing_processes()
    if count > 1:
        run = ["-m", "torch.distributed.run", f"--nproc_per_node={count}"]
        where = [f"--master_addr={os.environ['MASTER_ADDR']}", f"--master_port={os.environ['MASTER_PORT']}"]
        os.execv(sys.executable, [sys.executable, *run, *where, *sys.argv])


def _missing_processes() -> int:
    """N when the launcher above was asked for N > 1 processes on CPUs and started this one alone, else 0."""
    environment = os.environ
    asked = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in environment
    if not asked or any(name in environment for name in _RANK_VARIABLES):
        return 0
    # The launcher hands the number on to nobody, so it is read where the user wrote it.
    parent = psutil.Process().parent()
    command = parent.cmdline() if parent is not None else []
    for marker in ("launch", "accelerate.commands.launch"):
        if marker in command:
            arguments, _ = launch_command_parser().parse_known_args(command[command.index(marker) + 1 :])
            if arguments.num_machines not in (None, 1):
                return 0
            if arguments.num_processes is not None:
                return arguments.num_processes
            return load_config_from_file(arguments.config_file).num_processes or 0
    return 0
