"""The packed forward: equal to the stock model, sample by sample, in loss and in every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from train_support import backbone, item, packed, picture, tokenizer

from harness.errors import HarnessError
from llava_train.model import PackedModel, load_backbone

MIXED = [
    item("What colour is it?", "red", [(48, 48)], weight=0.5),
    item("Name a shape.\nOr two.", "circle and square", weight=0.25),
    item("How many?", "four", [(60, 90)], weight=2.0),
    item("Are they equal?", "no", [(40, 50), (64, 30)], weight=1.0),
    item("Which is tall?", "the left one", [(90, 30)], weight=1.5),
]


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return PackedModel(load_backbone(backbone()))


def _gradients(model: PackedModel, packs: list) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for pack in packs:
        loss = model(pack).total
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        scale = float(one[name].abs().max())
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=2e-6 + 1e-5 * scale, msg=name)


def test_packed_equals_unpacked(model: PackedModel) -> None:
    loss, gradients = _gradients(model, [packed(MIXED)])
    apart, apart_gradients = _gradients(model, [packed([i]) for i in MIXED])
    assert loss == pytest.approx(apart, rel=1e-6)
    _assert_equal(gradients, apart_gradients)


def test_every_trained_parameter_gets_a_gradient_even_without_images(model: PackedModel) -> None:
    """The blank tile: the same gradients exist in the same order, and those of the tower are zero."""
    order: dict[str, list[str]] = {}
    for key, samples in {"image": MIXED[:1], "text": [MIXED[1]], "nothing": []}.items():
        seen: list[str] = []
        hooks = [
            p.register_post_accumulate_grad_hook(lambda _, n=n, seen=seen: seen.append(n))
            for n, p in model.named_parameters()
        ]
        _, gradients = _gradients(model, [packed(samples)])
        for hook in hooks:
            hook.remove()
        order[key] = seen
        tower = [g for n, g in gradients.items() if "vision_tower" in n]
        assert all(bool((g == 0).all()) for g in tower) == (key != "image")
    assert order["image"] == order["text"] == order["nothing"]
    missing = {n for n, _ in model.named_parameters()} - set(order["image"])
    assert {n.rsplit(".", 2)[1] for n in missing} == {"post_layernorm"}  # the tower is read before it


@pytest.mark.parametrize("i", range(len(MIXED)))
def test_the_loss_is_that_of_the_stock_model(model: PackedModel, i: int) -> None:
    """Stock forward: the processor's pixels, labels, mean over targets."""
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessorPil

    sample = MIXED[i]
    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(backbone(), attn_implementation="eager")
    ids = torch.from_numpy(sample.ids.astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(sample.targets)[None], ids, -100)
    inputs = {}
    if sample.sizes:
        processor = LlavaOnevisionImageProcessorPil.from_pretrained(backbone())
        inputs = dict(processor([[picture(h, w) for h, w in sample.sizes]], return_tensors="pt"))
    with torch.no_grad():
        expected = float(stock(input_ids=ids, labels=labels, **inputs).loss)
        tokens = model(packed([sample])).tokens
    assert float(tokens.mean()) == pytest.approx(expected, rel=2e-5)


def test_segmented_attention_equals_the_dense_mask(model: PackedModel) -> None:
    dense = PackedModel(load_backbone(backbone(), attention="eager"))
    loss, gradients = _gradients(model, [packed(MIXED)])
    other, other_gradients = _gradients(dense, [packed(MIXED)])
    assert loss == pytest.approx(other, rel=1e-5)
    _assert_equal(gradients, other_gradients)


def test_gradient_checkpointing_changes_nothing(model: PackedModel) -> None:
    recomputing = PackedModel(load_backbone(backbone()), gradient_checkpointing=True)
    assert recomputing.model.model.language_model.layers[0].gradient_checkpointing
    loss, gradients = _gradients(model, [packed(MIXED)])
    other, other_gradients = _gradients(recomputing, [packed(MIXED)])
    assert loss == pytest.approx(other, rel=1e-7)
    _assert_equal(gradients, other_gradients)


def test_logits_in_chunks_change_nothing(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, gradients = _gradients(model, [packed(MIXED)])
    monkeypatch.setattr("llava_train.model.HEAD_CHUNK", 7)
    other, other_gradients = _gradients(model, [packed(MIXED)])
    assert loss == pytest.approx(other, rel=1e-6)
    _assert_equal(gradients, other_gradients)


def test_samples_of_a_pack_do_not_see_each_other(model: PackedModel) -> None:
    changed = [MIXED[0], item("Say something else entirely.", "blue"), *MIXED[2:]]
    with torch.no_grad():
        before, after = model(packed(MIXED)).tokens, model(packed(changed)).tokens
    last = int(MIXED[-1].targets[1:].sum())
    torch.testing.assert_close(before[-last:], after[-last:], rtol=1e-5, atol=1e-5)


def test_a_pack_of_nothing_has_no_loss(model: PackedModel) -> None:
    with torch.no_grad():
        losses = model(packed([]))
    assert float(losses.total) == 0
    assert losses.tokens.shape == (0,)


def test_weights_count_per_target(model: PackedModel) -> None:
    pack = packed(MIXED[:2])
    losses = model(pack)
    first = int(MIXED[0].targets[1:].sum())
    expected = 0.5 * losses.tokens[:first].sum() + 0.25 * losses.tokens[first:].sum()
    torch.testing.assert_close(losses.total, expected)


def test_models_that_are_not_there_or_do_not_fit(tmp_path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(HarnessError, match="no model at"):
        load_backbone(tmp_path / "none")
    broken = tmp_path / "broken"
    shutil.copytree(backbone(), broken)
    state = load_file(broken / "model.safetensors")
    state["model.mm_projector.0.weight"] = state.pop("multi_modal_projector.linear_1.weight")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HarnessError, match="do not fit"):
        load_backbone(broken)


def test_image_tokens_stand_where_features_go() -> None:
    pack = packed(MIXED)
    image = tokenizer().convert_tokens_to_ids("<image>")
    assert torch.equal(pack.image_at, (pack.ids == image).nonzero()[:, 0])
    assert pack.bounds[-1] == len(pack.ids)
    assert (pack.positions == 0).sum() == len(MIXED)
    assert not set(pack.bounds[:-1]) & set((pack.read_at + 1).tolist())
