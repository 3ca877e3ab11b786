"""The one error class for what a user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """A mistake the user can fix: its message says what is wrong, where, and what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> HarnessError:
    """The error for a name that is not registered, with the closest registered one."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return HarnessError(f"{kind} '{name}' is not known. Known: {listed}.{hint}")
