"""Provenance: hardware is named by the system's own files, and nothing there is no error."""

from __future__ import annotations

import os
from pathlib import Path

from harness.provenance import _entry, hardware, provenance


def test_values_are_found_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "information"
    file.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   120\nModel: another\n")
    assert _entry(file, "Model") == "NVIDIA H100 80GB HBM3"
    assert _entry(file, "UUID") == ""
    assert _entry(tmp_path / "missing", "Model") == ""


def test_every_result_says_what_it_ran_on() -> None:
    found = hardware()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    assert isinstance(found["gpus"], list)
    assert provenance()["hardware"] == found
