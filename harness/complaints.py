"""Hydra's complaints about a command line, said as sentences a user can act on."""

from __future__ import annotations

import dataclasses
import re

from harness.errors import HarnessError, unknown_name

_NOISE = ("full_key", "object_type", "In '", "Set the env", "reference_type", "See https")


def missing_option(error: Exception, options: list[str] | None) -> HarnessError:
    """A group option nobody provides (`selector=mmsr`), with the closest one."""
    found = re.search(r"Could not find '([^']+)'", str(error))
    if found is None or options is None:
        return complaint(error)
    group, _, name = found.group(1).rpartition("/")
    return unknown_name(group, name, [o for o in options if o not in ("base", "schema")])


def complaint(error: BaseException) -> HarnessError:
    """Any other complaint of Hydra or OmegaConf."""
    lines = _lines(error)
    text = " ".join(lines)
    override = re.search(r"Could not override '([^']+)'", text)
    if override is not None:
        return _no_setting(override.group(1), _lines(error.__cause__))
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous is not None:
        return HarnessError(f"'{ambiguous.group(1)}' names several values: add -m to sweep over them.")
    return HarnessError(" ".join(lines[:2]) or type(error).__name__)


def _lines(error: BaseException | None) -> list[str]:
    """What a message says, without the lines meant for debugging."""
    if error is None:
        return []
    own = [line.strip() for line in str(error).splitlines()]
    told = [line for line in own if line and not line.startswith(_NOISE)]
    return list(dict.fromkeys([*told, *_lines(error.__cause__)]))


def _no_setting(key: str, cause: list[str]) -> HarnessError:
    if "." not in key:
        from harness.config import RunSchema

        return unknown_name("setting", key, [f.name for f in dataclasses.fields(RunSchema)])
    why = f" ({cause[0]})" if cause else ""
    return HarnessError(f"there is no setting '{key}'{why}: 'python -m harness --cfg job' lists all settings.")
