import pytest

from pipeline.config import DataConfig, DatasetConfig

ONE = {"datasets": (DatasetConfig("a"),), "vocabulary": "v"}


def weighted(*weights: float | None) -> dict:
    return {"datasets": tuple(DatasetConfig(str(i), w) for i, w in enumerate(weights))}


@pytest.mark.parametrize(
    "change",
    [{}, weighted(None, None), weighted(1.0, 0.1), {"num_threads": 0, "prefetch_batches": 0}],
)
def test_sound_settings_pass(change: dict) -> None:
    DataConfig(**(ONE | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ()}, "datasets is empty: name at least one"),
        (weighted(1.0, None), r"for every dataset or for none, not \[1.0, None\]"),
        (weighted(1.0, 0.0), r"weights must be positive and finite, not \[1.0, 0.0\]"),
        (weighted(-1.0, 2.0), r"weights must be positive and finite, not \[-1.0, 2.0\]"),
        (weighted(float("nan")), r"weights must be positive and finite, not \[nan\]"),
        ({"window_size": 0}, "window_size must be at least 1, not 0"),
        ({"action_horizon": -1}, "action_horizon must be at least 1, not -1"),
        ({"max_text_length": 0}, "max_text_length must be at least 1, not 0"),
        ({"num_threads": -1}, r"num_threads must be between 0 and prefetch_batches \(4\), not -1"),
        ({"num_threads": 5}, r"num_threads must be between 0 and prefetch_batches \(4\), not 5"),
    ],
)
def test_unsound_settings_are_refused_with_their_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**(ONE | change))
