"""Import this to have everything an evaluation needs in memory (the evaluation's fork server does)."""

from __future__ import annotations

import importlib
from typing import Final

from harness.evaluation.environment import prepare_environment

MODULES: Final = (
    "lmms_eval.evaluator",
    "transformers.models.llava_onevision.modeling_llava_onevision",
    "transformers.models.llava_onevision.processing_llava_onevision",
    "transformers.models.llava_onevision.image_processing_pil_llava_onevision",
    "transformers.models.llava_onevision.video_processing_llava_onevision",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip",
    "datasets.packaged_modules.parquet.parquet",
    "harness.evaluation.adapter",
    "harness.evaluation.session",
    "harness.evaluation.judge",
)

prepare_environment()  # before the first of these imports, which read it
for _name in MODULES:
    importlib.import_module(_name)
