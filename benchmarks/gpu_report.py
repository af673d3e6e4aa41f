"""The report of benchmarks/gpu.py: the machine it ran on, and its figures as Markdown tables."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable
from typing import Any

import torch

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "datasets", "denoising-diffusion-pytorch")


def machine(device: str) -> dict[str, Any]:
    """The machine's name and the versions of what runs on it."""
    found: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "device_memory_gb": round(properties.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda
    else:
        found["device"] = f"{device}, {torch.backends.cpu.get_cpu_capability()}"
    found |= {"cpu_cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    where = report["machine"]
    lines = ["# GPU benchmark", "", f"{where['device']}, {where['cpu_cores']} CPU cores, {where['date']}", ""]
    if report["tiny"]:
        lines += ["**A trial with tiny sizes: no figure here means anything.**", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in where.items()), ""]
    lines += ["| part | outcome | seconds |", "|---|---|---:|"]
    lines += [f"| {name} | {part['status']} | {part['seconds']:.0f} |" for name, part in report["parts"].items()]
    for name, write in (("tests", _tests_table), ("throughput", _throughput_table), ("cifar10", _cifar10_table)):
        lines += _section(report, name, write)
    return "\n".join([*lines, *_section(report, "sampling", _sampling_table), ""])


def _section(report: dict[str, Any], name: str, write: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    figures = report["parts"].get(name, {}).get("figures", {})
    if not figures:
        return []
    failures = figures.get("failures") or {}
    listed = failures.items() if isinstance(failures, dict) else [(failure, "failed") for failure in failures]
    return ["", f"## {name}", "", *write(figures), *(f"\n- {what}: {why}" for what, why in listed)]


def _tests_table(figures: dict[str, Any]) -> list[str]:
    return [f"{figures['passed']} passed, {figures['failed']} failed, {figures['skipped']} skipped."]


def _throughput_table(figures: dict[str, Any]) -> list[str]:
    if "rows" not in figures:
        return []
    head = f"Training of `{figures['network']}`, batches of {figures['batch_size']}, {figures['precision']}."
    lines = [head, "", "| loop | torch.compile | images/s | peak memory |", "|---|---|---:|---:|"]
    return lines + [
        f"| {row['loop']} | {'yes' if row['compiled'] else 'no'} | {row['images_per_second']:,.0f} | "
        f"{row['peak_memory_gb']:.1f} GB |"
        for row in figures["rows"]
    ]


def _cifar10_table(figures: dict[str, Any]) -> list[str]:
    accuracy = f"Classifier: {100 * figures['classifier_accuracy']:.1f} % of the test images."
    if "samples" not in figures:
        return [accuracy]
    samples, real = figures["samples"], figures["real_images"]
    return [
        f"{accuracy} Data: {figures['data']}. Trained {figures['train_seconds']:.0f} s, {figures.get('step', 0):,} "
        f"steps of {figures['train_batch_size']}. {figures['num_images']:,} samples, {figures['steps']} steps of "
        "dpmsolver++.",
        "",
        "| | samples | real images |",
        "|---|---:|---:|",
        *(
            f"| {name} | {samples[name]:.4g} | {f'{real[name]:.4g}' if name in real else '-'} |"
            for name in samples
            if not name.endswith("_error")
        ),
    ]


def _sampling_table(figures: dict[str, Any]) -> list[str]:
    head = (
        f"Batches of {figures['batch_size']}, {figures['dtype']}, {'trained' if figures['trained'] else 'untrained'}."
    )
    lines = [head, "", "| sampler | steps | network calls | images/s |", "|---|---:|---:|---:|"]
    return lines + [
        f"| {row['sampler']} | {row['steps']} | {row['network_calls']} | {row['images_per_second']:,.1f} |"
        for row in figures["rows"]
    ]
