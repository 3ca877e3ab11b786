"""Adapters: trained alone, merged exactly, saved as PEFT saves them, with the moments of the optimiser."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_support import backbone, item, packed

from harness.errors import HarnessError
from harness.pool import Pool
from harness.types import TrainSpec
from llava_train import lora
from llava_train.model import PackedModel, load_backbone
from llava_train.run import TrainRequest, train
from tests.support import write_pool

SPEC = TrainSpec(
    dtype="float32",
    gradient_checkpointing=False,
    global_batch=4,
    learning_rate=3e-3,
    warmup=0.2,
    checkpoint_every=2,
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
    lora_targets="linear",
)
SAMPLES = [item("What colour is it?", "red", [(48, 48)]), item("Name two shapes.", "circle and square")]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool", 24)


def request(pool: Pool, folder: Path, spec: TrainSpec = SPEC) -> TrainRequest:
    return TrainRequest(
        spec=spec,
        pool=pool,
        positions=np.arange(16, dtype=np.int32),
        backbone_path=str(backbone()),
        out=folder / "out",
        partial=folder / "partial",
    )


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    train(request(pool, folder))
    return folder / "out"


def losses(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = PackedModel(model).eval()(packed(SAMPLES)).tokens
    return found


def test_only_the_language_model_moves(trained: Path) -> None:
    before, after = load_file(backbone() / "model.safetensors"), load_file(trained / "model/model.safetensors")
    moved = set()
    for name, tensor in before.items():
        if not torch.equal(tensor, after[name.replace("vision_tower.", "vision_tower.vision_model.")]):
            moved.add(name)
    kinds = {name.split(".")[-2] for name in moved}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all("language_model" in name for name in moved)
    assert len(moved) == 7 * 4


def test_the_merged_model_is_the_backbone_with_its_adapters(trained: Path) -> None:
    """PEFT reads the folder beside it and computes the same."""
    from peft import PeftModel

    plain = losses(load_backbone(trained / "model"))
    base = load_backbone(backbone())
    untrained = losses(base)
    together = PeftModel.from_pretrained(load_backbone(backbone()), str(trained / "adapter"))
    assert float((plain - untrained).abs().max()) > 1e-3
    torch.testing.assert_close(losses(together.get_base_model()), plain, rtol=1e-5, atol=1e-5)


def test_moments_are_those_of_every_adapter(trained: Path) -> None:
    low, adam = lora.load(trained / "adapter"), lora.load_adam(trained / "adapter")
    assert len(low) == 7 * 4
    assert set(adam.moments) == {f"{module}.{part}" for module in low for part in ("lora_A", "lora_B")}
    assert (adam.step, adam.beta1, adam.beta2) == (4, 0.9, 0.999)
    for module, adapter in low.items():
        assert adapter.scale == 2.0
        for part, parameter in (("lora_A", adapter.down), ("lora_B", adapter.up)):
            both = adam.moments[f"{module}.{part}"]
            assert both.first.shape == both.second.shape == parameter.shape
            assert both.first.dtype == torch.float32
            # By Cauchy-Schwarz over the steps, with beta1=0.9, beta2=0.999 and four steps.
            assert bool((both.second >= 0).all())
            assert bool((both.first**2 <= 40 * both.second + 1e-12).all())
            assert float(both.first.abs().max()) > 0


def test_moments_are_adams(pool: Pool, tmp_path: Path) -> None:
    """One step from zero: the first is (1 - beta1) g and the second (1 - beta2) g squared, of the same g."""
    spec = replace(SPEC, fixed_steps=1, max_grad_norm=0.0)
    train(request(pool, tmp_path, spec))
    for name, both in lora.load_adam(tmp_path / "out/adapter").moments.items():
        gradient = both.first / (1 - spec.beta1)
        torch.testing.assert_close(both.second, (1 - spec.beta2) * gradient**2, rtol=1e-4, atol=1e-12)
        if name.endswith("lora_A"):  # the other factor is zero before the first step
            assert not both.first.any()


class Stopped(Exception):
    pass


def test_an_interrupted_run_ends_as_an_uninterrupted_one(pool: Pool, trained: Path, tmp_path: Path) -> None:
    """Dropout included: it depends on the step, not on what was drawn before."""

    def interrupt(done: int, steps: int, figures: dict[str, float]) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(request(pool, tmp_path), interrupt)
    assert train(request(pool, tmp_path)).resumed_from == 2
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/moments.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (trained / file).read_bytes(), file


def test_attention_alone_and_sixteen_bits(pool: Pool, tmp_path: Path) -> None:
    spec = replace(SPEC, dtype="bfloat16", lora_targets="attention", gradient_checkpointing=True, fixed_steps=2)
    train(request(pool, tmp_path, spec))
    low = lora.load(tmp_path / "out/adapter")
    assert {module.split(".")[-1] for module in low} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {a.up.dtype for a in low.values()} == {torch.bfloat16}
    assert {m.first.dtype for m in lora.load_adam(tmp_path / "out/adapter").moments.values()} == {torch.float32}
    load_backbone(tmp_path / "out/model")


def test_a_run_without_adapters_leaves_none(pool: Pool, tmp_path: Path) -> None:
    train(request(pool, tmp_path, replace(SPEC, lora_rank=0, fixed_steps=1)))
    assert not (tmp_path / "out/adapter").exists()
    with pytest.raises(HarnessError, match="no adapter at"):
        lora.load(tmp_path / "out/adapter")


def test_an_adapter_of_somewhere_else_may_have_no_moments(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    with pytest.raises(HarnessError, match="has no moments"):
        lora.load_adam(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"lora_rank": -1}, {"lora_alpha": 0}, {"lora_dropout": 1.0}, {"lora_targets": "head"}]
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(changes))):
        replace(SPEC, **changes)
