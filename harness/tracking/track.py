"""What a run calls when it is finished: whatever a tracker does, the run has ended as it has."""

from __future__ import annotations

from harness.store import Store
from harness.tracking.settings import Tracking


def track(store: Store, name: str, tracking: Tracking) -> str:
    """Show a sweep to the chosen tracker; returns one sentence about it, a warning where that failed.

    Never raises an Exception: a tracker may be missing, full, killed or slow, and the results are in the store.
    """
    try:
        return _track(store, name, tracking)
    except Exception as e:
        return (
            f"warning: sweep '{name}' was not pushed to {tracking.name}, its results are complete: {_sentence(e)}"
        )


def _track(store: Store, name: str, tracking: Tracking) -> str:
    if tracking.name == "none":
        return ""
    if tracking.name == "jsonl":
        from harness.tracking.jsonl import write_jsonl

        return f"Tracked: {write_jsonl(store, name)}"
    from harness.tracking.apart import push_apart

    return push_apart(store, name, tracking).sentence(store)


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if type(error).__module__ == "builtins" else str(error)
