"""The tiny LLaVA-OneVision models of miniworld: sizes, geometry, and a folder of fresh weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import unknown_name
from harness.miniworld.tokenizer import PAD, VIDEO, build_tokenizer
from llava_train.chat import CHAT_TEMPLATE, END, IMAGE

if TYPE_CHECKING:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionProcessor

TILE: Final = 48
PATCH: Final = 8
TILE_TOKENS: Final = (TILE // PATCH) ** 2
PINPOINTS: Final = ((48, 48), (48, 96), (96, 48), (96, 96))
"""(height, width) of the grids a picture may be cut into; most pictures of miniworld fill one tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Widths and depths of one tiny backbone."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    width: int
    layers: int
    heads: int
    kv_heads: int


SIZES: Final = {
    "tiny": Size(vision_width=96, vision_layers=3, vision_heads=4, width=128, layers=4, heads=4, kv_heads=4),
    "tiny_b": Size(vision_width=128, vision_layers=4, vision_heads=4, width=192, layers=5, heads=6, kv_heads=3),
}
INIT_STD: Final = 0.08
"""The default of 0.02 learns almost nothing at these widths in the time there is."""
ROPE_THETA: Final = 1e6
"""Of the released Qwen2 models. With transformers' default of 10,000 half of what a head compares turns within a
picture's length, and to look something up is learnt later."""


def described(name: str) -> dict[str, Any]:
    """What fresh weights of one size are made of, as far as it is decided here."""
    return {**asdict(SIZES[name]), "tile": TILE, "patch": PATCH, "init_std": INIT_STD, "rope_theta": ROPE_THETA}


def build_untrained(name: str, out: Path, seed: int = 0) -> None:
    """Write a complete Hugging Face folder of one tiny backbone with random weights.

    `name` is a key of `SIZES`. Config, weights, tokenizer, processor, chat template and generation config are
    all there, so `from_pretrained` and `AutoProcessor` load it. Raises HarnessError for an unknown name.
    """
    import torch
    from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

    processor = build_processor()
    config = build_config(name, processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in (END, PAD)}
    model.generation_config = GenerationConfig(eos_token_id=ids[END], pad_token_id=ids[PAD])
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def build_config(name: str, tokenizer: Any) -> LlavaOnevisionConfig:
    """The model configuration of one size, with token ids looked up in `tokenizer`."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    if name not in SIZES:
        raise unknown_name("miniworld backbone", name, SIZES)
    size = SIZES[name]
    end, pad = (tokenizer.convert_tokens_to_ids(t) for t in (END, PAD))
    vision = SiglipVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=3 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_heads,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=INIT_STD,
        tie_word_embeddings=True,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[list(p) for p in PINPOINTS],
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
        initializer_range=INIT_STD,
        dtype="float32",
    )


def build_processor() -> LlavaOnevisionProcessor:
    """Tokenizer, image processor and chat template, as training and evaluation read them."""
    from transformers import (
        LlavaOnevisionImageProcessorPil,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    half, square = [0.5, 0.5, 0.5], {"height": TILE, "width": TILE}
    images = LlavaOnevisionImageProcessorPil(
        size=square, image_mean=half, image_std=half, image_grid_pinpoints=[list(p) for p in PINPOINTS]
    )
    return LlavaOnevisionProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(size=square, image_mean=half, image_std=half),
        num_image_tokens=TILE_TOKENS,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio="anyres_max_9",
    )
