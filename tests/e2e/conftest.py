"""What the end-to-end tests share: tiny models of the real classes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny` (LLaVA-OneVision) and `clip`, untrained."""
    from harness.miniworld.architecture import build_untrained
    from tests.models import build_clip

    root = tmp_path_factory.mktemp("models")
    build_untrained("tiny", root / "tiny", seed=0)
    build_clip(root / "clip", tokenizer=root / "tiny")
    return root
