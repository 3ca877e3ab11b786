"""Make the shipped dual encoder: `python -m harness.miniworld.train_clip --out DIR`.

A CLIP of 0.6 million parameters learns which caption belongs to which picture. It has never seen a question.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from harness.miniworld.architecture import PATCH, TILE
from harness.miniworld.captions import brief, detailed
from harness.miniworld.corpus import fragments
from harness.miniworld.minimise import minimise
from harness.miniworld.render import picture
from harness.miniworld.scenes import DRAW, Scene
from harness.miniworld.tokenizer import PAD, build_tokenizer
from llava_train.chat import START

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

BATCH: Final = 96
STEPS: Final = 700
LEARNING_RATE: Final = 1e-3
MAX_TOKENS: Final = 77
WIDTH: Final = 96
DIMENSIONS: Final = 64


def build_processor() -> CLIPProcessor:
    """Pictures squashed to one tile, and text between a start and an end token."""
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPImageProcessorPil, CLIPProcessor

    tokenizer = build_tokenizer()
    start, end = tokenizer.convert_tokens_to_ids([START, PAD])
    template = TemplateProcessing(single=f"{START} $A {PAD}", special_tokens=[(START, start), (PAD, end)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.eos_token, tokenizer.bos_token = PAD, START
    tokenizer.model_max_length = MAX_TOKENS
    half, square = [0.5, 0.5, 0.5], {"height": TILE, "width": TILE}
    images = CLIPImageProcessorPil(size=square, do_center_crop=False, image_mean=half, image_std=half)
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def build_model(tokenizer: Any) -> CLIPModel:
    """The dual encoder with random weights."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    shared = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_attention_heads": 4}
    text = CLIPTextConfig(
        **shared,
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shared, num_hidden_layers=3, image_size=TILE, patch_size=PATCH)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=DIMENSIONS)
    return CLIPModel(config)


def caption(scene: Scene, rng: Random) -> str:
    """One caption: the whole in brief or in detail, or two of its parts."""
    parts = [f"{f.region}: {f.full}" for f in fragments(scene)]
    some = ", ".join(rng.sample(parts, min(2, len(parts))))
    return rng.choice((brief(scene), detailed(scene), some))


def train(out: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train the dual encoder and write its folder, weights as bfloat16."""
    import torch

    torch.manual_seed(seed)
    processor = build_processor()
    model: Any = build_model(processor.tokenizer)
    rng = Random(seed)

    def loss() -> Any:
        scenes = [DRAW[rng.choice(list(DRAW))](rng) for _ in range(BATCH)]
        pictures = [picture(s, rng, "pool")[0] for s in scenes]
        texts = [caption(s, rng) for s in scenes]
        inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True, truncation=True)
        return model(**inputs, return_loss=True).loss

    minimise(model, loss, steps, LEARNING_RATE)
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    train(args.out, args.steps)


if __name__ == "__main__":
    main()
