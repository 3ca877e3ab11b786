"""The child process of `harness.tracking.apart`: one request as argument, one line of JSON as answer."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict

from harness.errors import HarnessError
from harness.store import Store
from harness.tracking.push import push
from harness.tracking.settings import Tracking


def main() -> int:
    """Push what the request names; returns the exit status."""
    request = json.loads(sys.argv[1])
    tracking = Tracking(**request["tracking"])
    try:
        result = push(Store(request["store"]), request["sweep"], tracking, force=request["force"])
    except HarnessError as e:
        return _say({"error": str(e)}, 2)
    except Exception as e:
        traceback.print_exc()  # into push.log
        error = f"W&B failed ({type(e).__name__}: {' '.join(str(e).split())})."
        return _say({"error": error, "unreachable": _unreachable(e, tracking)}, 1)
    return _say({"result": asdict(result)}, 0)


def _unreachable(error: Exception, tracking: Tracking) -> bool:
    """Whether it was the way to the server that failed: no account, no network, no answer."""
    from harness.tracking.wandb_run import library

    return tracking.resolved_mode() == "online" and isinstance(error, library().errors.Error)


def _say(answer: dict[str, object], status: int) -> int:
    print(json.dumps(answer), flush=True)
    return status


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    if status:
        os._exit(status)  # W&B's exit hooks would wait for a service that is gone or never gets through
