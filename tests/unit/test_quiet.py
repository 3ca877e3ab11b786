"""Libraries that talk when they are imported are kept from it: a command's output is its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed says nothing where it finds a GPU")
def test_importing_deepspeed_prints_nothing() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DS_", "DEEPSPEED_"))}
    code = "from llava_train.engine import import_deepspeed; import_deepspeed()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
