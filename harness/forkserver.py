"""A server that has imported the heavy libraries once and forks a process for every job.

Run as `python -m harness.forkserver FD MODULE...`: it imports the modules, then reads one JSON request a line
from stdin and answers on file descriptor FD with `{"id", "pid"}` when a job has started and `{"id", "exit"}`
when it has ended (negative: by that signal). It never initialises CUDA, so a forked job can. End of stdin, or
the death of whoever started it, ends it and all of its jobs.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.provenance import provenance

PR_SET_PDEATHSIG = 1
POLL_S = 0.02


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(answers: int, modules: list[str]) -> None:
    """Import, then fork a process per request until stdin ends."""
    die_with_parent()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:  # a job that needs it will say why, with its own log
            traceback.print_exc()
    provenance()  # asked of git once here, not by every job
    _freeze()
    _say(answers, {"ready": os.getpid()})
    children: dict[int, str] = {}
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], POLL_S if children else 1.0)
        if readable:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                _handle(json.loads(line), children, answers)
        _reap(children, answers)
    for pid in children:
        _kill(pid)


def _freeze() -> None:
    """Keep the collector from touching (and so copying) the pages shared with children."""
    import gc

    gc.collect()
    gc.freeze()


def _handle(request: dict[str, Any], children: dict[int, str], answers: int) -> None:
    if "kill" in request:
        for pid, name in children.items():
            if name == request["kill"]:
                _kill(pid)
        return
    pid = os.fork()
    if pid == 0:
        _child(request, answers)
    children[pid] = request["id"]
    _say(answers, {"id": request["id"], "pid": pid})


def _reap(children: dict[int, str], answers: int) -> None:
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            _say(answers, {"id": children.pop(pid), "exit": code})


def _say(answers: int, message: dict[str, Any]) -> None:
    # Nobody listens any more: the end of stdin follows.
    with contextlib.suppress(BrokenPipeError):
        os.write(answers, json.dumps(message).encode() + b"\n")


def _kill(pid: int) -> None:
    """Kill a job and what it started (it leads a process group of its own)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _child(request: dict[str, Any], answers: int) -> None:
    """Become the job: own process group, own log, own environment; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        die_with_parent()
        os.close(answers)
        _redirect(Path(request["log"]))
        os.environ.update(request["env"])
        code = _work(request)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(path: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)


def _work(request: dict[str, Any]) -> int:
    from harness.store import Store, stage_from_json
    from harness.worker import Job, run_job

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    raw = request["job"]
    job = Job(**(raw | {"stages": tuple(stage_from_json(s) for s in raw["stages"])}))
    limit_threads(job.threads)
    # Every stage has a log of its own, although they share the process.
    outcomes = run_job(Store(request["store"]), job, before=lambda directory: _redirect(directory.log))
    return 0 if all(o == "done" for o in outcomes.values()) else 3


def limit_threads(threads: int) -> None:
    """Fix the number of threads, so that results do not depend on what else the machine is doing."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    else:
        os.environ["OMP_NUM_THREADS"] = str(threads)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
