"""Greedy selection by maximum mean discrepancy against the formula, evaluated for every candidate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from selector_zoo import mmd
from selector_zoo.mmd import Kernel, density, gaussian, greedy_order

from tests import coincide_reference as plain


def column(*values: float) -> npt.NDArray[np.float16]:
    return np.array(values, dtype=np.float16)[:, None]


def order_of(rows: npt.NDArray[np.float16], sigma: float = 1.0, **settings: Any) -> list[int]:
    kernel = Kernel.of(rows, sigma, **settings)
    return np.argsort(greedy_order(kernel, kernel.row_means())).tolist()


def unit_rows(n: int, d: int, seed: int) -> npt.NDArray[np.float16]:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def test_points_on_a_line_by_hand() -> None:
    """Of 0, 1, 2 and 10 first the middle of the three, then the far one."""
    assert order_of(column(0, 1, 2, 10))[:2] == [1, 3]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_the_update_gives_what_the_formula_gives(seed: int, sigma: float) -> None:
    rows = unit_rows(25, 4, seed)
    assert order_of(rows, sigma) == plain.greedy(plain.kernel(rows, sigma))


def test_copies_are_taken_in_their_order() -> None:
    rows = np.repeat(unit_rows(6, 4, 9), 4, axis=0)
    order = order_of(rows)
    assert order == plain.greedy(plain.kernel(rows, 1.0))
    for copies in range(0, 24, 4):
        places = [order.index(i) for i in range(copies, copies + 4)]
        assert places == sorted(places)
    assert order_of(np.repeat(unit_rows(1, 4, 0), 5, axis=0)) == [0, 1, 2, 3, 4]


def test_a_single_member_and_two() -> None:
    assert order_of(column(3)) == [0]
    assert order_of(column(0, 0.5)) == [0, 1]


def test_a_kernel_computed_by_columns_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmd, "BLOCK", 4)
    rows = unit_rows(23, 6, 3)
    whole, parts = Kernel.of(rows, 1.0), Kernel.of(rows, 1.0, kept=5)
    assert whole.matrix is not None
    assert parts.matrix is None
    assert np.allclose(whole.row_means(), parts.row_means(), rtol=0, atol=1e-15)
    assert all(np.array_equal(whole.column(i), parts.column(i)) for i in range(23))
    assert order_of(rows) == order_of(rows, kept=5)


@pytest.mark.parametrize("held", [1, 200, mmd.HELD])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_large_cluster_is_ordered_as_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, held: int, copies: int
) -> None:
    """With room for one column, for some, and for all."""
    monkeypatch.setattr(mmd, "BLOCK", 7)
    monkeypatch.setattr(mmd, "AHEAD", 2)
    rows = np.repeat(unit_rows(30 // copies, 4, 3), copies, axis=0)
    kernel = Kernel.of(rows, 1.0, kept=5)
    order = np.argsort(greedy_order(kernel, kernel.row_means(), held)).tolist()
    assert order == plain.greedy(plain.kernel(rows, 1.0)) == order_of(rows)


@pytest.mark.parametrize("room", [1, 3, 10, 45])
def test_of_a_large_cluster_few_columns_are_held_and_with_room_none_is_computed_twice(
    monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    asked: list[int] = []
    made = Kernel.columns

    def counted(kernel: Kernel, some: npt.NDArray[np.float16]) -> npt.NDArray[np.float64]:
        asked.append(len(some))
        return made(kernel, some)

    kernel = Kernel.of(unit_rows(45, 5, 1), 1.0, kept=5)
    means = kernel.row_means()
    monkeypatch.setattr(mmd, "AHEAD", 8)
    monkeypatch.setattr(Kernel, "columns", counted)
    greedy_order(kernel, means, held=room * 45 + 44)
    assert max(asked) == min(8, room)
    assert sum(asked) == 45 if room in (1, 45) else sum(asked) > 45


def test_held_columns_fit_the_room_and_the_unlikeliest_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmd, "AHEAD", 2)
    columns = mmd._Columns(kernel=Kernel.of(unit_rows(8, 3, 2), 1.0, kept=1), most=4)
    for first, criterion, held in (
        (0, [0, 1, 2, 3, 4, 5, 6, 7], {1}),
        (2, [9, 1, 0, 3, 4, 5, 6, 7], {1, 3}),
        (4, [9, 1, 9, 3, 0, 2, 6, 7], {1, 3, 5}),
        (6, [9, 3, 9, 4, 9, 2, 0, 1], {1, 5, 7}),
    ):
        found = columns.take(first, np.array(criterion, dtype=np.float64))
        assert np.array_equal(found, columns.kernel.column(first))
        assert set(columns.held) == held
        assert all(column.base is None for column in columns.held.values())


def test_the_kernel_is_exact_on_its_diagonal_and_between_copies() -> None:
    rows = unit_rows(40, 300, 4)
    k = gaussian(rows, rows, 1.0)
    assert (k.diagonal() == 1).all()
    assert np.array_equal(k, k.T)
    np.testing.assert_allclose(k, plain.kernel(rows, 1.0), rtol=1e-12)
    doubled = np.concatenate([rows, rows[::-1]])
    assert np.array_equal(gaussian(doubled, rows, 1.0)[40:], k[::-1])


def test_density_by_hand() -> None:
    """Of (1, 0) and (0, 1): over all pairs, and over distinct ones."""
    means = Kernel.of(np.eye(2, dtype=np.float16), 1.0).row_means()
    assert density(means) == pytest.approx(0.6839397206, abs=1e-10)
    assert density(means, distinct=True) == pytest.approx(0.3678794412, abs=1e-10)
    one = Kernel.of(column(1), 1.0).row_means()
    assert density(one) == density(one, distinct=True) == 1.0
