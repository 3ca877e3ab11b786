"""Make the shipped mid-stage weights: `python -m harness.miniworld.train_backbone tiny --out DIR`.

First vision tower and language model learn apart, by tags of patches, as real ones come pre-trained; then the
projector learns to put the one's features as the other's words, and all but the tower learn captions of pictures
and of regions. No question occurs, so SFT is what teaches it to answer.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from harness.files import private
from harness.keys import digest
from harness.miniworld.architecture import PATCH, SIZES, TILE, build_untrained, described
from harness.miniworld.corpus import captioned, overview, region_caption
from harness.miniworld.midstage import TOLD, WEIGHTS, Batch, draw_batch, draw_scene, draw_tagged
from harness.miniworld.regions import tags
from harness.miniworld.render import picture
from harness.miniworld.tagged import TaggedPictures, TaggedTower, features, misfit
from harness.miniworld.tokenizer import words
from llava_train.tiles import Geometry

log = logging.getLogger(__name__)

DrawTagged = Callable[[Random, int], tuple[Any, Any]]
"""Draws tiles of so many pictures and the tags of their patches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """How one stage is minimised."""

    steps: int
    batch: int
    """Pictures a step."""
    learning_rate: float
    """Of AdamW: embeddings, norms, biases. A tenth of Muon's, which has the weight matrices of the layers."""
    warmup: int = 100
    silent: float = 0
    """Share of the prompts that ask for no caption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Midstage:
    """How a backbone is pre-trained."""

    tower: Descent
    words: Descent
    projector: Descent
    captions: Descent
    code: Descent
    seed: int = 0


def midstage(*, tower: int, words: int, projector: int, captions: int, code: int) -> Midstage:
    """The shipped backbones' pre-training, but for the numbers of steps."""
    return Midstage(
        tower=Descent(steps=tower, batch=64, learning_rate=2e-3),
        words=Descent(steps=words, batch=16, learning_rate=2e-3),
        projector=Descent(steps=projector, batch=64, learning_rate=2e-3),
        captions=Descent(steps=captions, batch=16, learning_rate=1e-3),
        code=Descent(steps=code, batch=16, learning_rate=1e-3, warmup=50, silent=0.25),
    )


RECIPES: Final = {
    "tiny": midstage(tower=4000, words=2500, projector=600, captions=600, code=800),
    "tiny_b": midstage(tower=2500, words=1500, projector=400, captions=400, code=400),
}

KEPT: Final = 100
"""Steps from one that is kept to the next."""
MEASURED: Final = 64
"""Pictures that the size and mean of features are measured on."""


def train(name: str, out: Path, recipe: Midstage) -> None:
    """Train one backbone from random weights and write its folder, weights as bfloat16.

    What each stage made is written beside the folder, and so is every hundredth step of one: a later call of the
    same recipe goes on from there and gives the same weights.
    """
    import torch
    from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

    build_untrained(name, out, recipe.seed)
    torch.manual_seed(recipe.seed)
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    geometry = Geometry.from_config(model.config)
    so_far: dict[str, Any] = {"seed": recipe.seed, "architecture": described(name), "pictures": shown(recipe)}

    def beside(what: str) -> Path:
        so_far[what] = asdict(getattr(recipe, what))
        return out.with_name(f"{out.name}-{what}-{digest(so_far)[:8]}.safetensors")

    tower, draw = model.model.vision_tower, partial(draw_tagged, geometry=geometry)
    teach = partial(teach_tower, model, draw, recipe.tower, recipe.seed)
    stage(tower, beside("tower"), teach)
    tower.requires_grad_(False)
    so_far |= heard(recipe)
    torch.manual_seed(recipe.seed + 1)  # whether the tower was taught now or before
    pictures = TaggedPictures(model, tokenizer)
    teach = partial(teach_captions, model, tokenizer, geometry, recipe.words, recipe.seed + 1, pictures)
    stage(pictures, beside("words"), teach)
    teach = partial(teach_projector, model, pictures, draw, recipe.projector, recipe.seed + 2)
    stage(model.model.multi_modal_projector, beside("projector"), teach)
    for what, seed in (("captions", recipe.seed + 2), ("code", recipe.seed + 3)):
        teach = partial(teach_captions, model, tokenizer, geometry, getattr(recipe, what), seed, None)
        stage(model, beside(what), teach)
    _write(model, out / "model.safetensors", leave=("lm_head.weight",))  # tied to the embeddings
    (out / "made_by.json").write_text(json.dumps(made_by(name, recipe), indent=1) + "\n")


def made_by(name: str, recipe: Midstage) -> dict[str, Any]:
    """What decides about weights: architecture, recipe, what is shown and what is heard."""
    return {"architecture": described(name), "recipe": asdict(recipe), "pictures": shown(recipe), **heard(recipe)}


def shown(recipe: Midstage) -> str:
    """Digest of pictures that a seed draws, and of their tags."""
    rng, one = Random(recipe.seed), Geometry(tile=TILE, patch=PATCH, pinpoints=((TILE, TILE),))
    found: list[Any] = []
    for scene in (draw_scene(rng) for _ in range(200)):
        image, data = picture(scene, rng, "pool")
        found += [data.hex(), tags(scene, image.width, one).tolist()]
    return digest(found)


def heard(recipe: Midstage) -> dict[str, Any]:
    """How often kinds of picture are seen and told, and digests of words and of captions that a seed draws."""
    rng = Random(recipe.seed)
    said: list[Any] = []
    for scene in (draw_scene(rng) for _ in range(200)):
        said += [overview(scene), *(list(region_caption(part, rng)) for part in captioned(scene))]
    return {"seen": dict(WEIGHTS), "told": dict(TOLD), "captions": digest(said), "words": digest(words())}


def stage(module: Any, file: Path, teach: Callable[[Path], None]) -> None:
    """Teach a module, or give it the weights it had when it was taught; `teach` is told where to keep steps."""
    from safetensors.torch import load_file

    part = file.with_suffix(".part")
    if not file.is_file():
        teach(part)
        _write(module, file)
        part.unlink(missing_ok=True)
    module.load_state_dict(load_file(file))


def teach_tower(model: Any, draw: DrawTagged, how: Descent, seed: int, part: Path) -> None:
    """Teach the vision tower to tag patches, and bring its features to unit size."""
    rng, tagged = Random(seed), TaggedTower(model)
    descend(tagged, lambda: tagged.loss(*draw(rng, how.batch)), how, rng, part)
    scale(model.model.vision_tower, draw(rng, MEASURED)[0])


def teach_projector(
    model: Any, pictures: TaggedPictures, draw: DrawTagged, how: Descent, seed: int, part: Path
) -> None:
    """Teach the projector to put what the tower sees as the language model has learnt to read it."""
    rng, projector = Random(seed), model.model.multi_modal_projector
    centre(model, draw(rng, MEASURED)[0])
    descend(projector, lambda: misfit(model, pictures, *draw(rng, how.batch)), how, rng, part)


def teach_captions(
    model: Any,
    tokenizer: Any,
    geometry: Geometry,
    how: Descent,
    seed: int,
    pictures: TaggedPictures | None,
    part: Path,
) -> None:
    """Teach captions of pictures that are seen; of such as `pictures` tells, if it is given."""
    rng, seen = Random(seed), pictures is None
    draw = partial(draw_batch, n=how.batch, tokenizer=tokenizer, geometry=geometry, silent=how.silent, seen=seen)
    descend(model if seen else pictures, lambda: loss(model, draw(rng), pictures), how, rng, part)


def scale(tower: Any, tiles: Any) -> None:
    """Bring a tower's features to unit size, measured on `tiles`.

    Its layers read the residual stream through a LayerNorm, so scaling everything that writes to the stream scales
    the features and changes nothing else.
    """
    import torch

    with torch.no_grad():
        factor = 1 / features(tower, tiles).square().mean().sqrt()
        writers = [tower.embeddings.patch_embedding, tower.embeddings.position_embedding]
        for layer in tower.encoder.layers:
            writers += [layer.self_attn.out_proj, layer.mlp.fc2]
        for writer in writers:
            for parameter in writer.parameters():
                parameter.mul_(factor)


def centre(model: Any, tiles: Any) -> None:
    """Let the projector start from features of zero mean, measured on `tiles`."""
    import torch

    projector = model.model.multi_modal_projector
    with torch.no_grad():
        mean = features(model.model.vision_tower, tiles).mean(dim=(0, 1))
        projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)


def descend(module: Any, draw_loss: Callable[[], Any], how: Descent, rng: Random, part: Path) -> None:
    """Minimise a drawn loss over the parameters of `module`, from where `part` says an earlier call had come to.

    `rng` is what the loss is drawn with: where it stands is kept as well.
    """
    import torch

    optimizers = _optimizers(module, how.learning_rate)
    begun = _resumed(module, optimizers, rng, part)
    start, shown = time.monotonic(), 0.0
    for step in range(begun, how.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule(step, how)
        value = draw_loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        shown = 0.95 * shown + 0.05 * value.item() if step > begun else value.item()
        if step % 100 == 0:
            log.info("step %d of %d: loss %.4f, %.0f s", step, how.steps, shown, time.monotonic() - start)
        if step % KEPT == KEPT - 1:
            _keep(step + 1, module, optimizers, rng, part)


def _keep(steps: int, module: Any, optimizers: list[Any], rng: Random, part: Path) -> None:
    import torch

    held = {"steps": steps, "module": module.state_dict(), "rng": rng.getstate()}
    tmp = private(part)
    torch.save(held | {"optimizers": [o.state_dict() for o in optimizers]}, tmp)
    tmp.replace(part)


def _resumed(module: Any, optimizers: list[Any], rng: Random, part: Path) -> int:
    """The steps that were done before, everything put to where it was after them."""
    import torch

    if not part.is_file():
        return 0
    held = torch.load(part, weights_only=True)
    module.load_state_dict(held["module"])
    for optimizer, state in zip(optimizers, held["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    rng.setstate(held["rng"])
    return int(held["steps"])


def _optimizers(module: Any, learning_rate: float) -> list[Any]:
    """Muon for the weight matrices of the layers, AdamW for all other parameters."""
    import torch

    from harness.miniworld.muon import Muon

    matrices: list[Any] = []
    others: list[Any] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter.ndim == 2 and "embed" not in name and not name.startswith("heads")
        (matrices if inner else others).append(parameter)
    made: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=10 * learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return made


def schedule(step: int, how: Descent) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine to zero."""
    if step < how.warmup:
        return (step + 1) / how.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - how.warmup) / max(1, how.steps - how.warmup)))


def loss(model: Any, batch: Batch, pictures: TaggedPictures | None = None) -> Any:
    """Mean cross-entropy of the caption tokens of a batch; `pictures` embeds the tags of one without pixels."""
    import torch
    import torch.nn.functional as F

    inner = model.model
    embeds = inner.get_input_embeddings()(batch.ids)
    is_image = batch.ids == model.config.image_token_index
    embeds = embeds.masked_scatter(is_image[..., None], torch.cat(_packed(inner, batch, pictures)))
    hidden = inner.language_model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": batch.mask},
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    supervised = batch.targets >= 0
    return F.cross_entropy(model.lm_head(hidden[supervised]), batch.targets[supervised])


def _packed(inner: Any, batch: Batch, pictures: TaggedPictures | None) -> list[Any]:
    """What stands for the picture tokens of each picture, (tokens, width)."""
    if pictures is not None:
        return list(inner.pack_image_features(list(pictures(batch.tags)), batch.sizes, inner.image_newline)[0])
    chosen = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    return list(inner.get_image_features(batch.pixels, batch.sizes, **chosen).pooler_output)


def _write(module: Any, file: Path, leave: tuple[str, ...] = ()) -> None:
    """Write parameters as bfloat16, without those to `leave`."""
    import torch
    from safetensors.torch import save_file

    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in module.state_dict().items()}
    save_file({k: v for k, v in weights.items() if k not in leave}, file, metadata={"format": "pt"})


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(SIZES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(args.threads)
    train(args.name, args.out, RECIPES[args.name])


if __name__ == "__main__":
    main()
