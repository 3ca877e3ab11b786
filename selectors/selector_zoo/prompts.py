"""Prompt packs: the words put to scorers, stylers and teachers, as data with a name, an origin and a digest.

A released checkpoint only works with the very words it was trained on. But for E5-V's two sentences they are not
part of this project: `sievebench published prompts NAME` fetches them from where they were published. The pack
`own` is ours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Final

from harness.errors import HarnessError
from harness.keys import digest
from harness.taxonomy import CAPABILITIES as CAPABILITIES
from harness.taxonomy import STYLES as STYLES

OWN: Final = "own"
"""Our own pack, for models trained here and for labelling."""

SLOTS: Final[Mapping[str, tuple[str, ...]]] = {
    "score": ("cap_keyword",),
    "styles": (),
    "label": ("conversation",),
    "complexity": ("instruction",),
    "quality": ("instruction", "output"),
}
"""Slots, written `{slot}`, that a template of this name must have; others may have any."""

OFFICIAL: Final[Mapping[str, Mapping[str, str]]] = {
    "mmssr": {
        "score": "33e4af5c31384e85a4cff30f710922e16ba99f5df661a9c437ecc849738551d4",
        "styles": "670d1cd4c8d01952a743c7956289fe46f62e0118c5b64c129e7f85da7d2196d2",
    },
    "deita": {
        "complexity": "7d3b818c0530b64aee6c2b422157fc0cc2fc4f05bc00090481f00ad812ab23f7",
        "quality": "5f9fec526d8855b581327d0cfe2346b74de9f2e439b84e3d560056841acef265",
    },
    "vicuna": {
        "system": "1fa69e2371b762d1882b0bd98d284f312a36c27add732016e12e52586f98a9f5",
    },
    "e5v": {
        "image": "82fa29186156ff9cd9a03b720c95ee5416a505bd89204d8e5c02b74dd97c6a13",
        "text": "d99ce87b179ccdbc2a70c9c23c37c84e954658440ae11f859cbd712dfb28e287",
    },
}
"""sha256 of the templates (UTF-8) that published models were trained with, by project and template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPack:
    """Templates that belong together."""

    name: str
    version: str
    source: str
    """Where the words come from."""
    licence: str
    templates: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.templates or not all(isinstance(t, str) and t for t in self.templates.values()):
            raise HarnessError(f"prompt pack '{self.name}': every template is a text, and there is at least one.")
        for name, text in self.templates.items():
            missing = [slot for slot in SLOTS.get(name, ()) if f"{{{slot}}}" not in text]
            if missing:
                raise HarnessError(f"prompt pack '{self.name}': template '{name}' lacks {{{missing[0]}}}.")

    @property
    def digest(self) -> str:
        """sha256 of the templates alone: who wrote them does not change what they say."""
        return digest(dict(self.templates))

    @property
    def official(self) -> str:
        """The project whose published words these are, all of them; empty where they are not."""
        for project, known in OFFICIAL.items():
            same = [text_digest(self.templates.get(name, "")) == sha for name, sha in known.items()]
            if all(same):
                return project
        return ""

    def template(self, name: str) -> str:
        """One template.

        Raises HarnessError where the pack has none of that name.
        """
        if name not in self.templates:
            has = ", ".join(sorted(self.templates))
            raise HarnessError(f"prompt pack '{self.name}' has no template '{name}'; it has {has}.")
        return self.templates[name]


def fill(template: str, **slots: str) -> str:
    """A template with its slots filled; other braces stay as they are, and what is filled in is not read again."""
    pattern = "|".join(re.escape(f"{{{name}}}") for name in slots) or "(?!)"
    return re.sub(pattern, lambda found: slots[found[0][1:-1]], template)


def text_digest(text: str) -> str:
    """sha256 of a template's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def load_pack(name: str) -> PromptPack:
    """A pack that comes with the package, by name, or the one in a YAML file.

    Raises HarnessError for a file that is not there or is no pack.
    """
    import yaml

    shipped = resources.files("selector_zoo").joinpath("packs", f"{name}.yaml")
    if "/" not in name and shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        file = Path(name).expanduser()
        if not file.is_file():
            published = file.stem if file.stem in OFFICIAL else "mmssr"
            raise HarnessError(
                f"there is no prompt pack {name}: give '{OWN}', or a YAML file; "
                f"'sievebench published prompts {published}' fetches the published one."
            )
        text = file.read_text(encoding="utf-8")
    try:
        return _pack(yaml.safe_load(text), name)
    except yaml.YAMLError as e:
        raise HarnessError(f"prompt pack {name} is not YAML: {str(e).splitlines()[0]}.") from None


def _pack(raw: Any, name: str) -> PromptPack:
    known = {f.name for f in fields(PromptPack)}
    if not isinstance(raw, dict) or set(raw) != known or not isinstance(raw["templates"], dict):
        raise HarnessError(f"prompt pack {name} must have exactly the keys {', '.join(sorted(known))}.")
    rest = {key: str(value) for key, value in raw.items() if key != "templates"}
    return PromptPack(**rest, templates=raw["templates"])


def write_pack(pack: PromptPack, file: Path) -> None:
    """Write a pack as YAML."""
    import yaml

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(asdict(pack), allow_unicode=True, sort_keys=False, width=110), encoding="utf-8")
