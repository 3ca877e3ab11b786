"""The warm-ups of gradient methods: one for all of them, and each method's own."""

from __future__ import annotations

from typing import Final

from harness.types import WarmUp

SHARED: Final = WarmUp(
    recipe={
        "lora_rank": 128,
        "lora_alpha": 256,
        "lora_dropout": 0.05,
        "lora_targets": "attention",
        "learning_rate": 2e-4,
        "schedule": "cosine",
        "warmup": 0.03,
        "epochs": 4.0,
        "fixed_steps": 0,
    }
)
"""Four epochs of adapters on attention, as LESS and TIVE look at them, at the rate of LLaVA's adapters."""

ICONS: Final = WarmUp(
    recipe={**SHARED.recipe, "lora_targets": "linear", "epochs": 1.0, "global_batch": 128},
)
"""One epoch of adapters on all linear maps of the language model, as in the released scripts of arXiv 2501.00654;
the projector, which LLaVA trains along with them, stays as it is."""
