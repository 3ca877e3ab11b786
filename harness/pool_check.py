"""What a record must be before it enters a pool; everything else is set aside with a reason."""

from __future__ import annotations

import hashlib
import io
import reprlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from harness.pool import IMAGE_TOKEN

MAX_PIXELS = 120_000_000
"""More pixels than this in one image is taken for a decompression bomb."""

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""More than 8 bits a channel: PIL's conversion to RGB clips them, so training would see white or black."""

MAX_TURNS = 32_000
"""More turns or images than this in one record do not fit a pool's columns."""


MAX_CHARACTERS = 1_000_000
"""More text than this in one record is many times what any model reads, and takes minutes to tokenise."""

NONE: tuple[object, ...] = (None, "", [])
"""What stands for no image."""

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60


class Rejected(Exception):
    """A record that cannot be used; `reason` is one of a fixed set of words, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecord:
    uid: str
    source: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    height: int
    width: int
    digest: bytes


def check_record(raw: Any, position: int, default_source: str = "") -> CheckedRecord:
    """Read one LLaVA-format record, raising Rejected for what training could not use."""
    if not isinstance(raw, dict):
        raise Rejected("not_an_object", type(raw).__name__)
    uid = raw.get("id", raw.get("idx", position))
    if not isinstance(uid, str | int) or isinstance(uid, bool) or not str(uid).strip():
        raise Rejected("bad_id", _SHOWN.repr(uid))
    if raw.get("video") or raw.get("videos"):
        raise Rejected("video", "without it the question would be another one")
    images = _image_keys(raw.get("images") if raw.get("image") in NONE else raw.get("image"))
    turns = _turns(raw.get("conversations"))
    placeholders = sum(text.count(IMAGE_TOKEN) for _, text in turns)
    if images and placeholders != len(images):
        raise Rejected("image_count", f"{len(images)} images, {placeholders} {IMAGE_TOKEN}")
    source = raw.get("image_source") or raw.get("data_source") or _first_folder(images) or default_source
    if not isinstance(source, str | int) or isinstance(source, bool):
        raise Rejected("non_string", f"source {_SHOWN.repr(source)}")
    _check_texts(str(uid), str(source), *images, *(text for _, text in turns))
    return CheckedRecord(uid=str(uid), source=str(source), turns=turns, images=images)


def said_uid(raw: Any) -> str:
    """What a record that cannot be used calls itself."""
    uid = raw.get("id", "") if isinstance(raw, dict) else ""
    return uid[:200] if isinstance(uid, str) else _SHOWN.repr(uid)


def _check_texts(*texts: str) -> None:
    """JSON can spell halves of characters (`\\ud800`), which no file can hold, and NUL, which ends names."""
    joined = "".join(texts)
    if len(joined) > MAX_CHARACTERS:
        raise Rejected("too_long", f"{len(joined)} characters")
    if "\0" in joined:
        raise Rejected("nul_byte")
    try:
        joined.encode()
    except UnicodeEncodeError as e:
        raise Rejected("not_unicode", e.reason) from None


def _first_folder(images: Sequence[str]) -> str:
    parts = PurePosixPath(images[0]).parts if images else ()  # without the "." of "./a.png"
    return parts[0] if len(parts) > 1 else ""


def _image_keys(raw: Any) -> tuple[str, ...]:
    if raw in NONE:
        return ()
    keys = tuple(raw) if isinstance(raw, list) else (raw,)
    if len(keys) > MAX_TURNS:
        raise Rejected("too_many_images", str(len(keys)))
    for key in keys:
        if not isinstance(key, str) or "\0" in key:
            raise Rejected("bad_image_path", _SHOWN.repr(key))
        if key.startswith("/") or ".." in key.split("/"):
            raise Rejected("escaping_path", key[:200])
    return keys


def _turns(raw: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, list) or not raw:
        raise Rejected("no_turns")
    if len(raw) > MAX_TURNS:
        raise Rejected("too_many_turns", str(len(raw)))
    turns: list[tuple[str, str]] = []
    for t in raw:
        role, text = (t.get("from"), t.get("value")) if isinstance(t, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise Rejected("non_string", f"turn {_SHOWN.repr(t)} has not the texts 'from' and 'value'")
        turns.append((role, text))
    return _alternating(turns)


def _alternating(turns: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    kept = turns if turns[0][0] == "human" else turns[1:]  # LLaVA drops a leading turn that is not the human's
    roles = [role for role, _ in kept]
    if not kept or roles != ["human", "gpt"] * (len(kept) // 2):
        said = ", ".join(role for role, _ in turns[:6])
        raise Rejected("roles", f"human and gpt must alternate, the turns are {said}"[:120])
    for i, (role, text) in enumerate(kept):
        if role == "gpt" and not text.strip():
            raise Rejected("empty_answer", f"turn {i}")
    return tuple(kept)


@contextmanager
def _whole_images() -> Iterator[None]:
    """Truncated files are errors here, whatever a library in this process has switched on (lmms-eval does)."""
    from PIL import ImageFile

    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def check_image(data: bytes) -> ImageFacts:
    """Decode an image fully, raising Rejected where it is corrupt, truncated or a decompression bomb."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings(), _whole_images():
        warnings.simplefilter("ignore")  # the bomb warning: the limit below is ours
        try:
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise Rejected("image_bomb", f"{image.width}x{image.height}")
            if image.mode in DEEP_MODES:
                raise Rejected("deep_image", f"mode {image.mode}: make it 8 bits a channel")
            image.load()
        except Rejected:
            raise
        except Image.DecompressionBombError as e:  # PIL's own limit, which is higher
            raise Rejected("image_bomb", str(e)[:200]) from None
        except UnidentifiedImageError:  # its message names an object, by its address
            raise Rejected("corrupt_image", "not an image of a known format") from None
        except Exception as e:  # PIL raises many classes for bad bytes
            raise Rejected("corrupt_image", str(e)[:200]) from None
    return ImageFacts(height=image.height, width=image.width, digest=hashlib.sha256(data).digest())
