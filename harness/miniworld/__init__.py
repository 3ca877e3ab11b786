"""The embedded small world: pool, suite, backbones."""

from pathlib import Path

from harness.errors import unknown_name
from harness.miniworld.build import ensure_pool, truth_file
from harness.miniworld.suite import ensure_suite, mini_suite

__all__ = ["WEIGHTS_ROOT", "ensure_pool", "ensure_suite", "mini_suite", "truth_file", "weights_dir"]


WEIGHTS_ROOT = Path(__file__).parent / "weights"
"""Where the shipped models are, a folder each."""


def weights_dir(name: str) -> Path:
    """The folder of shipped weights: `tiny`, `tiny_b`, `clip`, `deita_complexity` or `deita_quality`.

    Raises HarnessError for a name nothing is shipped under.
    """
    names = sorted(p.parent.name for p in WEIGHTS_ROOT.glob("*/config.json"))
    if name not in names:
        raise unknown_name("miniworld model", name, names)
    return WEIGHTS_ROOT / name
