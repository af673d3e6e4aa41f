"""Programs and distributed runs in processes of their own: forks of the test process, which have nothing to import."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
from multiprocessing.connection import wait

import datasets  # noqa: F401  (with pandas, which every fork would import anew)
import torch
from accelerate.state import AcceleratorState, GradientState

FORK = multiprocessing.get_context("fork")


def start_program(log, function, *arguments, start=FORK, **environment):
    """A process whose exit status is `function(*arguments)`; what it prints is added to the file `log`.

    `start` is multiprocessing's context: a fork of this process, or of its fork server.
    """
    process = start.Process(target=_run_program, args=(log, function, arguments, environment))
    process.start()
    return process


def run_program(log, function, *arguments, start=FORK, **environment):
    """The exit status of `start_program`, and the text in `log`."""
    process = start_program(log, function, *arguments, start=start, **environment)
    process.join()
    return process.exitcode, log.read_text()


def _run_program(log, function, arguments, environment):
    """The body of the fork: without pytest's hold on what is printed and logged, and with the usual signal handlers."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.update(environment)
    logging.getLogger().handlers.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    _reset_accelerate()
    sys.exit(function(*arguments))


def free_port():
    """A port that nobody listens on now; tests run side by side."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(count, function, *arguments, **environment):
    """Run `function(rank, *arguments)` in processes with a launcher's environment; the first exit code that is not 0.

    When one of them fails or is killed, the others are killed, as a launcher does it.
    """
    ranks = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if count > 1 else {}
    entry = _enter, (function, {**ranks, **environment}, *arguments)
    processes = [FORK.Process(target=entry[0], args=(rank, *entry[1])) for rank in range(count)]
    for process in processes:
        process.start()
    running = list(processes)
    while running and not any(process.exitcode for process in processes):
        wait([process.sentinel for process in running])
        running = [process for process in running if process.exitcode is None]
    codes = [process.exitcode for process in processes]
    for process in running:
        process.kill()
        process.join()
    return next((code for code in codes if code), 0)


def _reset_accelerate():
    """The test process may have trained, too, alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _enter(rank, function, environment, *arguments):
    _reset_accelerate()
    os.environ.update(environment)
    if "WORLD_SIZE" in environment:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=environment["WORLD_SIZE"])
    function(rank, *arguments)
