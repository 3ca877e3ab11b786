"""The cost formulas against torch's own counter and the figures of the published models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from train_support import backbone, item, packed

from harness.errors import HarnessError
from llava_train.cost import ModelCost, gpu_hours
from llava_train.model import PackedModel, load_backbone


@pytest.mark.parametrize("sizes", [[(48, 48)], [(60, 90)], [(40, 40), (20, 90)]])
def test_operations_equal_the_counters(sizes: list[tuple[int, int]]) -> None:
    model = PackedModel(load_backbone(backbone()))
    cost = ModelCost.from_config(model.model.config)
    sample = item("What is it?", "a red circle", sizes)
    pack = packed([sample])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pack)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counted.items() if "attention" in op)
    tokens, tiles = len(sample.ids), len(pack.tiles)
    matmul = float(cost.matmul(tokens, len(pack.targets), tiles))
    # The rotary angles are a product of their own: positions with 16 frequencies.
    assert sum(counted.values()) - attention == pytest.approx(matmul, rel=1e-3)
    causal = 2 * tokens**2 * cost.attention_width * cost.layers
    assert attention == pytest.approx(float(cost.attention(tokens, tiles)) + causal, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "body", "head"),
    [
        ((896, 4864, 24, 14, 2, 151936), 0.358e9, 0.136e9),
        ((3584, 18944, 28, 28, 4, 152064), 6.525e9, 0.545e9),
    ],
)
def test_figures_of_the_published_sizes(text: tuple[int, ...], body: float, head: float) -> None:
    from transformers import LlavaOnevisionConfig, Qwen2Config

    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
    )
    config = LlavaOnevisionConfig(text_config=Qwen2Config(**dict(zip(names, text, strict=True))))
    cost = ModelCost.from_config(config)
    assert cost.body == pytest.approx(body, rel=2e-3)
    assert cost.head == pytest.approx(head, rel=2e-3)
    assert cost.vision == pytest.approx(0.396e9, rel=2e-3)
    assert cost.tile_tokens == 729


def test_costs_work_on_arrays_and_training_is_three_forwards() -> None:
    cost = ModelCost.from_config(load_backbone(backbone()).config)
    tokens = np.array([100, 200])
    np.testing.assert_allclose(cost.training(tokens, 10, 2), 3 * cost.forward(tokens, 10, 2))
    assert cost.forward(100, 10, 0) < cost.forward(100, 10, 1)


def test_gpu_hours() -> None:
    assert gpu_hours(989e12 * 3600, "h100", 0.5) == pytest.approx(2.0)
    with pytest.raises(HarnessError, match="h100"):
        gpu_hours(1.0, "h10", 0.5)
