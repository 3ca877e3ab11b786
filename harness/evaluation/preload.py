"""Import this to have everything an evaluation needs in memory (the fork server does)."""

from harness.evaluation.environment import prepare_environment

prepare_environment()

import transformers.models.llava_onevision.modeling_llava_onevision  # noqa: E402
import transformers.models.llava_onevision.processing_llava_onevision  # noqa: E402
import transformers.models.qwen2.modeling_qwen2  # noqa: E402
import transformers.models.siglip.modeling_siglip  # noqa: E402, F401

import harness.evaluation.adapter  # noqa: E402
import harness.evaluation.session  # noqa: E402, F401
