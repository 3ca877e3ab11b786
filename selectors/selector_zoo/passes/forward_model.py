"""What a model says of samples: losses, errors and entropies of their target tokens, and their hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from llava_train.chat import specials
from llava_train.model import PackedModel, load_backbone
from llava_train.packs import Item, Pack, collate
from llava_train.tiles import Geometry, blank

LOGITS: Final = 2**26
"""Logits in memory at once: at 152,000 words, those of about 440 tokens."""
FLOAT16_MAX: Final = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One sample through the model."""

    tokens: npt.NDArray[np.float32]
    """(3, targets): negative log-likelihood in nats, EL2N, and entropy in nats of each target token."""
    states: dict[str, Any]
    """What was asked for of its hidden states: `sve` and `tau`, numbers; `hidden`, float16 (d,)."""


@dataclass(slots=True, kw_only=True)
class Scorer:
    """A model in evaluation mode, and what is to be read off it."""

    packed: PackedModel
    tokenizer: Any
    geometry: Geometry
    device: torch.device
    spectrum: bool
    hidden: str
    """`none`, `pre_norm` or `post_norm`."""

    @classmethod
    def load(
        cls, folder: Path, dtype: str, device: str, *, spectrum: bool, hidden: str, views: str = "checkpoint"
    ) -> Scorer:
        """Load a LLaVA-OneVision folder onto a device."""
        from transformers import AutoTokenizer

        model = load_backbone(folder, dtype).eval().to(device)
        return cls(
            packed=PackedModel(model),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            geometry=Geometry.from_config(model.config, views),
            device=torch.device(device),
            spectrum=spectrum,
            hidden=hidden,
        )

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return int(self.packed.model.config.text_config.hidden_size)

    def __call__(self, items: Sequence[Item]) -> list[Scored]:
        """Score samples in one packed forward, or in two of half the size where memory runs out."""
        if not items:
            return []
        try:
            return self._scored(items)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
        half = len(items) // 2
        return self(items[:half]) + self(items[half:])

    @torch.inference_mode()
    def _scored(self, items: Sequence[Item]) -> list[Scored]:
        pack = collate(items, specials(self.tokenizer).image, blank(self.geometry)).to(self.device)
        before, after = self._states(pack)
        head = self.packed.model.lm_head
        told = token_statistics(after[pack.read_at], head.weight, head.bias, pack.targets).cpu().numpy()
        ends = np.cumsum([int(item.targets[1:].sum()) for item in items])
        tokens = np.split(told, ends[:-1], axis=1)
        lengths = [len(item.ids) for item in items]
        rows = zip(items, tokens, torch.split(before, lengths), torch.split(after, lengths), strict=True)
        return [Scored(tokens=told, states=self._read(item, pre, post)) for item, told, pre, post in rows]

    def _states(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Hidden states of all tokens, (T, d), before and after the last normalisation."""
        caught: list[Tensor] = []
        norm = self.packed.model.model.language_model.norm
        hook = norm.register_forward_pre_hook(lambda _, given: caught.append(given[0][0]))
        try:
            after = self.packed.model.model(pack)
        finally:
            hook.remove()
        return caught[0], after

    def _read(self, item: Item, before: Tensor, after: Tensor) -> dict[str, Any]:
        """What is asked for of one sample's hidden states, (tokens, d) each."""
        marks, found = specials(self.tokenizer), dict[str, Any]()
        if self.spectrum:
            rows = torch.from_numpy(spectrum_rows(item, marks.image, self.geometry)).to(self.device)
            found["sve"], found["tau"] = spectrum(before[rows])
        if self.hidden != "none":
            state = (before if self.hidden == "pre_norm" else after)[last_said(item.ids, marks.end)].float()
            # Some models have a few enormous activations; infinity would spoil every distance.
            found["hidden"] = state.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().cpu().numpy()
        return found


def token_statistics(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Negative log-likelihood, EL2N and entropy of targets (S,) from the states (S, d) that predict them.

    Returns float32 of shape (3, S), whatever the states are. EL2N is `||p - onehot||`, Paul et al. 2021. No more
    than `LOGITS` logits are in memory at once.
    """
    rows = max(1, LOGITS // len(weight))
    parts = [
        _statistics(F.linear(states, weight, bias).float(), wanted[:, None])
        for states, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(parts, dim=1)


def _statistics(logits: Tensor, wanted: Tensor) -> Tensor:
    log_p = logits.log_softmax(dim=-1)
    told = log_p.gather(1, wanted)
    p = log_p.exp()
    entropy = -(p * log_p).sum(dim=-1)
    # p - 1 as expm1(log p): near certainty the difference of the two would be all rounding.
    error = p.scatter_(1, wanted, torch.expm1(told)).norm(dim=-1)
    return torch.stack([-told[:, 0], error, entropy])


def last_said(ids: npt.NDArray[np.int32], end: int) -> int:
    """The position of what closes the last turn, or of the last token where that was cut off.

    An earlier turn's closing marker would say the same of all samples that differ in what follows it.
    """
    closed = np.flatnonzero(ids[-2:] == end)  # nothing but a newline stands after it
    return len(ids) - len(ids[-2:]) + int(closed[-1]) if len(closed) else len(ids) - 1


def spectrum_rows(item: Item, image_id: int, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """Tokens whose states make a sample's spectrum, (tokens,): its text and the base view of its image.

    The tiles of a large image would multiply the rows several times and say the same again.
    """
    rows = np.ones(len(item.ids), dtype=np.bool_)
    if len(item.images) == 1:
        at = np.flatnonzero(item.ids == image_id)
        rows[at[geometry.tile_tokens :]] = False
    return rows


def spectrum(states: Tensor) -> tuple[float, float]:
    """Entropy (nats) of the normalised singular values of states (L, d), and the share of the largest.

    From the smaller Gram matrix in float64, which keeps values down to 1e-8 of the largest; NaN where a state is
    not finite. DataTailor, arXiv 2412.06293, informativeness and task weights.
    """
    rows = states.double()
    if not bool(rows.isfinite().all()):
        return math.nan, math.nan
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = values / values.sum()
    return float(torch.special.entr(share).sum()), float(share.max())
