"""Layouts of weights: each name there and back, exports that load, conversions that compute the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from train_support import backbone, item, packed, tokenizer

from harness.errors import HarnessError
from llava_train import convert as conversion
from llava_train.chat import CHAT_TEMPLATE
from llava_train.model import PackedModel, load_backbone
from llava_train.weights import export, from_next, to_legacy, to_next

SAMPLE = [item("What is it?", "a circle", [(60, 40)])]


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_backbone(folder).state_dict())


def _loss(folder: Path) -> float:
    with torch.no_grad():
        return float(PackedModel(load_backbone(folder))(packed(SAMPLE)).total)


@pytest.mark.parametrize(
    ("memory", "legacy", "next_name"),
    [
        (
            "model.vision_tower.encoder.layers.3.mlp.fc1.weight",
            "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
        ),
        (
            "model.multi_modal_projector.linear_2.bias",
            "multi_modal_projector.linear_2.bias",
            "model.mm_projector.2.bias",
        ),
        ("model.image_newline", "image_newline", "model.image_newline"),
        (
            "model.language_model.layers.0.self_attn.q_proj.weight",
            "language_model.model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
        ),
        ("model.language_model.norm.weight", "language_model.model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_by_hand(memory: str, legacy: str, next_name: str) -> None:
    assert (to_legacy(memory), to_next(memory), from_next(next_name)) == (legacy, next_name, memory)


def test_every_name_goes_there_and_back() -> None:
    names = list(_state(backbone()))
    assert [from_next(to_next(name)) for name in names] == names
    assert len({to_legacy(name) for name in names}) == len(names)
    with pytest.raises(HarnessError, match="no part"):
        to_legacy("visual.blocks.0.weight")


@pytest.mark.parametrize(
    "name",
    [
        "model.vision_tower.vision_tower.vision_model.encoder.layers.26.layer_norm1.weight",
        "model.vision_tower.vision_tower.vision_model.head.probe",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ],
)
def test_what_the_model_does_not_use_is_dropped(name: str) -> None:
    assert from_next(name) is None


def test_an_export_loads_whole_and_is_in_the_published_layout(tmp_path: Path) -> None:
    export(_state(backbone()), backbone(), tmp_path / "model", "float32")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    prefixes = {name.split(".")[0] for name in stored}
    assert prefixes == {"vision_tower", "multi_modal_projector", "image_newline", "language_model"}
    assert "vision_tower.vision_model.post_layernorm.weight" in stored
    assert "language_model.lm_head.weight" not in stored  # tied
    before, after = _state(backbone()), _state(tmp_path / "model")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert _loss(tmp_path / "model") == _loss(backbone())


def test_an_export_evaluates_as_it_was_trained(tmp_path: Path) -> None:
    """Processor, template, end of answers; also where the source keeps an old template inside other files."""
    from transformers import AutoProcessor, GenerationConfig

    source = tmp_path / "source"
    shutil.copytree(backbone(), source)
    settings = json.loads((source / "processor_config.json").read_text())
    (source / "processor_config.json").write_text(json.dumps(settings | {"chat_template": "old"}))
    (source / "chat_template.jinja").write_text("older")
    (source / "generation_config.json").write_text("{}")
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["dtype"] = "float16"
    (source / "config.json").write_text(json.dumps(config))
    export(_state(backbone()), source, tmp_path / "model", "bfloat16")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.chat_template == CHAT_TEMPLATE
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == end
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    state = _state(backbone())
    export(state, backbone(), tmp_path / "a", "float32")
    export(dict(reversed(state.items())), backbone(), tmp_path / "b", "float32")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def _write_next(out: Path, *, tied: bool, released: bool) -> None:
    """A LLaVA-NeXT folder of the tiny model, with the parts of SigLIP that its forward leaves out.

    `released`: the rotary base is spelled as released checkpoints do, not as transformers 5 writes it.
    """
    out.mkdir()
    state = {to_next(n): t for n, t in _state(backbone()).items() if not (tied and n == "lm_head.weight")}
    state = {n: t.contiguous().clone() for n, t in state.items()}
    tower = "model.vision_tower.vision_tower.vision_model."
    state[f"{tower}head.probe"] = torch.zeros(1)
    state[f"{tower}encoder.layers.26.layer_norm1.weight"] = torch.zeros(1)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((backbone() / "config.json").read_text())
    raw = dict(config["text_config"]) | {"model_type": "llava_qwen"}
    raw["image_grid_pinpoints"] = [[w, h] for h, w in config["image_grid_pinpoints"]]
    raw.pop("dtype", None)
    if released:
        raw["rope_theta"] = raw.pop("rope_parameters")["rope_theta"]
    (out / "config.json").write_text(json.dumps(raw))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(backbone() / name, out / name)


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_a_llava_next_checkpoint_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, released: bool
) -> None:
    monkeypatch.setattr(conversion, "_SIGLIP_HEADS", 4)  # tensors do not tell the number of heads
    _write_next(tmp_path / "next", tied=tied, released=released)
    conversion.convert(tmp_path / "next", tmp_path / "hf", "float32")
    before, after = _state(backbone()), _state(tmp_path / "hf")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert _loss(tmp_path / "hf") == pytest.approx(_loss(backbone()), rel=1e-6)
    ours = json.loads((tmp_path / "hf" / "config.json").read_text())
    theirs = json.loads((backbone() / "config.json").read_text())
    assert ours["image_grid_pinpoints"] == theirs["image_grid_pinpoints"]
    assert ours["image_token_index"] == theirs["image_token_index"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "next"]


def test_folders_that_are_no_llava_next_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no LLaVA-NeXT weights"):
        conversion.convert(backbone(), tmp_path / "hf")
