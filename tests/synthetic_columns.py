"""Columns of feature passes without a model: of the real shapes and types, made from the samples' uids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from selector_zoo.passes.tokens import COLUMNS as TOKEN_COLUMNS

from harness.keys import mix64, seed64
from harness.pool import Pool


def synthetic(name: str, pool: Pool) -> dict[str, npt.NDArray[Any]]:
    """Columns of the shapes and types of a pass, made from the samples' uids."""
    noise = mix64(pool.column("uid_hash64"), seed64(name))
    if name == "tokens":
        return {c: (noise % (17 + i)).astype(np.int32) for i, c in enumerate(TOKEN_COLUMNS)}
    unit = (noise / 2.0**64).astype(np.float32)
    if name == "forward":
        counts = (noise % 9).astype(np.int32)
        some = np.where(counts > 0, unit, np.nan).astype(np.float32)
        hidden = np.stack([unit, 1 - unit, unit * unit], axis=1).astype(np.float16)
        return {"n_tok_ans": counts, "nll_sum_ans": 9 * some, "el2n_mean_ans": some, "hidden": hidden}
    if name == "deita":
        turns = np.where(np.arange(2) < (pool.column("n_turns") // 2)[:, None], 1 + noise[:, None] % 6, np.nan)
        return {"turns": turns.astype(np.float32)}
    if name == "mmssr_labels":
        digits = noise[:, None] >> np.arange(14, dtype=np.uint64)
        styles = np.full((pool.n, 10), -1, dtype=np.int8)
        styles[:, 0], styles[::2, 1] = noise % 4, 4 + noise[::2] % 5
        return {"scores": (digits % 6).astype(np.float32), "styles": styles}
    if name == "activations":
        rows = np.stack([mix64(noise, i) / 2.0**63 - 1 for i in range(16)], axis=1)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return {"feature": rows.astype(np.float16), "n_text": (noise % 9).astype(np.int32) - 1}
    if name == "gradients":
        rows = np.stack([mix64(noise, i) / 2.0**63 - 1 for i in range(64)], axis=1)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return {"gradient": rows.astype(np.float16), "norm": unit, "norm_projected": unit}
    return {"cosine": np.where(pool.column("n_images") > 0, unit, np.nan).astype(np.float32)}
