import pytest

from pipeline.loading.data_config import DataConfig, DatasetConfig

ONE = {"datasets": (DatasetConfig("a"),), "vocabulary": "v"}


def weighted(*weights: float | None) -> dict:
    return {"datasets": tuple(DatasetConfig(str(i), w) for i, w in enumerate(weights))}


@pytest.mark.parametrize(
    "change",
    [
        {},
        weighted(None, None),
        weighted(1.0, 0.1),
        {"num_threads": 0, "prefetch_batches": 0},
        {"split": "validation", "validation_fraction": 0.05},
        {"current_only": ("proprio",)},
        {"datasets": (DatasetConfig("a"), DatasetConfig("b", missing=("image_wrist",)))},
        {"ram_budget_gb": 2.5},
    ],
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
        ({"seed": -1}, "seed must be between 0 and 2\\*\\*63 - 1, not -1"),
        ({"seed": 2**63}, "seed must be between 0 and"),
        ({"keep_image_prob": 1.5}, r"keep_image_prob must be in \[0, 1\], not 1.5"),
        ({"ram_budget_gb": 0.0}, "ram_budget_gb must be above 0 and finite, not 0.0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), not 1.0"),
        ({"split": "validation"}, "validation_fraction is 0: nothing is in it"),
        ({"current_only": ("depth",)}, "current_only names depth, but observations are image_pri"),
        (
            {"datasets": (DatasetConfig("a", missing=("proprio",)),)},
            "proprio is missing in every dataset: leave it out",
        ),
        (
            {"datasets": (DatasetConfig("a"), DatasetConfig("b", missing=("depth",)))},
            "datasets.1.missing names depth, but observations are",
        ),
        ({"num_threads": -1}, r"num_threads must be between 0 and prefetch_batches \(4\), not -1"),
        ({"num_threads": 5}, r"num_threads must be between 0 and prefetch_batches \(4\), not 5"),
    ],
)
def test_unsound_settings_are_refused_with_their_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**(ONE | change))


@pytest.mark.parametrize("episodes", [(3, 3), (5, 2), (-1, 4)])
def test_range_of_episodes_that_is_none_is_refused(episodes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="episodes must be the first and the one after the last"):
        DatasetConfig("a", episodes=episodes)


def test_window_of_an_observation_is_its_own() -> None:
    config = DataConfig(**ONE, window_size=3, current_only=("proprio",))
    assert [config.window_of(name) for name in ("image_wrist", "proprio")] == [3, 1]
