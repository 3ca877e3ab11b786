"""Executors: how a job becomes a process. The seam is `submit`, `poll`, `cancel`, `close`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.registry import feature_pass
from harness.store import Store, stage_json
from harness.types import Stage
from harness.worker import Job

PRELOAD: Mapping[str, tuple[str, ...]] = {
    "light": ("harness.worker", "harness.stages.select"),
    "train": ("harness.worker", "llava_train.preload"),
    # lmms_eval changes torch.distributed's defaults on import, so evaluation keeps a server of its own.
    "evaluate": ("harness.worker", "harness.evaluation.preload"),
}
"""What each fork server imports before its first job."""

FLAVOUR: Mapping[str, str] = {
    "features": "train",
    "lessons": "light",
    "score": "light",
    "select": "light",
    "train": "train",
    "evaluate": "evaluate",
    "judge": "evaluate",
}
"""The fork server each stage kind runs in."""


ON_DEVICE = ("features", "score", "train", "evaluate")
"""Stage kinds that compute on a GPU where there is one; what draws, cuts and compares is work for processors."""

QUIET: Mapping[str, str] = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers draws a bar for every model it loads, too
    "DEEPSPEED_LOG_LEVEL": "error",
    "PYTHONWARNINGS": "ignore",
}
"""What keeps libraries from talking; most of them look once, when they are imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job that is over; `exit` is its status, negative for the signal that ended it."""

    job: Job
    exit: int


class Executor(Protocol):
    """Runs jobs somewhere; results are read from the store, never from the executor."""

    def free(self, job: Job) -> bool:
        """Whether this job can be submitted now."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def poll(self, timeout: float) -> list[Ended]:
        """Jobs that ended, waiting at most `timeout` seconds for one."""

    def cancel(self) -> None:
        """End all running jobs at once."""

    def close(self) -> None:
        """Give everything back."""


@dataclass(slots=True)
class _Server:
    """The harness's end of one fork server."""

    process: subprocess.Popen[bytes]
    answers: int
    buffer: bytes = b""
    ready: bool = False

    @classmethod
    def start(cls, flavour: str, env: Mapping[str, str], log: Path) -> _Server:
        read, write = os.pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as f:
            process = subprocess.Popen(
                [sys.executable, "-m", "harness.forkserver", str(write), *PRELOAD[flavour]],
                stdin=subprocess.PIPE,
                stdout=f,
                stderr=f,
                pass_fds=(write,),
                env=dict(env),
                start_new_session=True,  # Ctrl-C is the scheduler's to handle
            )
        os.close(write)
        os.set_blocking(read, False)
        return cls(process=process, answers=read)

    def send(self, message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> list[dict[str, object]]:
        try:
            chunk = os.read(self.answers, 1 << 20)
        except BlockingIOError:
            return []
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def stop(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.answers)


def quiet_environment(threads: int, device: str) -> dict[str, str]:
    """The environment of fork servers: everything read at import time is set here, once."""
    env = dict(os.environ)
    env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = env["OPENBLAS_NUM_THREADS"] = str(threads)
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling the libraries anew costs every server ten seconds
    env = {**QUIET, **env}
    if device == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
    bin_dir = str(Path(sys.executable).parent)  # ninja lives here when the environment is not activated
    env["PATH"] = f"{bin_dir}{os.pathsep}{env.get('PATH', '')}"
    return env


@dataclass(slots=True)
class LocalExecutor:
    """Jobs on this machine, each with a fixed number of threads.

    Those that use a device run one on each GPU, a pass of several processes on as many as are free; all others
    `slots` at a time, beside them; without GPUs all share the slots.
    """

    store: Store
    slots: int
    threads: int = 1
    gpus: Sequence[int] = ()
    _servers: dict[str, _Server] = field(default_factory=dict)
    _running: dict[str, tuple[Job, str, tuple[int, ...]]] = field(default_factory=dict)
    _ended: deque[Ended] = field(default_factory=deque)
    _count: int = 0

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def warm(self, kinds: Sequence[str]) -> None:
        """Start the servers that jobs of these kinds will need, so that they import side by side."""
        for kind in kinds:
            self._server(FLAVOUR[kind])

    def free(self, job: Job) -> bool:
        if self._gpus_wanted(job):
            return bool(self._free_gpus())
        return sum(not gpus for _, _, gpus in self._running.values()) < self.slots

    def submit(self, job: Job) -> None:
        flavour = FLAVOUR[job.stages[0].kind]
        gpus = self._free_gpus()[: self._gpus_wanted(job)]
        self._count += 1
        job_id = f"{self._count}"
        env = dict(job.env)
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        directory = self.store.at(job.stages[0])
        directory.path.mkdir(parents=True, exist_ok=True)
        request = {
            "id": job_id,
            "log": str(directory.log.resolve()),
            "env": env,
            "store": str(self.store.root.resolve()),
            "job": {
                "name": job.name,
                "stages": [stage_json(s) for s in job.stages],
                "threads": self.threads,
                "device": "cuda" if gpus else "cpu",
                "gpus": len(gpus),
                "env": {},
            },
        }
        self._running[job_id] = (job, flavour, gpus)
        self._server(flavour).send(request)

    def poll(self, timeout: float) -> list[Ended]:
        deadline = time.monotonic() + timeout
        while True:
            self._listen()
            if self._ended or time.monotonic() >= deadline:
                ended = list(self._ended)
                self._ended.clear()
                return ended
            time.sleep(0.02)

    def cancel(self) -> None:
        for job_id, (_, flavour, _gpus) in list(self._running.items()):
            self._server(flavour).send({"kill": job_id})

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()

    def _server(self, flavour: str) -> _Server:
        if flavour not in self._servers:
            env = quiet_environment(self.threads, self.device)
            log = self.store.root / "logs" / f"{flavour}-server.txt"
            self._servers[flavour] = _Server.start(flavour, env, log)
        return self._servers[flavour]

    def _gpus_wanted(self, job: Job) -> int:
        """One, or one a process of a pass; none for what computes on none, and where there are none."""
        if not self.gpus or not any(_on_device(stage) for stage in job.stages):
            return 0
        return max(int(str(stage.settings.get("processes", 1))) for stage in job.stages)

    def _free_gpus(self) -> tuple[int, ...]:
        used = {gpu for _, _, gpus in self._running.values() for gpu in gpus}
        return tuple(gpu for gpu in self.gpus if gpu not in used)

    def _listen(self) -> None:
        for flavour, server in list(self._servers.items()):
            for message in server.receive():
                if "exit" in message:
                    job, _, _ = self._running.pop(str(message["id"]))
                    self._ended.append(Ended(job=job, exit=int(str(message["exit"]))))
            if server.process.poll() is not None:
                self._lose(flavour)

    def _lose(self, flavour: str) -> None:
        """A server died (and its jobs with it): report them as killed; the next submit starts a new one."""
        del self._servers[flavour]
        for job_id, (job, owner, _gpus) in list(self._running.items()):
            if owner == flavour:
                del self._running[job_id]
                self._ended.append(Ended(job=job, exit=-signal.SIGKILL))


def _on_device(stage: Stage) -> bool:
    """Whether a stage computes on a GPU; a pass that needs no weights has nothing to put there."""
    if stage.kind == "features":
        return bool(feature_pass(str(stage.params["pass"])).cls.identity == "weights")
    return stage.kind in ON_DEVICE


def local_slots(threads: int) -> int:
    """How many stages fit side by side on this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, threads))


def visible_gpus() -> list[int]:
    """Numbers of the GPUs jobs may use, found without initialising CUDA."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [int(x) for x in listed.split(",") if x.strip().isdigit()]
    return list(range(len(list(Path("/proc/driver/nvidia/gpus").glob("*")))))
