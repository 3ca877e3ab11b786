"""Which tracker, and where it sends what it is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from harness.errors import unknown_name

Name = Literal["none", "wandb", "jsonl"]
Mode = Literal["offline", "online"]
NAMES: Final[tuple[str, ...]] = get_args(Name)
MODES: Final[tuple[str, ...]] = get_args(Mode)

_OLD_MODES: Final[Mapping[str, str]] = {"dryrun": "offline", "run": "online"}
"""Spellings that W&B still accepts in WANDB_MODE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """What is done with a sweep once it is reported; nothing of it can change a result.

    Raises HarnessError for an unknown tracker or mode.
    """

    name: str = "none"
    """`none`, `jsonl` or `wandb`."""
    project: str = "sievebench"
    """W&B's project."""
    entity: str = ""
    """W&B's user or team; the account's own where empty."""
    mode: str = ""
    """`offline` or `online`; where empty WANDB_MODE decides, and without it `offline`."""
    timeout_s: float = 900.0
    """Seconds after which a push is stopped."""

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise unknown_name("tracker", self.name, NAMES)
        if self.mode and self.mode not in MODES:
            raise unknown_name("W&B mode", self.mode, MODES)

    def resolved_mode(self) -> str:
        """The mode to use: never left to W&B, which would ask for a login.

        `disabled` can only come from WANDB_MODE. Raises HarnessError where WANDB_MODE is none W&B knows.
        """
        said = self.mode or os.environ.get("WANDB_MODE", "") or "offline"
        mode = _OLD_MODES.get(said, said)
        if mode not in (*MODES, "disabled"):
            raise unknown_name("W&B mode", mode, (*MODES, "disabled"))
        return mode
