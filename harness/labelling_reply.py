"""What a teacher replies, read: fourteen whole numbers and a list of styles, or a reason why it is no label."""

from __future__ import annotations

import json
from typing import Any

from selector_zoo.passes.mmssr_answers import label_score, normal_styles
from selector_zoo.prompts import CAPABILITIES, STYLES


class NoLabel(Exception):
    """A reply that is not a label; `reason` is one of a few words, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def parse_reply(text: str) -> dict[str, Any]:
    """The label in a reply: a number a capability, and `styles` as a comma-separated text.

    Text round the JSON object is overlooked; what is in it is not: raises NoLabel unless every score is a whole
    number from 0 to 5 and every style, of which there is at least one, is one of the nine.
    """
    said = {str(key).strip().lower(): value for key, value in _object(text).items()}
    return {capability: _score(said, capability) for capability in CAPABILITIES} | {"styles": _styles(said)}


def _object(text: str) -> dict[str, Any]:
    start = text.find("{")
    if start < 0:
        raise NoLabel("no_json", "it has no JSON object")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
    except json.JSONDecodeError as e:
        raise NoLabel("no_json", f"its JSON is broken ({e.msg})") from None
    return dict(value)


def _score(said: dict[str, Any], capability: str) -> int:
    try:
        score = label_score(said.get(capability))
    except ValueError as e:
        raise NoLabel("bad_score", f"'{capability}' is {e}") from None
    if score is None:
        raise NoLabel("missing_score", f"'{capability}' has no score")
    return score


def _styles(said: dict[str, Any]) -> str:
    raw = said.get("styles")
    named = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(named, list) or not named or not all(isinstance(n, str) and n.strip() for n in named):
        raise NoLabel("no_styles", "'styles' is no list of at least one style")
    for name in named:
        if normal_styles([name]) == ("other",):
            raise NoLabel("unknown_style", f"'{name.strip()[:40]}' is none of {', '.join(STYLES)}")
    return ", ".join(normal_styles(named))
