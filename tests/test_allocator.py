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
from allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned, taken = faults(), keep_freed_memory()
b"x" * 2**26
print(taken, returned, faults())
"""


def run_alone(code):
    """Run code in a new process beside the module, which needs nothing else of the package."""
    folder = Path(allocator.__file__).parent
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not the GNU C library")
def test_kept_memory_is_not_taken_from_the_system_again():
    done = run_alone(FAULTS)
    taken, returned, kept = done.stdout.split()
    assert taken == "True"
    assert int(returned) > 20 * 2**26 / 2**16 / 4  # even with pages of 64 KiB, some of them huge
    assert int(kept) < int(returned) / 10


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="no /proc")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not the GNU C library")
def test_however_much_is_freed_is_kept():
    code = (
        "from allocator import keep_freed_memory\nkeep_freed_memory()\n"
        "blocks = [b'x' * 2**26 for _ in range(40)]\ndel blocks\n"
        "import resource; print(int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize())"
    )
    done = run_alone(code)
    assert int(done.stdout) > 40 * 2**26


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize(("has_accelerator", "calls"), [(False, 1), (True, 0)])
def test_the_scripts_keep_memory_on_a_cpu(has_accelerator, calls, tiny_run, tmp_path, monkeypatch, capsys):
    from diffusers_ext.cli.train import run_script

    called = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: called.append(1))
    (tmp_path / "file").touch()
    assert run_script(["--output_dir", str(tmp_path / "file"), "--logger", "none"]) == 1
    assert "is a file" in capsys.readouterr().err
    assert len(called) == calls
