from __future__ import annotations

import sys

import numpy as np
import pytest

from medsyn.evaluation import metrics


@pytest.fixture(scope="module")
def kernel_distance() -> metrics.KernelDistance:
    return metrics.load_kernel_distance()


def cloud(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 40)) + shift).astype(np.float32)


def similarity(images: list[np.ndarray], most_pairs: int = 100) -> float | None:
    return metrics.pairwise_similarity(len(images), images.__getitem__, most_pairs, seed=0)


def test_kid_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(
    kernel_distance: metrics.KernelDistance,
) -> None:
    found = []
    for global_seed in (1, 2):
        np.random.seed(global_seed)
        before = np.random.get_state()[1].copy()
        found.append(metrics.kid(kernel_distance, cloud(60), cloud(60, seed=1), 5, 20, seed=2**62 + 7))
        assert np.array_equal(np.random.get_state()[1], before)
    assert found[0] == found[1]
    assert metrics.kid(kernel_distance, cloud(60), cloud(60, seed=1), 5, 20, seed=8) != found[0]


def test_kid_gives_the_global_generator_back_after_an_error() -> None:
    def broken(*_: object, **__: object) -> float:
        np.random.random(10)
        raise MemoryError

    before = np.random.get_state()[1].copy()
    with pytest.raises(MemoryError):
        metrics.kid(broken, cloud(4), cloud(4), 1, 4, seed=0)
    assert np.array_equal(np.random.get_state()[1], before)


def test_kid_is_near_zero_for_one_distribution_and_grows_with_the_difference(
    kernel_distance: metrics.KernelDistance,
) -> None:
    def value(shift: float) -> metrics.Distance:
        distance = metrics.kid(kernel_distance, cloud(200), cloud(200, shift, seed=1), 20, 100, seed=0)
        assert distance is not None
        return distance

    same, near, far = value(0), value(0.3), value(1)
    assert same.error is not None and abs(same.value) < 4 * same.error
    assert near.error is not None and same.value + 3 * near.error < near.value < far.value


def test_kid_is_the_unbiased_estimate_of_its_definition(kernel_distance: metrics.KernelDistance) -> None:
    x, y = cloud(9), cloud(9, 0.5, seed=1)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    off = ~np.eye(9, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    distance = metrics.kid(kernel_distance, x, y, subsets=1, subset_size=9, seed=0)
    assert distance is not None and distance.value == pytest.approx(expected, rel=1e-4)


def test_the_standard_error_is_about_the_spread_of_repeated_experiments(
    kernel_distance: metrics.KernelDistance,
) -> None:
    runs = [
        metrics.kid(kernel_distance, cloud(40, seed=2 * k), cloud(40, 0.3, 2 * k + 1), 30, 100, k) for k in range(30)
    ]
    values, errors = [run.value for run in runs if run], [run.error for run in runs if run and run.error]
    assert 0.5 < np.mean(errors) / np.std(values) < 2


@pytest.mark.parametrize(
    ("count", "has_value", "has_error"), [(0, False, False), (1, False, False), (3, True, False), (4, True, True)]
)
def test_kid_of_few_images(
    kernel_distance: metrics.KernelDistance, count: int, has_value: bool, has_error: bool
) -> None:
    distance = metrics.kid(kernel_distance, cloud(count), cloud(50, seed=1), 4, 100, seed=0)
    assert (distance is not None) == has_value
    if distance is not None:
        assert (distance.error is not None) == has_error
        assert not distance.as_dict()["meaningful"] and distance.n == (count, 50)


def test_a_stack_without_torchvision_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanfid.fid", None)
    with pytest.raises(metrics.NotAvailable, match="clean-fid cannot be imported here"):
        metrics.load_kernel_distance()


def test_halves_are_disjoint_cover_everything_and_depend_on_the_seed() -> None:
    first, second = metrics.halves(11, seed=0)
    assert sorted([*first, *second]) == list(range(11)) and len(first) == 5
    assert not np.array_equal(metrics.halves(11, seed=1)[0], first)


def test_similarity_is_one_for_copies_and_less_for_others() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((32, 32)).astype(np.float32)
    assert similarity([image] * 5) == pytest.approx(1)
    assert similarity([*[image] * 2, rng.random((32, 32)).astype(np.float32)]) < 0.6  # type: ignore[operator]
    assert similarity([image]) is None


def test_similarity_looks_at_no_more_pairs_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(metrics, "structural_similarity", lambda *_, **__: calls.append(1) or 0.5)
    similarity([np.zeros((8, 8), np.float32)] * 50, 20)
    assert len(calls) == 20


def test_nearest_distances_agree_with_brute_force_and_a_copy_is_at_zero() -> None:
    queries, references = cloud(7), cloud(30, seed=1)
    expected = [min(np.sqrt(np.mean((q - r) ** 2)) for r in references) for q in queries]
    assert metrics.nearest_distances(queries, references) == pytest.approx(expected, abs=1e-6)
    assert metrics.nearest_distances(references[:3], references) == pytest.approx([0, 0, 0], abs=1e-6)


def test_copies_are_suspicious_and_new_images_are_not() -> None:
    held_out = np.linspace(0.3, 0.5, 40)
    assert metrics.nearest_summary(np.full(10, 0.01), held_out)["suspicious"] == 1
    assert metrics.nearest_summary(np.full(10, 0.4), held_out)["suspicious"] == 0
    assert metrics.nearest_summary(held_out, None)["suspicious"] is None
    assert metrics.nearest_summary(np.empty(0), held_out)["minimum"] is None


def test_wilson_interval_of_a_known_case_and_at_the_edges() -> None:
    assert metrics.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert metrics.wilson(0, 10)[0] == 0 and metrics.wilson(10, 10)[1] == 1
    assert metrics.wilson(0, 0) == (0, 1)
    assert metrics.proportion([]) is None


def test_every_pair_is_looked_at_once_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def look(first: int, second: int, data_range: float) -> float:
        seen.append((first, second))
        return 0.0

    monkeypatch.setattr(metrics, "structural_similarity", look)
    metrics.pairwise_similarity(5, lambda place: place, 10, seed=0)  # type: ignore[arg-type,return-value]
    assert seen == [(i, j) for i in range(5) for j in range(i + 1, 5)]
    seen.clear()
    metrics.pairwise_similarity(3000, lambda place: place, 100, seed=0)  # type: ignore[arg-type,return-value]
    assert len(set(seen)) == 100 and all(0 <= i < j < 3000 for i, j in seen)


def test_nearest_distances_are_the_same_in_one_piece_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, references = cloud(50), cloud(70, seed=1)
    whole = metrics.nearest_distances(queries, references)
    monkeypatch.setattr(metrics, "_QUERIES_AT_ONCE", 7)
    assert metrics.nearest_distances(queries, references) == pytest.approx(whole)
    brute = np.sqrt(((queries[:, None] - references[None]) ** 2).mean(axis=2)).min(axis=1)
    assert whole == pytest.approx(brute, rel=1e-4)
