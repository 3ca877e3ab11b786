"""Make the shipped mid-stage weights: `python -m harness.miniworld.train_backbone tiny --out DIR`.

A model with random weights learns captions and captions of regions, so that SFT is what teaches it to answer.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from harness.miniworld.architecture import SIZES, build_untrained
from harness.miniworld.midstage import Batch, draw_batch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Midstage:
    """How a backbone is pre-trained."""

    steps: int
    batch: int = 16
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 0.02
    warmup: int = 200
    seed: int = 0


RECIPES: Final = {"tiny": Midstage(steps=3000), "tiny_b": Midstage(steps=2000)}


def train(name: str, out: Path, recipe: Midstage) -> None:
    """Train one backbone from random weights and write its folder, weights as bfloat16."""
    import torch
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    from llava_train.tiles import Geometry

    build_untrained(name, out, recipe.seed)
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    geometry = Geometry.from_config(model.config)
    optimizers = _optimizers(model, recipe)
    rng, start, shown = Random(recipe.seed), time.monotonic(), 0.0
    for step in range(recipe.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step, recipe)
        batch = draw_batch(rng, recipe.batch, tokenizer, geometry)
        value = loss(model, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        shown = 0.98 * shown + 0.02 * value.item() if step else value.item()
        if step % 100 == 0:
            log.info("step %d loss %.4f, %.0f s", step, shown, time.monotonic() - start)
        if step % 500 == 499 or step == recipe.steps - 1:
            save(model, out)


def _optimizers(model: Any, recipe: Midstage) -> list[Any]:
    """Muon for the weight matrices of the layers, AdamW for all other parameters."""
    import torch

    matrices: list[Any] = []
    others: list[Any] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    made = [
        torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return made


def schedule(step: int, recipe: Midstage) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / (recipe.steps - recipe.warmup)))


def loss(model: Any, batch: Batch) -> Any:
    """Mean cross-entropy of the caption tokens of a batch."""
    import torch.nn.functional as F

    inner = model.model
    features = inner.get_image_features(
        batch.pixels, batch.sizes, vision_feature_layer=-1, vision_feature_select_strategy="full"
    ).pooler_output
    embeds = inner.get_input_embeddings()(batch.ids)
    embeds = embeds.masked_scatter(
        (batch.ids == model.config.image_token_index)[..., None], _joined(features).to(embeds)
    )
    hidden = inner.language_model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": batch.mask},
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    supervised = batch.targets >= 0
    return F.cross_entropy(model.lm_head(hidden[supervised]), batch.targets[supervised])


def _joined(features: Any) -> Any:
    import torch

    return torch.cat(list(features))


def save(model: Any, out: Path) -> None:
    """Write the weights as bfloat16 beside the configuration and processor already there."""
    import torch
    from safetensors.torch import save_file

    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    weights.pop("lm_head.weight")  # tied to the embeddings
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SIZES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="fewer steps than the shipped weights had")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    recipe = RECIPES[args.name]
    if args.steps:
        recipe = Midstage(steps=args.steps, learning_rate=recipe.learning_rate)
    train(args.name, args.out, recipe)


if __name__ == "__main__":
    main()
