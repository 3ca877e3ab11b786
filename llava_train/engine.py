"""DeepSpeed as this recipe uses it: one step over any number of packs, learning rates by part, checkpoints."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from harness.keys import seed64
from harness.types import TrainSpec
from llava_train import lora
from llava_train.lora import AdamState, Moments
from llava_train.model import Losses, PackedModel
from llava_train.packs import Pack
from llava_train.world import World

log = logging.getLogger(__name__)

VISION: Final = "vision"
REST: Final = "rest"
F = TypeVar("F")
_BUCKET: Final = 500_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimiser step did, summed over all ranks."""

    loss: float
    """The objective: weighted as the recipe says."""
    token_loss: float
    """Mean over all target tokens, in nats."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""


def learning_rate(step: int, steps: int, peak: float, spec: TrainSpec) -> float:
    """Learning rate of step `step` in [0, steps): linear warm-up from exactly 0, then cosine to 0.

    The same as transformers' `get_cosine_schedule_with_warmup`, except that a run of one step has no warm-up,
    because it would train nothing.
    """
    warmup = min(math.ceil(spec.warmup * steps), steps - 1)
    if step < warmup:
        return peak * step / warmup
    if spec.schedule == "constant":
        return peak
    progress = (step - warmup) / (steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(model: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Optimiser groups by part of the model: `name`, `peak`, `params`, `weight_decay`.

    Weight decay, where there is any, spares biases, norms and the newline vector.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = VISION if "vision_tower" in name else REST
        decays = spec.weight_decay > 0 and parameter.ndim > 1
        peak = spec.vision_learning_rate if part == VISION else spec.learning_rate
        fresh: dict[str, Any] = {"name": part, "peak": peak, "lr": 0.0, "params": []}
        fresh["weight_decay"] = spec.weight_decay if decays else 0.0
        groups.setdefault((part, decays), fresh)["params"].append(parameter)
    return list(groups.values())


def deepspeed_config(spec: TrainSpec, parameters: int) -> dict[str, Any]:
    """The DeepSpeed configuration, with every default that moved between releases written out.

    There is no optimizer block: with one, learning rates by part are lost without a word.
    """
    bucket = min(_BUCKET, max(parameters, 1))
    zero: dict[str, Any] = {
        "stage": spec.zero_stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "round_robin_gradients": False,
    }
    if spec.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": spec.max_grad_norm,
        "prescale_gradients": False,
        "bf16": {"enabled": spec.dtype == "bfloat16", "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "zero_optimization": zero,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A model with its optimiser, sharded over the ranks of a world."""

    def __init__(self, model: PackedModel, spec: TrainSpec, steps: int, world: World) -> None:
        deepspeed = import_deepspeed()
        if spec.freeze_vision:
            model.model.model.vision_tower.requires_grad_(False)
        self.spec, self.steps, self.world = spec, steps, world
        model.to(world.device)
        groups = parameter_groups(model, spec)
        self._sizes = [(g["name"], g["peak"], sum(p.numel() for p in g["params"])) for g in groups]
        optimizer = torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.epsilon, fused=True)
        config = deepspeed_config(spec, sum(size for _, _, size in self._sizes))
        self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config
        )

    @property
    def model(self) -> PackedModel:
        model: PackedModel = self.deepspeed.module
        return model

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each part, as the optimiser has it now."""
        return {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    def describe(self) -> str:
        """What is trained, and how fast at most: one phrase for the log."""
        parts = [f"{size:,} {name} parameters at {peak:g}" for name, peak, size in self._sizes]
        return f"{', '.join(parts)}, rank {self.world.rank} of {self.world.size} on {self.world.device}"

    @property
    def skipped(self) -> int:
        """Steps whose gradient was not finite, which DeepSpeed leaves out without an error."""
        return int(self.deepspeed.skipped_steps)

    def state(self) -> dict[str, Tensor]:
        """The weights by their names in memory; whole on the first rank, at ZeRO-3 gathered by all."""
        if self.spec.zero_stage == 3:
            gathered = self.deepspeed._zero3_consolidated_16bit_state_dict() or {}
            return {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
        state: dict[str, Tensor] = self.model.model.state_dict()
        return state

    def adam(self) -> AdamState:
        """Adam's state for adapters; whole on every rank, gathered by all together."""
        from deepspeed.utils import safe_get_full_optimizer_state as whole

        moments = {
            lora.parameter_name(name): Moments(first=whole(p, "exp_avg"), second=whole(p, "exp_avg_sq"))
            for name, p in self.model.model.named_parameters()
            if p.requires_grad
        }
        return AdamState(moments=moments, step=self.steps, beta1=self.spec.beta1, beta2=self.spec.beta2)

    def step(self, step: int, packs: Sequence[Pack], batch: int = 0) -> StepResult:
        """Run this rank's packs of one global batch and update the weights once.

        `batch` is any 32-bit number that says which batch this is; raises RuntimeError where ranks differ in it.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, group["peak"], self.spec)
        if self.spec.lora_rank:  # dropout as a function of the step: a run that goes on draws what it would have
            torch.manual_seed(seed64("dropout", self.spec.seed, step, self.world.rank) % 2**63)
        sums = torch.tensor([0, 0, 0, batch], dtype=torch.float64, device=self.world.device)
        for pack in packs:
            losses = self.deepspeed(pack.to(self.world.device))
            sums[:3] += _sums(losses)
            # DeepSpeed averages gradients over ranks; the weights already sum to one over the global batch.
            self.deepspeed.backward(losses.total * self.world.size)
        self.deepspeed.step()
        if self.world.size > 1:
            torch.distributed.all_reduce(sums)
        loss, token_sum, tokens, batches = sums.tolist()
        if batches != batch * self.world.size:
            raise RuntimeError(f"the ranks were given different samples at step {step}")
        return StepResult(
            loss=loss,
            token_loss=token_sum / max(tokens, 1),
            grad_norm=float(self.deepspeed.get_global_grad_norm()),
        )


def _sums(losses: Losses) -> Tensor:
    """Weighted loss, summed token losses and number of tokens; (3,), float64."""
    tokens = losses.tokens.double()
    return torch.stack([losses.total.detach().double(), tokens.sum(), torch.ones_like(tokens).sum()])


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without what it would build or compile for features nobody uses here."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or it looks around, and warns that it found no other
    import deepspeed
    from deepspeed.runtime import compiler

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it logs to stdout; what matters is checked here
    # This operation would be compiled at run time, with whatever compiler there is; gloo will do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    def uncompiled() -> Callable[[F], F]:
        return lambda function: function

    # Every first step imports the Muon optimiser, and that loads torch's compiler: over two seconds of every run.
    compiled, compiler.compile = compiler.compile, uncompiled
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiled
    return deepspeed
