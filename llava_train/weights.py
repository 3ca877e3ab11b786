"""Weights between layouts: names in memory, the layout that everyone reads, and LLaVA-NeXT's own.

Three spellings of the same parameters: *memory* is what a model of transformers 5 calls them, *legacy* is what the
published `llava-hf` files say and what vLLM, lmms-eval and older transformers read, *next* is LLaVA-NeXT's.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from harness.errors import HarnessError
from llava_train.chat import CHAT_TEMPLATE, END

log = logging.getLogger(__name__)

_LEGACY: Final = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_NEXT: Final = (
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
    ("model.language_model.", "model."),
)
_COPIED: Final = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_LAYER: Final = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


def to_legacy(name: str) -> str:
    """The legacy name of a parameter in memory."""
    return _renamed(name, _LEGACY)


def to_next(name: str) -> str:
    """LLaVA-NeXT's name of a parameter in memory."""
    return _renamed(name, _NEXT)


def from_next(name: str, vision_layers: int = 26) -> str | None:
    """The name in memory of a LLaVA-NeXT parameter; None for those the model does not use.

    LLaVA-NeXT stores the head and the last layer of SigLIP, which its forward leaves out.
    """
    layer = _LAYER.search(name)
    unused = layer is not None and int(layer.group(1)) >= vision_layers
    if unused or ".vision_model.head." in name or name.endswith("inv_freq"):
        return None
    return _renamed(name, tuple((there, here) for here, there in _NEXT))


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise HarnessError(f"the parameter '{name}' belongs to no part of a LLaVA-OneVision model.")


def export(state: Mapping[str, Tensor], source: Path, out: Path, dtype: str) -> None:
    """Write a folder that evaluates as it was trained: legacy weights, and what `source` has beside its own.

    `state` has names in memory; tied output weights are left out. The same weights give the same bytes. `out`
    appears only when it is complete.
    """
    import torch
    from safetensors.torch import save_file

    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, draft / name)
    tied = _set_config(draft / "config.json", dtype)
    _set_generation(draft)
    _set_template(draft)
    tensors = {
        to_legacy(name): tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
        for name, tensor in sorted(state.items())
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "model.safetensors").chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(draft, out)


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _set_config(path: Path, dtype: str) -> bool:
    """Write the dtype into a config.json, wherever it speaks of one; return whether the output layer is tied."""
    config = _read(path)
    parts = [config, config.get("text_config") or {}, config.get("vision_config") or {}]
    for part in parts:
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = dtype
    if "torch_dtype" not in config:
        config["dtype"] = dtype
    _write(path, config)
    return any(bool(part.get("tie_word_embeddings")) for part in parts[:2])


def _set_generation(folder: Path) -> None:
    """See that answers end where training ended them, at `<|im_end|>`."""
    generation = _read(folder / "generation_config.json")
    added = _read(folder / "tokenizer.json").get("added_tokens", [])
    end = next((int(token["id"]) for token in added if token["content"] == END), None)
    if end is not None:
        generation["eos_token_id"] = end
    _write(folder / "generation_config.json", generation)


def _set_template(folder: Path) -> None:
    """Make the training template the only one: a file of its own, and none inside other files."""
    for name in ("processor_config.json", "tokenizer_config.json"):
        settings = _read(folder / name)
        if settings.pop("chat_template", None) is not None:
            _write(folder / name, settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
