"""A selector that is not ours: as a file, and as an installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import ROOT

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "examples" / "third_party_selector"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the example is installed into, without network; of a copy, because building leaves files."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)
    options = ("--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable, "--target")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", *options, str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def harness(*arguments: str, path: Path | None = None, module: str = "harness") -> tuple[int, str]:
    """Run a command with a folder on PYTHONPATH; its exit status and all it printed."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(path) if path else ""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def plan_of(models: Path, store: Path) -> list[str]:
    return ["dry_run=true", f"store={store}", f"backbone.path={models / 'tiny'}", "pool.miniworld=400"]


def test_an_installed_package_is_found_by_name(installed: Path, models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, tmp_path)
    status, said = harness("selector=picture_size", "selector.order=smallest", *plan, path=installed)
    assert status == 0, said
    assert "picture_size(order=smallest)/10%/tiny/s0" in said
    status, said = harness("selector=picture_size", *plan)
    assert status == 2
    assert "'picture_size' is not known" in said


def test_its_settings_are_checked_like_ours(installed: Path, models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, tmp_path)
    status, said = harness("selector=picture_size", "selector.ordre=smallest", *plan, path=installed)
    assert status == 2
    assert "Key 'ordre' not in 'PictureSizeConfig'" in said


def test_the_same_file_works_by_its_path(models: Path, tmp_path: Path) -> None:
    file = EXAMPLE / "picture_size.py"
    status, said = harness("-m", f"selector=length,{file}", "budget=0.1,0.3", *plan_of(models, tmp_path))
    assert status == 0, said
    for label in ("length/10%/tiny/s0", "picture_size/10%/tiny/s0", "picture_size/30%/tiny/s0"):
        assert label in said


def test_file_and_package_are_different_providers(installed: Path, models: Path, tmp_path: Path) -> None:
    """The same code from two places has two keys: a file may change without notice."""
    plan, file = plan_of(models, tmp_path), str(EXAMPLE / "picture_size.py")
    keys = []
    for chosen, path in (("picture_size", installed), (file, None)):
        _, said = harness(f"selector={chosen}", *plan, path=path)
        keys.append(next(line.split()[-1] for line in said.splitlines() if line.startswith("picture_size/")))
    assert keys[0] != keys[1]


def test_it_keeps_what_every_selector_promises(installed: Path) -> None:
    for chosen, path in (("picture_size", installed), (str(EXAMPLE / "picture_size.py"), None)):
        status, said = harness("check-selector", chosen, path=path, module="harness.cli")
        assert status == 0, said
        assert "broken" not in said
        assert said.count("ok ") == 10


def test_a_broken_package_stops_nobody_else(tmp_path: Path, models: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE, site, ignore=shutil.ignore_patterns("*.toml", "*.md"))
    info = site / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sievebench.selectors]\nbroken = nowhere:Nothing\n")
    status, said = harness("selector=length", *plan_of(models, tmp_path / "store"), path=site)
    assert status == 0, said
    assert "plug-in 'broken' (nowhere:Nothing) cannot be loaded: ModuleNotFoundError" in said
    assert "length/10%/tiny/s0" in said
