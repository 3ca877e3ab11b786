"""Keys: the hash of what a stage means, and the hashes that randomness is derived from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.types import Budget, Json, Stage

SHORT = 12
"""Hex digits of a key that name a directory."""

_MASK = (1 << 64) - 1


def plain(value: Any) -> Json:
    """Turn a value into JSON that has one spelling, leaving out dataclass fields marked as outside the key.

    Raises TypeError for what has no canonical form, and ValueError for NaN and infinities.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Budget | Fraction):
        return str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of a key")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_dataclass(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [plain(v) for v in value]
    raise TypeError(f"{type(value).__name__} has no canonical form; give it one before it enters a key")


def default_of(f: dataclasses.Field[Any]) -> Any:
    """What a dataclass field is where nothing is given; MISSING where it must be."""
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def _plain_dataclass(value: Any) -> Json:
    out: dict[str, Json] = {}
    for f in dataclasses.fields(value):
        if f.metadata.get("key") is False:
            continue
        item = plain(getattr(value, f.name))
        if f.metadata.get("omit_default") and item == plain(default_of(f)):
            continue
        out[f.name] = item
    return out


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, `1.0` written as `1`."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (64 hex digits) of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def stage_key(stage: Stage) -> str:
    """The full key of a stage: sha256 over kind, version, params and the keys of its inputs."""
    return digest({"kind": stage.kind, "version": stage.version, "params": stage.params, "inputs": stage.inputs})


def short(key: str) -> str:
    return key[:SHORT]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def tree_digest(root: Path, *, exclude: Sequence[str] = ()) -> str:
    """sha256 over the relative names and contents of all files below `root` (names in `exclude` left out)."""
    h = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = path.relative_to(root).as_posix()
        if path.name in exclude or "__pycache__" in path.parts:
            continue
        h.update(name.encode() + b"\0" + file_digest(path).encode() + b"\n")
    return h.hexdigest()


def uid_hash64(uid: str) -> int:
    """64-bit blake2b of a sample's uid; stored in every pool as `uid_hash64`."""
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "little")


def seed64(*parts: str | int) -> int:
    """A 64-bit seed derived from names and numbers."""
    text = "\0".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix64(values: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """A well-mixed 64-bit hash of `values ^ seed` (splitmix64's finaliser), elementwise.

    Ranking by it is a seeded random order that does not depend on how the values are arranged.
    """
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) ^ np.uint64(seed & _MASK)
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def seeded_order(values: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.int64]:
    """Positions by the seeded hash of their values, equal ones by position: a stable argsort of `mix64`.

    Sorts hashes whose low bits are replaced by the position, which is several times faster than sorting positions,
    and then sorts anew what is all but sorted, so that the low bits count after all.
    """
    hashes = mix64(values, seed)
    low = np.uint64((1 << len(hashes).bit_length()) - 1)
    mixed = np.sort((hashes & ~low) | np.arange(len(hashes), dtype=np.uint64)) & low
    order = mixed.astype(np.int64)
    return order[np.argsort(hashes[order], kind="stable")]
