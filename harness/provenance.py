"""Where a result came from: code, packages, machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from harness.types import Json

PACKAGES = ("torch", "transformers", "deepspeed", "lmms-eval", "numpy", "sievebench")


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code_revision() -> dict[str, Json]:
    """Commit of the checkout this code runs from, and whether it was changed; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        sha = _git(here, "rev-parse", "HEAD")
        return {"commit": sha, "dirty": bool(_git(here, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True, timeout=10)
    return done.stdout.strip()


@functools.cache
def gpu_names() -> tuple[str, ...]:
    """The GPUs of this machine as their driver calls them, found without initialising CUDA."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return tuple(name for f in files if (name := _entry(f, "Model")))


@functools.cache
def cpu_name() -> str:
    """The processor as the system calls it."""
    return _entry(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()


def _entry(file: Path, name: str) -> str:
    """The first value of a name in lines of `name : value`; empty where there is none."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in found if key.strip() == name), "")


def hardware() -> dict[str, Json]:
    """What a stage ran on: processor, the cores it could use, and GPUs."""
    return {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpus": list(gpu_names())}


def provenance() -> dict[str, Json]:
    """Everything of this kind, for a manifest."""
    return {
        "code": code_revision(),
        "packages": dict(package_versions()),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.node(),
        "hardware": hardware(),
    }
