"""Pushing in a process of its own: W&B's service, hooks and hangs stay out of the one that runs experiments."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from harness.errors import HarnessError
from harness.store import Store
from harness.tracking.push import PushResult, target_of
from harness.tracking.settings import Tracking


class PushError(HarnessError):
    """A push that failed; the store is as it was, and a later push goes on where this one stopped."""


def push_apart(store: Store, name: str, tracking: Tracking, *, force: bool = False) -> PushResult:
    """`push` in a child process for at most `tracking.timeout_s` seconds; it prints to STORE/wandb/push.log.

    Raises HarnessError where the push fails in whatever way.
    """
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
            raise PushError(f"W&B did not finish within {tracking.timeout_s:g} s (see {log}).") from None
    answer = _answer(done.stdout)
    if "result" in answer:
        return PushResult(**answer["result"])
    raise PushError(answer.get("error", f"pushing to W&B ended with status {done.returncode} (see {log})."))


def _answer(output: bytes) -> dict[str, Any]:
    """The child's last line; empty where it died before it could say anything."""
    lines = output.decode(errors="replace").splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
