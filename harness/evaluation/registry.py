"""Entry point `lmms_eval.models`: the models this package adds to lmms-eval."""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """Manifests of `sieve_llava_ov` (batched LLaVA-OneVision) and `sieve_replay` (stored answers)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(model_id="sieve_llava_ov", chat_class_path="harness.evaluation.adapter.SieveLlavaOv"),
        ModelManifest(model_id="sieve_replay", chat_class_path="harness.evaluation.replay.SieveReplay"),
    ]
