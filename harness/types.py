"""The values the whole harness speaks in: frozen, checked when made, free of torch and Hydra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from harness.errors import HarnessError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

NOT_IN_KEY: Final[Mapping[str, Any]] = {"key": False}
"""Field metadata: how a stage is run, not what it means; left out of its key."""

OMIT_DEFAULT: Final[Mapping[str, Any]] = {"omit_default": True}
"""Field metadata for fields added later: at its default the field is left out, so old keys stay valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much of a pool a selector may keep: an exact fraction in (0, 1] or an exact count."""

    fraction: Fraction | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.count is None):
            raise HarnessError("a budget is either a fraction or a count; give one of them.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise HarnessError(
                f"budget {float(self.fraction):g} is not in (0, 1]: write 0.05 or 5% for five percent, "
                "200n for two hundred samples."
            )
        if self.count is not None and self.count < 1:
            raise HarnessError(f"budget {self.count}n keeps nothing: write at least 1n.")

    @classmethod
    def parse(cls, text: str | int | float) -> Budget:
        """Read `0.1`, `1e-1`, `10%` (one value) or `200n` (a count); `5` is refused as ambiguous."""
        raw = str(text).strip()
        try:
            if raw.endswith("%"):
                return cls(fraction=Fraction(raw[:-1].strip()) / 100)
            if raw.endswith("n"):
                return cls(count=int(raw[:-1]))
            return cls(fraction=Fraction(raw))
        except (ValueError, ZeroDivisionError):
            raise HarnessError(
                f"budget '{raw}' cannot be read: write a fraction such as 0.05, a percentage such as 5%, "
                "or a count such as 200n."
            ) from None

    def size(self, n: int) -> int:
        """Number of samples kept of a pool of `n`: `floor(fraction * n)`, in exact arithmetic."""
        if self.fraction is not None:
            size = math.floor(self.fraction * n)
        else:
            assert self.count is not None
            size = self.count
        if not 0 < size <= n:
            raise HarnessError(f"budget {self.label} keeps {size} of {n} samples: it must keep 1 to {n}.")
        return size

    @property
    def is_full(self) -> bool:
        return self.fraction == 1

    @property
    def label(self) -> str:
        """`5%` or `200n`, the spelling of tables, paths and keys."""
        if self.count is not None:
            return f"{self.count}n"
        assert self.fraction is not None
        percent = self.fraction * 100
        if percent.denominator == 1:
            return f"{percent.numerator}%"
        shown = f"{float(percent):.10g}"
        return f"{shown}%" if Fraction(shown) == percent else f"{percent}%"

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorSpec:
    """A selection method as configured: enough to find it again and to know what it computed."""

    name: str
    distribution: str
    version: int
    config: Mapping[str, Json] = field(default_factory=dict)
    path: str = field(default="", metadata=NOT_IN_KEY)
    """The file a selector that is not installed came from; its digest stands in `distribution`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """How the checkpoint that `warm` means is trained: on a random part of the pool, of seed 0.

    Passes that ask for the same warm-up share its train stage, whichever selectors they belong to.
    """

    budget: str = "5%"
    recipe: Mapping[str, Json] = field(default_factory=dict)
    """Fields of `TrainSpec` in which it differs from the recipe of the cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What the model that `trained` means learns from, and how, with seed 0."""

    labels: str = ""
    """Label file; that beside the pool where empty."""
    limit: int = 0
    """Labels to use, drawn by their uids' hashes; 0 uses all."""
    recipe: Mapping[str, Json] = field(default_factory=dict)
    """Fields of `TrainSpec` in which its training differs from the recipe of the cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRef:
    """A feature pass that a selector needs: which one, on which model, with which settings.

    `model` is an alias the planner resolves: `mid` is the backbone before SFT, `warm` the backbone after SFT
    on a small random subset (a train stage of its own), `trained` the backbone after SFT on `lessons`; anything
    else is a path, `miniworld:NAME` or a hub id pinned as `org/name@commit`; empty means that the pass needs none.
    """

    name: str
    model: str = ""
    config: Mapping[str, Json] = field(default_factory=dict)
    alias: str = ""
    """Name under which the selector finds the columns; the pass name where empty."""
    pool: str = ""
    """Folder of another pool to run over, such as samples of target tasks; the pool of the cell where empty."""
    warm_up: WarmUp = field(default_factory=WarmUp)
    """What `warm` means; without meaning for other models."""
    lessons: Lessons = field(default_factory=Lessons)
    """What `trained` means; without meaning for other models."""

    @property
    def label(self) -> str:
        return self.alias or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A model before SFT: where it lies, and the digests of what it is."""

    name: str
    path: str = field(metadata=NOT_IN_KEY)
    revision: str
    """Digest of weights and configuration (or a hub commit)."""
    processor: str
    """Digest of tokenizer, template and image geometry alone: what token counts depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """One SFT run in resolved numbers (specs: LLaVA-NeXT's single-image recipe is the reference).

    Everything here is part of the run's identity unless marked otherwise.
    """

    global_batch: int = 256
    """Samples of one optimiser step, over all devices."""
    epochs: float = 1.0
    """Passes over the selection; 0.5 sees half of it."""
    learning_rate: float = 1e-5
    """Peak of the language model and the projector."""
    vision_learning_rate: float = 2e-6
    """Peak of the vision tower."""
    weight_decay: float = 0.0
    """Of AdamW, on matrices."""
    beta1: float = 0.9
    """Of AdamW."""
    beta2: float = 0.999
    """Of AdamW."""
    epsilon: float = 1e-8
    """Of AdamW."""
    warmup: float = 0.03
    """Share of all steps, rounded up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: down to 0 in half a cosine, or as it is."""
    max_grad_norm: float = 1.0
    """Gradients of a longer norm are scaled down to it."""
    max_length: int = 12000
    """Tokens of a sample after image expansion; longer ones lose text from the right."""
    loss_norm: Literal["microbatch_mean", "token_mean", "sample_mean"] = "microbatch_mean"
    """`microbatch_mean` averages per nominal micro-batch, then over micro-batches, as LLaVA-NeXT does."""
    nominal_micro_batch: int = 2
    """Samples that `microbatch_mean` averages over together; divides `global_batch`."""
    last_batch: Literal["drop", "partial"] = "drop"
    """Samples that fill no whole batch at the end are left out (`drop`), or make a smaller one (`partial`)."""
    mask: Literal["llava", "answer"] = "llava"
    """`llava` also supervises newlines and role markers everywhere, as LLaVA-NeXT does."""
    freeze_vision: bool = False
    """Leave the vision tower as it is."""
    gradient_checkpointing: bool = field(default=True, metadata=NOT_IN_KEY)
    """Compute activations twice instead of keeping them: slower, with less memory."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights in forward and backward; the optimiser keeps float32."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention."""
    fixed_steps: int = 0
    """Optimiser steps irrespective of budget; 0 trains by epochs as the papers do."""
    lora_rank: int = field(default=0, metadata=OMIT_DEFAULT)
    """Rank of adapters on the language model, which alone are trained then; 0 trains the weights themselves."""
    lora_alpha: int = field(default=256, metadata=OMIT_DEFAULT)
    """An adapter's output is scaled by `lora_alpha / lora_rank`."""
    lora_dropout: float = field(default=0.05, metadata=OMIT_DEFAULT)
    """Share of an adapter's inputs dropped in training."""
    lora_targets: Literal["attention", "linear"] = field(default="linear", metadata=OMIT_DEFAULT)
    """Linear maps that get adapters: the four of attention, or those of the feed-forward blocks as well."""
    seed: int = 0
    """Decides the order of samples, dropout, and how adapters start."""
    zero_stage: Literal[1, 2, 3] = field(default=1, metadata=NOT_IN_KEY)
    """How much DeepSpeed spreads over devices: optimiser states, gradients as well, weights as well."""
    pack_tokens: int = field(default=12288, metadata=NOT_IN_KEY)
    """Token budget of one packed forward on one device."""
    pack_tiles: int = field(default=64, metadata=NOT_IN_KEY)
    """Image tiles of one packed forward on one device."""
    checkpoint_every: int = field(default=500, metadata=NOT_IN_KEY)
    """Optimiser steps between resumable checkpoints; 0 keeps none."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                known = ", ".join(map(str, get_args(hint)))
                raise HarnessError(f"recipe: {name}={getattr(self, name)} is none of {known}.")
        for name in ("global_batch", "max_length", "nominal_micro_batch", "pack_tokens", "pack_tiles"):
            if getattr(self, name) < 1:
                raise HarnessError(f"recipe: {name}={getattr(self, name)} must be at least 1.")
        for name in ("learning_rate", "vision_learning_rate", "warmup", "epochs", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise HarnessError(f"recipe: {name}={value} must be a finite number of at least 0.")
        if self.lora_rank < 0 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1:
            raise HarnessError(
                f"recipe: lora_rank={self.lora_rank}, lora_alpha={self.lora_alpha} and "
                f"lora_dropout={self.lora_dropout} must be at least 0, at least 1, and in [0, 1)."
            )
        if self.epochs == 0 and self.fixed_steps == 0:
            raise HarnessError("recipe: epochs=0 and fixed_steps=0 train nothing; set one of them.")
        if self.global_batch % self.nominal_micro_batch:
            raise HarnessError(
                f"recipe: global_batch={self.global_batch} is not a multiple of "
                f"nominal_micro_batch={self.nominal_micro_batch}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSpec:
    """One benchmark run of one checkpoint, as far as it decides the number."""

    benchmark: str
    task: str
    task_digest: str
    """Digest of the task's files and data where they are local; the task version otherwise."""
    protocol: str
    engine: str
    """Evaluator and version, for example `lmms-eval 0.7.3`."""
    batch_size: int = 8
    dtype: str = "float32"
    backend: str = "hf"
    attention: str = "sdpa"
    limit: int | None = None
    generation: Mapping[str, Json] = field(default_factory=dict)
    judge: str | None = None
    include_path: str = field(default="", metadata=NOT_IN_KEY)
    """Folder of local task files; its content is in `task_digest`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkScore:
    """The reported number of one benchmark for one checkpoint, in the benchmark's own scale."""

    benchmark: str
    metric: str
    value: float
    n: int
    n_invalid: int = 0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"benchmark {self.benchmark}: the score {self.value} is not a number")
        if self.n < 1:
            raise ValueError(f"benchmark {self.benchmark}: a score over {self.n} items means nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One unit of work: a frozen value whose key says what it means.

    `params` and `inputs` decide the key. `inputs` names the keys of other stages; `settings` is how to run it
    (paths, devices, chunk sizes) and is left out of the key.
    """

    kind: str
    version: int
    params: Mapping[str, Json]
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Json] = field(default_factory=dict, metadata=NOT_IN_KEY)
    label: str = field(default="", metadata=NOT_IN_KEY)
    """What a person calls it, for example `clip_score/5%/tiny/s0`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a stage has used so far, over all of its attempts."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    attempts: int = 0
    peak_rss_gb: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            wall_s=self.wall_s + other.wall_s,
            cpu_s=self.cpu_s + other.cpu_s,
            gpu_s=self.gpu_s + other.gpu_s,
            attempts=self.attempts + other.attempts,
            peak_rss_gb=max(self.peak_rss_gb, other.peak_rss_gb),
        )
