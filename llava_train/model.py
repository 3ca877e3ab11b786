"""The model as training runs it: packed rows, loss only where there are targets, always the same operations."""

from __future__ import annotations

import contextlib
import itertools
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.errors import HarnessError
from llava_train.packs import Pack

log = logging.getLogger(__name__)

Attention = Literal["sdpa", "eager", "flash_attention_2"]
HEAD_CHUNK: Final = 2048
"""Targets whose logits are in memory at once."""
SEGMENTED: Final = "sdpa_segmented"
"""Attention sample by sample: no mask of T x T, and the fast causal kernel on every device."""


class Losses(NamedTuple):
    """What a packed forward gives back."""

    total: Tensor
    """Weighted sum of the token losses; scalar, differentiable."""
    tokens: Tensor
    """Loss of each target in nats; (S,), detached."""


def load_backbone(path: str | Path, dtype: str = "float32", attention: Attention = "sdpa") -> Any:
    """Load a `LlavaOnevisionForConditionalGeneration` folder strictly, in training mode, on the CPU.

    Raises HarnessError where there is no such folder, or weights are missing or left over.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise HarnessError(f"there is no model at {folder}: it has no config.json.")
    with _quiet():
        model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
            output_loading_info=True,
        )
    wrong = {k: sorted(map(str, v)) for k, v in info.items() if v and k != "error_msgs"}
    if wrong:
        shown = "; ".join(f"{k}: {', '.join(v[:3])} ({len(v)})" for k, v in wrong.items())
        raise HarnessError(
            f"the weights in {folder} do not fit its config.json ({shown}): a LLaVA-NeXT checkpoint is first "
            "converted with llava_train.convert.convert."
        )
    if attention == "sdpa":
        _register_segmented()
        model.model.language_model.set_attn_implementation(SEGMENTED)
    return model.train()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of transformers while a model loads."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _register_segmented() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTED, segmented_attention)


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    bounds: tuple[int, ...],
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each [bounds[i], bounds[i+1]) of a row; (1, heads, T, d) to (1, T, heads, d)."""
    grouped = bool(query.shape[1] != key.shape[1])
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling, enable_gqa=grouped
        )
        for a, b in itertools.pairwise(bounds)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


class PackedModel(nn.Module):
    """A LLaVA-OneVision that takes packs and gives their loss."""

    def __init__(self, model: Any, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        # The modules' own forwards are replaced, not called round: ZeRO-3 gathers parameters in the forward of the
        # module that owns them, the bare `image_newline` of the inner model among them.
        model.model.forward = types.MethodType(_hidden_states, model.model)
        model.lm_head.forward = types.MethodType(_token_losses, model.lm_head)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(self, pack: Pack) -> Losses:
        hidden = self.model.model(pack)
        tokens = self.model.lm_head(hidden[pack.read_at], pack.targets)
        return Losses(total=(tokens * pack.weights).sum(), tokens=tokens.detach())


def _token_losses(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target, (S,) in float32, from the hidden states (S, d) that predict them; the head's forward.

    A vocabulary of 150,000 makes logits the largest tensor of a pack of long answers: beyond `HEAD_CHUNK` targets
    they are computed in chunks, and again in the backward.
    """

    def losses(states: Tensor, wanted: Tensor) -> Tensor:
        logits = F.linear(states, head.weight, head.bias).float()
        return F.cross_entropy(logits, wanted, reduction="none")

    if len(targets) <= HEAD_CHUNK:
        return losses(hidden, targets)
    chunks = zip(torch.split(hidden, HEAD_CHUNK), torch.split(targets, HEAD_CHUNK), strict=True)
    return torch.cat([checkpoint(losses, h, t, use_reentrant=False) for h, t in chunks])


def _hidden_states(model: Any, pack: Pack) -> Tensor:
    """Last hidden states, (T, d), of a pack; the forward of the inner `LlavaOnevisionModel`.

    A pack without images sends one blank tile through the tower and uses none of its features: the operations,
    and with them the order of gradients, are the same on all ranks.
    """
    embeddings = model.get_input_embeddings()(pack.ids)
    features = image_features(model, pack)[: len(pack.image_at)].to(embeddings.dtype)
    embeddings = embeddings.index_copy(0, pack.image_at, features)
    hidden: Tensor = model.language_model(
        inputs_embeds=embeddings[None],
        position_ids=pack.positions[None],
        attention_mask=None,
        use_cache=False,
        **_row_bounds(model, pack),
    ).last_hidden_state[0]
    return hidden


def _row_bounds(model: Any, pack: Pack) -> dict[str, Any]:
    """What the attention needs to keep samples apart without looking at positions in every layer."""
    attention = model.language_model.config._attn_implementation
    if attention == SEGMENTED:
        return {"bounds": pack.bounds}
    if attention == "flash_attention_2":
        starts = torch.tensor(pack.bounds, dtype=torch.int32, device=pack.ids.device)
        longest = max(b - a for a, b in itertools.pairwise(pack.bounds))
        return {
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return {}


def image_features(model: Any, pack: Pack) -> Tensor:
    """Features of all images of a pack, in order, newline tokens included; (I, d)."""
    config = model.config
    pixels = normalise(pack.tiles)
    layer = config.vision_feature_layer
    tower = model.vision_tower(pixels, output_hidden_states=layer, return_dict=True)
    picked = [layer] if isinstance(layer, int) else layer
    states = torch.cat([tower.hidden_states[i] for i in picked], dim=-1)
    projected = torch.split(model.multi_modal_projector(states), list(pack.splits))
    packed, _ = model.pack_image_features(
        projected, pack.sizes, image_newline=model.image_newline, vision_aspect_ratio=config.vision_aspect_ratio
    )
    return torch.cat(packed)


def normalise(tiles: Tensor) -> Tensor:
    """uint8 tiles to the tower's input in [-1, 1], float32: mean and deviation 0.5."""
    return (tiles.float() / 255 - 0.5) / 0.5
