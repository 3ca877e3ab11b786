"""The judge lmms-eval's scorers talk to: any of its own API clients, with a cache, and loud when it fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from lmms_eval.llm_judge import ProviderFactory, Request, Response, ServerConfig, ServerInterface

from harness.errors import HarnessError, unknown_name
from harness.evaluation.lines import cut_torn_line, line, read_lines

API_TYPE: Final = "sieve"
"""Value of lmms-eval's `API_TYPE` under which its scorers find this server."""

DEFAULT_MODEL: Final = "gpt-4o-2024-11-20"
"""lmms-eval's own default."""


class JudgeUnavailable(BaseException):
    """The judge gave no reply.

    Not an `Exception`, because scorers catch those and score the answer 0.
    """


Reply = Callable[[Sequence[dict[str, Any]], ServerConfig], str]
"""From chat messages and settings to the judge's words; raises where there are none."""


@dataclass(slots=True, kw_only=True)
class CachedJudge:
    """A judge model whose replies are kept, so that an interrupted run asks for the rest only."""

    model: str
    reply: Reply
    cache: Path
    empty: set[str] = field(default_factory=set)
    """Requests that came back without words: not judged, which is not the same as wrong."""
    _known: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cut_torn_line(self.cache)
        self._known = dict(read_lines(self.cache))

    def ask(self, messages: Sequence[dict[str, Any]], config: ServerConfig) -> str:
        """The judge's reply to a conversation, from the cache where it is known."""
        request = [self.model, messages, config.temperature, config.max_tokens]
        key = hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()
        if key not in self._known:
            self._ask(key, messages, config)
        return self._known.get(key, "")

    def _ask(self, key: str, messages: Sequence[dict[str, Any]], config: ServerConfig) -> None:
        config.model_name = self.model  # task modules read theirs from the environment when they are loaded
        try:
            words = self.reply(messages, config).strip()
        except Exception as e:
            raise JudgeUnavailable(f"judge {self.model}: {type(e).__name__}: {e}") from e
        if not words:
            self.empty.add(key)
            return
        self.empty.discard(key)
        self._known[key] = words
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with self.cache.open("ab") as f:
            f.write(line([key, words]))


class SieveJudgeServer(ServerInterface):  # type: ignore[misc]
    """What lmms-eval's scorers get when they ask for a judge; without one set, asking is an error."""

    active: ClassVar[CachedJudge | None] = None

    def is_available(self) -> bool:
        return self.active is not None

    def evaluate(self, request: Request) -> Response:
        if self.active is None:
            raise JudgeUnavailable("the task asks for a judge, and its benchmark names none")
        words = self.active.ask(self.prepare_messages(request), request.config or self.config)
        return Response(content=words, model_used=self.active.model, success=bool(words))


ProviderFactory.register_provider(API_TYPE, SieveJudgeServer)


@contextlib.contextmanager
def judged_by(judge: CachedJudge) -> Iterator[None]:
    """Let every judge request of lmms-eval go to `judge` meanwhile."""
    SieveJudgeServer.active = judge
    try:
        yield
    finally:
        SieveJudgeServer.active = None


def lmms_eval_judge(name: str, cache: Path) -> CachedJudge:
    """A judge through one of lmms-eval's API clients, named `PROVIDER` or `PROVIDER:MODEL` (`openai:gpt-4o`).

    Addresses and keys come from the environment variables lmms-eval documents. Raises HarnessError for an unknown
    provider, or where its client cannot be made.
    """
    provider, _, model = name.partition(":")
    known = set(ProviderFactory._provider_classes) - {API_TYPE, "dummy"}
    if provider not in known:
        raise unknown_name("judge", provider, [*known, "rules:MODULE:FUNCTION"])
    if provider == "openai" and not os.environ.get("OPENAI_API_KEY"):
        raise HarnessError("judge openai needs a key: set OPENAI_API_KEY, and OPENAI_API_URL for another address.")
    config = ServerConfig(model_name=model or DEFAULT_MODEL)
    server = ProviderFactory.create_provider(api_type=provider, config=config)

    def reply(messages: Sequence[dict[str, Any]], settings: ServerConfig) -> str:
        return str(server.evaluate(Request(messages=list(messages), config=settings)).content)

    return CachedJudge(model=config.model_name, reply=reply, cache=cache)
