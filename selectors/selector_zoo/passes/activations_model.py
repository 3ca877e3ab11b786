"""What the attention of a model writes for samples: outputs of output projections, averaged by image and text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import HarnessError
from llava_train.chat import Ids, Mask, Specials, specials
from llava_train.model import PackedModel, load_backbone
from llava_train.packs import Item, Pack, collate
from llava_train.pool_index import PoolIndex
from llava_train.tiles import Geometry, blank
from selector_zoo.passes.activations import Shard
from selector_zoo.passes.forward import DECODERS, ahead, build, packs
from selector_zoo.passes.forward_samples import read_samples
from selector_zoo.passes.square_view import SquareIndex

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """One sample through the model."""

    feature: npt.NDArray[np.float16]
    """(2 * layers * width,): image halves by layer, then text halves."""
    n_image: int
    n_text: int


class Reader(Protocol):
    """A model that says what its attention writes for samples."""

    @property
    def width(self) -> int:
        """Numbers in a feature."""

    def rows(self, shard: Shard) -> Iterator[tuple[int, Activations | str]]:
        """Each row of a shard, from 0, once and in any order: what was read, or why nothing was."""


@dataclass(slots=True, kw_only=True)
class ActivationReader:
    """A LLaVA-OneVision cut off above the last block that is read; it takes packs, without padding."""

    packed: PackedModel
    tokenizer: Any
    geometry: Geometry
    device: torch.device
    layers: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str, layers: tuple[int, ...]) -> ActivationReader:
        """Load a LLaVA-OneVision folder onto a device; no `layers` are five at equal distances.

        Raises HarnessError for blocks the model does not have.
        """
        from transformers import AutoTokenizer

        model = load_backbone(folder, dtype).eval()
        layers = cut_off(model.model.language_model, layers)
        return cls(
            packed=PackedModel(model.to(device)),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            geometry=Geometry.from_config(model.config),
            device=torch.device(device),
            layers=layers,
        )

    @property
    def width(self) -> int:
        """Numbers in a feature."""
        return 2 * len(self.layers) * int(self.packed.model.config.text_config.hidden_size)

    def rows(self, shard: Shard) -> Iterator[tuple[int, Activations | str]]:
        """Each row of a shard, from 0, once: what was read, or why nothing was."""
        kind = SquareIndex if shard.config.view == "square" else PoolIndex
        index = kind(
            pool=shard.pool, tokenizer=self.tokenizer, geometry=self.geometry, max_length=shard.config.max_length
        )
        samples, reasons = read_samples(index, shard.start, shard.stop)
        yield from reasons.items()
        workers = decoders(self.device)
        for items, failed in ahead(
            lambda rows: build(index, samples, rows), packs(samples, shard.limits), workers
        ):
            yield from failed.items()
            yield from zip(items, self(list(items.values())), strict=True)

    def __call__(self, items: Sequence[Item]) -> list[Activations]:
        """Read samples in one packed forward, or in several where memory runs out."""
        return in_halves(self._read, items)

    @torch.inference_mode()
    def _read(self, items: Sequence[Item]) -> list[Activations]:
        marks = specials(self.tokenizer)
        pack = collate(items, marks.image, blank(self.geometry)).to(self.device)
        written = torch.split(self._written(pack), [len(item.ids) for item in items], dim=1)
        masks = [spans(item.ids, marks, has_image=len(item.images) > 0) for item in items]
        return [averaged(states, *mask) for states, mask in zip(written, masks, strict=True)]

    def _written(self, pack: Pack) -> Tensor:
        """What the attention of each layer adds for each token, (layers, T, d)."""
        with listening(self.packed.model.model.language_model, self.layers) as caught:
            self.packed.model.model(pack)
        return torch.stack(caught)[:, 0]


def decoders(device: torch.device) -> int:
    """Threads that decode images: one where the model needs the cores itself."""
    return 1 if device.type == "cpu" else DECODERS


def cut_off(decoder: Any, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Take off a decoder's blocks above the last that is read; the blocks read, five where none are named.

    Raises HarnessError for blocks the decoder does not have.
    """
    depth = len(decoder.layers)
    layers = tuple(sorted(set(layers or spread_layers(depth))))
    if layers[0] < 0 or layers[-1] >= depth:
        raise HarnessError(f"activations: layers={list(layers)} of a model with {depth}: they count from 0.")
    decoder.layers = decoder.layers[: layers[-1] + 1]
    return layers


@contextlib.contextmanager
def listening(decoder: Any, layers: Sequence[int]) -> Iterator[list[Tensor]]:
    """Collect what the attention of some blocks adds for each token of a forward, (rows, tokens, d) a block."""
    caught: list[Tensor] = []
    hooks = [
        decoder.layers[i].self_attn.o_proj.register_forward_hook(lambda _, __, out: caught.append(out))
        for i in layers
    ]
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()


def spread_layers(depth: int) -> list[int]:
    """Five blocks at sixths of a model's depth, as 3, 7, 11, 15 and 19 are of 24; fewer in a shallow model."""
    return sorted({max(0, i * depth // 6 - 1) for i in range(1, 6)})


def spans(ids: Ids, marks: Specials, *, has_image: bool) -> tuple[Mask, Mask]:
    """A sample's image tokens, and the text that follows them; without an image, all after the system message."""
    image = (ids == marks.image) & has_image
    after = np.flatnonzero(image)[:1] if has_image else np.flatnonzero(ids == marks.start)[1:2]
    text = (np.arange(len(ids)) >= (after[0] if len(after) else len(ids))) & ~image
    return image, text


def averaged(states: Tensor, image: Mask, text: Mask) -> Activations:
    """The feature of one sample from its states (layers, tokens, d) and which tokens are image and text."""
    halves = torch.stack([_half(states, torch.from_numpy(mask).to(states.device)) for mask in (image, text)])
    feature = halves.flatten() / (2 * len(states)) ** 0.5
    return Activations(feature=feature.half().cpu().numpy(), n_image=int(image.sum()), n_text=int(text.sum()))


def _half(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of some tokens' states in each layer, squashed and of length one, (layers, d); zeros for no token."""
    if not mask.any():
        return torch.zeros_like(states[:, 0], dtype=torch.float32)
    return F.normalize(torch.tanh(states[:, mask].float().mean(dim=1)), dim=-1)


def in_halves(work: Callable[[Sequence[Given]], list[Made]], items: Sequence[Given]) -> list[Made]:
    """`work(items)`, in two parts, and those in two parts, where it runs out of memory."""
    if not items:
        return []
    try:
        return work(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    half = len(items) // 2
    return in_halves(work, items[:half]) + in_halves(work, items[half:])
