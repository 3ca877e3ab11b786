"""lmms-eval's own scorers over replayed answers: recomputed, their numbers are the same, and the known ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from eval_official import CASES, official_answers, write_official
from eval_support import spec_of

from harness.benchmarks import LMMS14
from harness.evaluation.engine import EngineResult, run_task
from harness.evaluation.recompute import find_recipe
from harness.evaluation.scoring import score_run
from harness.evaluation.validate import InvalidRun, check_items


@pytest.mark.parametrize("name", CASES)
def test_official_scores_are_recomputed(name: str, tmp_path: Path) -> None:
    from harness.evaluation.replay import SieveReplay

    case = CASES[name]
    benchmark = write_official(name, case, tmp_path / "task")
    model = SieveReplay.of(official_answers(name, case))
    result = run_task(model, spec_of(benchmark), tmp_path / "engine")
    check_items(benchmark, result, None)
    rows, score = score_run(benchmark, result, model.answers)
    assert score.value == pytest.approx(case.value, abs=1e-4)
    assert [r.score for r in rows] == pytest.approx(list(case.scores))
    assert [i for i, r in enumerate(rows) if not r.parsed] == list(case.unparsed)
    assert (score.n, score.n_invalid) == (len(case.docs), len(case.unparsed))
    assert [r.doc_id for r in rows] == list(range(len(case.docs)))
    assert [r.answer for r in rows] == list(case.answers)
    lost = replace_samples(result, drop=1)
    with pytest.raises(InvalidRun, match="missing"):
        check_items(benchmark, lost, None)
    doubled = replace_samples(result, double=True)
    with pytest.raises(InvalidRun, match="logged twice, first doc_id 0"):
        check_items(benchmark, doubled, None)


def replace_samples(result: EngineResult, drop: int = 0, double: bool = False) -> EngineResult:
    """The result with the first task's last item lost, or its first one doubled."""
    task = next(iter(result.samples))
    rows = list(result.samples[task])
    rows = [rows[0], *rows] if double else rows[: len(rows) - drop]
    return replace(result, samples={**result.samples, task: rows})


def test_a_guess_is_marked_as_one(tmp_path: Path) -> None:
    """MMT and MMMU answer at random where they find no letter."""
    from harness.evaluation.replay import SieveReplay

    for name in ("mmt", "mmmu"):
        case = CASES[name]
        silent = replace(case, answers=["hm"] * len(case.docs))
        benchmark = write_official(name, silent, tmp_path / name)
        model = SieveReplay.of(official_answers(name, silent))
        result = run_task(model, spec_of(benchmark), tmp_path / "engine")
        rows, score = score_run(benchmark, result, model.answers)
        open_questions = 2 if name == "mmmu" else 0  # their text is compared as it is
        assert score.n_invalid == len(rows) - open_questions


def test_every_benchmark_has_a_recipe() -> None:
    for benchmark in LMMS14.benchmarks:
        assert find_recipe(benchmark.recompute)
    assert {b.name for b in LMMS14.benchmarks} - set(CASES) == {"mmvet", "mathvista"}, "judged: another test"


def test_a_missing_answer_is_an_error(tmp_path: Path) -> None:
    from harness.evaluation.replay import SieveReplay

    case = CASES["ai2d"]
    benchmark = write_official("ai2d", case, tmp_path / "task")
    model = SieveReplay.of(official_answers("ai2d", case)[:-1])
    with pytest.raises(KeyError, match="1 of 4 items have no stored answer"):
        run_task(model, spec_of(benchmark), tmp_path / "engine")
