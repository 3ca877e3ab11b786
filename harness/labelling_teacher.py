"""A teacher: a model behind an OpenAI-compatible endpoint, asked about samples with their pictures."""

from __future__ import annotations

import base64
import io
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from harness.errors import HarnessError

if TYPE_CHECKING:
    import openai

SENT_AS_IS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that such endpoints take; others are sent as PNG."""
LATER: Final = (408, 409, 429)
"""Statuses, besides 5xx, that say that the same request may do later."""
LONGEST_PAUSE_S: Final = 8.0
LONGEST_ASKED_S: Final = 120.0
"""A server that asks for a longer pause is left alone for this run."""
QUOTED: Final = 300
"""Characters of a server's words that are repeated."""


class Unreachable(Exception):
    """No answer this time: the same request may be sent again."""

    def __init__(self, why: str, asked_s: float = 0.0) -> None:
        super().__init__(why)
        self.asked_s = asked_s
        """Seconds the server asks us to wait; 0 where it does not say."""


class Refused(Exception):
    """The teacher will not answer this question, however often it is asked; status and words of its error."""


class Answer(NamedTuple):
    """One answer."""

    text: str
    tokens: int
    """Tokens of question and answer; -1 where the endpoint does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """Which model is asked, and how."""

    model: str
    endpoint: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key; it is never read from anywhere else, nor written anywhere."""
    temperature: float = 0.0
    reply_tokens: int = 700
    """Tokens of a reply."""
    retries: int = 5
    """Times a request that failed on the way, or met a busy server, is sent again, with growing pauses."""
    pause_s: float = 0.5
    """The first of these pauses; every other is twice as long as the one before, up to `LONGEST_PAUSE_S`."""
    timeout_s: float = 120.0


class Teacher:
    """An open connection to a teacher; may be used by several threads."""

    def __init__(self, spec: TeacherSpec) -> None:
        """Raises HarnessError where the key is not in the environment."""
        import openai

        key = os.environ.get(spec.key_variable, "")
        if not key:
            raise HarnessError(
                f"the environment variable {spec.key_variable} is not set: put the API key of {spec.endpoint} "
                "there (any word, if it asks for none)."
            )
        self.spec = spec
        self._client = openai.OpenAI(base_url=spec.endpoint, api_key=key, max_retries=0, timeout=spec.timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self, messages: Sequence[dict[str, Any]]) -> Answer:
        """The answer to a conversation, in one HTTP request.

        Raises Refused, Unreachable, and HarnessError where no question of ours can be answered (key, model).
        """
        import openai

        given: Any = list(messages)
        try:
            reply: Any = self._client.chat.completions.create(
                model=self.spec.model,
                messages=given,
                temperature=self.spec.temperature,
                max_tokens=self.spec.reply_tokens,
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as e:
            raise HarnessError(
                f"{self.spec.endpoint} does not let us ask {self.spec.model} (status {e.status_code}): check "
                f"--endpoint, --model and the key in {self.spec.key_variable}."
            ) from None
        except openai.APIConnectionError as e:
            raise Unreachable(type(e).__name__) from None
        except openai.APIStatusError as e:
            if e.status_code in LATER or e.status_code >= 500:
                raise Unreachable(self._quoted(e), asked_pause_s(e.response.headers)) from None
            raise Refused(self._quoted(e)) from None
        if getattr(reply, "choices", None) is None:
            raise HarnessError(f"{self.spec.endpoint} is not OpenAI-compatible: its answers are of another form.")
        return Answer(
            text=(reply.choices[0].message.content or "") if reply.choices else "",
            tokens=reply.usage.total_tokens if reply.usage else -1,
        )

    def _quoted(self, error: openai.APIStatusError) -> str:
        message = error.body.get("message") if isinstance(error.body, dict) else None
        said = message if isinstance(message, str) else error.response.text
        said = " ".join(said.replace(self._client.api_key, "***").split())
        return f"status {error.status_code}: {said[:QUOTED]}"


def asked_pause_s(headers: Mapping[str, str]) -> float:
    """Seconds a server asks us to wait, by its Retry-After header (seconds or a date); 0 where it does not say."""
    said = headers.get("retry-after", "")
    milliseconds = _number(headers.get("retry-after-ms", ""))
    seconds = _number(said) if milliseconds is None else milliseconds / 1000
    if seconds is None:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(seconds, 0.0)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def pause_before(retry: int, spec: TeacherSpec, asked_s: float) -> float:
    """Seconds to wait before retry 1, 2, ...: what the server asked for, or else a growing pause."""
    grown = min(spec.pause_s * 2.0 ** (retry - 1), LONGEST_PAUSE_S)
    return asked_s or grown * random.uniform(0.75, 1.0)  # so that threads do not come back all at once


def question(text: str, pictures: Sequence[bytes]) -> dict[str, Any]:
    """A user message of text and encoded pictures.

    Raises OSError for bytes that are no picture.
    """
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in pictures]
    return {"role": "user", "content": parts}


def data_url(data: bytes) -> str:
    """An encoded picture as a data URL, as PNG unless endpoints know its format."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        kind = image.format or ""
        if kind not in SENT_AS_IS:
            out = io.BytesIO()
            image.convert("RGB").save(out, format="PNG")
            data, kind = out.getvalue(), "PNG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
