"""One benchmark through lmms-eval in this process: whole, repeatable, and without traces elsewhere."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from eval_support import spec_of, tiny_checkpoint, write_task

from harness.benchmarks import Benchmark
from harness.errors import HarnessError
from harness.evaluation.environment import CACHE_VARIABLE, default_cache, prepare_environment
from harness.evaluation.results import SAMPLES, SCORE, read_rows
from harness.evaluation.session import EvalSession
from harness.evaluation.validate import InvalidRun


@pytest.fixture(scope="module")
def session() -> EvalSession:
    return EvalSession(tiny_checkpoint(), device="cpu", dtype="float32", attention="sdpa", batch_size=4, threads=1)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return write_task(tmp_path_factory.mktemp("odd"))


def test_a_run_is_whole_and_repeatable(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first, second = tmp_path / "first", tmp_path / "second"
    score = session.run(spec_of(odd), odd, first, tmp_path / "p1", lambda done, total: seen.append((done, total)))
    assert score is not None
    assert session.run(spec_of(odd), odd, second, tmp_path / "p2") == score
    for name in (SAMPLES, SCORE):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    rows = read_rows(first / SAMPLES)
    assert [r.doc_id for r in rows] == list(range(12))
    assert [r.cluster for r in rows] == [str(i // 2) for i in range(12)]
    assert [r.score for r in rows] == [float(len(r.answer.strip()) % 2 == i % 2) for i, r in enumerate(rows)]
    assert score.value == pytest.approx(100 * sum(r.score or 0 for r in rows) / 12)
    assert len({r.input for r in rows}) == 12
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    facts = json.loads((first / SCORE).read_text())
    assert facts["engine"].startswith("lmms-eval ")
    assert (facts["n"], facts["batch_size"], facts["dtype"]) == (12, 4, "float32")
    assert facts["raw"]["hit,none"] * 100 == pytest.approx(facts["value"])


def test_a_resumed_run_gives_the_same_files(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    session.run(spec_of(odd), odd, tmp_path / "whole", tmp_path / "p1")

    def killed(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.run(spec_of(odd), odd, tmp_path / "cut", tmp_path / "p2", killed)
    assert not (tmp_path / "cut").exists()
    seen: list[int] = []
    session.run(spec_of(odd), odd, tmp_path / "cut", tmp_path / "p2", lambda done, _: seen.append(done))
    assert seen[0] == 4
    for name in (SAMPLES, SCORE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_surroundings_are_put_back(
    session: EvalSession, odd: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    # A launcher's variables would have lmms-eval wait for three more processes.
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "nowhere", "ACCELERATE_X": "1"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    relative = replace(odd, include_path=os.path.relpath(odd.include_path))
    assert session.run(spec_of(relative), relative, tmp_path / "out", Path("partial")) is not None
    assert dict(os.environ) == before
    assert Path.cwd() == work
    assert sorted(p.name for p in work.iterdir()) == ["partial"]
    assert (work / "partial" / "answers.jsonl").is_file()


def test_a_limit_takes_the_first_items(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    score = session.run(spec_of(odd, limit=5), odd, tmp_path / "out", tmp_path / "p")
    assert score is not None
    assert score.n == 5
    assert [r.doc_id for r in read_rows(tmp_path / "out" / SAMPLES)] == list(range(5))


def test_generation_overrides_reach_the_model(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    short = replace(odd, generation={"max_new_tokens": 2})
    session.run(spec_of(short), short, tmp_path / "out", tmp_path / "p")
    assert {r.output_tokens for r in read_rows(tmp_path / "out" / SAMPLES)} <= {1, 2}


def test_data_that_changed_is_noticed(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="12 items were run, the benchmark has 13"):
        session.run(spec_of(odd), replace(odd, n_items=13), tmp_path / "out", tmp_path / "p")
    assert not (tmp_path / "out").exists()


def test_a_wrong_recompute_rule_is_noticed(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="scored by another rule"):
        session.run(spec_of(odd), replace(odd, recompute="mean100"), tmp_path / "out", tmp_path / "p")


def test_an_absent_metric_is_noticed(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match=r"no metric f1,none among .*hit,none"):
        session.run(spec_of(odd), replace(odd, metrics=("f1,none",)), tmp_path / "out", tmp_path / "p")


def test_unknown_tasks_and_folders_are_named(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    typo = replace(odd, task="local_od")
    with pytest.raises(HarnessError, match="Did you mean 'local_odd'"):
        session.run(spec_of(typo), typo, tmp_path / "out", tmp_path / "p")
    nowhere = replace(odd, include_path=str(tmp_path / "nowhere"))
    with pytest.raises(HarnessError, match="there is no task folder"):
        session.run(spec_of(nowhere), nowhere, tmp_path / "out", tmp_path / "p")


def test_scoring_does_not_depend_on_what_ran_before(session: EvalSession, odd: Benchmark, tmp_path: Path) -> None:
    """Some official scorers guess with the global random state."""
    utils = Path(odd.include_path) / "utils.py"
    guessing = tmp_path / "guessing"
    guessing.mkdir()
    for file in Path(odd.include_path).iterdir():
        if file.is_file():
            (guessing / file.name).write_bytes(file.read_bytes())
    score = "\n\ndef score(doc, results):\n    import random\n    return {'hit': random.choice([0.0, 1.0])}\n"
    (guessing / "utils.py").write_text(utils.read_text() + score)
    bench = replace(odd, include_path=str(guessing))
    outcomes = []
    for i in range(2):
        random.seed(i)
        session.run(spec_of(bench), bench, tmp_path / f"out{i}", tmp_path / f"p{i}")
        outcomes.append([r.score for r in read_rows(tmp_path / f"out{i}" / SAMPLES)])
    assert outcomes[0] == outcomes[1]
    assert set(outcomes[0]) == {0.0, 1.0}


def test_environment_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "SIEVEBENCH_ONLINE", CACHE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "sievebench"
    monkeypatch.setenv("SIEVEBENCH_ONLINE", "1")
    prepare_environment()
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("SIEVEBENCH_ONLINE", "0")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    prepare_environment(tmp_path / "own")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["HF_DATASETS_OFFLINE"] == "0", "what the user chose stays"
    assert default_cache() == tmp_path / "own"
