"""Settings that some selectors cannot do without, or not be tried quickly, and the small real things they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from selector_zoo.prompts import CAPABILITIES, STYLES


def mmssr_labels(folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """A label file with ties, unknown scores, and samples of one, two and no styles; one sample is not in it."""
    rows = []
    for uid in list(uids)[1:]:
        rng = np.random.default_rng(list(uid.encode()))
        scores = rng.integers(0, 6, len(CAPABILITIES)).tolist()
        said = rng.permutation(STYLES)[: rng.integers(0, 3)].tolist()
        rows.append({"uid": uid, "styles": said, **dict(zip(CAPABILITIES, [None, *scores[1:]], strict=True))})
    file = folder / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"labels": str(file)}


def narrow_gradients(folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """Gradients in fewer numbers."""
    return {"width": 256}


NEEDED: Mapping[str, Callable[[Path, Sequence[str]], dict[str, Any]]] = {"icons": narrow_gradients, "mmssr": mmssr_labels}


def needed(name: str, folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """Settings without which a selector does not run, made below `folder` for samples of these uids."""
    return NEEDED[name](folder, uids) if name in NEEDED else {}
