"""Spherical k-means against a plain one, and against everything that must not change it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from selector_zoo import kmeans
from selector_zoo.kmeans import nearest, spherical_kmeans

from tests import coincide_reference as plain


def unit_rows(n: int, d: int, seed: int, *, copies: int = 1) -> npt.NDArray[np.float16]:
    """Rows of length one, most of them near one of five directions; each comes `copies` times."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(5, d))[rng.integers(0, 5, n)] + 0.4 * rng.normal(size=(n, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.repeat(rows, copies, axis=0).astype(np.float16)


def members(labels: npt.NDArray[np.int32]) -> list[list[int]]:
    return [np.flatnonzero(labels == c).tolist() for c in range(labels.max() + 1)]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_the_plain_algorithm(seed: int) -> None:
    rows = unit_rows(60, 7, seed)
    order = np.random.default_rng(seed).permutation(60)
    found = spherical_kmeans(rows, 4, order, iterations=6)
    labels, centroids = plain.kmeans(rows, order.tolist(), 4, 6)
    assert found.labels.tolist() == labels
    assert np.array_equal(found.centroids, centroids)
    assert found.sizes.tolist() == [len(m) for m in members(found.labels)]
    assert (found.reseeded, found.dropped) == (0, 0)


def test_each_row_goes_to_its_nearest_and_ties_to_the_lower_cluster() -> None:
    rng = np.random.default_rng(0)
    rows = unit_rows(80, 6, 1)
    centroids = rng.normal(size=(9, 6)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    centroids[7], centroids[8] = centroids[2], centroids[0]  # exact ties
    centroids[5] = centroids[1] * np.float32(1 + 2e-7)  # nearer than float32 products can tell
    found = nearest(rows, centroids).tolist()
    assert found == plain.nearest(rows, centroids)
    assert not {7, 8} & set(found)
    assert 5 in found


def test_rounding_of_the_large_product_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two centroids that differ by less than the rounding that is added here to their products."""
    rows, centroids = unit_rows(64, 32, 3), np.empty((2, 32), dtype=np.float32)
    centroids[:] = unit_rows(1, 32, 4)[0]
    centroids[1, 0] += 3e-6
    wanted = plain.nearest(rows, centroids)
    assert set(wanted) == {0, 1}
    made = torch.Tensor.__matmul__

    def noisy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return made(a, b) + 4e-6 * (torch.rand(len(a), b.shape[1], generator=generator) - 0.5)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noisy)
    assert nearest(rows, centroids).tolist() == wanted


def test_order_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    rows = np.concatenate([unit_rows(150, 8, 5), unit_rows(10, 8, 6, copies=5)])
    order = np.random.default_rng(1).permutation(len(rows))
    found = spherical_kmeans(rows, 12, order, iterations=6)
    shuffle = np.random.default_rng(2).permutation(len(rows))
    place = np.argsort(shuffle)
    other = spherical_kmeans(rows[shuffle], 12, place[order], iterations=6)
    assert other.labels[place].tolist() == found.labels.tolist()
    assert np.array_equal(other.centroids, found.centroids)
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.setattr(kmeans, "ELEMENTS", 500)
    blocks = spherical_kmeans(np.load(tmp_path / "rows.npy", mmap_mode="r"), 12, order, iterations=6)
    assert blocks.labels.tolist() == found.labels.tolist()
    assert np.array_equal(blocks.centroids, found.centroids)


def test_a_lloyd_step_never_makes_it_worse() -> None:
    rows = unit_rows(300, 10, 7)
    order = np.arange(300)
    gains = []
    for iterations in (1, 2, 3, 5, 20):
        found = spherical_kmeans(rows, 8, order, iterations=iterations)
        own = found.centroids[found.labels].astype(np.float64)
        gains.append(float((rows.astype(np.float64) * own).sum()))
    assert gains == sorted(gains)
    assert gains[-1] > gains[0]


def test_empty_clusters_start_again_where_rows_are_far() -> None:
    """The first three rows are copies: two of three clusters are empty, and two directions lie far away."""
    rows = np.array([[1, 0, 0]] * 6 + [[0, 1, 0]] * 3 + [[0, 0, 1]] * 2, dtype=np.float16)
    found = spherical_kmeans(rows, 3, np.arange(11), iterations=10)
    assert sorted(map(tuple, members(found.labels))) == [(0, 1, 2, 3, 4, 5), (6, 7, 8), (9, 10)]
    assert found.reseeded == 2
    assert found.dropped == 0


def test_more_clusters_than_different_rows_are_dropped() -> None:
    rows = np.repeat(np.eye(3, dtype=np.float16), 4, axis=0)
    found = spherical_kmeans(rows, 8, np.arange(12), iterations=10)
    assert sorted(map(tuple, members(found.labels))) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert found.centroids.shape == (3, 3)
    assert found.dropped == 5


def test_rows_left_out_have_no_cluster() -> None:
    rows = unit_rows(30, 5, 8)
    rows[[3, 17]] = np.nan
    order = np.array([i for i in range(30) if i not in (3, 17)])
    found = spherical_kmeans(rows, 3, order, iterations=10)
    assert np.flatnonzero(found.labels < 0).tolist() == [3, 17]
    assert np.isfinite(found.centroids).all()
    assert found.sizes.sum() == 28
    nothing = spherical_kmeans(rows, 3, np.array([], dtype=np.int64))
    assert (nothing.labels == -1).all()
    assert nothing.centroids.shape == (0, 5)


def test_centroids_may_be_fitted_to_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(200, 6, 9)
    order = np.random.default_rng(3).permutation(200)
    part = spherical_kmeans(rows, 4, order, iterations=10, per_cluster=10)
    alone = spherical_kmeans(rows[order[:40]], 4, np.arange(40), iterations=10)
    assert np.array_equal(part.centroids, alone.centroids)
    assert part.labels.tolist() == plain.nearest(rows, alone.centroids)


def test_sums_of_float16_rows_are_exact_in_any_order() -> None:
    """What the independence of order rests on."""
    rows = unit_rows(5000, 4, 10).astype(np.float64)
    sums = {np.random.default_rng(s).permutation(rows).cumsum(axis=0)[-1].tobytes() for s in range(5)}
    assert len(sums) == 1
