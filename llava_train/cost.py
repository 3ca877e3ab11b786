"""What training costs: floating point operations from the sizes of a model, and GPU-hours from those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.errors import unknown_name
from llava_train.tiles import Geometry

Floats = npt.NDArray[np.float64]

PEAK_FLOPS: Final[Mapping[str, float]] = {
    "a100": 312e12,
    "a800": 312e12,
    "h100": 989e12,
    "h800": 989e12,
    "h200": 989e12,
}
"""Dense bfloat16 operations a second, from the makers' data sheets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCost:
    """Multiply-adds of one model's parts; every figure counts what a forward multiplies, not what is stored."""

    layers: int
    attention_width: int
    """Heads times head width of the language model."""
    body: int
    """Weights of all decoder layers."""
    head: int
    """Weights of the output layer."""
    vision_layers: int
    vision_width: int
    vision: int
    """Weights of the vision tower."""
    projector: int
    tile_tokens: int

    @classmethod
    def from_config(cls, config: Any) -> ModelCost:
        """Read the sizes from a `LlavaOnevisionConfig`."""
        text, vision = config.text_config, config.vision_config
        d, heads, kv = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
        width = (getattr(text, "head_dim", None) or d // heads) * heads
        layer = 2 * d * width + 2 * d * (width // heads) * kv + 3 * d * text.intermediate_size
        v = vision.hidden_size
        vision_layer = 4 * v * v + 2 * v * vision.intermediate_size
        return cls(
            layers=text.num_hidden_layers,
            attention_width=width,
            body=text.num_hidden_layers * layer,
            head=d * text.vocab_size,
            vision_layers=vision.num_hidden_layers,
            vision_width=v,
            vision=vision.num_hidden_layers * vision_layer + 3 * vision.patch_size**2 * v,
            projector=v * d + d * d,
            tile_tokens=Geometry.from_config(config).tile_tokens,
        )

    def matmul(self, tokens: Any, supervised: Any, tiles: Any) -> Floats:
        """Forward operations in matrix products with weights (arrays or numbers, elementwise)."""
        tower = 2 * (self.vision + self.projector) * self.tile_tokens * np.asarray(tiles, dtype=np.float64)
        text = 2 * self.body * np.asarray(tokens, dtype=np.float64)
        return np.asarray(text + 2 * self.head * np.asarray(supervised, dtype=np.float64) + tower)

    def attention(self, tokens: Any, tiles: Any) -> Floats:
        """Forward operations in attention scores and averages; causal ones count half."""
        text = 2 * np.asarray(tokens, dtype=np.float64) ** 2 * self.attention_width * self.layers
        tile = 4 * self.tile_tokens**2 * self.vision_width * self.vision_layers
        return np.asarray(text + tile * np.asarray(tiles, dtype=np.float64))

    def forward(self, tokens: Any, supervised: Any, tiles: Any) -> Floats:
        """Forward operations of samples of `tokens` tokens, `supervised` targets and `tiles` tiles."""
        return self.matmul(tokens, supervised, tiles) + self.attention(tokens, tiles)

    def training(self, tokens: Any, supervised: Any, tiles: Any) -> Floats:
        """Forward and backward: three forwards. Recomputed activations are not counted, as in MFU."""
        return 3 * self.forward(tokens, supervised, tiles)


def gpu_hours(flops: float, device: str, mfu: float) -> float:
    """Hours on one device of a kind in `PEAK_FLOPS` at a share `mfu` of its peak.

    Raises HarnessError for a kind that is not listed.
    """
    if device not in PEAK_FLOPS:
        raise unknown_name("device", device, PEAK_FLOPS)
    return flops / (PEAK_FLOPS[device] * mfu * 3600)
