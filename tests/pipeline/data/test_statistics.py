import json
import pathlib
import tracemalloc

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings, strategies as st

from pipeline.data import statistics as stats
from pipeline.errors import DataError

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"
MOMENTS = ("mean", "std", "min", "max", "p01", "p99")


@pytest.mark.parametrize("feature", ["action", "proprio"])
def test_statistics_are_those_of_the_original(feature: str) -> None:
    with np.load(GOLDEN / "normalize.npz") as arrays:
        values = np.concatenate([arrays[f"traj{i}/{feature}"] for i in range(3)])
    recorded = json.loads((GOLDEN / "stats.json").read_text())
    computed = stats.compute(values)
    assert computed.count == recorded["num_transitions"]
    for name in MOMENTS:
        # The original adds in float32; the values reach 12.
        np.testing.assert_allclose(
            getattr(computed, name), recorded[feature][name], rtol=1e-6, atol=1e-6
        )


def test_statistics_are_exact_where_they_are_known() -> None:
    computed = stats.compute(np.arange(101, dtype=np.float32)[:, None])
    moments = [getattr(computed, name).item() for name in MOMENTS]
    assert moments == [50.0, np.float32(np.sqrt(850.0)), 0.0, 100.0, 1.0, 99.0]
    assert {getattr(computed, name).dtype.name for name in MOMENTS} == {"float32"}


def test_sums_do_not_lose_small_values_beside_large_ones() -> None:
    values = np.full((1000, 1), 0.1, np.float32)
    values[0] = 1e7
    exact = values.astype(np.float64).mean()
    np.testing.assert_allclose(stats.compute(values).mean, exact, rtol=1e-7)


def test_text_keeps_every_bit_of_float32(tmp_path: pathlib.Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    path = epath.Path(tmp_path) / "statistics.json"
    path.write_text(stats.dumps({"action": stats.compute(values)}))
    loaded = stats.load(path)["action"]
    assert loaded.count == 50
    for name in MOMENTS:
        assert getattr(loaded, name).tobytes() == getattr(stats.compute(values), name).tobytes()


def stored(**changes: object) -> str:
    """The text of statistics of one dimension, with other fields."""
    return json.dumps({"action": {name: [0.5] for name in MOMENTS} | {"count": 1} | changes})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "no such file"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError: expected an object by feature key; found list"),
        ('{"action": {"mean": [0.0]}}', r"action: expected mean, .*, count; found \['mean'\]"),
        ('{"action": 3}', "action: expected mean, .*, count; found int"),
        (stored(mean=["a"]), r"action: mean: expected a list of numbers; found \['a'\]"),
        (stored(std=0.5), "action: std: expected a list of numbers; found 0.5"),
        (stored(std=[True]), r"action: std: expected a list of numbers; found \[True\]"),
        (stored(p01=[[0.5]]), "action: p01: expected a list of numbers"),
        (stored(std=[10**400]), "action: std: int too large to convert to float"),
        (
            stored(std=[0.5, 0.5]),
            "action: expected lists of one length; found {'mean': 1, 'std': 2",
        ),
        (stored(other=[0.5]), "action: expected mean, .*; found .*'other'"),
        (stored(count=1.5), "action: count: expected a whole number of steps; found 1.5"),
        (stored(count=True), "action: count: expected a whole number of steps; found True"),
    ],
)
def test_unreadable_statistics_are_named(
    tmp_path: pathlib.Path, text: str | None, found: str
) -> None:
    path = epath.Path(tmp_path) / "statistics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=f"statistics.json: expected .*; found {found}.*Convert"):
        stats.load(path)


# --- values in pieces

FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-2, 2, width=32),
    st.floats(-(2.0**-126), 2.0**-126, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126]),
)
PIECES = st.one_of(
    st.lists(st.lists(FLOATS, min_size=1, max_size=30), min_size=1, max_size=6),
    st.tuples(FLOATS, st.lists(st.integers(1, 40), min_size=1, max_size=4)).map(
        lambda drawn: [[drawn[0]] * n for n in drawn[1]]
    ),
)


def accumulated(pieces: list[np.ndarray], exact_bytes: int = 1 << 20) -> stats.FeatureStatistics:
    accumulator = stats.Accumulator(exact_bytes)
    for piece in pieces:
        accumulator.add(piece)
    return accumulator.finish()


def assert_same_bits(found: stats.FeatureStatistics, expected: stats.FeatureStatistics) -> None:
    assert found.count == expected.count
    for name in MOMENTS:
        left, right = getattr(found, name), getattr(expected, name)
        assert (name, left.dtype, left.tobytes()) == (name, right.dtype, right.tobytes())


def assert_close(found: stats.FeatureStatistics, values: np.ndarray) -> None:
    """What the folded branch promises, against the exact statistics of (t, d)."""
    exact = values.astype(np.float64)
    largest = np.abs(exact).max()
    expected = stats.compute(values)
    assert found.count == expected.count
    assert {getattr(found, name).dtype.name for name in MOMENTS} == {"float32"}
    rounding = 1e-12 * largest + 2.0**-149
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6, atol=rounding)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-6, atol=rounding)
    np.testing.assert_array_equal(found.min, expected.min)
    np.testing.assert_array_equal(found.max, expected.max)
    for name, q in (("p01", 0.01), ("p99", 0.99)):
        ranks = [np.quantile(exact, q, axis=0, method=m) for m in ("lower", "higher")]
        # 2**-136 is half the width of a bin where floats are subnormal, 2**-23 two roundings.
        bound = (2.0**-10 + 2.0**-23) * np.max(np.abs(ranks), axis=0) + 2.0**-136
        error = np.abs(getattr(found, name).astype(np.float64) - np.quantile(exact, q, axis=0))
        assert (error <= bound).all(), (name, error, bound)


@settings(max_examples=100)
@given(pieces=PIECES)
def test_pieces_that_fit_have_bitwise_identical_statistics(pieces: list) -> None:
    arrays = [np.array(piece, np.float32)[:, None] for piece in pieces]
    assert_same_bits(accumulated(arrays), stats.compute(np.concatenate(arrays)))


@settings(max_examples=200)
@given(pieces=PIECES, exact_bytes=st.sampled_from([0, 40, 400]))
def test_pieces_that_do_not_fit_have_nearly_the_exact_statistics(
    pieces: list, exact_bytes: int
) -> None:
    arrays = [np.array(piece, np.float32)[:, None] for piece in pieces]
    values = np.concatenate(arrays)
    found = accumulated(arrays, exact_bytes)
    if values.nbytes > exact_bytes:
        assert_close(found, values)
    else:
        assert_same_bits(found, stats.compute(values))


@pytest.mark.parametrize("scale", [1e-40, 1e-6, 1.0, 1e20])
@pytest.mark.parametrize("shift", [0.0, -3.0, 1000.0])
@pytest.mark.parametrize("exact_bytes", [0, 10_000, 1_000_000])
def test_many_values_of_any_magnitude_have_nearly_the_exact_statistics(
    scale: float, shift: float, exact_bytes: int
) -> None:
    rng = np.random.default_rng(0)
    values = ((rng.normal(size=(20_000, 3)) * [1, 10, 0.1] + shift) * scale).astype(np.float32)
    pieces = np.split(values, np.sort(rng.integers(1, 20_000, 60)))
    assert_close(accumulated([p for p in pieces if len(p)], exact_bytes), values)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 0.1, 3e38, -3e38, 1e-45, -1e-45, 1e-39])
def test_a_constant_has_itself_as_every_percentile(value: float) -> None:
    values = np.full((100, 1), value, np.float32)
    found = accumulated([values] * 3, 0)
    for name in ("min", "max", "p01", "p99"):
        assert getattr(found, name) == values[0]
    np.testing.assert_allclose(found.mean, values[0], rtol=1e-6)
    np.testing.assert_allclose(found.std, 0, atol=1e-12 * abs(value))


def test_values_of_any_shape_are_counted_flat_by_step() -> None:
    values = np.arange(24, dtype=np.float32)
    for shape, dims in (((4, 2, 3), 6), ((24,), 1), ((24, 1), 1), ((6, 4), 4)):
        for exact_bytes in (0, 1 << 20):
            found = accumulated([values.reshape(shape)], exact_bytes)
            assert (found.count, found.mean.shape) == (shape[0], (dims,))
            np.testing.assert_array_equal(found.min, values.reshape(shape[0], -1).min(0))


def test_the_order_of_the_pieces_changes_no_more_than_a_rounding() -> None:
    values = np.random.default_rng(0).normal(size=(60, 50, 2)).astype(np.float32)
    forward, backward = accumulated(list(values), 0), accumulated(list(values[::-1]), 0)
    again = accumulated(list(values), 0)
    assert_same_bits(again, forward)
    for name in ("mean", "std"):
        np.testing.assert_allclose(
            getattr(forward, name), getattr(backward, name), rtol=1e-6, atol=1e-9
        )
    for name in ("min", "max", "p01", "p99"):
        np.testing.assert_array_equal(getattr(forward, name), getattr(backward, name))


def test_percentiles_of_a_folded_ramp_are_pinned() -> None:
    # May change with the number of bits of a bin only; statistics.json of large sets then change.
    ramp = np.arange(1001, dtype=np.float32)[:, None]
    found = accumulated(np.split(ramp, 7 * [0] + [500])[7:], 0)
    assert (found.p01.item(), found.p99.item()) == (10.0078125, 990.5)
    assert (found.mean.item(), found.count) == (500.0, 1001)


def test_statistics_so_far_may_be_asked_for_before_more_is_added() -> None:
    values = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    accumulator = stats.Accumulator(600)
    for end in range(10, 101, 10):
        accumulator.add(values[end - 10 : end])
        assert accumulator.finish().count == end
    assert_close(accumulator.finish(), values)


@pytest.mark.parametrize(("exact_bytes", "tolerance"), [(1 << 20, 1e-7), (0, 2.0**-10)])
def test_any_quantiles_may_be_asked_for(exact_bytes: int, tolerance: float) -> None:
    values = np.random.default_rng(0).uniform(1, 3, size=(1000, 2)).astype(np.float32)
    accumulator = stats.Accumulator(exact_bytes)
    for piece in np.split(values, 4):
        accumulator.add(piece)
    shares = [0.01, 0.1, 0.5, 0.9, 0.99]
    found = accumulator.quantiles(shares)
    assert (found.shape, found.dtype) == ((5, 2), np.float32)
    expected = np.quantile(values.astype(np.float64), shares, axis=0)
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    np.testing.assert_array_equal(
        found[[0, -1]], [accumulator.finish().p01, accumulator.finish().p99]
    )


def test_values_are_not_kept_beyond_the_bytes_that_were_allowed() -> None:
    accumulator = stats.Accumulator(10_000_000)
    record = np.zeros((100, 25_000), np.float32)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(30):
            # A small part of a large record, as the episodes' records are.
            accumulator.add(record.copy()[:, :10])
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 30 * 100 * 10 * 4 + 50_000


def test_pieces_beyond_the_bytes_are_folded_away() -> None:
    accumulator = stats.Accumulator(100_000)
    piece = np.random.default_rng(0).normal(size=(10_000, 1)).astype(np.float32)
    for _ in range(3):
        accumulator.add(piece)
    tracemalloc.start()
    try:
        for _ in range(100):
            accumulator.add(piece)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 200_000
    assert accumulator.finish().count == 1_030_000


def test_merged_moments_are_those_of_all_values_together() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(3.0, 2.0, (400, 3)).astype(np.float32)
    second = rng.normal(-1.0, 0.5, (100, 3)).astype(np.float32)
    merged = stats.merge([stats.compute(first), stats.compute(second)], [400.0, 100.0])
    together = stats.compute(np.concatenate([first, second]))
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(merged, name), getattr(together, name), rtol=1e-5)
    assert merged.count == 500


def test_merging_weighs_by_share_not_by_size() -> None:
    first, second = (
        stats.compute(np.full((n, 1), value, np.float32)) for n, value in ((9, 0), (1, 4))
    )
    merged = stats.merge([first, second], [0.5, 0.5])
    np.testing.assert_allclose([merged.mean, merged.std], [[2.0], [2.0]])


def test_merging_copies_of_one_dataset_changes_nothing() -> None:
    one = stats.compute(np.random.default_rng(1).normal(size=(500, 4)).astype(np.float32))
    merged = stats.merge([one, one, one], [1.0, 2.0, 3.0])
    for name in ("mean", "std", "min", "max", "p01", "p99"):
        np.testing.assert_allclose(getattr(merged, name), getattr(one, name), rtol=1e-6)


def test_merged_percentiles_are_near_those_of_all_values() -> None:
    # Off by 7 % of the range between them: a tail is taken to be straight up to the minimum.
    rng = np.random.default_rng(2)
    values = [rng.normal(mean, 1.0, (5000, 2)).astype(np.float32) for mean in (0.0, 0.5, 2.0)]
    merged = stats.merge([stats.compute(v) for v in values], [1.0, 1.0, 1.0])
    together = stats.compute(np.concatenate(values))
    span = together.p99 - together.p01
    assert (np.abs(merged.p01 - together.p01) / span).max() < 0.08
    assert (np.abs(merged.p99 - together.p99) / span).max() < 0.08


def test_constant_dimension_stays_constant() -> None:
    constant = stats.compute(np.full((10, 2), 0.5, np.float32))
    merged = stats.merge([constant, constant], [1.0, 1.0])
    np.testing.assert_array_equal([merged.p01, merged.p99], np.full((2, 2), 0.5))


def test_merging_keeps_a_percentile_that_is_the_maximum() -> None:
    # A command that is often at its bound, such as a clipped action.
    values = np.concatenate([np.linspace(-1, 0.9375, 60), np.full(40, 0.9375)])[:, None]
    one = stats.compute(np.concatenate([values, -values], axis=1).astype(np.float32))
    assert (one.p99[0], one.p01[1]) == (one.max[0], one.min[1])
    merged = stats.merge([one, one], [1.0, 1.0])
    np.testing.assert_allclose(merged.p99, one.p99, rtol=1e-6)
    np.testing.assert_allclose(merged.p01, one.p01, rtol=1e-6)
