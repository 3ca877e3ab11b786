"""The store: one directory a stage, named by its key; it is complete when its manifest exists.

    STORE/<kind>/<12 hex digits>/
        spec.json            what the stage means, written first
        partial/             survives failures: checkpoints, shards, journals
        out/                 the result
        log.txt              everything the stage's process printed
        claim-NNNN.json      leases (see harness.leases)
        attempts/NNNN.json   every attempt: outcome, message, log tail, cost
        manifest.json        written last: digests of out/, cost, provenance
    STORE/sweeps/<name>.json what was asked for, written when a sweep is planned

Nothing else is remembered anywhere: status is a pure function of these files, and deleting a directory means
"again".
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness import leases
from harness.errors import HarnessError
from harness.files import ensure_writable, read_json, write_json
from harness.keys import file_digest, plain, short, stage_key
from harness.types import Cost, Json, Stage

Status = Literal["done", "running", "failed", "interrupted", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a stage, as it ended (or as it stands, for `outcome="started"`)."""

    number: int
    outcome: Literal["started", "done", "failed", "released"]
    kind: str = ""
    """Class of failure: user, oom, preempted, killed, error."""
    message: str = ""
    log_tail: str = ""
    cost: Cost = field(default_factory=Cost)
    host: str = ""
    pid: int = 0
    started: float = 0.0
    """Unix time."""
    gpus: int = 0
    """GPUs it held, so that an attempt that was killed can be charged for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The proof that a stage is complete, and what it took."""

    key: str
    stage: Mapping[str, Json]
    outputs: Mapping[str, str]
    """Relative file name to sha256."""
    cost: Cost
    facts: Mapping[str, Json]
    """Small results of the stage worth reading without opening `out/`."""
    provenance: Mapping[str, Json]
    finished: float

    @property
    def content(self) -> dict[str, str]:
        return dict(self.outputs)


class StageDir:
    """One stage's directory."""

    def __init__(self, root: Path, key: str, kind: str) -> None:
        self.key = key
        self.path = root / kind / short(key)

    @property
    def out(self) -> Path:
        return self.path / "out"

    @property
    def partial(self) -> Path:
        return self.path / "partial"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def manifest(self) -> Manifest | None:
        raw = read_json(self.path / "manifest.json")
        if raw is None:
            return None
        if raw["key"] != self.key:
            raise HarnessError(f"{self.path} holds a stage with another key: move it away and run again.")
        return Manifest(**(raw | {"cost": Cost(**raw["cost"])}))

    def done(self) -> bool:
        return (self.path / "manifest.json").exists()

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        files = sorted((self.path / "attempts").glob("*.json"))
        raws = [raw for raw in map(read_json, files) if raw]
        return [Attempt(**(raw | {"cost": Cost(**raw["cost"])})) for raw in raws]

    def write_attempt(self, attempt: Attempt) -> None:
        write_json(self.path / "attempts" / f"{attempt.number:04d}.json", asdict(attempt))

    def status(self) -> Status:
        """What the files say: done, running (a live owner), failed, interrupted (owner gone), missing."""
        if self.done():
            return "done"
        if leases.holder(self.path) is not None:
            return "running"
        attempts = self.attempts()
        if not attempts or attempts[-1].outcome == "released":
            return "missing"
        return "failed" if attempts[-1].outcome == "failed" else "interrupted"

    def cost(self) -> Cost:
        """What all attempts so far have used, failed ones included."""
        return sum((a.cost for a in self.attempts()), Cost())

    def begin(self, stage: Stage) -> None:
        """Write what the stage means, before anything else of it exists."""
        self.partial.mkdir(parents=True, exist_ok=True)
        if not (self.path / "spec.json").exists():
            write_json(self.path / "spec.json", stage_json(stage))

    def fresh_out(self) -> Path:
        """An empty `out/` for a new attempt."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        return self.out

    def commit(self, stage: Stage, facts: Mapping[str, Json], provenance: Mapping[str, Json]) -> Manifest:
        """Declare `out/` complete: digest it and write the manifest.

        A different earlier result under the same key is kept and reported: `conflict-<digest>.json` beside it
        says which files differ.
        """
        outputs = {
            p.relative_to(self.out).as_posix(): file_digest(p) for p in sorted(self.out.rglob("*")) if p.is_file()
        }
        manifest = Manifest(
            key=self.key,
            stage=stage_json(stage),
            outputs=outputs,
            cost=self.cost(),
            facts=dict(facts),
            provenance=dict(provenance),
            finished=time.time(),
        )
        previous = read_json(self.path / "previous.json")
        if previous is not None and previous != outputs:
            changed = sorted(k for k in outputs.keys() | previous.keys() if outputs.get(k) != previous.get(k))
            write_json(self.path / f"conflict-{int(time.time())}.json", {"differs": changed, "before": previous})
        write_json(self.path / "manifest.json", asdict(manifest))
        leases.clear(self.path)
        shutil.rmtree(self.partial, ignore_errors=True)
        return manifest

    def conflicts(self) -> list[Path]:
        """Reports of a recomputation that gave another result than before."""
        return sorted(self.path.glob("conflict-*.json"))

    def forget(self) -> None:
        """Take back the manifest, so that the stage runs again; its digests stay for comparison."""
        manifest = self.manifest()
        if manifest is not None:
            write_json(self.path / "previous.json", manifest.content)
            (self.path / "manifest.json").unlink()


class Store:
    """A folder of stage directories; safe to share between processes and machines."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()  # stages may change the working folder

    def create(self) -> Store:
        ensure_writable(self.root)
        return self

    def at(self, stage: Stage) -> StageDir:
        return StageDir(self.root, stage_key(stage), stage.kind)

    def by_key(self, kind: str, key: str) -> StageDir:
        return StageDir(self.root, key, kind)

    def input(self, stage: Stage, name: str) -> StageDir:
        """The directory of one of a stage's inputs; its kind is the part of the name before a dot."""
        return StageDir(self.root, stage.inputs[name], name.split(".")[0])

    def stages(self) -> Iterator[StageDir]:
        """Every stage directory that says what it means."""
        for spec in sorted(self.root.glob("*/*/spec.json")):
            raw = read_json(spec)
            if raw:
                yield StageDir(self.root, raw["key"], spec.parent.parent.name)

    def write_sweep(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(self.root / "sweeps" / f"{name}.json", dict(content))

    def sweep(self, name: str) -> dict[str, Any]:
        """What a sweep asked for.

        Raises HarnessError where the store has no such sweep.
        """
        raw = read_json(self.root / "sweeps" / f"{name}.json")
        if raw is None:
            known = ", ".join(self.sweeps()) or "none"
            raise HarnessError(f"store {self.root} has no sweep '{name}'. It has: {known}.")
        return dict(raw)

    def sweeps(self) -> list[str]:
        return sorted(p.stem for p in (self.root / "sweeps").glob("*.json"))


def stage_json(stage: Stage) -> dict[str, Any]:
    """A stage as its spec.json says it; `settings` are kept for the record but are not part of the key."""
    return {
        "key": stage_key(stage),
        "kind": stage.kind,
        "version": stage.version,
        "params": plain(stage.params),
        "inputs": dict(stage.inputs),
        "settings": plain(stage.settings),
        "label": stage.label,
    }


def stage_from_json(raw: Mapping[str, Any]) -> Stage:
    """The inverse of `stage_json`."""
    return Stage(
        kind=raw["kind"],
        version=raw["version"],
        params=raw["params"],
        inputs=raw["inputs"],
        settings=raw["settings"],
        label=raw["label"],
    )
