"""A LLaVA-NeXT checkpoint as a Hugging Face folder, once, before anything is trained from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from harness.errors import HarnessError
from llava_train.chat import CHAT_TEMPLATE, END, IMAGE
from llava_train.weights import export, from_next

VIDEO: Final = "<video>"
_TEXT_FIELDS: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "tie_word_embeddings",
    "initializer_range",
)
_SIGLIP_TILE: Final = 384
_SIGLIP_HEADS: Final = 16
_SIGLIP_LAYERS: Final = 26
"""Layers LLaVA-NeXT uses of the 27 that SigLIP-so400m has."""


def convert(source: Path, out: Path, dtype: str = "bfloat16") -> None:
    """Write a LLaVA-NeXT folder (`source`) as a Hugging Face folder (`out`): weights, config, processor, template.

    The vocabulary is left as it is: `<image>` takes an unused row, so the softmax stays that of the original.
    Raises HarnessError where the weights are not LLaVA-NeXT's or do not fit the config made for them.
    """
    state = read_next(source)
    raw = json.loads((source / "config.json").read_text())
    processor = _processor(source, raw, state)
    config = _config(raw, state, processor)
    draft = out.with_name(out.name + ".parts")
    processor.save_pretrained(draft)
    config.save_pretrained(draft)
    _check_shapes(config, state)
    export(state, draft, out, dtype)
    for part in draft.iterdir():
        part.unlink()
    draft.rmdir()


def read_next(source: Path) -> dict[str, Tensor]:
    """All weights of a LLaVA-NeXT folder under their names in memory.

    Raises HarnessError where there are none, or they are of another model.
    """
    from safetensors.torch import load_file

    files = sorted(source.glob("*.safetensors"))
    raw: dict[str, Tensor] = {}
    for file in files:
        raw.update(load_file(file))
    if not any(name.startswith("model.mm_projector.") for name in raw):
        raise HarnessError(
            f"{source} has no LLaVA-NeXT weights (no safetensors file with model.mm_projector): give the folder "
            "of a checkpoint such as llava-onevision-qwen2-7b-mid-stage-a4."
        )
    named = {from_next(name, _SIGLIP_LAYERS): tensor for name, tensor in raw.items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


def _grid(raw: Mapping[str, Any]) -> tuple[int, list[list[int]]]:
    """Tile side and canvases as (height, width) from LLaVA-NeXT's spelling, `(1x1),...,(6x6)` or a list."""
    points = raw.get("image_grid_pinpoints")
    if isinstance(points, list):
        tile = min(min(p) for p in points)
        return tile, sorted([h, w] for w, h in points)
    return _SIGLIP_TILE, [[_SIGLIP_TILE * i, _SIGLIP_TILE * j] for i in range(1, 7) for j in range(1, 7)]


def _config(raw: Mapping[str, Any], state: Mapping[str, Tensor], processor: Any) -> Any:
    """The config that fits the tensors; sizes are read from them where they tell."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    patch = state["model.vision_tower.embeddings.patch_embedding.weight"]
    tile, points = _grid(raw)
    vision = SiglipVisionConfig(
        hidden_size=patch.shape[0],
        patch_size=patch.shape[-1],
        image_size=tile,
        intermediate_size=state["model.vision_tower.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count_layers(state, "model.vision_tower.encoder.layers."),
        num_attention_heads=_SIGLIP_HEADS,
        vision_use_head=False,
    )
    vocabulary = state["model.language_model.embed_tokens.weight"].shape[0]
    fields = {name: raw[name] for name in _TEXT_FIELDS if name in raw}
    fields["tie_word_embeddings"] = "lm_head.weight" not in state
    end, image, video = processor.tokenizer.convert_tokens_to_ids([END, IMAGE, VIDEO])
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(vocab_size=vocabulary, eos_token_id=end, **fields),
        image_token_index=image,
        video_token_index=video,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=points,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=fields["tie_word_embeddings"],
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )


def _count_layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in state if n.startswith(prefix))


def _processor(source: Path, raw: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """Tokenizer with the two image tokens, image processor with mean and deviation 0.5, training's template."""
    from transformers import (
        AutoTokenizer,
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, VIDEO]}, replace_extra_special_tokens=False)
    tile, points = _grid(raw)
    half, square = [0.5, 0.5, 0.5], {"height": tile, "width": tile}
    patches = state["model.vision_tower.embeddings.position_embedding.weight"].shape[0]
    if math.isqrt(patches) ** 2 != patches:
        raise HarnessError(f"the vision tower in {source} has {patches} positions, which are no square.")
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size=square, image_mean=half, image_std=half, image_grid_pinpoints=points
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=square, image_mean=half, image_std=half),
        num_image_tokens=patches,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_9",
    )


def _check_shapes(config: Any, state: Mapping[str, Tensor]) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(config)
    wanted = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    found = {name: tuple(t.shape) for name, t in state.items()}
    wrong = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    if wrong:
        raise HarnessError(
            f"{len(wrong)} weights do not fit the config made for them, for example {wrong[0]}: expected "
            f"{wanted.get(wrong[0])}, found {found.get(wrong[0])}."
        )
