"""The layers of the design, and what importing them may cost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "deepspeed", "lmms_eval", "wandb", "ray", "submitit", "datasets"}

TYPES = {
    *("harness.errors", "harness.types", "harness.keys", "harness.benchmarks", "harness.files", "harness.pool"),
    "harness.taxonomy",
}
STORE = TYPES | {"harness.store", "harness.leases"}
API = TYPES | {"harness.api"}

ALLOWED: dict[str, set[str]] = {
    "harness/errors.py": set(),
    "harness/taxonomy.py": set(),
    "harness/types.py": {"harness.errors"},
    "harness/keys.py": {"harness.types"},
    "harness/benchmarks.py": {"harness.errors", "harness.types"},
    "harness/files.py": {"harness.errors"},
    "harness/pool.py": {"harness.errors"},
    "harness/leases.py": {"harness.files"},
    "harness/store.py": TYPES | {"harness.leases", "harness"},
    "harness/api.py": TYPES,
    "selectors/selector_zoo/*.py": API | {"selector_zoo"},
    "selectors/selector_zoo/passes/*.py": API | {"llava_train", "selector_zoo"},
    "llava_train/*.py": TYPES | {"llava_train"},
    "reports/*.py": STORE | {"reports"},
}
"""Modules (or packages) of ours that a file may import; others may import what the design's arrows allow."""

HYDRA_ONLY = {"harness/config.py", "harness/main.py", "harness/complaints.py", "harness/hydra_plugin/__init__.py"}


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules a file imports; only those executed on import where `top_level`."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def ours(modules: set[str]) -> set[str]:
    return {m for m in modules if m.split(".")[0] in ("harness", "selector_zoo", "llava_train", "reports")}


def sources() -> list[Path]:
    folders = ("harness", "selectors/selector_zoo", "llava_train", "reports")
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("pattern", ALLOWED)
def test_imports_point_down(pattern: str) -> None:
    files = sorted(ROOT.glob(pattern))
    assert files
    for file in files:
        for module in ours(imports(file)):
            allowed = any(module == a or module.startswith(f"{a}.") for a in ALLOWED[pattern] - {"harness"})
            assert allowed or (module == "harness" and "harness" in ALLOWED[pattern]), f"{file.name}: {module}"


def test_only_the_configuration_knows_hydra() -> None:
    for file in sources():
        used = {m.split(".")[0] for m in imports(file)} & {"hydra", "omegaconf"}
        assert not used or str(file.relative_to(ROOT)) in HYDRA_ONLY, file


def test_the_scheduler_does_not_know_the_configuration() -> None:
    for name in ("plan", "schedule", "executors", "store", "worker", "cells"):
        assert not {"harness.config", "harness.main"} & imports(ROOT / "harness" / f"{name}.py"), name


@pytest.mark.parametrize(
    "package", ["harness", "harness.main", "harness.cli", "harness.api", "reports", "harness.plan"]
)
def test_imports_are_light(package: str) -> None:
    """None of the heavy libraries comes with an import that every command makes."""
    code = f"import sys, {package}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_harness_is_fast() -> None:
    code = "import time; t = time.perf_counter(); import harness; print(time.perf_counter() - t)"
    best = min(
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
        for _ in range(3)
    )
    assert best < 0.3


def test_the_standard_librarys_selectors_is_not_shadowed() -> None:
    code = "import subprocess, asyncio, selectors; print(selectors.DefaultSelector.__name__)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert not (ROOT / "selectors" / "__init__.py").exists()


def test_no_module_of_the_zoo_is_named_like_the_standard_library() -> None:
    names = {p.stem for p in (ROOT / "selectors" / "selector_zoo").glob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names
