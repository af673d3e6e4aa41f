"""What a launcher has set up for this process, where it is not what was asked for."""

from __future__ import annotations

import logging
import os

from ..data.examples import available_cpus

logger = logging.getLogger(__name__)

# Set by every launcher that really started several processes, torchrun's and MPI's.
_RANK_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_launcher() -> None:
    """Compare what `accelerate launch` set in the environment with what it started; log a warning about one thread.

    Raises:
        ValueError: when it started one process of several on CPUs, or was asked for FSDP on CPUs.
    """
    on_cpu = _is_on("ACCELERATE_USE_CPU")
    alone = not any(name in os.environ for name in _RANK_VARIABLES)
    # Accelerate sets an address only for several processes, and starts several on CPUs only under MPI.
    if on_cpu and alone and "MASTER_ADDR" in os.environ:
        raise ValueError(
            "accelerate launch starts one process on CPUs, however many --num_processes says; start N of them with: "
            "torchrun --nproc_per_node N train/train_unconditional.py ..."
        )
    if on_cpu and _is_on("ACCELERATE_USE_FSDP"):
        raise ValueError("FSDP was asked for together with --cpu, where Accelerate copies the network; drop either.")
    cores = available_cpus()
    launched = alone and "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and cores > 1:
        logger.warning(
            "accelerate launch gives this process 1 thread of %d cores; add --num_cpu_threads_per_process %d to the "
            "launcher to use them all.",
            cores,
            cores,
        )


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1", "yes")
