"""The selectors and the pass written out in docs/selectors.md work, and keep what is promised of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.api import PassContext, Pool, Selector
from harness.conformance import check_selector
from tests.support import write_pool

PAGE = Path(__file__).parents[2] / "docs" / "selectors.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """All code of the page as one module."""
    file = tmp_path / "all_of_the_page.py"
    file.write_text("\n".join(blocks()))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[file.stem]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return write_pool(tmp_path / "pool", 40)


def kept(selector: Selector, pool: Pool, features: dict[str, Any], n: int) -> list[int]:
    scores = selector.score(pool, features) or {}
    return [int(i) for i in selector.select(pool, scores, features, n, 0).positions]


def test_the_first_file_keeps_every_promise(tmp_path: Path) -> None:
    (tmp_path / "wordy.py").write_text(blocks()[0])
    verdicts = list(check_selector(str(tmp_path / "wordy.py"), tmp_path, samples=60))
    assert [v for v in verdicts if v.problem] == []
    assert len(verdicts) == 10


def test_turns_are_fair(page: Any, pool: Pool) -> None:
    selector = page.WordyTurns(page.WordyConfig(power=2.0))
    chosen = kept(selector, pool, {}, 12)
    assert np.bincount(pool.column("source_id")[chosen]).tolist() == [4, 4, 4]
    assert kept(selector, pool, {}, 5) == chosen[:5]
    words = pool.column("n_words")
    assert words[chosen[0]] == words.max()


def test_a_selector_reads_what_its_pass_says(page: Any, pool: Pool) -> None:
    selector = page.Fluent(page.WordyConfig())
    (ref,) = selector.needs()
    columns = {"nll_sum_ans": np.full(pool.n, 6.0), "n_tok_ans": np.full(pool.n, 2)}
    columns["nll_sum_ans"][7] = np.nan
    columns["nll_sum_ans"][9] = 1.0
    order = kept(selector, pool, {ref.label: columns}, pool.n)
    assert (order[0], order[-1]) == (9, 7)


def test_a_pass_has_a_row_and_a_reason_for_every_sample(page: Any, pool: Pool) -> None:
    made = page.Brightness(page.BrightnessConfig(), PassContext(model_path=""))
    made.open()
    columns, reasons = made.run(pool, 3, 10)
    assert columns["brightness"].shape == (7,)
    assert [bool(r) for r in reasons] == np.isnan(columns["brightness"]).tolist()
    assert reasons.count("no_image") == 2
    assert columns["brightness"][0] == pytest.approx(np.asarray(pool.image("3.png")).mean())
