"""Does miniworld behave? SFT on known-good, random and known-bad selections, then suite `mini`.

    python -m tests.bench.behave [--questions report|tune] [--seeds 3] [--sets "none,random 5%,..."] [--jobs 2]

Training is `llava_train`'s with recipe `mini`, scoring lmms-eval's; one thread. The last line is one JSON object:
for each set `mean` and `sd` over seeds of the unweighted mean of the eight benchmarks (each as a percentage of its
maximum), the benchmarks, and the accuracy of every skill; `prior` is what the one answer scores that is best for a
skill in the other question set; `margins` are differences in standard deviations of a seed, and
`behaves` says whether they are at least two (with one seed nobody knows), every skill beats its prior, and none is
`saturated` at 5 %; the exit status does, too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from harness.evaluation.environment import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_module  # noqa: E402
from lmms_eval.api.metrics import anls  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from harness.benchmarks import Suite  # noqa: E402
from harness.config import register_schemas  # noqa: E402
from harness.evalspec import engine  # noqa: E402
from harness.evaluation.adapter import SieveLlavaOv  # noqa: E402
from harness.evaluation.checkpoint import load_checkpoint  # noqa: E402
from harness.evaluation.engine import run_task  # noqa: E402
from harness.evaluation.recompute import score_items  # noqa: E402
from harness.keys import mix64  # noqa: E402
from harness.miniworld import ensure_pool, ensure_suite, mini_suite, tasks, truth_file, weights_dir  # noqa: E402
from harness.miniworld.documents import QUESTION_SETS, documents  # noqa: E402
from harness.miniworld.suite import TASKS  # noqa: E402
from harness.pool import Pool, open_pool  # noqa: E402
from harness.types import Budget, EvalSpec, TrainSpec  # noqa: E402
from llava_train.run import TrainRequest, train  # noqa: E402

log = logging.getLogger(__name__)

SETS = "none,random 5%,random 15%,random 25%,random 30%,full,sound 5%,sound 25%,wrong 15%,spoilt 25%"


def mini_recipe() -> TrainSpec:
    """Recipe `mini` as the configuration has it."""
    importlib.import_module("hydra_plugins.sievebench").register()
    register_schemas()
    with initialize_config_module("harness.conf", version_base="1.3"):
        recipe: Any = OmegaConf.to_container(compose("config", ["recipe=mini"]).recipe, resolve=True)
    recipe.pop("name")
    return TrainSpec(**recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What every run shares."""

    pool: Pool
    truth: list[dict[str, Any]]
    """Rows of the truth table in pool order."""
    suite: Suite
    questions: str
    backbone: Path
    recipe: TrainSpec
    scratch: Path


def select(world: World, name: str, seed: int) -> npt.NDArray[np.int32]:
    """Positions of a set: `random 5%`; `sound`, `wrong` or `spoilt` ones, drawn from those alone; `full`."""
    pool = world.pool
    if name == "full":
        return np.arange(pool.n, dtype=np.int32)
    kind, _, budget = name.partition(" ")
    n = Budget.parse(budget).size(pool.n)
    order = np.argsort(mix64(pool.column("uid_hash64"), 1000 + seed))
    wanted = {
        "random": ("", "duplicate", "wrong", "off_topic"),
        "sound": ("",),
        "wrong": ("wrong",),
        "spoilt": ("wrong", "off_topic"),
    }[kind]
    found = [i for i in order if world.truth[i]["defect"] in wanted]
    if len(found) < n:
        raise SystemExit(f"set '{name}': the pool has {len(found)} such samples, not {n}; ask for fewer.")
    return np.array(found[:n], dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model scores, in percent of the maximum: by benchmark and by skill."""

    benchmarks: dict[str, float]
    skills: dict[str, float]


def score(world: World, model: Path) -> Scores:
    """Scores of a model on the suite."""
    checkpoint = load_checkpoint(model, device="cpu", dtype="float32", attention="sdpa")
    found = Scores({}, {})
    for b in world.suite.benchmarks:
        with tempfile.TemporaryDirectory(dir=world.scratch) as folder:
            journal = Path(folder) / "answers.jsonl"
            adapter = SieveLlavaOv.of(
                checkpoint, batch_size=16, workers=0, journal=journal, progress=lambda done, total: None
            )
            spec = EvalSpec(
                benchmark=b.name,
                task=b.task,
                task_digest="bench",
                protocol="mini",
                engine=engine(),
                batch_size=16,
                include_path=b.include_path,
            )
            result = run_task(adapter, spec, Path(folder))
        task = b.name.removeprefix("mini_")
        found.benchmarks[task] = 100 * b.scale * float(result.metrics[b.metrics[0]]) / b.maximum
        samples = result.samples[b.task]
        items = zip(samples, score_items(b, samples), strict=True)
        asked = documents(task, world.questions)
        found.skills.update(by_skill([(skill_of(task, asked[s["doc_id"]]), item.score) for s, item in items]))
    return found


def skill_of(task: str, doc: dict[str, Any]) -> str:
    """Short answers by what they ask for, other forms as a whole."""
    return str(doc["skill"]) if task in ("doc", "chart", "ocr", "short") else task


def by_skill(scored: list[tuple[str, float]]) -> dict[str, float]:
    """Mean score of each skill, in percent."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for skill, value in scored:
        groups[skill].append(value)
    return {skill: 100 * mean(values) for skill, values in groups.items()}


def grade(task: str, doc: dict[str, Any], answer: str) -> float:
    """What a task makes of an answer to one of its documents, in [0, 1]."""
    how = TASKS[task]
    if how.score:
        found = getattr(tasks, how.score)(doc, [answer])[how.metric]
        return float(found["score"] if isinstance(found, dict) else found)
    if how.metric == "anls":
        return float(anls(doc["answers"], [answer])["anls"])
    return float(answer == doc["answer"])


def constants(questions: str) -> dict[str, str]:
    """The one answer to all questions of a skill that scores most in a question set."""
    docs: defaultdict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for task in TASKS:
        for doc in documents(task, questions):
            docs[skill_of(task, doc)].append((task, doc))
    return {
        skill: max(sorted({d["answer"] for _, d in asked}), key=lambda a: sum(grade(t, d, a) for t, d in asked))
        for skill, asked in docs.items()
    }


def prior(questions: str) -> dict[str, float]:
    """What the best constant answer to each skill in the other question set scores, in percent."""
    best = constants(next(q for q in QUESTION_SETS if q != questions))
    docs = [(task, doc) for task in TASKS for doc in documents(task, questions)]
    return by_skill([(s := skill_of(task, doc), grade(task, doc, best[s])) for task, doc in docs])


def run(world: World, name: str, seed: int) -> Scores:
    """Scores after SFT on one set with one seed; of the backbone itself for `none`."""
    if name == "none":
        return score(world, world.backbone)
    with tempfile.TemporaryDirectory(dir=world.scratch) as folder:
        out = Path(folder)
        request = TrainRequest(
            spec=replace(world.recipe, seed=seed),
            pool=world.pool,
            positions=select(world, name, seed),
            backbone_path=str(world.backbone),
            out=out / "out",
            partial=out / "partial",
        )
        report = train(request)
        scores = score(world, out / "out" / "model")
    shown = " ".join(f"{k} {v:.0f}" for k, v in scores.benchmarks.items())
    middle = mean(scores.benchmarks.values())
    log.info("%s seed %d: mean %.1f, %s; %.0f s of SFT", name, seed, middle, shown, report.wall_s)
    return scores


def summary(runs: list[Scores]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the mean score, and the mean of each benchmark and skill."""
    means = [mean(r.benchmarks.values()) for r in runs]
    spread = round(stdev(means), 2) if len(means) > 1 else None
    benchmarks = {k: round(mean(r.benchmarks[k] for r in runs), 1) for k in runs[0].benchmarks}
    skills = {k: round(mean(r.skills[k] for r in runs), 1) for k in runs[0].skills}
    return {"mean": round(mean(means), 2), "sd": spread, "seeds": len(runs), **benchmarks, "skills": skills}


def make_world(
    scratch: Path, *, n: int, questions: str, backbone: Path | None = None, learning_rate: float | None = None
) -> World:
    """A pool of `n` samples, a question set, the shipped `tiny` or another backbone, and recipe `mini`."""
    pool = open_pool(ensure_pool(n, 0, scratch / "world"))
    truth = {r["uid"]: r for r in pq.read_table(truth_file(Path(pool.path))).to_pylist()}
    recipe = mini_recipe()
    return World(
        pool=pool,
        truth=[truth[uid] for uid in pool.uids()],
        suite=mini_suite(str(ensure_suite(scratch / "world", questions))),
        questions=questions,
        backbone=backbone or weights_dir("tiny"),
        recipe=replace(recipe, learning_rate=learning_rate or recipe.learning_rate),
        scratch=scratch,
    )


ORDER = (
    ("full", "random 30%"),
    ("random 30%", "random 5%"),
    ("random 5%", "none"),
    ("sound 25%", "random 25%"),
    ("random 25%", "spoilt 25%"),
    ("random 15%", "wrong 15%"),
    ("sound 5%", "random 5%"),
)
"""What has to be better than what, by two standard deviations."""


def margins(results: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Differences of what ought to be better and worse, in standard deviations of a seed (pooled over the two).

    None with a single seed, of which nothing can be said.
    """
    found: dict[str, float | None] = {}
    for better, worse in ORDER:
        if better not in results or worse not in results:
            continue
        spreads = [s for name in (better, worse) if (s := results[name]["sd"]) is not None]
        pooled = (sum(s * s for s in spreads) / len(spreads)) ** 0.5 if spreads else 0.0
        gap = results[better]["mean"] - results[worse]["mean"]
        found[f"{better} > {worse}"] = round(gap / pooled, 1) if pooled else None
    return found


GAIN = 5.0
"""Points by which a skill has to be better after SFT on everything than after 5 %."""


def saturated(results: dict[str, dict[str, Any]]) -> list[str]:
    """Skills that a random 5 % teaches as well as everything does, as far as both were measured."""
    few, all_of_it = (results.get(name, {}).get("skills", {}) for name in ("random 5%", "full"))
    return [skill for skill, value in all_of_it.items() if skill in few and value < few[skill] + GAIN]


_world: World


def _open(settings: dict[str, Any]) -> None:
    """What a process does before its first run."""
    global _world
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    _world = make_world(**settings)


def _run(name: str, seed: int) -> Scores:
    return run(_world, name, seed)


def behaves(priors: dict[str, float], results: dict[str, dict[str, Any]]) -> bool:
    """Whether ORDER holds for the sets that were run, every skill is learnt from everything, and none from 5 %."""
    ordered = all(margin is not None and margin >= 2 for margin in margins(results).values())
    learnt = results["full"]["skills"] if "full" in results else {}
    above = all(value > priors[skill] for skill, value in learnt.items())
    return ordered and above and not saturated(results)


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "scratch": scratch,
        "n": args.n,
        "questions": args.questions,
        "backbone": args.backbone or weights_dir(args.weights),
        "learning_rate": args.learning_rate,
    }
    make_world(**settings)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = [(n, s) for n in args.sets.split(",") for s in (seeds if n != "none" else seeds[:1])]
    processes = get_context("spawn")
    with ProcessPoolExecutor(args.jobs, processes, initializer=_open, initargs=(settings,)) as pool:
        scored = list(zip(runs, pool.map(_run, *zip(*runs, strict=True)), strict=True))
    results = {n: summary([s for (m, _), s in scored if m == n]) for n in dict(runs)}
    head = {"bench": "behave", "weights": str(args.backbone or args.weights), "questions": args.questions}
    priors = {k: round(v, 1) for k, v in prior(args.questions).items()}
    verdict = {"margins": margins(results), "saturated": saturated(results), "behaves": behaves(priors, results)}
    return {**head, "n": args.n, "prior": priors, **results, **verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", default="report", choices=("report", "tune"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=300, help="seeds below were used to choose the settings")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--n", type=int, default=8000)
    parser.add_argument("--weights", default="tiny", help="shipped weights: tiny or tiny_b")
    parser.add_argument("--backbone", type=Path, help="a folder, in place of shipped weights")
    parser.add_argument("--learning-rate", type=float, help="in place of the recipe's")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    print(json.dumps(found))
    sys.exit(not found["behaves"])


if __name__ == "__main__":
    main()
