import pytest
import tyro

from pipeline.files import dump_json, from_json_text, to_json_values
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
        {"windows": (("image_wrist", 2), ("proprio", 1))},
        {"windows": (("image_wrist", 2),), "current_only": ("proprio",)},
        {"datasets": (DatasetConfig("a"), DatasetConfig("b", missing=("image_wrist",)))},
        {"ram_budget_gb": 2.5},
    ],
)
def test_sound_settings_pass(change: dict) -> None:
    DataConfig(**(ONE | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ()}, "datasets: expected at least one; found none"),
        (weighted(1.0, None), r"for every dataset or for none; found \[1.0, None\]"),
        (weighted(1.0, 0.0), r"weights that are finite and above 0; found \[1.0, 0.0\]"),
        (weighted(-1.0, 2.0), r"weights that are finite and above 0; found \[-1.0, 2.0\]"),
        (weighted(float("nan")), r"weights that are finite and above 0; found \[nan\]"),
        ({"window_size": 0}, "window_size: expected at least 1; found 0"),
        ({"action_horizon": -1}, "action_horizon: expected at least 1; found -1"),
        ({"max_text_length": 0}, "max_text_length: expected at least 1; found 0"),
        ({"seed": -1}, "seed: expected 0 to 2\\*\\*63 - 1; found -1"),
        ({"seed": 2**63}, "seed: expected 0 to"),
        ({"keep_image_prob": 1.5}, r"keep_image_prob: expected 0 to 1; found 1.5"),
        ({"ram_budget_gb": 0.0}, "ram_budget_gb: expected a finite number above 0; found 0.0"),
        (
            {"validation_fraction": 1.0},
            r"validation_fraction: expected 0 or more and less than 1; found 1.0",
        ),
        (
            {"split": "validation"},
            "validation_fraction: expected more than 0 for .*; found 0. Nothing is held out",
        ),
        (
            {"current_only": ("depth",)},
            "current_only: expected some of the observations image_pri.*; found depth",
        ),
        (
            {"windows": (("depth", 1),)},
            "windows: expected some of the observations image_pri.*; found depth. Add it",
        ),
        (
            {"windows": (("proprio", 3),)},
            "windows: expected 1 to 2 steps, the window_size, of proprio; found 3. Take a longer",
        ),
        ({"windows": (("proprio", 0),)}, "1 to 2 steps, .* of proprio; found 0"),
        (
            {"windows": (("proprio", 1), ("proprio", 2))},
            "windows: expected one window per observation, .* found proprio more than once",
        ),
        (
            {"windows": (("proprio", 2),), "current_only": ("proprio",)},
            "in windows or in current_only; found proprio more than once. Keep one of them",
        ),
        (
            {"datasets": (DatasetConfig("a", missing=("proprio",)),)},
            "found proprio, which is missing in every dataset. Leave it out",
        ),
        (
            {"datasets": (DatasetConfig("a"), DatasetConfig("b", missing=("depth",)))},
            "datasets.1.missing: expected some of the observations .*; found depth",
        ),
        ({"num_threads": -1}, r"num_threads: expected 0 to 1024; found -1. Each reads one"),
        ({"prefetch_batches": 1025}, r"prefetch_batches: expected at most 1024; found 1025. Each"),
        (
            {"prefetch_batches": 0},
            r"prefetch_batches: expected at least 1, .* found 0",
        ),
    ],
)
def test_unsound_settings_are_refused_with_their_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**(ONE | change))


@pytest.mark.parametrize("episodes", [(3, 3), (5, 2), (-1, 4)])
def test_range_of_episodes_that_is_none_is_refused(episodes: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match="episodes: expected the first episode and the one after the last; found"
    ):
        DatasetConfig("a", episodes=episodes)


def test_window_of_an_observation_is_its_own() -> None:
    config = DataConfig(**ONE, window_size=3, current_only=("proprio",))
    assert [config.window_of(name) for name in ("image_wrist", "proprio")] == [3, 1]
    config = DataConfig(**ONE, window_size=3, windows=(("image_wrist", 2), ("proprio", 1)))
    found = [config.window_of(name) for name in ("image_primary", "image_wrist", "proprio")]
    assert found == [3, 2, 1]


def test_windows_are_pairs_on_a_command_line_and_lists_in_json() -> None:
    config = DataConfig(**ONE, windows=(("proprio", 1),))
    flags = ["--windows", "image_wrist", "2", "proprio", "1"]
    found = tyro.cli(DataConfig, default=config, args=flags, use_underscores=True)
    assert found.windows == (("image_wrist", 2), ("proprio", 1))
    text = dump_json(to_json_values(found))
    assert from_json_text(DataConfig, text, where="x", remedy="") == found
    # Absent where it says nothing, so that older configs keep their text.
    assert "windows" not in to_json_values(DataConfig(**ONE))
