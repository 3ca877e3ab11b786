"""The benchmark registry: what a benchmark's number means, apart from how it is obtained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from harness.errors import HarnessError, unknown_name
from harness.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark as reported: task, metric, scale, direction, chance level, unit of resampling."""

    name: str
    """What settings and files call it."""
    title: str
    """Column header in tables; in a suite's file the name where left out."""
    task: str
    """lmms-eval task (or group) that is run."""
    metrics: tuple[str, ...]
    """Keys of lmms-eval's `results[task]`; several are summed (MME: perception + cognition)."""
    scale: float = 100.0
    """Factor from the engine's value to the reported one."""
    minimum: float = 0.0
    """Lowest value on the reported scale."""
    maximum: float = 100.0
    """Highest value on the reported scale."""
    higher_is_better: bool = True
    """Which direction is better."""
    chance: float = 0.0
    """Score of guessing, on the reported scale."""
    n_items: int = 0
    """Number of logged items; 0 where the user's own data decides it."""
    item_score: str = ""
    """Key of the per-item score in lmms-eval's samples; `key.subkey` for nested ones."""
    recompute: str = "mean"
    """How items aggregate to the value: name of a function in `harness.evaluation.recompute`."""
    cluster: str = ""
    """Column of the task's documents that groups dependent items (image, question group); empty: the item."""
    judge: str | None = None
    """Judge that scores stored answers, where rules cannot; None for rule-scored benchmarks."""
    include_path: str = ""
    """Folder of local task files, empty for tasks that lmms-eval ships; in a suite's file its own by default."""
    generation: Mapping[str, Json] = field(default_factory=dict)
    """Generation arguments that override the task's own."""

    def __post_init__(self) -> None:
        if not self.metrics:
            raise HarnessError(f"benchmark {self.name}: name at least one metric key of task {self.task}.")
        if not self.maximum > self.minimum:
            raise HarnessError(f"benchmark {self.name}: maximum {self.maximum} <= minimum {self.minimum}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The declared set of benchmarks a summary is taken over; its content is part of a metric's identity."""

    name: str
    protocol: str
    benchmarks: tuple[Benchmark, ...]

    def __post_init__(self) -> None:
        names = [b.name for b in self.benchmarks]
        if not names:
            raise HarnessError(f"suite {self.name} has no benchmarks.")
        if len(set(names)) != len(names):
            raise HarnessError(f"suite {self.name} names a benchmark twice: {', '.join(names)}.")

    def __getitem__(self, name: str) -> Benchmark:
        for b in self.benchmarks:
            if b.name == name:
                return b
        raise unknown_name("benchmark", name, (b.name for b in self.benchmarks))


def _lmms14() -> Iterable[Benchmark]:
    """The fourteen benchmarks of arXiv 2503.13383 as lmms-eval 0.7.3 runs them (protocol `lmms14`)."""
    yield Benchmark(
        name="mmbench",
        title="MMBench",
        task="mmbench_en_dev_static",
        metrics=("gpt_eval_score,none",),
        scale=1.0,
        n_items=4329,
        item_score="gpt_eval_score",
        recompute="mmbench",
        generation={"max_new_tokens": 64},
    )
    yield Benchmark(
        name="mmstar",
        title="MMStar",
        task="mmstar",
        metrics=("average,none",),
        chance=25.0,
        n_items=1500,
        item_score="average.score",
        recompute="mmstar",
        generation={"max_new_tokens": 64},
    )
    yield Benchmark(
        name="mmmu",
        title="MMMU",
        task="mmmu_val",
        metrics=("mmmu_acc,none",),
        chance=22.0,
        n_items=900,
        item_score="mmmu_acc",
        recompute="mmmu",
    )
    yield Benchmark(
        name="mmvet",
        title="MMVet",
        task="mmvet",
        metrics=("gpt_eval_score,none",),
        scale=1.0,
        n_items=218,
        item_score="gpt_eval_score.score",
        recompute="mean100",
        judge="openai",
    )
    yield Benchmark(
        name="blink",
        title="BLINK",
        task="blink",
        metrics=("blink_acc,none",),
        chance=38.0,
        n_items=1901,
        item_score="blink_acc.is_correct",
        generation={"max_new_tokens": 64},
    )
    yield Benchmark(
        name="mmt",
        title="MMT-Bench",
        task="sieve_mmt_val",
        metrics=("accuracy,none",),
        scale=1.0,
        chance=25.0,
        n_items=3127,
        item_score="accuracy.overall",
        recompute="mmt",
    )
    yield Benchmark(
        name="mme",
        title="MME",
        task="mme",
        metrics=("mme_perception_score,none", "mme_cognition_score,none"),
        scale=1.0,
        maximum=2800.0,
        chance=1050.0,
        n_items=2374,
        item_score="mme",
        recompute="mme",
        cluster="question_id",
    )
    yield Benchmark(
        name="ai2d",
        title="AI2D",
        task="ai2d",
        metrics=("exact_match,flexible-extract",),
        chance=25.0,
        n_items=3088,
        item_score="exact_match",
    )
    yield Benchmark(
        name="scienceqa",
        title="ScienceQA",
        task="scienceqa_img",
        metrics=("exact_match,none",),
        chance=36.0,
        n_items=2017,
        item_score="exact_match",
    )
    yield Benchmark(
        name="mathvista",
        title="MathVista",
        task="mathvista_testmini_format",
        metrics=("llm_as_judge_eval,none",),
        scale=1.0,
        chance=18.0,
        n_items=1000,
        item_score="llm_as_judge_eval.true_false",
        recompute="mathvista",
        judge="openai",
        generation={"max_new_tokens": 256},
    )
    yield Benchmark(
        name="ocrbench",
        title="OCRBench",
        task="ocrbench",
        metrics=("ocrbench_accuracy,none",),
        n_items=1000,
        item_score="ocrbench_accuracy.score",
        recompute="ocrbench",
    )
    yield Benchmark(
        name="chartqa",
        title="ChartQA",
        task="chartqa",
        metrics=("relaxed_overall,none",),
        n_items=2500,
        item_score="relaxed_overall",
    )
    yield Benchmark(
        name="docvqa",
        title="DocVQA",
        task="docvqa_val",
        metrics=("anls,none",),
        n_items=5349,
        item_score="anls",
    )
    yield Benchmark(
        name="infovqa",
        title="InfoVQA",
        task="infovqa_val",
        metrics=("anls,none",),
        n_items=2801,
        item_score="anls",
    )


LMMS14 = Suite(name="lmms14", protocol="lmms14", benchmarks=tuple(_lmms14()))
TABLE10 = Suite(name="table10", protocol="lmms14", benchmarks=LMMS14.benchmarks[:10])
SUITES: Mapping[str, Suite] = MappingProxyType({s.name: s for s in (LMMS14, TABLE10)})
"""Suites that need no local files; `harness.miniworld` adds `mini`, users add their own in conf/suite."""
