"""benchmarks/gpu.sh with tiny sizes on the CPU: every part runs, and one that fails is reported and stops no other."""

import json
import os
import shutil
import subprocess
import sys

import gpu
import gpu_report
import pytest
from conftest import ROOT


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_whole_script_with_tiny_sizes(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu", "--tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    parts = report["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(gpu.PARTS, "ok")
    assert parts["tests"]["figures"]["passed"] >= 2
    assert {row["loop"]: row["images_per_second"] > 0 for row in parts["throughput"]["figures"]["rows"]} == {
        "ours": True,
        "diffusers": True,
    }
    assert parts["cifar10"]["figures"]["samples"]["frechet_distance"] > 0
    assert parts["sampling"]["figures"]["rows"][0]["network_calls"] == 2
    table = (tmp_path / "results.md").read_text()
    assert all(f"## {name}" in table for name in gpu.PARTS)
    assert report["machine"]["torch"] in table
    assert (tmp_path / "samples.png").stat().st_size > 0


@pytest.fixture
def run(tmp_path):
    (tmp_path / "work").mkdir()
    return gpu.Run("cpu", True, gpu.TINY, "embedded", tmp_path, tmp_path / "work")


def test_a_part_that_fails_is_reported_and_the_next_one_runs(run, monkeypatch, capsys):
    def fails(run, figures, deadline):
        figures["passed"], figures["failed"], figures["skipped"] = 3, 1, 0
        gpu.execute(run, "tests", [sys.executable, "-c", "raise SystemExit('no such device')"], deadline)

    monkeypatch.setitem(gpu.FUNCTIONS, "tests", fails)
    monkeypatch.setitem(gpu.FUNCTIONS, "sampling", lambda run, figures, deadline: None)
    assert not gpu.whole_run(run, ["tests", "sampling"])
    parts = json.loads((run.output / "results.json").read_text())["parts"]
    assert parts["tests"]["status"] == "failed: exit status 1: no such device"
    assert parts["sampling"]["status"] == "ok"
    assert "3 passed, 1 failed" in (run.output / "results.md").read_text()


def test_a_part_is_stopped_at_the_end_of_its_time_with_all_its_processes(run, monkeypatch):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    monkeypatch.setitem(
        gpu.FUNCTIONS,
        "tests",
        lambda run, figures, deadline: gpu.execute(run, "tests", [sys.executable, "-c", child], deadline),
    )
    outcome = gpu.perform(run, "tests", 1.0)
    assert outcome.status == "failed: stopped at the end of its time"
    assert outcome.seconds < 20


def test_where_a_part_breaks_its_process_the_next_one_runs_in_a_new_one(run, monkeypatch):
    outcome = json.dumps({"status": "ok", "seconds": 1.0, "figures": {}})
    child = f"""
import pathlib, sys
if sys.argv[1] == "cifar10":
    sys.exit(7)
pathlib.Path({str(run.work)!r}, sys.argv[1] + ".json").write_text({outcome!r})
"""
    monkeypatch.setattr(gpu, "child_command", lambda run, names: [sys.executable, "-c", child, *names])
    found = dict(gpu.outcomes(run, ["cifar10", "sampling"]))
    assert found["cifar10"].status == "failed: its process ended with exit status 7"
    assert found["sampling"].status == "ok"


def test_a_report_without_a_part_says_nothing_of_it(run):
    report = {"tiny": False, "machine": gpu_report.machine("cpu"), "parts": {}}
    assert "##" not in gpu_report.markdown(report)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--device", "cpu"], "far too large for a CPU; add --tiny"),
        (["--device", "meta:0:0"], "device 'meta:0:0' is not available"),
        (["--device", "mtia", "--tiny"], "device 'mtia' is not available"),
    ],
)
def test_a_device_that_is_not_there_gets_one_sentence_before_anything_is_written(
    flags, why, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
