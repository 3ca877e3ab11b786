"""Mistakes on a command line that Hydra would answer in its own words, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness.cells import EvalSettings
from harness.complaints import complaint, no_choice, refuse_clashes
from harness.config import RunSchema, settings_of
from harness.errors import HarnessError
from harness.registry import register_file
from harness.types import TrainSpec


@pytest.mark.parametrize("spelling", ["--config-dir {}", "--config-dir={}", "-cd {}"])
def test_a_folder_named_like_a_setting_is_refused(tmp_path: Path, spelling: str) -> None:
    for group in ("suite", "selector", "sweep"):
        (tmp_path / group).mkdir()
    arguments = [*spelling.format(tmp_path).split(), "budget=0.1"]
    refuse_clashes(arguments)
    (tmp_path / "store").mkdir()
    with pytest.raises(HarnessError, match=r"/store is a folder in --config-dir .*: rename it"):
        refuse_clashes(arguments)
    refuse_clashes(["budget=0.1", "--config-dir"])  # Hydra says what is missing


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Error parsing override 'selector'\nmissing EQUAL at '<EOF>'",
            "'selector' has no value: write selector=V",
        ),
        (
            "Error parsing override 'budget==0.1'\nextraneous input '='",
            "'budget==0.1' cannot be read: write KEY=VALUE",
        ),
        ("LexerNoViableAltException: budget='0.1\n        ^", "'budget='0.1' cannot be read: write KEY=VALUE"),
        ("Error merging override seed=x\nValue 'x' is no integer", "seed cannot be 'x': Value 'x' is no integer"),
        ("Error merging override suite.only=a\nstr is not a ListConfig", "written 'suite.only=[a,b]'"),
    ],
)
def test_hydras_words_are_turned_into_sentences(said: str, expected: str) -> None:
    assert expected in str(complaint(ValueError(said)))


def test_only_hydras_own_value_errors_are_taken_for_mistakes() -> None:
    assert "selector=random" in str(
        no_choice(ValueError("Config group override must be a string or a list. Got int"))
    )
    assert no_choice(ValueError("anything else")) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"store": ""}, "store is empty: set store=DIR"),
        ({"name": "a/b"}, "name 'a/b' cannot name a file"),
        ({"baselines": {"random_trials": -1}}, "must be at least 0, which adds none"),
        ({"executor": {"slots": -1}}, "slots=-1 must be at least 0"),
        ({"executor": {"threads": 0}}, "threads=0 at least 1"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, object], expected: str) -> None:
    with pytest.raises(HarnessError, match=expected):
        settings_of(OmegaConf.merge(OmegaConf.structured(RunSchema), change))


def test_choices_of_a_recipe_are_checked_before_it_trains() -> None:
    with pytest.raises(HarnessError, match="recipe: dtype=int8 is none of bfloat16, float32"):
        TrainSpec(dtype="int8")  # type: ignore[arg-type]
    with pytest.raises(HarnessError, match="limit=-3 must be at least 1"):
        EvalSettings(limit=-3)


def test_a_selector_file_that_cannot_be_loaded_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for text, expected in (
        ("x = (", r"mine.py: the selector cannot be loaded: SyntaxError: .*line 1"),
        ("\nimport nowhere_at_all", r"mine.py, line 2: .*ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ):
        file.write_text(text)
        with pytest.raises(HarnessError, match=expected):
            register_file(file)
