"""How a sample is put to a scorer or styler: its conversation in one text, then the question about it.

As arXiv 2503.13383 and its released inference have it: one line a turn, `Question: ... Answer: ...`, then the
query, all in one user message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from harness.errors import HarnessError
from harness.pool import IMAGE_TOKEN, Record
from llava_train.chat import SYSTEM, Ids, prompt_ids, specials
from selector_zoo.prompts import CAPABILITIES, fill

HINT: Final = "Hint:"
_EATEN: Final = "Question: "
"""The released code strips this as a set of letters, not as a prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How a conversation is written out."""

    clean: str = "prefix"
    """`prefix` removes a leading "Question:" from a question; `charset` eats its letters from both ends."""
    image: str = "front"
    """The picture stands in `front` of all text, as in training, or `inline`, where the sample names it."""

    def __post_init__(self) -> None:
        allowed = {"clean": ("prefix", "charset"), "image": ("front", "inline")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise HarnessError(f"mmssr: {name}={getattr(self, name)} is none of {', '.join(values)}.")


def queries(score: str, styles: str) -> list[str]:
    """Fourteen questions about capabilities and one about styles; none of a kind whose text is empty."""
    asked = [fill(score, cap_keyword=capability) for capability in CAPABILITIES] if score else []
    return [*asked, styles] if styles else asked


def flattened(turns: Sequence[tuple[str, str]], spelling: Spelling) -> str:
    """A conversation as lines `Question: ... Answer: ...`; a question that starts with a hint stands as it is."""
    said = list(turns[1:] if turns and turns[0][0] != "human" else turns)
    lines = []
    for at in range(0, len(said), 2):
        answer = said[at + 1][1] if at + 1 < len(said) else ""
        lines.append(f"{_question(said[at][1], spelling)} Answer: {answer}")
    return "\n".join(lines)


def _question(text: str, spelling: Spelling) -> str:
    if text.removeprefix(f"{IMAGE_TOKEN}\n").startswith(HINT):
        return text
    if spelling.clean == "charset":
        return f"Question: {text.strip(_EATEN)}"
    return f"Question: {text.strip().removeprefix(_EATEN.strip()).strip()}"


def message(record: Record, query: str, spelling: Spelling) -> str:
    """The user message: pictures, conversation, and the query on a line of its own."""
    turns = record.conversations
    if spelling.image == "front" and record.images:
        turns = tuple((role, without_images(text)) for role, text in turns)
    text = f"{flattened(turns, spelling)}\n{query}"
    if spelling.image == "front" and record.images:
        return f"{IMAGE_TOKEN * len(record.images)}\n{text}"
    return text


def without_images(text: str) -> str:
    """A turn without the placeholders of pictures and the newlines next to them."""
    return text.replace(f"{IMAGE_TOKEN}\n", "").replace(f"\n{IMAGE_TOKEN}", "").replace(IMAGE_TOKEN, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Several questions about one sample, as a tree of tokens: what prompts begin with in common is there once."""

    segments: tuple[Ids, ...]
    """Runs of tokens; a prompt is the runs from the first to one of its own."""
    parents: tuple[int, ...]
    """The segment before each segment, which is always an earlier one; -1 before the first."""
    leaves: tuple[int, ...]
    """The last segment of each question, which is no other question's."""

    @property
    def tokens(self) -> int:
        """Tokens of the tree."""
        return sum(map(len, self.segments))

    def path(self, segment: int) -> list[int]:
        """The segments from the first to a given one."""
        path = [segment]
        while (before := self.parents[path[0]]) >= 0:
            path.insert(0, before)
        return path

    def prompt(self, question: int) -> Ids:
        """All tokens of one question."""
        return np.concatenate([self.segments[s] for s in self.path(self.leaves[question])])


def tree(prompts: Sequence[Ids]) -> Asked:
    """Prompts laid over each other; the last token of each is always its own."""
    segments: list[Ids] = []
    parents: list[int] = []
    leaves = [0] * len(prompts)

    def grow(members: list[int], at: int, parent: int) -> None:
        shared = _shared([prompts[m][at:] for m in members]) if len(members) > 1 else len(prompts[members[0]]) - at
        if shared:
            segments.append(prompts[members[0]][at : at + shared])
            parents.append(parent)
            parent = len(segments) - 1
        if len(members) == 1:
            leaves[members[0]] = parent
            return
        branches: dict[tuple[int, int], list[int]] = {}
        for m in members:
            rest = prompts[m][at + shared :]
            own = m if len(rest) == 1 else -1
            branches.setdefault((int(rest[0]), own), []).append(m)
        for branch in branches.values():
            grow(branch, at + shared, parent)

    grow(list(range(len(prompts))), 0, -1)
    return Asked(segments=tuple(segments), parents=tuple(parents), leaves=tuple(leaves))


def ask(
    tokenizer: Any, record: Record, asked: Sequence[str], image_tokens: Sequence[int], spelling: Spelling
) -> Asked:
    """Tokens of several questions about a sample, up to where the model is to answer.

    Whole prompts are tokenised and what they have in common is found afterwards, so that sharing never changes a
    token. Raises HarnessError where images and placeholders do not match.
    """
    encode = _inline_ids if spelling.image == "inline" and image_tokens else prompt_ids
    prompts = [encode(tokenizer, message(record, query, spelling), image_tokens) for query in asked]
    return tree(prompts)


def _shared(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts start with, at least one of each left over."""
    shortest = min(map(len, prompts)) - 1
    same = np.all([p[:shortest] == prompts[0][:shortest] for p in prompts], axis=0)
    return shortest if same.all() else int(same.argmin())


def _inline_ids(tokenizer: Any, text: str, image_tokens: Sequence[int]) -> Ids:
    """Tokens of a user message whose pictures stand within its text, as the released inference lays them out.

    The text round a picture is tokenised piece by piece, and a newline follows each picture.
    """
    marks = specials(tokenizer)
    pieces = text.split(IMAGE_TOKEN)
    if len(pieces) != len(image_tokens) + 1:
        raise HarnessError(
            f"a conversation names {len(pieces) - 1} images and has {len(image_tokens)}: "
            f"give one {IMAGE_TOKEN} per image."
        )
    system, user, assistant, *said = tokenizer(
        [f"system\n{SYSTEM}", "user\n", "assistant\n", *pieces], add_special_tokens=False
    ).input_ids
    ids = [marks.start, *system, marks.end, marks.newline, marks.start, *user, *said[0]]
    for count, piece in zip(image_tokens, said[1:], strict=True):
        ids += [*[marks.image] * count, marks.newline, *piece]
    ids += [marks.end, marks.newline, marks.start, *assistant]
    return np.asarray(ids, dtype=np.int32)
