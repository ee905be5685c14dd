import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.batch import check_batch
from pipeline.config import DataConfig, DatasetConfig
from pipeline.dataset import open_dataset
from pipeline.errors import DataError, SchemaError
from pipeline.gather import Gather

OBSERVATIONS = ("image_primary", "proprio", "vggt_tokens")


@pytest.fixture(scope="module")
def make(mini_dataset: pathlib.Path) -> Callable[..., Gather]:
    def make(path: pathlib.Path = mini_dataset, **settings: object) -> Gather:
        settings = {"observations": OBSERVATIONS, "window_size": 2, "action_horizon": 4} | settings
        config = DataConfig((DatasetConfig(str(path)),), "unused", **settings)
        return Gather((open_dataset(str(path)),), config)

    return make


def at(*steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the first dataset."""
    return np.zeros(len(steps), np.int64), np.array(steps)


def test_batch_is_of_the_types_that_were_told_before(make: Callable) -> None:
    gather = make()
    check_batch(gather(at(0, 200, 454)), gather.spec(3))


def test_windows_stay_inside_their_episode(make: Callable) -> None:
    # Episodes start at 0, 102, 226, 349; the second has 124 steps.
    windows = make(window_size=3).locate(*at(102, 103, 225))
    np.testing.assert_array_equal(windows.episode, [1, 1, 1])
    np.testing.assert_array_equal(windows.history, [[0, 0, 0], [0, 0, 1], [121, 122, 123]])
    np.testing.assert_array_equal(windows.history_mask.sum(1), [1, 2, 3])
    np.testing.assert_array_equal(windows.chunk[2, 2], [123, 123, 123, 123])
    np.testing.assert_array_equal(windows.chunk_mask[2], [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])


def test_arrays_are_the_stored_ones_of_each_step(make: Callable) -> None:
    gather = make()
    (dataset,) = gather.datasets
    batch = gather(at(102, 300))
    for sample, (episode, steps) in enumerate([(1, (0, 0)), (2, (73, 74))]):
        record = dataset.columns["episodes"].read(episode)
        np.testing.assert_array_equal(batch["observation/timestep"][sample], steps)
        assert batch["task/task_index"][sample] == dataset.manifest.episode_tasks[episode]
        for slot, t in enumerate(steps):
            proprio = batch["observation/proprio"][sample, slot]
            np.testing.assert_array_equal(proprio, record["observation/proprio"][t])
            np.testing.assert_array_equal(
                batch["action"][sample, slot], record["action"][t : t + 4]
            )
            tokens = dataset.columns["vggt_tokens"].read((102, 226)[sample] + t)
            np.testing.assert_array_equal(
                batch["observation/vggt_tokens"][sample, slot], tokens["observation/vggt_tokens"]
            )


def test_the_instruction_of_a_window_is_that_of_its_last_step(
    make: Callable, copied: pathlib.Path, edit_json: Callable
) -> None:
    changes = [{"episode": 1, "step": 10, "task": 1}, {"episode": 1, "step": 20, "task": 0}]
    edit_json(
        copied / "dataset.json",
        lambda manifest: manifest.update(task_changes=changes, episode_tasks=[1, 0, 1, 1]),
    )
    batch = make(copied, observations=("proprio",))(at(101, 102, 111, 112, 121, 122, 226))
    np.testing.assert_array_equal(batch["task/task_index"], [1, 0, 0, 1, 1, 0, 1])


def test_padding_repeats_the_first_frame(make: Callable) -> None:
    batch = make(window_size=4)(at(0))
    np.testing.assert_array_equal(batch["observation/timestep_pad_mask"], [[0, 0, 0, 1]])
    for name in OBSERVATIONS:
        window = batch[f"observation/{name}"][0]
        np.testing.assert_array_equal(window, np.broadcast_to(window[-1], window.shape))


def test_column_that_the_config_does_not_name_is_not_read(
    make: Callable, copied: pathlib.Path
) -> None:
    gather = make(copied, observations=("proprio",))
    for path in (*(copied / "steps").iterdir(), *(copied / "vggt_tokens").iterdir()):
        path.unlink()
    assert gather(at(5))["observation/proprio"].shape == (1, 2, 8)


def test_observation_that_no_column_holds_is_named(make: Callable) -> None:
    message = "expected a feature observation/depth; found only action,.*Name another"
    with pytest.raises(SchemaError, match=message):
        _ = make(observations=("depth",)).features


def test_damaged_record_is_named(make: Callable, copied: pathlib.Path) -> None:
    gather = make(copied)
    path = copied / "steps" / "00001-of-00002.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = r"steps/00001-of-00002.arrayrecord, record \d+: expected a readable record"
    with pytest.raises(DataError, match=message):
        gather(at(*range(226, 455)))
