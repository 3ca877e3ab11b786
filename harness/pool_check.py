"""What a record must be before it enters a pool; everything else is set aside with a reason."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from harness.pool import IMAGE_TOKEN

MAX_PIXELS = 120_000_000
"""More pixels than this in one image is taken for a decompression bomb."""

MAX_TURNS = 32_000
"""More turns or images than this in one record do not fit a pool's columns."""


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
    if not isinstance(uid, str | int) or isinstance(uid, bool):
        raise Rejected("bad_id", repr(uid)[:80])
    images = _image_keys(raw.get("image"))
    turns = _turns(raw.get("conversations"))
    placeholders = sum(text.count(IMAGE_TOKEN) for _, text in turns)
    if images and placeholders != len(images):
        raise Rejected("image_count", f"{len(images)} images, {placeholders} {IMAGE_TOKEN}")
    source = raw.get("image_source") or raw.get("data_source") or _first_folder(images) or default_source
    _check_unicode(str(uid), str(source), *images, *(text for _, text in turns))
    return CheckedRecord(uid=str(uid), source=str(source), turns=turns, images=images)


def said_uid(raw: Any) -> str:
    """What a record that cannot be used calls itself."""
    return str(raw.get("id", ""))[:200] if isinstance(raw, dict) else ""


def _check_unicode(*texts: str) -> None:
    """JSON can spell halves of characters (`\\ud800`), which no file can hold."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as e:
        raise Rejected("not_unicode", e.reason) from None


def _first_folder(images: Sequence[str]) -> str:
    if not images or "/" not in images[0]:
        return ""
    first = images[0].partition("/")[0]
    return (*PurePosixPath(images[0]).parts, "")[0] if first == "." else first


def _image_keys(raw: Any) -> tuple[str, ...]:
    if raw is None or raw == "":
        return ()
    keys = tuple(raw) if isinstance(raw, list) else (raw,)
    if len(keys) > MAX_TURNS:
        raise Rejected("too_many_images", str(len(keys)))
    for key in keys:
        if not isinstance(key, str) or "\0" in key:
            raise Rejected("bad_image_path", repr(key)[:80])
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
            raise Rejected("non_string", repr(t)[:80])
        if "\0" in text:
            raise Rejected("nul_byte")
        turns.append((role, text))
    if turns[0][0] != "human":  # LLaVA drops a leading turn that is not the human's
        turns = turns[1:]
    if len(turns) < 2 or len(turns) % 2:
        raise Rejected("roles", f"{len(turns)} turns")
    for i, (role, text) in enumerate(turns):
        if role != ("human", "gpt")[i % 2]:
            raise Rejected("roles", f"turn {i} is {role!r}"[:80])
        if role == "gpt" and not text.strip():
            raise Rejected("empty_answer", f"turn {i}")
    return tuple(turns)


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
