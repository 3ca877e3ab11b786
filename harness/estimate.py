"""What a stage will take: from what its like took in the same store, else from a model of its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from harness.history import History, training_samples
from harness.pool import open_pool
from harness.registry import feature_pass
from harness.types import Stage
from harness.work import FORWARD, TRAINING, Work, model_work, nominal_rate

Basis = Literal["history", "cost model", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Device-seconds of a stage, what that is known from, and its work where a model does it."""

    seconds: float | None
    basis: Basis
    work: Work | None = None
    unmeasured: int = 0
    """Of several stages together, how many these seconds leave out because nothing is known of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What stages would run on."""

    gpu: bool
    threads: int = 1


def estimate(stage: Stage, history: History, where: Where, stages: Mapping[str, Stage]) -> Estimate:
    """Estimate a stage; `stages` has those it needs, by key, as far as they are known."""
    work = _work(stage, stages)
    seconds = history.seconds(stage, _units(stage), gpu=where.gpu)
    if seconds is not None:
        return Estimate(seconds=seconds, basis="history", work=work)
    if work is None:
        return Estimate(seconds=None, basis="unknown")
    rate = history.rate(gpu=where.gpu) or nominal_rate(
        work.weights, gpu=where.gpu, threads=where.threads, training=stage.kind == "train"
    )
    return Estimate(seconds=work.flops / rate if rate else None, basis="cost model", work=work)


def _units(stage: Stage) -> float:
    if stage.kind == "features":
        return float(open_pool(str(stage.settings["pool_path"])).n)
    if stage.kind == "train":
        return training_samples(stage.params, float(str(stage.settings["samples"])))
    return 1.0


def _work(stage: Stage, stages: Mapping[str, Stage]) -> Work | None:
    """The work of a stage in which a model runs; None for others, and where the model is not known."""
    if stage.kind == "features":
        plugin = feature_pass(str(stage.params["pass"]))
        model = _model(stage, "train.model", stages) or str(stage.settings["model_path"])
        if plugin.cls.identity != "weights" or not model:
            return None
        asked, pool = plugin.cls, str(stage.settings["pool_path"])
        config = stage.params["config"]
        views = asked.shows(config if isinstance(config, dict) else {})
        return model_work(pool, Path(model), _units(stage), asked.work, asked.asks, views)
    if stage.kind == "train":
        backbone = Path(str(stage.settings["backbone_path"]))
        return model_work(str(stage.settings["pool_path"]), backbone, _units(stage), TRAINING)
    if stage.kind == "evaluate":
        return _evaluation(stage, stages)
    return None


def _evaluation(stage: Stage, stages: Mapping[str, Stage]) -> Work | None:
    """A benchmark's questions, taken to be as long as the samples that were trained on."""
    train, benchmark = stages.get(stage.inputs["train.checkpoint"]), stage.settings["benchmark"]
    items = benchmark.get("n_items", 0) if isinstance(benchmark, dict) else 0
    if train is None or not items:
        return None
    pool, backbone = str(train.settings["pool_path"]), Path(str(train.settings["backbone_path"]))
    return model_work(pool, backbone, float(str(items)), FORWARD)


def _model(stage: Stage, name: str, stages: Mapping[str, Stage]) -> str:
    """The folder of the backbone that one of a stage's inputs trains; empty where it has no such input."""
    train = stages.get(stage.inputs.get(name, ""))
    return str(train.settings["backbone_path"]) if train else ""


def total(estimates: list[Estimate]) -> Estimate:
    """Estimates of several stages together: what is known of them, as sure as the least sure of that."""
    timed = [e for e in estimates if e.seconds is not None]
    known = timed or estimates
    sureness: tuple[Basis, ...] = ("unknown", "cost model", "history")
    basis: Basis = min((e.basis for e in known), key=sureness.index, default="unknown")
    work = [e.work for e in estimates if e.work is not None]
    return Estimate(
        seconds=sum(e.seconds or 0 for e in timed) if timed else None,
        basis=basis,
        work=_sum(work) if len(work) == len(estimates) and work else None,
        unmeasured=len(estimates) - len(timed) if timed else 0,
    )


def _sum(works: list[Work]) -> Work:
    return Work(
        samples=sum(w.samples for w in works),
        tokens=sum(w.tokens for w in works),
        flops=sum(w.flops for w in works),
        weights=max(w.weights for w in works),
    )


def say(estimate: Estimate) -> str:
    """An estimate in words, with what it is known from."""
    done = estimate.work
    work = f"{done.flops:.1e} FLOP, {done.tokens:.1e} tokens" if done else ""
    if estimate.unmeasured:
        known = say(replace(estimate, unmeasured=0)).removeprefix("at least ")
        return f"at least {known} + {estimate.unmeasured} not yet measured here"
    if estimate.basis == "history":
        return f"{duration(estimate.seconds or 0)} of work, as measured here"
    if estimate.basis == "unknown":
        return "not yet measured here"
    if estimate.seconds is None:
        return f"{work} by cost model, on a device of unknown speed"
    return f"at least {duration(estimate.seconds)} by cost model" + (f": {work}" if work else "")


def duration(seconds: float) -> str:
    """`8 s`, `3 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
