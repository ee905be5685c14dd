import json
import pathlib

import numpy as np
import pytest
from etils import epath

from pipeline import statistics as stats
from pipeline.errors import DataError

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden" / "octo" / "data"
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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[]", "AttributeError"),
        ('{"action": {"mean": [0.0]}}', "KeyError: 'count'"),
        ('{"action": {"mean": ["a"], "count": 1}}', "ValueError"),
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
