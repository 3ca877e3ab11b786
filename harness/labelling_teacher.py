"""A teacher: a model behind an OpenAI-compatible endpoint, asked about samples with their pictures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from harness.errors import HarnessError

SENT_AS_IS: Final = ("PNG", "JPEG", "WEBP", "GIF")
"""Formats that such endpoints take; others are sent as PNG."""


class Unreachable(Exception):
    """No answer after all retries: the sample is to be asked again another time."""


class Refused(Exception):
    """The teacher will not answer this question, however often it is asked."""


class Answer(NamedTuple):
    """One answer."""

    text: str
    tokens: int
    """Tokens of question and answer; -1 where the endpoint does not say."""
    requests: int
    """HTTP requests it took."""


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
        self._client = openai.OpenAI(
            base_url=spec.endpoint, api_key=key, max_retries=spec.retries, timeout=spec.timeout_s
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def ask(self, messages: Sequence[dict[str, Any]]) -> Answer:
        """The answer to a conversation.

        Raises Refused, Unreachable, and HarnessError where no question of ours can be answered (key, model).
        """
        import openai

        given: Any = list(messages)
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self.spec.model,
                messages=given,
                temperature=self.spec.temperature,
                max_tokens=self.spec.reply_tokens,
            )
            reply = raw.parse()
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as e:
            raise HarnessError(
                f"{self.spec.endpoint} does not let us ask {self.spec.model} (status {e.status_code}): check "
                f"--endpoint, --model and the key in {self.spec.key_variable}."
            ) from None
        except (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError) as e:
            raise Unreachable(type(e).__name__) from None
        except openai.APIStatusError as e:
            raise Refused(f"status {e.status_code}") from None
        if getattr(reply, "choices", None) is None:
            raise HarnessError(f"{self.spec.endpoint} is not OpenAI-compatible: its answers are of another form.")
        usage = reply.usage
        return Answer(
            text=(reply.choices[0].message.content or "") if reply.choices else "",
            tokens=usage.total_tokens if usage else -1,
            requests=1 + raw.retries_taken,
        )


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
