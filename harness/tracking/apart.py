"""Pushing in a process of its own: W&B's service, hooks and hangs stay out of the one that runs experiments."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

from harness.errors import HarnessError
from harness.store import Store
from harness.tracking.push import PushResult, target_of
from harness.tracking.settings import Tracking


class PushError(HarnessError):
    """A push that failed; the store is as it was, and a later push goes on where this one stopped."""


def push_apart(store: Store, name: str, tracking: Tracking, *, force: bool = False) -> PushResult:
    """`push` in a child process for at most `tracking.timeout_s` seconds; it prints to STORE/wandb/push.log.

    Where W&B's server cannot be reached the runs are written offline, by a second child: the first one's service
    would go on trying, and let nobody else have the runs. Raises HarnessError where the push fails otherwise.
    """
    answer = _child(store, name, tracking, force)
    note = ""
    if answer.get("unreachable"):
        note = f"{answer['error']} The runs were written offline."
        answer = _child(store, name, replace(tracking, mode="offline"), force)
    if "result" not in answer:
        raise PushError(answer["error"])
    return replace(PushResult(**answer["result"]), note=note)


def _child(store: Store, name: str, tracking: Tracking, force: bool) -> dict[str, Any]:
    """What a child says: `result`, or `error` and whether the server was `unreachable`."""
    log = target_of(store, tracking).folder / "push.log"
    request = json.dumps({"store": str(store.root), "sweep": name, "tracking": asdict(tracking), "force": force})
    with log.open("wb") as err:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "harness.tracking", request],
                stdin=subprocess.DEVNULL,  # nobody is there to answer a login prompt
                stdout=subprocess.PIPE,
                stderr=err,
                timeout=tracking.timeout_s,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"W&B did not finish within {tracking.timeout_s:g} s (see {log})."}
    return _answer(done.stdout) or {"error": f"pushing to W&B ended with status {done.returncode} (see {log})."}


def _answer(output: bytes) -> dict[str, Any]:
    """The child's last line; empty where it died before it could say anything."""
    lines = output.decode(errors="replace").splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
