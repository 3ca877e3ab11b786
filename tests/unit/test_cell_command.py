"""What a sweep writes down: cells that can be told apart, and how each is run again."""

from __future__ import annotations

import importlib
import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from rich.console import Console

from harness.cell_command import cell_command
from harness.cells import Cell, canonical_cell, cell_key, with_baselines
from harness.config import cell_of, register_schemas, settings_of
from harness.errors import HarnessError
from harness.explain import show_status
from harness.miniworld import weights_dir
from harness.registry import register_file
from harness.store import Store
from harness.sweep import Sweep, plan_sweep
from tests.support import write_pool

SELECTOR = """
from dataclasses import dataclass
import numpy as np
from harness.api import Selector
class Mine(Selector):
    name = "mine"
    version = 1
    @dataclass(frozen=True)
    class Config:
        words: tuple[str, ...] = ()
        phrase: str = ""
    def select(self, request): return np.arange(request.n)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are given; its miniworlds are generated once."""
    made = tmp_path_factory.mktemp("folder")
    (made / "mine.py").write_text(SELECTOR)
    write_pool(made / "own pools" / "it's")
    return made


def composed(arguments: list[str]) -> Any:
    importlib.import_module("hydra_plugins.sievebench").register()
    register_schemas()
    with initialize_config_module("harness.conf", version_base="1.3"):
        return compose("config", arguments)


def planned(store: Path, *jobs: list[str], baselines: bool = False) -> Sweep:
    """The sweep of some jobs on a small miniworld."""
    given = [composed(["pool.miniworld=60", *job, f"store={store}"]) for job in jobs]
    return plan_sweep([cell_of(cfg) for cfg in given], settings_of(given[0]), "", baselines=baselines)


def again(cell: Cell, store: Path) -> Cell:
    """The cell of a cell's command."""
    start, arguments = cell_command(cell, store).split(" -m harness ")
    assert start == "python"
    named = [a.replace(f"={cell.selector.path}", f"={cell.selector.name}") for a in shlex.split(arguments)]
    return canonical_cell(cell_of(composed(named if cell.selector.path else shlex.split(arguments))))


@pytest.mark.parametrize(
    "job",
    [
        [],
        ["pool.seed=1", "seed=3", "budget=7n"],
        ["pool=path", "pool.miniworld=0", 'pool.path="own pools/it\'s"'],
        ["recipe.epochs=2", "recipe.learning_rate=3e-5", "recipe.pack_tokens=99"],
        ["recipe=lora", "recipe.lora_dropout=0"],
        ["recipe=onevision_si"],
        ["evaluation.limit=16", "evaluation.dtype=bfloat16"],
        ["suite.only=[mini_short,mini_ocr]"],
        ["suite=table10", "suite.only=[mmstar]"],
        ["suite=tabmwp"],
        ["suite=tabmwp", "suite.only=[tabmwp]", "suite.benchmarks.0.title='A: \"b\\\\\" {c}, é'"],
        ["backbone=tiny_b", "selector=icons_mini"],
        ["backbone=tiny", "backbone.path=WEIGHTS/tiny_b"],
        ["backbone=base", "backbone.name=my-own", "backbone.path=WEIGHTS/tiny", "backbone.revision=v1"],
        ["selector=coincide", "selector.layers=[1,2]"],
        ["selector=mmssr_mini", "selector.teaching={global_batch: 8, learning_rate: 3e-3}", "selector.zeros=some"],
        ["selector=mine", "selector.words=['null','1',a b]", "selector.phrase='say \"no\"\\\\'"],
    ],
    ids=" ".join,
)
def test_a_cells_command_is_that_cell(job: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    register_file(folder / "mine.py")
    example = Path(__file__).parents[2] / "examples" / "tabmwp_task"
    told = [a.replace("WEIGHTS", str(weights_dir("tiny").parent)) for a in job]
    told += [f"suite.include_path={example}"] if "suite=tabmwp" in job else []
    asked = cell_of(composed(["pool.miniworld=60", *told, "store=st"]))
    for cell in with_baselines([asked], full_trials=1, random_trials=2):
        found = again(cell, Path("st"))
        assert cell_key(found) == cell_key(cell)
        assert found == replace(cell, baseline=False)


def test_a_plain_cells_command_is_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    cell = planned(Path("st"), ["seed=1"]).plan.cells[0].cell
    assert cell_command(cell, Path("st")) == (
        "python -m harness selector=random backbone=tiny suite=mini budget=10% pool.miniworld=60 store=st seed=1"
    )


@pytest.mark.parametrize(
    ("other", "setting"),
    [
        (["recipe.epochs=2"], "recipe.epochs"),
        (["pool.seed=1"], "pool"),
        (["evaluation.limit=3"], "evaluation.limit"),
        (["suite.only=[mini_ocr]"], "suite"),
        ([f"backbone.path={weights_dir('tiny_b')}", "recipe.epochs=2"], "backbone and recipe.epochs"),
    ],
)
def test_cells_that_no_table_could_tell_apart_are_refused(other: list[str], setting: str, folder: Path) -> None:
    with pytest.raises(
        HarnessError, match=rf"two cells random/10%/tiny/s0 that differ in {setting}, .*name=\.\.\."
    ):
        planned(folder / "st", ["name=refused"], other, baselines=True)
    assert "refused" not in Store(folder / "st").sweeps()


def test_cells_that_differ_in_what_a_table_shows_are_not_refused(folder: Path) -> None:
    jobs = [["seed=1"], ["budget=20%"], ["backbone=tiny_b"], ["selector=length"], ["recipe.pack_tokens=7"]]
    assert len(planned(folder / "st", [], *jobs).plan.cells) == 5


def test_methods_have_titles_of_their_own(folder: Path) -> None:
    jobs = [["selector=deita_mini"], ["selector=coincide"], ["selector=coincide", "selector.clusters=3"]]

    def titled(titles: str) -> dict[str, str]:
        sweep = planned(folder / "st", ["name=titled", f"titles={titles}"], *jobs)
        found: dict[str, str] = sweep.store.sweep("titled")["titles"]
        return found

    assert titled("{}") == titled("{el2n: EL2N}") == {}
    named = titled(r"{deita: Deita, coincide: COINCIDE, coincide\(clusters\=3\): 'COINCIDE, 3 clusters'}")
    deita, coincide, three = "deita(threshold=0.985)", "coincide", "coincide(clusters=3)"
    assert named == {deita: "Deita", coincide: "COINCIDE", three: "COINCIDE, 3 clusters"}
    with pytest.raises(HarnessError, match=r"coincide and coincide\(clusters=3\) would have the same title"):
        titled("{coincide: COINCIDE}")
    with pytest.raises(HarnessError, match=r"random and coincide would have the same title"):
        titled(r"{coincide: Random, coincide\(clusters\=3\): other}")
    with pytest.raises(HarnessError, match=r"titles: method 'mmsr'"):
        titled("{mmsr: mmSSR}")


def test_deita_as_its_authors_ran_it_wants_their_words_and_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = ["selector=deita_official"]
    with pytest.raises(HarnessError, match="sievebench published prompts deita"):
        planned(folder / "st", job)
    (tmp_path / "prompts").mkdir()
    head = {"version": "1", "source": "here", "licence": "none"}
    asked = {"complexity": "{instruction}?", "quality": "{instruction} {output}?"}
    for name, templates in {"deita": asked, "vicuna": {"conversation": "{instruction}: {output}"}}.items():
        pack = {"name": name, **head, "templates": templates}
        (tmp_path / f"prompts/{name}.yaml").write_text(yaml.safe_dump(pack))
    with pytest.raises(HarnessError, match="write hkust-nlp/deita-complexity-scorer@COMMIT"):
        planned(folder / "st", job)
    parts = {"complexity": "deita_complexity", "quality": "deita_quality", "embedding_model": "deita_quality"}
    given = [f"selector.{part}={weights_dir(name)}" for part, name in parts.items()]
    made = planned(folder / "st", [*job, *given])
    passes: list[Any] = [s.params["config"] for s in made.plan.stages.values() if s.kind == "features"]
    asked["embedding"] = "{instruction}: {output}"
    assert {each["part"]: each["template"] for each in passes} == asked


def test_status_counts_every_stage_whatever_its_label(folder: Path) -> None:
    """A file of before such sweeps were refused, or of passes on two models, has labels twice."""
    sweep = planned(folder / "st", ["name=one"])
    other = planned(folder / "st", ["name=two", "recipe.epochs=2"])
    cells = [c for name in ("one", "two") for c in sweep.store.sweep(name)["cells"]]
    sweep.store.write_sweep("both", {"cells": cells})
    out = io.StringIO()
    assert show_status(folder / "st", "both", Console(file=out, width=100)) == 0
    keys = {*sweep.plan.stages, *other.plan.stages}
    assert f"both: {len(keys)} stages" in out.getvalue()
    assert len(keys) > len(sweep.plan.stages)
