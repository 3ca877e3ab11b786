"""Settings that some selectors cannot do without, or not be tried quickly, and the small real things they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from selector_zoo.prompts import CAPABILITIES, STYLES


def mmssr_labels(folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """A label file with ties, unknown scores, and samples of one, two and no styles; one sample is not in it."""
    rows = []
    for uid in list(uids)[1:]:
        rng = np.random.default_rng(list(uid.encode()))
        scores = rng.integers(0, 6, len(CAPABILITIES)).tolist()
        said = rng.permutation(STYLES)[: rng.integers(0, 3)].tolist()
        rows.append({"uid": uid, "styles": said, **dict(zip(CAPABILITIES, [None, *scores[1:]], strict=True))})
    file = folder / "labels.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"labels": str(file)}


def build_llama(out: Path, *, tokenizer: Path, seed: int = 0) -> None:
    """Write a random LlamaForCausalLM that reads text with another model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    read = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(read),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=read.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    read.save_pretrained(out)


def deita_scorers(folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """Two untrained scorers and a prompt pack of their own."""
    from harness.miniworld.architecture import build_untrained

    if not (folder / "words").is_dir():
        build_untrained("tiny", folder / "words")
        for seed, part in enumerate(("complexity", "quality")):
            build_llama(folder / part, tokenizer=folder / "words", seed=seed)
    pack = {
        "name": "small",
        "version": "1",
        "source": "tests",
        "licence": "Apache-2.0",
        "templates": {
            "complexity": "How hard is this: {instruction} Hardness:",
            "quality": "Asked: {instruction} Said: {output} Grade:",
        },
    }
    file = folder / "prompts.yaml"
    file.write_text(json.dumps(pack))  # JSON is YAML
    models = {part: str(folder / part) for part in ("complexity", "quality")}
    return {"prompts": str(file), **models}


def narrow_gradients(folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """Gradients in fewer numbers."""
    return {"width": 256}


NEEDED: Mapping[str, Callable[[Path, Sequence[str]], dict[str, Any]]] = {
    "deita": deita_scorers,
    "icons": narrow_gradients,
    "mmssr": mmssr_labels,
}


def needed(name: str, folder: Path, uids: Sequence[str]) -> dict[str, Any]:
    """Settings without which a selector does not run, made below `folder` for samples of these uids."""
    return NEEDED[name](folder, uids) if name in NEEDED else {}
