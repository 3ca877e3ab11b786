"""Everything a run imports, for a fork server to import once: a run in its child starts in a third of a second.

Nothing here touches CUDA: a process that has initialised it cannot be forked.
"""

import importlib
import os

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # CUDA is looked for without starting it

from llava_train.engine import import_deepspeed

import_deepspeed()
for _name in (
    "pandas",  # pyarrow looks for it at the first column it hands over
    "transformers.models.llava_onevision.modeling_llava_onevision",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip",
    "llava_train.run",
):
    importlib.import_module(_name)
