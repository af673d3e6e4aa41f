"""Processes of a distributed run on this machine: forks of the test process, so that none has to import anything."""

import multiprocessing
import os
import socket
from multiprocessing.connection import wait

from accelerate.state import AcceleratorState, GradientState


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
    fork = multiprocessing.get_context("fork")
    entry = _enter, (function, {**ranks, **environment}, *arguments)
    processes = [fork.Process(target=entry[0], args=(rank, *entry[1])) for rank in range(count)]
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


def _enter(rank, function, environment, *arguments):
    AcceleratorState._reset_state(reset_partial_state=True)  # the test process may have trained, too, alone
    GradientState._reset_state()
    os.environ.update(environment)
    if "WORLD_SIZE" in environment:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=environment["WORLD_SIZE"])
    function(rank, *arguments)
