import json
import pathlib

import numpy as np
import pytest

from pipeline.data.statistics import FeatureStatistics, compute
from pipeline.loading.normalize import make_normalizer
from pipeline.loading.transforms.normalize_transforms import Normalizer

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"
RECORDED = ["normal", "bounds"]
KINDS = [*RECORDED, "quantile"]


def draw(seed: int, scale: float = 1.0) -> np.ndarray:
    """float32 (200 3)."""
    return (scale * np.random.default_rng(seed).normal(size=(200, 3)) + scale).astype(np.float32)


def normalizer(kind: str, *values: np.ndarray) -> Normalizer:
    return make_normalizer([compute(v) for v in values], [np.ones(3, bool)] * len(values), kind)


@pytest.mark.parametrize("kind", RECORDED)
@pytest.mark.parametrize("feature", ["action", "proprio"])
def test_values_are_those_of_the_original(kind: str, feature: str) -> None:
    recorded = json.loads((GOLDEN / "stats.json").read_text())
    moments = ("mean", "std", "min", "max", "p01", "p99")
    statistics = FeatureStatistics(
        **{name: np.asarray(recorded[feature][name], np.float32) for name in moments},
        count=recorded["num_transitions"],
    )
    with np.load(GOLDEN / "normalize.npz") as arrays:
        mask = arrays["action_mask"] if feature == "action" else np.ones(8, bool)
        original = make_normalizer([statistics], [mask], kind)
        for number in range(3):
            values = arrays[f"traj{number}/{feature}"]
            normalized = original.normalize(values, np.zeros(len(values), np.int32))
            expected = arrays[f"{kind}/traj{number}/{feature}"]
            np.testing.assert_allclose(normalized, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_unnormalizing_undoes_normalizing(kind: str) -> None:
    values = draw(0)
    both = normalizer(kind, values, draw(1, 50.0))
    inside = np.clip(values, np.quantile(values, 0.01, 0), np.quantile(values, 0.99, 0))
    zeros = np.zeros(200, np.int32)
    restored = both.unnormalize(both.normalize(inside, zeros), zeros)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, inside, atol=1e-5, rtol=0)


def test_normal_has_zero_mean_and_unit_deviation() -> None:
    values = draw(0, 30.0)
    normalized = normalizer("normal", values).normalize(values, np.zeros(200, np.int32))
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(0), 1, atol=1e-5)


def test_bounds_are_clipped_at_the_percentiles() -> None:
    values = draw(0)
    normalized = normalizer("bounds", values).normalize(values, np.zeros(200, np.int32))
    assert (normalized.min(), normalized.max()) == (-1, 1)
    # Two of 200 values lie below the first percentile and two above the 99th.
    np.testing.assert_array_equal((np.abs(normalized) == 1).sum(0), [4, 4, 4])


def test_quantile_is_bounds_that_are_not_clipped() -> None:
    values, zeros = draw(0), np.zeros(200, np.int32)
    bounds, quantile = (
        normalizer(kind, values).normalize(values, zeros) for kind in ("bounds", "quantile")
    )
    np.testing.assert_allclose(np.clip(quantile, -1, 1), bounds, atol=2e-6)
    assert quantile.min() < -1.1
    assert quantile.max() > 1.1
    np.testing.assert_allclose(
        normalizer("quantile", values).unnormalize(quantile, zeros), values, atol=1e-6
    )


def test_unmasked_dimension_is_left_as_it_is() -> None:
    values = draw(0, 10.0)
    for kind in KINDS:
        mask = np.array([True, False, True])
        masked = make_normalizer([compute(values)], [mask], kind)
        normalized = masked.normalize(values, np.zeros(200, np.int32))
        changed = (normalized != values).any(0)
        np.testing.assert_array_equal(changed, mask)


@pytest.mark.parametrize("constant", [0.0, 1.0, -250.0])
@pytest.mark.parametrize(("kind", "expected"), [("normal", 0.0), ("bounds", -1.0)])
def test_constant_dimension_is_finite_and_does_not_depend_on_its_value(
    kind: str, expected: float, constant: float
) -> None:
    values = np.full((10, 3), constant, np.float32)
    flat = normalizer(kind, values)
    normalized = flat.normalize(values, np.zeros(10, np.int32))
    np.testing.assert_allclose(normalized, expected, atol=1e-6)
    np.testing.assert_array_equal(flat.unnormalize(normalized, np.zeros(10, np.int32)), values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [(), (2,), (2, 4)])
def test_each_sample_takes_the_statistics_of_its_dataset(kind: str, axes: tuple[int, ...]) -> None:
    near, far = draw(0), draw(1, 50.0)
    both = normalizer(kind, near, far)
    values = np.stack([np.broadcast_to(row, (*axes, 3)) for row in (near[0], far[0])])
    normalized = both.normalize(values, np.array([0, 1]))
    assert (normalized.dtype, normalized.shape) == (np.float32, values.shape)
    for row, own in enumerate((near, far)):
        alone = normalizer(kind, own).normalize(own[:1], np.array([0]))[0]
        np.testing.assert_array_equal(normalized[row], np.broadcast_to(alone, (*axes, 3)))
