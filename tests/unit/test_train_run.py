"""Whole runs on a tiny model: learning rates, journal, determinism, interruption, errors that name samples."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_support import backbone

from harness.errors import HarnessError
from harness.pool import Pool
from harness.types import TrainSpec
from llava_train.engine import deepspeed_config, learning_rate
from llava_train.run import TrainReport, TrainRequest, train
from llava_train.watch import Journal, NotFinite, read_journal
from tests.support import write_pool

SPEC = TrainSpec(
    dtype="float32",
    gradient_checkpointing=False,
    global_batch=4,
    learning_rate=1e-3,
    vision_learning_rate=2e-4,
    warmup=0.2,
    pack_tokens=300,
    pack_tiles=8,
    checkpoint_every=3,
)
N = 40


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", N)


def _request(pool: Pool, folder: Path, spec: TrainSpec = SPEC, n: int = 30) -> TrainRequest:
    return TrainRequest(
        spec=spec,
        pool=pool,
        positions=np.arange(n, dtype=np.int32),
        backbone_path=str(backbone()),
        out=folder / "out",
        partial=folder / "partial",
        threads=1,
    )


@pytest.fixture(scope="module")
def reference(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    """One uninterrupted run of seven steps."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(_request(pool, folder))


def _weights(folder: Path) -> bytes:
    return (folder / "out" / "model" / "model.safetensors").read_bytes()


def _log(folder: Path) -> list[dict]:
    """The journal without what differs between runs."""
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_journal(folder / "out/train_log.jsonl")
    ]


def test_a_run_learns_and_reports(reference: tuple[Path, TrainReport]) -> None:
    folder, report = reference
    rows = _log(folder)
    assert [row["step"] for row in rows] == list(range(7))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert (report.steps, report.samples, report.n_unseen, report.skipped) == (7, 28, 2, 0)
    assert len(report.unseen) == 2
    assert report.tokens == sum(row["tokens"] for row in rows)
    assert report.final_loss == rows[-1]["loss"]
    assert json.loads((folder / "out/report.json").read_text())["supervised_tokens"] == report.supervised_tokens
    assert not list((folder / "partial").glob("checkpoint*"))


def test_learning_rates_by_part_and_step(reference: tuple[Path, TrainReport]) -> None:
    rows = _log(reference[0])
    assert rows[0]["lr"] == {"vision": 0.0, "rest": 0.0}
    warmup = math.ceil(0.2 * 7)
    for row in rows:
        step = row["step"]
        factor = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (7 - warmup)))
        assert row["lr"]["rest"] == pytest.approx(1e-3 * factor)
        assert row["lr"]["vision"] == pytest.approx(2e-4 * factor)


def test_the_schedule_is_the_one_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * 101), 101)
    for step in range(101):
        assert learning_rate(step, 101, 3e-4, TrainSpec()) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert learning_rate(50, 101, 3e-4, TrainSpec(schedule="constant")) == 3e-4
    assert learning_rate(0, 1, 3e-4, TrainSpec()) == 3e-4


def test_every_part_of_the_model_moves(reference: tuple[Path, TrainReport]) -> None:
    before = load_file(backbone() / "model.safetensors")
    before = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in before.items()}
    after = load_file(reference[0] / "out/model/model.safetensors")
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in still} == {"post_layernorm"}


def test_a_frozen_tower_does_not_move(pool: Pool, tmp_path: Path) -> None:
    train(_request(pool, tmp_path, replace(SPEC, freeze_vision=True), n=8))
    before = load_file(backbone() / "model.safetensors")
    after = load_file(tmp_path / "out/model/model.safetensors")
    for name, tensor in before.items():
        stored = after[name.replace("vision_tower.", "vision_tower.vision_model.")]
        assert torch.equal(tensor, stored) == name.startswith("vision_tower."), name


def test_two_runs_give_the_same_bytes(pool: Pool, reference: tuple[Path, TrainReport], tmp_path: Path) -> None:
    train(_request(pool, tmp_path))
    assert _weights(tmp_path) == _weights(reference[0])
    assert _log(tmp_path) == _log(reference[0])


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    pool: Pool, reference: tuple[Path, TrainReport], tmp_path: Path, stop: int
) -> None:
    def interrupt(done: int, steps: int, figures: dict[str, float]) -> None:
        if done == stop:
            raise _Stopped

    with pytest.raises(_Stopped):
        train(_request(pool, tmp_path), interrupt)
    assert not (tmp_path / "out" / "model").exists()
    steps: list[int] = []
    report = train(_request(pool, tmp_path), lambda done, *_: steps.append(done))
    # The stop comes before the checkpoint of its own step.
    assert report.resumed_from == (stop - 1) // 3 * 3
    assert steps == list(range(report.resumed_from + 1, 8))
    assert _log(tmp_path) == _log(reference[0])
    assert _weights(tmp_path) == _weights(reference[0])
    assert replace(report, resumed_from=0, wall_s=0) == replace(reference[1], wall_s=0)


def test_a_checkpoint_of_another_run_is_not_used(pool: Pool, tmp_path: Path) -> None:
    def interrupt(done: int, steps: int, figures: dict[str, float]) -> None:
        if done == 5:
            raise _Stopped

    with pytest.raises(_Stopped):
        train(_request(pool, tmp_path), interrupt)
    assert train(_request(pool, tmp_path, replace(SPEC, seed=1), n=30)).resumed_from == 0


@pytest.mark.parametrize("lost", ["checkpoint.json", "state/*model_states.pt", "state/*optim_states.pt"])
def test_a_broken_checkpoint_is_not_used(pool: Pool, tmp_path: Path, lost: str) -> None:
    request = _request(pool, tmp_path, n=16)

    def interrupt(done: int, steps: int, figures: dict[str, float]) -> None:
        if done == 4:
            raise _Stopped

    with pytest.raises(_Stopped):
        train(request, interrupt)
    file = next((tmp_path / "partial").glob(f"checkpoint-*/{lost}"))
    if lost == "checkpoint.json":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    assert train(request).resumed_from == 0


def test_how_samples_are_packed_does_not_matter(
    pool: Pool, reference: tuple[Path, TrainReport], tmp_path: Path
) -> None:
    train(_request(pool, tmp_path, replace(SPEC, pack_tokens=4000, pack_tiles=64, checkpoint_every=0)))
    for ours, theirs in zip(_log(tmp_path), _log(reference[0]), strict=True):
        assert ours["batch"] == theirs["batch"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-3)


@pytest.mark.parametrize(
    ("spec", "n", "steps", "samples"),
    [
        (replace(SPEC, epochs=2.0), 6, 3, 12),
        (replace(SPEC, fixed_steps=3), 6, 3, 12),
        (SPEC, 3, 1, 3),
        (replace(SPEC, last_batch="partial", loss_norm="token_mean", mask="answer"), 6, 2, 6),
        (replace(SPEC, dtype="bfloat16", weight_decay=0.1, gradient_checkpointing=True), 8, 2, 8),
    ],
    ids=["epochs", "fixed", "few", "partial", "bfloat16"],
)
def test_other_recipes(pool: Pool, tmp_path: Path, spec: TrainSpec, n: int, steps: int, samples: int) -> None:
    report = train(_request(pool, tmp_path, spec, n=n))
    assert (report.steps, report.samples) == (steps, samples)
    assert math.isfinite(report.final_loss)
    stored = load_file(tmp_path / "out/model/model.safetensors")
    assert {str(t.dtype) for t in stored.values()} == {f"torch.{spec.dtype}"}


def test_a_loss_that_is_no_number_names_the_samples(pool: Pool, tmp_path: Path) -> None:
    spec = replace(SPEC, learning_rate=1e30, vision_learning_rate=1e30, max_grad_norm=0.0, warmup=0.0)
    with pytest.raises(NotFinite, match=r"at step \d.*samples of that step: s\d+, s\d+"):
        train(_request(pool, tmp_path, spec))
    assert not (tmp_path / "out" / "model").exists()
    beat = json.loads((tmp_path / "partial" / "heartbeat-0.json").read_text())
    assert beat["phase"] == "step"


@pytest.mark.parametrize(
    ("positions", "message"), [([], "selection to train on is empty"), ([0, N], "made on another pool")]
)
def test_selections_that_cannot_be_trained_on(
    pool: Pool, tmp_path: Path, positions: list[int], message: str
) -> None:
    request = replace(_request(pool, tmp_path), positions=np.array(positions, dtype=np.int32))
    with pytest.raises(HarnessError, match=message):
        train(request)


def test_nothing_is_printed(pool: Pool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(_request(pool, tmp_path, n=4))
    assert capfd.readouterr().out == ""


def test_the_deepspeed_configuration_says_everything_that_moved() -> None:
    config = deepspeed_config(TrainSpec(), 10**9)
    assert "optimizer" not in config
    assert "scheduler" not in config
    assert config["gradient_clipping"] == 1.0
    assert config["managed_gradient_accumulation"] is False
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert config["zero_optimization"]["stage"] == 1
    assert config["zero_optimization"]["overlap_comm"] is False


def test_a_journal_forgets_what_is_repeated_and_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"ste')
    with Journal(path, start=2) as journal:
        journal.write({"step": 2, "again": True})
    assert read_journal(path) == [{"step": 0}, {"step": 1}, {"step": 2, "again": True}]
