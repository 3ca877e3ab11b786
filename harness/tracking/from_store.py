"""Rebuilding a sweep's select, train and eval runs from the store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from harness.files import read_json
from harness.keys import digest
from harness.store import Manifest, StageDir, Store
from harness.tracking.content import SCHEMA, ArtifactContent, Job, RunContent, Scalar, artifact_name, run_id
from harness.tracking.reading import curve, entropy, numbers, subset_files
from reports.metrics import BEATS_RANDOM, REL_FULL, metric_version
from reports.records import Records, selection_card
from reports.rows import FULL, RANDOM

Cell = Mapping[str, Any]
Cells = Sequence[Cell]
"""Cells of a sweep, as `harness.sweep.sweep_json` writes them."""

TAG_LENGTH: Final = 64
"""Longest tag that W&B takes."""
_FACTS: Final = (
    "method", "budget", "budget_fraction", "n_selected", "backbone", "seed", "baseline", "pool", "command",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSource:
    """A sweep in its store, read once."""

    store: Store
    records: Records
    cells: Cells
    relative: Mapping[tuple[str, str, str, int], Sequence[float]]
    """(method, budget, backbone, seed) to REL per benchmark in suite order; NaN where there is none."""

    def runs(self) -> Iterator[RunContent]:
        """Every run whose stages are done, in the order of the cells."""
        yield from self._by_stage("select", self._select)
        yield from self._by_stage("train", self._train)
        for cell in self.cells:
            yield from self._eval(cell)

    def _by_stage(
        self, kind: str, make: Callable[[Cells, StageDir, Manifest], RunContent]
    ) -> Iterator[RunContent]:
        """One run a stage, however many cells share it."""
        sharers: dict[str, list[Cell]] = {}
        for cell in self.cells:
            sharers.setdefault(cell[kind], []).append(cell)
        for key, cells in sharers.items():
            directory = self.store.by_key(kind, key)
            manifest = directory.manifest()
            if manifest is not None:
                yield make(cells, directory, manifest)

    def _select(self, cells: Cells, directory: StageDir, manifest: Manifest) -> RunContent:
        card = selection_card(self.store, cells[0]) or {}
        return RunContent(
            **self._head("select", cells, manifest, _label(manifest)),
            summary={
                **numbers(manifest.facts, "select"),
                **_cost(manifest, "select"),
                **numbers(card.get("mean", {}), "select/mean"),
                "select/source_entropy": entropy(card.get("by_source", {})),
                "select/overlap_random": self._overlap(cells[0]),
            },
            artifacts=(self._subset(directory, manifest),),
        )

    def _train(self, cells: Cells, directory: StageDir, manifest: Manifest) -> RunContent:
        return RunContent(
            **self._head("train", cells, manifest, _label(manifest)),
            summary=numbers(manifest.facts, "train") | _cost(manifest, "train"),
            history=tuple(curve(directory.out / "train_log.jsonl")),
            step="train/step",
            artifacts=(self._checkpoint(directory, manifest),),
        )

    def _eval(self, cell: Cell) -> Iterator[RunContent]:
        """The scores of one cell, as far as there are any; REL over the suite only where all of them are."""
        done = {b: m for b in cell["scores"] if (m := self._score(cell, b)) is not None}
        if not done:
            return
        summary: dict[str, Scalar] = {}
        for name, manifest in done.items():
            facts = {"score": manifest.facts["value"]} | {k: manifest.facts.get(k) for k in ("n", "n_invalid")}
            summary |= numbers(facts, f"eval/{name}")
        row = self.relative.get((cell["method"], cell["budget"], cell["backbone"], cell["seed"]), ())
        names = [b.name for b in self.records.suite.benchmarks]
        summary |= {f"eval/{n}/rel_full": v for n, v in zip(names, row, strict=False) if math.isfinite(v)}
        if row and all(map(math.isfinite, row)):
            summary["summary/rel_full"] = sum(row) / len(row)
        last = max(done.values(), key=lambda m: m.finished)
        yield RunContent(
            **self._head("eval", [cell], last, cell["label"], key=cell["key"]),
            summary=summary,
            artifacts=(self._answers(cell, done),),
        )

    def _score(self, cell: Cell, benchmark: str) -> Manifest | None:
        return self._score_dir(cell, benchmark).manifest()

    def _score_dir(self, cell: Cell, benchmark: str) -> StageDir:
        kind = "judge" if self.records.suite[benchmark].judge else "evaluate"
        return self.store.by_key(kind, cell["scores"][benchmark])

    def _head(
        self, job: Job, cells: Cells, manifest: Manifest, label: str, *, key: str | None = None
    ) -> dict[str, Any]:
        """Id, name, group, tags and configuration: the same keys in every job.

        The sweep is part of the id, because W&B gives a run one group only and sweeps share stages.
        """
        identity = key or manifest.key
        config = self._config(cells, manifest) | {"job": job, "identity": identity}
        method, budget = config["method"], config["budget"]
        role = "baseline" if method in (RANDOM, FULL) else "method"
        tags = (f"suite:{self.records.suite.name}", f"method:{method}", f"budget:{budget}", f"role:{role}")
        return {
            "id": run_id(job, self.records.name, identity),
            "name": f"{job}/{label}",
            "job": job,
            "group": self.records.name,
            "tags": tuple(tag[:TAG_LENGTH] for tag in tags),
            "config": config,
        }

    def _config(self, cells: Cells, manifest: Manifest) -> dict[str, Any]:
        """What the cells behind a run have in common; None for what they do not."""
        first, select, train = cells[0], self._spec("select", cells[0]), self._spec("train", cells[0])
        selector = select.get("params", {}).get("selector", {})
        trained = manifest.stage["kind"] != "select"
        provenance = manifest.provenance
        return {
            "schema": SCHEMA,
            "sweep": self.records.name,
            "cell": first["label"] if len(cells) == 1 else None,
            "cell_key": first["key"] if len(cells) == 1 else None,
            **{k: first.get(k) if all(c.get(k) == first.get(k) for c in cells) else None for k in _FACTS},
            "method_version": selector.get("version"),
            "method_params": selector.get("config", {}),
            "method_distribution": selector.get("distribution"),
            "backbone_revision": train.get("params", {}).get("backbone") if trained else None,
            "recipe": train.get("params", {}).get("recipe", {}) if trained else {},
            "suite": self.records.suite.name,
            "metrics": {
                m.partition("@")[0]: metric_version(m, self.records.suite) for m in (REL_FULL, BEATS_RANDOM)
            },
            # The machine's name stays out: it is nobody's business on a shared server.
            **{k: provenance.get(k) for k in ("code", "packages", "python")},
            "inputs": self._inputs(first, manifest),
        }

    def _inputs(self, cell: Cell, manifest: Manifest) -> dict[str, Any]:
        """Lineage by artifact name and digest, because offline runs cannot declare what they use."""
        inputs: dict[str, Any] = {}
        kind = manifest.stage["kind"]
        for source, make in (("select", self._subset), ("train", self._checkpoint)):
            directory = self.store.by_key(source, cell[source])
            found = directory.manifest()
            if found is not None and kind not in ("select", source):
                artifact = make(directory, found)
                inputs[artifact.type] = {"name": artifact.name, "digest": artifact.digest}
        return inputs

    def _spec(self, kind: str, cell: Cell) -> dict[str, Any]:
        return dict(read_json(self.store.by_key(kind, cell[kind]).path / "spec.json") or {})

    def _subset(self, directory: StageDir, manifest: Manifest) -> ArtifactContent:
        settings: Any = manifest.stage["settings"]
        pool = str(settings["pool_path"])
        return ArtifactContent(
            name=artifact_name("subset", _label(manifest), manifest.key),
            type="subset",
            digest=digest(manifest.content),
            files=lambda scratch: subset_files(directory, pool, scratch),
            metadata=manifest.facts,
        )

    def _checkpoint(self, directory: StageDir, manifest: Manifest) -> ArtifactContent:
        files = {k: v for k, v in manifest.content.items() if k.startswith("model/")}
        return ArtifactContent(
            name=artifact_name("checkpoint", _label(manifest), manifest.key),
            type="model",
            digest=digest(files),
            references={k.removeprefix("model/"): directory.out / k for k in files},
            metadata={"sha256": {k.removeprefix("model/"): v for k, v in files.items()}},
        )

    def _answers(self, cell: Cell, done: Mapping[str, Manifest]) -> ArtifactContent:
        files = {
            f"{benchmark}/{name}": self._score_dir(cell, benchmark).out / name
            for benchmark, manifest in done.items()
            for name in manifest.content
        }
        return ArtifactContent(
            name=artifact_name("eval", cell["label"], cell["key"]),
            type="eval",
            digest=digest({benchmark: manifest.content for benchmark, manifest in done.items()}),
            files=lambda scratch: files,
        )

    def _overlap(self, cell: Cell) -> float | None:
        """Share of a selection that random of the same budget and seed keeps too; None where it is not there."""
        wanted = {k: cell[k] for k in ("budget", "seed", "pool")} | {"method": RANDOM}
        random = next((c for c in self.cells if all(c[k] == v for k, v in wanted.items())), None)
        if random is None or cell["method"] == RANDOM:
            return None
        try:
            mine, theirs = (
                np.load(self.store.by_key("select", c["select"]).out / "positions.npy") for c in (cell, random)
            )
        except FileNotFoundError:
            return None
        return float(np.isin(mine, theirs).mean())


def _cost(manifest: Manifest, prefix: str) -> dict[str, Scalar]:
    cost = manifest.cost
    return {
        f"{prefix}/wall_s": cost.wall_s,
        f"{prefix}/gpu_hours": cost.gpu_s / 3600,
        f"{prefix}/peak_rss_gb": cost.peak_rss_gb,
        f"{prefix}/attempts": cost.attempts,
    }


def _label(manifest: Manifest) -> str:
    """A stage's label without the kind that ends it: `length/5%/tiny/s0` of `length/5%/tiny/s0/train`."""
    return str(manifest.stage["label"]).removesuffix(f"/{manifest.stage['kind']}")
