"""Hydra's complaints about a command line, said as sentences a user can act on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import MISSING

from harness.errors import HarnessError, unknown_name

_NOISE = ("full_key", "object_type", "In '", "Set the env", "reference_type", "See https")


def missing_option(error: Exception, options: list[str] | None) -> HarnessError:
    """A group option nobody provides (`selector=mmsr`), with the closest one."""
    found = re.search(r"Could not find '([^']+)'", str(error))
    if found is None or options is None:
        return complaint(error)
    group, _, name = found.group(1).rpartition("/")
    return unknown_name(group, name, [o for o in options if o not in ("base", "schema")])


def refuse_clashes(arguments: Sequence[str]) -> None:
    """Refuse a --config-dir with a folder named like a setting (`store`): Hydra would take it for a group."""
    from harness.config import RunSchema

    values = {
        f.name for f in dataclasses.fields(RunSchema) if f.default not in (dataclasses.MISSING, MISSING, None)
    }
    for folder in _config_dirs(arguments):
        for name in sorted(values):
            if (folder / name).is_dir():
                raise HarnessError(
                    f"{folder / name} is a folder in --config-dir with the name of a setting, so Hydra would look "
                    f"for '{name}=…' among its files: rename it, or keep your YAML in a folder without it."
                )


def _config_dirs(arguments: Sequence[str]) -> Iterator[Path]:
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, inline = flag.partition("=")
        if name in ("--config-dir", "-cd"):
            yield Path(inline if equals else value)


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
    unequal = re.search(r"Error parsing override '([^']+)'", text)
    if unequal is not None and "missing EQUAL" in text:
        return HarnessError(f"'{unequal.group(1)}' has no value: write {unequal.group(1).lstrip('-')}=VALUE.")
    unread = re.search(r"Error parsing override '(.+?)'\s|LexerNoViableAltException: (.+?)\s*\^", text)
    if unread is not None:
        said = unread.group(1) or unread.group(2)
        return HarnessError(f"'{said}' cannot be read: write KEY=VALUE, and quote a value with signs in it.")
    unfit = re.search(r"Error merging override (\S+?)=(.*)", lines[0] if lines else "")
    if unfit is not None:
        listed = f"; a list is written '{unfit.group(1)}=[a,b]'" if "ListConfig" in text else ""
        return HarnessError(f"{unfit.group(1)} cannot be '{unfit.group(2)}': {' '.join(lines[1:2])}{listed}")
    return HarnessError(" ".join(lines[:2]) or type(error).__name__)


def no_choice(error: ValueError) -> HarnessError | None:
    """A group given a number or null (`pool=5`), which Hydra says without naming it; None for other errors."""
    if not str(error).startswith("Config group override must be"):
        return None
    groups = "pool, selector, backbone, recipe, suite, executor, tracking and sweep"
    return HarnessError(
        f"{groups} are given by a name, such as selector=random: one of them has a number or null."
    )


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
