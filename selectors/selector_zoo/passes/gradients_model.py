"""Gradients sample by sample out of one packed backward.

Samples of a pack do not see each other, and the loss is the sum of each one's own: what arrives at a linear map's
output for a sample's tokens is its own gradient there. With the map's inputs that makes its gradient by the map's
weights, or by the two factors of an adapter merged into them, without a backward of its own.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from llava_train import lora
from llava_train.chat import specials
from llava_train.lora import AdamState, LowRank
from llava_train.model import PackedModel, load_backbone
from llava_train.packs import Item, Pack, collate
from llava_train.tiles import Geometry, blank
from selector_zoo.passes.gradients_projection import Projection, Signs, Whole

CHUNK: Final = 2**24
"""Numbers of unprojected gradients in memory at once."""
EPSILON: Final = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Which gradients are taken."""

    parameters: str
    """`attention` or `linear`: whose maps of the language model."""
    form: str
    """`sgd`, `adam` or `adam_paper`."""
    width: int
    """Numbers after projection; 0 for none."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """Gradients of k samples."""

    rows: Tensor
    """(k, width), projected; float32."""
    norms: Tensor
    """(k,): lengths before projection; float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The gradient of one parameter as a product: `left[tokens].T @ right[tokens]` for the tokens of a sample."""

    name: str
    left: Tensor
    right: Tensor


@dataclass(slots=True, kw_only=True)
class Differentiator:
    """A model in evaluation mode, and the gradients that are to be read off it."""

    packed: PackedModel
    tokenizer: Any
    geometry: Geometry
    device: torch.device
    maps: Mapping[str, nn.Linear]
    """Linear maps whose gradients are taken, by name."""
    adapters: Mapping[str, LowRank]
    """Their adapters, where the model was trained with some."""
    adam: AdamState | None
    form: str
    projection: Projection

    @classmethod
    def load(
        cls, folder: Path, adapter: Path | None, dtype: str, device: str, kind: Kind, views: str = "checkpoint"
    ) -> Differentiator:
        """Load a LLaVA-OneVision folder, and the adapters that are merged into it, onto a device.

        Raises HarnessError where Adam's moments are asked for and there are none.
        """
        from transformers import AutoTokenizer

        model = load_backbone(folder, dtype).eval().to(device).requires_grad_(False)
        model.enable_input_require_grads()
        pattern = re.compile(lora.TARGETS[kind.parameters])
        maps = {name: module for name, module in model.named_modules() if pattern.fullmatch(name)}
        if kind.form != "sgd" and adapter is None:
            raise HarnessError(
                f"gradients: {kind.form} needs Adam's moments and {folder} was not trained with adapters: "
                "use a warm-up with lora_rank, or form=sgd."
            )
        adapters = {m: a.to(device) for m, a in lora.load(adapter).items() if m in maps} if adapter else {}
        kept = {name: maps[name] for name in adapters} if adapter else maps
        return cls(
            packed=PackedModel(model),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            geometry=Geometry.from_config(model.config, views),
            device=torch.device(device),
            maps=kept,
            adapters=adapters,
            adam=lora.load_adam(adapter).to(device) if adapter and kind.form != "sgd" else None,
            form=kind.form,
            projection=Signs(kind.width, kind.seed) if kind.width else Whole(_sizes(kept, adapters)),
        )

    def __call__(self, items: Sequence[Item]) -> Gradients:
        """Gradients of each sample's loss in one packed backward, or in two where memory runs out."""
        try:
            return self._taken(items)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
        half = len(items) // 2
        first, second = self(items[:half]), self(items[half:])
        return Gradients(rows=torch.cat([first.rows, second.rows]), norms=torch.cat([first.norms, second.norms]))

    def _taken(self, items: Sequence[Item]) -> Gradients:
        pack = collate(items, specials(self.tokenizer).image, blank(self.geometry)).to(self.device)
        rows = torch.zeros(len(items), self.projection.width, device=self.device)
        squares = torch.zeros(len(items), device=self.device)
        with self._watching(pack, rows, squares):
            self.packed(pack).total.backward()
        return Gradients(rows=rows.cpu(), norms=squares.sqrt().cpu())

    @contextmanager
    def _watching(self, pack: Pack, rows: Tensor, squares: Tensor) -> Iterator[None]:
        """While inside, what reaches a map in the backward is added to rows and squared lengths."""

        def watch(name: str, module: nn.Module) -> Any:
            def forward(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
                read = given[0].detach()[0]
                out.register_hook(  # type: ignore[no-untyped-call]
                    lambda grad: self._collect(name, read, grad[0], pack, rows, squares)
                )

            return module.register_forward_hook(forward)

        hooks = [watch(name, module) for name, module in self.maps.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _collect(self, name: str, read: Tensor, grad: Tensor, pack: Pack, rows: Tensor, squares: Tensor) -> None:
        """Add one map's part: `read` (T, inputs) went in, `grad` (T, outputs) came back."""
        for factors in _factors(name, read.float(), grad.float(), self.adapters.get(name)):
            for start, values in _products(factors, pack.bounds):
                if self.adam is not None:
                    values = preconditioned(values, self.adam, factors.name, start, self.form)
                squares += values.square().sum(dim=1)
                self.projection.add(rows, factors.name, start, values)


def _factors(name: str, read: Tensor, grad: Tensor, adapter: LowRank | None) -> list[Factors]:
    """A map's parameters: its weights, or the factors of the adapter merged into them."""
    if adapter is None:
        return [Factors(name=f"{name}.weight", left=grad, right=read)]
    down, up = adapter.down.float(), adapter.up.float()
    return [
        Factors(name=f"{name}.lora_A", left=adapter.scale * (grad @ up), right=read),
        Factors(name=f"{name}.lora_B", left=grad, right=adapter.scale * (read @ down.T)),
    ]


def _products(factors: Factors, bounds: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Parts of a parameter's gradient for the k samples of a pack: where each starts, and its values (k, m)."""
    inner = factors.right.shape[1]
    step = max(1, CHUNK // (inner * (len(bounds) - 1)))
    for row in range(0, factors.left.shape[1], step):
        left = factors.left[:, row : row + step]
        parts = [left[a:b].T @ factors.right[a:b] for a, b in itertools.pairwise(bounds)]
        yield row * inner, torch.stack(parts).flatten(1)


def _sizes(maps: Mapping[str, nn.Linear], adapters: Mapping[str, LowRank]) -> dict[str, int]:
    """Numbers of each parameter, under the names `_factors` gives them."""
    sizes: dict[str, int] = {}
    for name, module in maps.items():
        if name in adapters:
            sizes[f"{name}.lora_A"] = adapters[name].down.numel()
            sizes[f"{name}.lora_B"] = adapters[name].up.numel()
        else:
            sizes[f"{name}.weight"] = module.weight.numel()
    return sizes


def preconditioned(values: Tensor, adam: AdamState, name: str, start: int, form: str) -> Tensor:
    """What Adam's next step would be along gradients (k, m) of a parameter's entries from `start` on.

    For a learning rate of one. `adam`: no bias correction, epsilon inside the root, as LESS (arXiv 2402.04333)
    releases it; `adam_paper`: corrected by the steps done, epsilon outside, as it is written there.
    """
    part = slice(start, start + values.shape[1])
    both = adam.moments[name]
    first = adam.beta1 * both.first.flatten()[part] + (1 - adam.beta1) * values
    second = adam.beta2 * both.second.flatten()[part] + (1 - adam.beta2) * values.square()
    if form == "adam":
        return first / (second + EPSILON).sqrt()
    corrected = (second / (1 - adam.beta2**adam.step)).sqrt()
    return first / (1 - adam.beta1**adam.step) / (corrected + EPSILON)
