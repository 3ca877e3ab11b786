"""The gradients pass: autograd's gradients of each sample alone, whatever the packs, and a projection of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from selector_zoo.passes import gradients_model
from selector_zoo.passes.forward_samples import read_samples
from selector_zoo.passes.gradients import GradientsConfig, GradientsPass, build, supervised
from selector_zoo.passes.gradients_model import Differentiator, Factors, preconditioned
from selector_zoo.passes.gradients_projection import Signs, Whole
from torch import Tensor

from harness.api import PassContext
from harness.errors import HarnessError
from harness.keys import mix64, seed64
from harness.pool import Pool
from harness.pool_write import PoolWriter
from harness.types import TrainSpec
from llava_train import lora
from llava_train.lora import AdamState, Moments
from llava_train.model import PackedModel, load_backbone
from llava_train.pool_index import PoolIndex
from llava_train.run import TrainRequest, train
from tests.support import png, raw_record
from tests.unit.train_support import backbone, packed

N = 12
SIZES = ((24, 16), (60, 120), (48, 48), (130, 70))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Small and large pictures, text alone, one and two turns."""
    path = tmp_path_factory.mktemp("pool") / "pool"
    with PoolWriter(path, "mixed") as writer:
        for i in range(N):
            assert writer.add(raw_record(i), lambda key: png(int(key[:-4]), SIZES[int(key[:-4]) % 4]))
    return writer.pool()


@pytest.fixture(scope="module")
def trained(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with adapters beside it, after three steps."""
    out = tmp_path_factory.mktemp("warm")
    spec = TrainSpec(
        pack_tokens=300,
        dtype="float32",
        global_batch=4,
        learning_rate=5e-3,
        lora_rank=4,
        lora_alpha=8,
        gradient_checkpointing=False,
    )
    train(
        TrainRequest(
            spec=spec,
            pool=pool,
            positions=np.arange(N, dtype=np.int32),
            backbone_path=str(backbone()),
            out=out,
            partial=out / "partial",
        )
    )
    return out


def opened(warm: Path | None = None, **settings: Any) -> GradientsPass:
    context = PassContext(model_path=str(backbone()))
    if warm is not None:
        context = PassContext(model_path=str(warm / "model"), adapter_path=str(warm / "adapter"))
    made = GradientsPass(GradientsConfig(**settings), context)
    made.open()
    return made


def single_losses(made: GradientsPass, pool: Pool, model: Any) -> list[Tensor]:
    """Each sample's mean loss over its answer, computed alone."""
    index = PoolIndex(
        pool=pool,
        tokenizer=made._taker.tokenizer,
        geometry=made._taker.geometry,
        max_length=12000,
        mask="answer",
    )
    texts, _ = supervised(read_samples(index, 0, pool.n)[0])
    items, _ = build(index, texts, list(texts))
    forward = PackedModel(model).eval()
    return [forward(packed([item])).total for item in items.values()]


def test_gradients_of_adapters_are_autograds(pool: Pool, trained: Path) -> None:
    """PEFT's adapters on the backbone, one sample at a time."""
    from peft import PeftModel

    found, reasons = (made := opened(trained, parameters="linear", width=0)).run(pool, 0, N)
    assert reasons == [""] * N
    whole = PeftModel.from_pretrained(load_backbone(backbone()), str(trained / "adapter"), is_trainable=True)
    adapted = whole.get_base_model()
    by_name = {lora.parameter_name(n): p for n, p in adapted.named_parameters() if p.requires_grad}
    parameters = [by_name[name] for name in made._taker.projection.sizes]
    assert len(parameters) == len(by_name) == 2 * 7 * 4
    for i, loss in enumerate(single_losses(made, pool, adapted)):
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        assert found["norm"][i] == pytest.approx(float(expected.norm()), rel=1e-4)
        assert found["norm_projected"][i] == pytest.approx(found["norm"][i], rel=1e-5)
        unit = (expected / expected.norm()).numpy()
        np.testing.assert_allclose(found["gradient"][i], unit, atol=2e-5)
        assert found["gradient"][i] @ unit == pytest.approx(1, abs=1e-5)


def test_gradients_of_weights_are_autograds(pool: Pool) -> None:
    """A model without adapters: those of the attention's own weights."""
    found, _ = (made := opened(width=0)).run(pool, 0, N)
    model = load_backbone(backbone())
    by_name = dict(model.named_parameters())
    names = list(made._taker.projection.sizes)
    assert {name.split(".")[-2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for i, loss in enumerate(single_losses(made, pool, model)):
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, [by_name[n] for n in names])])
        assert found["norm"][i] == pytest.approx(float(expected.norm()), rel=1e-4)
        unit = (expected.double() / expected.double().norm()).numpy()
        assert found["gradient"][i] @ unit == pytest.approx(1, abs=1e-6)


def test_packs_and_shards_change_nothing(pool: Pool, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = opened(trained, width=256)
    together, _ = made.run(pool, 0, N)
    made.limits = TrainSpec(pack_tokens=1)
    one_by_one, _ = made.run(pool, 0, N)
    monkeypatch.setattr(gradients_model, "CHUNK", 500)
    sharded = [made.run(pool, a, b)[0] for a, b in pairwise((0, 5, 6, N))]
    assert together["gradient"].dtype == np.float16
    for name, values in together.items():
        joined = np.concatenate([shard[name] for shard in sharded])
        for other in (one_by_one[name], joined):
            np.testing.assert_allclose(other, values, rtol=1e-3, atol=2e-4)


def numpy_signs(width: int, seed: int, name: str, rows: int) -> np.ndarray:
    """The sign matrix of one parameter, written down whole."""
    hashes = mix64(np.arange(rows * width // 64, dtype=np.uint64), seed64("projection", seed, name))
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return np.where(bits.reshape(rows, width) == 1, 1.0, -1.0)


def test_a_projection_is_one_dense_matrix(pool: Pool, trained: Path) -> None:
    whole, _ = (made := opened(trained, width=0)).run(pool, 0, N)
    found, _ = opened(trained, width=128, seed=7).run(pool, 0, N)
    sizes = made._taker.projection.sizes
    dense = np.concatenate([numpy_signs(128, 7, name, size) for name, size in sizes.items()]) / np.sqrt(128)
    expected = (whole["gradient"].astype(np.float64) * whole["norm"][:, None]) @ dense
    length = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(found["norm_projected"], length, rtol=1e-4)
    np.testing.assert_allclose(found["gradient"], expected / length[:, None], atol=4e-4)
    np.testing.assert_allclose(found["norm"], whole["norm"], rtol=1e-5)


def test_blocks_of_a_projection_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    signs, whole, parts = Signs(192, 5), torch.zeros(3, 192), torch.zeros(3, 192)
    signs.add(whole, "a", 0, values)
    monkeypatch.setattr("selector_zoo.passes.gradients_projection.BLOCK", 192 * 7)
    for a, b in pairwise((0, 10, 500, 1000)):
        signs.add(parts, "a", a, values[:, a:b])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    matrix = signs.block("a", 0, 1000, torch.device("cpu"))
    np.testing.assert_array_equal(matrix.numpy(), numpy_signs(192, 5, "a", 1000))
    for other in (Signs(192, 6).block("a", 0, 1000, matrix.device), signs.block("b", 0, 1000, matrix.device)):
        assert abs(float((other * matrix).mean())) < 0.02
    assert abs(float(matrix.mean())) < 0.02


def test_a_projection_keeps_angles() -> None:
    """Cosines of pairs are off by about 1 / sqrt(width)."""
    made = torch.Generator().manual_seed(1)
    first, noise = torch.randn(2, 200, 400, generator=made)
    second = first + noise * torch.linspace(0, 3, 200)[:, None]
    out = torch.zeros(400, 1024)
    Signs(1024, 0).add(out, "w", 0, torch.cat([first, second]))
    exact = torch.cosine_similarity(first, second)
    off = torch.cosine_similarity(out[:200], out[200:]) - exact
    spread = (1 - exact**2) / 1024**0.5  # of a cosine's estimate
    assert float(off.abs().max()) < 4 / 1024**0.5
    assert float((off / spread.clamp_min(1e-3))[20:].std()) == pytest.approx(1, abs=0.2)
    assert float((out.norm(dim=1) / torch.cat([first, second]).norm(dim=1) - 1).abs().max()) < 4 / 1024**0.5


def test_a_projection_of_the_default_width_is_off_by_a_seventieth() -> None:
    """Cosines of unlike vectors spread by 1 / sqrt(5120) = 0.014."""
    made = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 300, 600, generator=made)
    second -= first * ((first * second).sum(dim=1) / first.square().sum(dim=1))[:, None]
    out = torch.zeros(600, GradientsConfig().width)
    Signs(out.shape[1], 0).add(out, "w", 0, torch.cat([first, second]))
    assert float(torch.cosine_similarity(out[:300], out[300:]).std()) == pytest.approx(0.014, abs=0.0015)


def test_a_sample_that_counts_ten_times_points_the_same_way(pool: Pool, trained: Path) -> None:
    """Rows have length one, so no selection changes with the length of a sample's gradient."""
    made = opened(trained, width=128)
    index = PoolIndex(
        pool=pool,
        tokenizer=made._taker.tokenizer,
        geometry=made._taker.geometry,
        max_length=12000,
        mask="answer",
    )
    texts, _ = supervised(read_samples(index, 0, 4)[0])
    items, _ = build(index, texts, list(texts))
    heavy = {row: replace(item, weight=10 * item.weight) for row, item in items.items()}
    light, found = made._empty(4), made._empty(4)
    assert made._fill(light, items) == made._fill(found, heavy) == {}
    np.testing.assert_allclose(found["gradient"], light["gradient"], atol=2e-3)
    np.testing.assert_allclose(found["norm"], 10 * light["norm"], rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "inner", "key_values", "layers", "wanted"),
    [(3584, 18944, 512, 28, 322_961_408), (896, 4864, 128, 24, 70_385_664), (4096, 11008, 4096, 32, 319_815_680)],
    ids=["Qwen2-7B", "Qwen2-0.5B", "Vicuna-7B"],
)
def test_adapters_on_all_linear_maps_have_as_many_parameters_as_published(
    width: int, inner: int, key_values: int, layers: int, wanted: int
) -> None:
    """At rank 128, on the four maps of attention and the three of the feed-forward network of every block."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // 64
    shape = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=heads * key_values // width,
        vocab_size=8,
    )
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"language_model": LlamaForCausalLM(shape).model})
        spec = LoraConfig(r=128, target_modules=lora.TARGETS["linear"])
        inject_adapter_in_model(spec, model)
    count = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert layers * count == wanted


def test_nothing_is_lost_without_a_projection() -> None:
    whole = Whole({"a": 3, "b": 2})
    out = torch.zeros(1, whole.width)
    whole.add(out, "b", 1, torch.tensor([[5.0]]))
    whole.add(out, "a", 0, torch.tensor([[1.0, 2.0]]))
    assert out.tolist() == [[1, 2, 0, 0, 5]]


def test_a_gradient_of_two_tokens_by_hand() -> None:
    """Softmax of Wx, mean over two tokens that share W; and a second sample that has one."""
    left = torch.tensor([[-0.25, 0.15, 0.1], [0.05, -0.1, 0.05], [-0.5, 0.3, 0.2]])
    right = torch.tensor([[3.0, 4], [0, 1], [3, 4]])
    parts = list(gradients_model._products(Factors(name="w", left=left, right=right), (0, 2, 3)))
    assert [start for start, _ in parts] == [0]
    two, one = parts[0][1]
    assert two.view(3, 2).tolist() == [pytest.approx(r) for r in ([-0.75, -0.95], [0.45, 0.5], [0.3, 0.45])]
    assert float(two.norm()) == pytest.approx(1.486607)
    assert float(one.norm()) == pytest.approx(3.082207)


def adam_state(first: Sequence[float], second: Sequence[float], step: int) -> AdamState:
    moments = {"w": Moments(first=torch.tensor([first]), second=torch.tensor([second]))}
    return AdamState(moments=moments, step=step, beta1=0.9, beta2=0.999)


def test_adams_step_by_hand() -> None:
    state, gradient = adam_state([9.0, 0.1], [9.0, 0.04], 10), torch.tensor([[0.5]])
    assert float(preconditioned(gradient, state, "w", 1, "adam")) == pytest.approx(0.698170, abs=1e-6)
    corrected = 0.14 / (1 - 0.9**10) / np.sqrt(0.04021 / (1 - 0.999**10))
    assert float(preconditioned(gradient, state, "w", 1, "adam_paper")) == pytest.approx(corrected, rel=1e-6)


@pytest.mark.parametrize("form", ["adam", "adam_paper"])
def test_preconditioning_uses_the_moments_of_its_parameter(pool: Pool, trained: Path, form: str) -> None:
    plain, _ = (made := opened(trained, width=0)).run(pool, 0, 4)
    found, _ = opened(trained, width=0, form=form).run(pool, 0, 4)
    state, names = lora.load_adam(trained / "adapter"), made._taker.projection.sizes
    first = torch.cat([state.moments[n].first.flatten() for n in names]).numpy()
    second = torch.cat([state.moments[n].second.flatten() for n in names]).numpy()
    gradient = plain["gradient"] * plain["norm"][:, None]
    m, v = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
    steps = m / np.sqrt(v + 1e-8)
    if form == "adam_paper":
        steps = m / (1 - 0.9**3) / (np.sqrt(v / (1 - 0.999**3)) + 1e-8)
    expected = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    assert (expected * found["gradient"]).sum(axis=1) == pytest.approx([1] * 4, abs=1e-4)


def test_adam_without_moments_is_refused() -> None:
    with pytest.raises(HarnessError, match="needs Adam's moments"):
        opened(form="adam")


def test_samples_without_a_gradient_have_a_reason(pool: Pool) -> None:
    cut, reasons = opened(max_length=12, width=64).run(pool, 0, 5)
    assert reasons == ["no_answer_tokens"] * 5
    assert cut.pop("truncated").tolist() == [True] * 5
    assert all(np.isnan(values).all() for values in cut.values())
    made = opened(width=64)
    assert not made.run(pool, 0, 2)[0]["truncated"].any()
    made._taker.packed.model.lm_head.weight.data.fill_(float("nan"))
    cut, reasons = made.run(pool, 0, 2)
    assert reasons == ["not_finite"] * 2
    assert np.isnan(cut["gradient"]).all()
    made._taker.packed.model.lm_head.weight.data.zero_()
    assert made.run(pool, 0, 1)[1] == ["zero_gradient"]


def test_too_little_memory_halves_the_batch(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    taken = Differentiator._taken

    def scarce(self: Differentiator, items: Sequence[Any]) -> Any:
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError
        return taken(self, items)

    made = opened(width=64)
    whole, _ = made.run(pool, 0, 6)
    monkeypatch.setattr(Differentiator, "_taken", scarce)
    halved, _ = made.run(pool, 0, 6)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]
    np.testing.assert_allclose(halved["gradient"], whole["gradient"], atol=5e-4)


def test_sixteen_bits_point_the_same_way(pool: Pool, trained: Path) -> None:
    exact, _ = opened(trained, width=512).run(pool, 0, 6)
    low, _ = opened(trained, width=512, dtype="bfloat16").run(pool, 0, 6)
    assert ((exact["gradient"].astype(float) * low["gradient"]).sum(axis=1) > 0.99).all()


def test_planning_does_not_import_torch() -> None:
    code = "import sys, selector_zoo.passes.gradients; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "settings", [{"width": 100}, {"form": "adamw"}, {"mask": "all"}, {"parameters": "head"}, {"max_length": 0}]
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(HarnessError, match=next(iter(settings))):
        GradientsConfig(**settings)


def test_a_stage_tells_its_pass_where_the_adapters_are(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a train stage left decides; a full training leaves no adapters."""
    from harness.stages.context import StageContext
    from harness.stages.features import _pass_context
    from harness.store import Store
    from harness.types import Stage

    settings = {"model_path": "given"}
    given = Stage(kind="features", version=1, params={}, settings=settings)
    warm = Stage(kind="features", version=1, params={}, settings=settings, inputs={"train.model": "k"})

    def told(stage: Stage, left: Path) -> PassContext:
        monkeypatch.setattr(StageContext, "input", lambda self, name: left)
        store = Store(tmp_path)
        return _pass_context(StageContext(stage=stage, store=store, directory=store.at(stage)))

    assert told(given, trained) == PassContext(model_path="given")
    expected = PassContext(model_path=str(trained / "model"), adapter_path=str(trained / "adapter"))
    assert told(warm, trained) == expected
    assert told(warm, tmp_path).adapter_path == ""
