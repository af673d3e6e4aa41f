"""Memory that tensors free is kept for the next ones."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusers_ext.training import allocator

# Page faults of taking and freeing 64 MB twenty times, once before and once after the memory is kept.
FAULTS = """
import resource
from diffusers_ext.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned, taken = faults(), keep_freed_memory()
b"x" * 2**26
print(taken, returned, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not the GNU C library")
def test_kept_memory_is_not_taken_from_the_system_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    taken, returned, kept = done.stdout.split()
    assert taken == "True"
    assert int(returned) > 20 * 2**26 / 2**16 / 4  # even with pages of 64 KiB, some of them huge
    assert int(kept) < int(returned) / 10


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not the GNU C library")
def test_however_much_is_freed_is_kept():
    code = (
        "from diffusers_ext.training.allocator import keep_freed_memory\nkeep_freed_memory()\n"
        "blocks = [b'x' * 2**26 for _ in range(40)]\ndel blocks\n"
        "import resource; print(int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40 * 2**26


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize(("device", "calls"), [("cpu", 1), ("cuda", 0)])
def test_training_keeps_memory_on_a_cpu(device, calls, tiny_run, monkeypatch):
    from diffusers_ext.training import trainer as loop

    class Stop(Exception):
        pass

    called = []
    accelerator = type("Accelerator", (), {"device": torch.device(device)})()
    monkeypatch.setattr(loop, "_make_accelerator", lambda _: accelerator)
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(loop, "without_effect", lambda _: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        loop.Trainer(tiny_run())
    assert len(called) == calls
