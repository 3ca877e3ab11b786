"""What finished stages of a store took, as rates that the next ones can be estimated by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.files import read_json
from harness.keys import digest
from harness.store import Store
from harness.types import Cost, Stage

Group = tuple[str, ...]
LIGHT: Final = frozenset({"lessons", "judge"})
"""Kinds that take about as long whatever they work on, so that any of them stands for the others."""


@dataclass(slots=True)
class Spent:
    """Device-seconds, and what they were spent on."""

    seconds: float = 0.0
    """That grow with the units."""
    units: float = 0.0
    fixed: float = 0.0
    """That every stage takes whatever its size: loading a model and its libraries."""
    stages: int = 0


@dataclass(slots=True)
class History:
    """Rates by groups of like stages."""

    spent: dict[Group, Spent] = field(default_factory=dict)
    flops: dict[bool, Spent] = field(default_factory=dict)
    """Training's operations, by whether a GPU did them."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Revision of the backbone by the key of its train stage."""

    def plan(self, stages: Mapping[str, Stage]) -> None:
        """Learn which backbones planned train stages train, for the sake of what will use their checkpoints."""
        trains = {key: s for key, s in stages.items() if s.kind == "train"}
        self.backbones |= {key: str(s.params["backbone"]) for key, s in trains.items()}

    def seconds(self, stage: Stage, units: float, *, gpu: bool) -> float | None:
        """Device-seconds that a stage like those of the past takes; None where there was none like it."""
        for group in groups(stage.kind, stage.params, stage.inputs, self.backbones):
            spent = self.spent.get((*group, _device(stage.settings, gpu)))
            if spent and spent.units:
                return spent.fixed / spent.stages + spent.seconds / spent.units * units
        return None

    def rate(self, *, gpu: bool) -> float | None:
        """Operations a second that training has reached here."""
        spent = self.flops.get(gpu)
        return spent.units / spent.seconds if spent and spent.seconds else None

    def add(self, manifest: Mapping[str, Any]) -> None:
        """Take a finished stage into account."""
        stage, facts, cost = manifest["stage"], manifest["facts"], Cost(**manifest["cost"])
        gpu = cost.gpu_s > 0
        processes = int(facts.get("processes", stage["settings"].get("processes", 1)))
        seconds = cost.gpu_s or cost.wall_s * processes
        if stage["kind"] == "train":
            self.backbones[stage["key"]] = stage["params"]["backbone"]
            if facts.get("flops") and not facts.get("resumed_from"):
                _count(self.flops.setdefault(gpu, Spent()), seconds, facts["flops"])
        units = _done_units(stage, facts)
        fixed = _fixed_share(facts, cost.wall_s * processes) * seconds
        for group in groups(stage["kind"], stage["params"], stage["inputs"], self.backbones) if units else ():
            held = _device(stage["settings"], gpu)
            _count(self.spent.setdefault((*group, held), Spent()), seconds - fixed, units, fixed)


def _count(spent: Spent, seconds: float, units: float, fixed: float = 0.0) -> None:
    spent.seconds += seconds
    spent.units += units
    spent.fixed += fixed
    spent.stages += 1


def _fixed_share(facts: Mapping[str, Any], process_s: float) -> float:
    """Share of the time of a pass's processes that was not spent on its shards; 0 for stages that do not say."""
    if "shards_s" not in facts or not process_s:
        return 0.0
    return max(0.0, 1 - float(facts["shards_s"]) / process_s)


def _device(settings: Mapping[str, Any], gpu: bool) -> str:
    """What a stage runs on; processes that share a pass get in each other's way, so their number counts too."""
    return f"{'gpu' if gpu else 'cpu'} x{settings.get('processes', 1)}"


def groups(
    kind: str, params: Mapping[str, Any], inputs: Mapping[str, str], backbones: Mapping[str, str]
) -> Iterator[Group]:
    """What a stage is like, the closest likeness first."""
    if kind == "features":
        same = {k: v for k, v in params.items() if k != "pool"}
        yield kind, digest([same, backbones.get(inputs.get("train.model", ""), "")])
    elif kind in ("score", "select"):
        yield kind, str(params["selector"]["name"]), str(params["pool"])
    elif kind == "train":
        yield kind, str(params["backbone"])
    elif kind == "evaluate":
        backbone = backbones.get(inputs.get("train.checkpoint", ""), "")
        benchmark, limit = str(params["eval"]["benchmark"]), str(params["eval"].get("limit"))
        yield kind, backbone, benchmark, limit
        yield kind, backbone, limit
    if kind in LIGHT:
        yield (kind,)


def training_samples(params: Mapping[str, Any], samples: float) -> float:
    """Samples that a training sees, repetitions included."""
    recipe = params["recipe"]
    fixed = recipe.get("fixed_steps", 0) * recipe.get("global_batch", 0)
    return float(fixed or samples * recipe.get("epochs", 1.0))


def _done_units(stage: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """Samples of passes and trainings; any other stage is one."""
    if stage["kind"] == "features":
        return float(facts.get("samples", 0))
    if stage["kind"] == "train":
        return training_samples(stage["params"], stage["settings"]["samples"])
    return 1.0


def read_history(store: Store, kinds: Iterable[str]) -> History:
    """The history of a store as far as stages of these kinds need it."""
    history = History()
    wanted = {"train", *kinds}  # whatever uses a checkpoint is like what used one of the same backbone
    for kind in sorted(wanted, key=lambda k: k != "train"):
        for file in sorted(Path(store.root, kind).glob("*/manifest.json")):
            manifest = read_json(file)
            if manifest:
                history.add(manifest)
    return history
