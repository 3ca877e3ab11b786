"""Low-rank adapters: put on the language model, trained alone, merged for whoever reads the model afterwards.

A run with `lora_rank` leaves the merged model like any other run, and beside it a folder `adapter` in PEFT's
layout, with the Adam moments after the last step by parameter name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.keys import seed64
from harness.types import TrainSpec

ADAPTER: Final = "default"
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
MOMENTS: Final = "moments.safetensors"
ADAM: Final = "adam.json"
TARGETS: Final[Mapping[str, str]] = {
    "attention": r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj",
    "linear": r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj",
}
"""Which modules get adapters, as a pattern of their whole names in memory."""
_PEFT: Final = "base_model.model."
_PART: Final = re.compile(rf"^(.+)\.(lora_[AB])(\.{ADAPTER}\.weight)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """The adapter of one linear map: it adds `scale * up @ down` to the weights."""

    down: Tensor
    """(r, inputs); PEFT calls it A."""
    up: Tensor
    """(outputs, r); PEFT calls it B."""
    scale: float

    def to(self, device: str) -> LowRank:
        """The same on a device, in float32."""
        return replace(self, down=self.down.to(device).float(), up=self.up.to(device).float())


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Adam's running means of one parameter's gradient, as after the last step; float32, of its shape."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamState:
    """What Adam knew after the last step."""

    moments: Mapping[str, Moments]
    """By parameter, `MODULE.lora_A` and `MODULE.lora_B`."""
    step: int
    """Steps done."""
    beta1: float
    beta2: float

    def to(self, device: str) -> AdamState:
        """The same on a device."""
        moved = {n: Moments(first=m.first.to(device), second=m.second.to(device)) for n, m in self.moments.items()}
        return replace(self, moments=moved)


def attach(model: Any, spec: TrainSpec) -> None:
    """Freeze a model and put adapters on it, in place; they change nothing until they are trained."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=TARGETS[spec.lora_targets],
        bias="none",
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed64("lora", spec.seed) % 2**63)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def merged(state: Mapping[str, Tensor], spec: TrainSpec) -> dict[str, Tensor]:
    """The weights of the plain model from those of one with adapters, names as `load_backbone` has them."""
    adapters = low_ranks(state, spec.lora_alpha / spec.lora_rank)
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if _PART.match(name):
            continue
        module = name.removesuffix(".base_layer.weight")
        if module in adapters:
            low = adapters[module]
            change = low.scale * (low.up.float() @ low.down.float())
            plain[f"{module}.weight"] = (tensor.float() + change).to(tensor.dtype)
        else:
            plain[name.replace(".base_layer.", ".")] = tensor
    return plain


def low_ranks(state: Mapping[str, Tensor], scale: float) -> dict[str, LowRank]:
    """Adapters by the module they belong to."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        found = _PART.match(name)
        if found:
            parts.setdefault(found[1], {})[found[2]] = tensor
    return {m: LowRank(down=p["lora_A"], up=p["lora_B"], scale=scale) for m, p in parts.items()}


def save(state: Mapping[str, Tensor], adam: AdamState, spec: TrainSpec, out: Path) -> None:
    """Write an adapter folder that PEFT loads; `state` has names in memory.

    The same values give the same bytes. `out` appears only when it is complete.
    """
    from safetensors.torch import save_file

    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    parts = {_peft_name(name): _stored(state[name]) for name in sorted(state) if _PART.match(name)}
    save_file(parts, draft / WEIGHTS, metadata={"format": "pt"})
    moments = {f"{_peft_name(n)}:first": _stored(m.first) for n, m in adam.moments.items()}
    moments |= {f"{_peft_name(n)}:second": _stored(m.second) for n, m in adam.moments.items()}
    save_file(dict(sorted(moments.items())), draft / MOMENTS, metadata={"format": "pt"})
    told = {"step": adam.step, "beta1": adam.beta1, "beta2": adam.beta2}
    (draft / ADAM).write_text(json.dumps(told) + "\n")
    described = {
        "peft_type": "LORA",
        "r": spec.lora_rank,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": spec.lora_dropout,
        "target_modules": TARGETS[spec.lora_targets],
        "bias": "none",
        "inference_mode": True,
    }
    (draft / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    for file in draft.iterdir():
        file.chmod(0o644)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(draft, out)


def load(folder: Path) -> dict[str, LowRank]:
    """The adapters of a folder by the module they belong to, in memory's names.

    Raises HarnessError where there is no adapter.
    """
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise HarnessError(f"there is no adapter at {folder}: it has no {CONFIG}.")
    described = json.loads((folder / CONFIG).read_text())
    state = {parameter_name(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    return low_ranks(state, described["lora_alpha"] / described["r"])


def load_adam(folder: Path) -> AdamState:
    """The state of Adam that a folder's adapters were saved with.

    Raises HarnessError where they were saved without it.
    """
    from safetensors.torch import load_file

    if not (folder / MOMENTS).is_file():
        raise HarnessError(f"the adapter {folder} has no {MOMENTS}: train it with this harness.")
    stored = load_file(folder / MOMENTS)
    names = [name.removesuffix(":first") for name in stored if name.endswith(":first")]
    return AdamState(
        moments={
            parameter_name(name): Moments(first=stored[f"{name}:first"], second=stored[f"{name}:second"])
            for name in names
        },
        **json.loads((folder / ADAM).read_text()),
    )


def parameter_name(name: str) -> str:
    """`...q_proj.lora_A`, from either spelling of it in files and models."""
    return name.removeprefix(_PEFT).removesuffix(".weight").removesuffix(f".{ADAPTER}")


def _peft_name(name: str) -> str:
    return f"{_PEFT}{parameter_name(name)}.weight"


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous()
