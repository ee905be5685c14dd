import concurrent.futures
import pathlib
import pickle
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, RecordError, SchemaError, UserError
from tests.small_dataset import LENGTH, write_dataset

SHARD = "steps/00000-of-00002.arrayrecord"
LENGTHS = list(enumerate([102, 124, 123, 106]))


def flip_a_bit(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_dataset_knows_its_sizes(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    assert (dataset.num_episodes, dataset.num_steps) == (4, 455)
    assert {name: len(reader) for name, reader in dataset.columns.items()} == {
        "episodes": 4,
        "steps": 455,
        "vggt_tokens": 455,
    }
    np.testing.assert_array_equal(dataset.episode_starts, [0, 102, 226, 349, 455])


def test_steps_of_the_dataset_lie_in_one_episode_each(mini_dataset: pathlib.Path) -> None:
    steps = np.array([0, 101, 102, 348, 454])
    episodes, inside = open_dataset(str(mini_dataset)).locate(steps)
    np.testing.assert_array_equal(episodes, [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(inside, [0, 101, 0, 122, 105])


def test_record_is_found_by_the_name_that_an_error_gives_it(mini_dataset: pathlib.Path) -> None:
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    error = reader.corrupt_record(230, expected="a", found="b", remedy="c", feature="d")
    assert error.record == "steps/00001-of-00002.arrayrecord:4"
    assert error.dataset == str(mini_dataset)
    assert error.where == f"{mini_dataset}/steps/00001-of-00002.arrayrecord, record 4, d"
    assert reader.find(error.record) == 230
    names = ("steps/00001-of-00002.arrayrecord:229", "steps/00002-of-00002.arrayrecord:0", "4")
    assert [reader.find(name) for name in (*names, error.record + "0" * 5000)] == [None] * 4


def test_corrupt_record_keeps_its_name_across_a_process_border(mini_dataset: pathlib.Path) -> None:
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    error = reader.corrupt_record(3, expected="a", found="b", remedy="c")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.record) == (RecordError, str(error), error.record)


@pytest.mark.parametrize(
    ("keep", "found"), [(100_000, "100000 bytes"), (0, "0 bytes"), (None, "no such file")]
)
def test_shard_of_another_size_does_not_open(
    copied: pathlib.Path, keep: int | None, found: str
) -> None:
    path = copied / SHARD
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    message = f"{SHARD}, column steps: expected {len(data)} bytes; found {found}.*copy or convert"
    with pytest.raises(DataError, match=message):
        open_dataset(str(copied))


@pytest.mark.parametrize(
    ("keep", "found"), [(100_000, "0 records"), (0, "0 records"), (None, "no such file")]
)
def test_shard_that_is_corrupt_after_opening_is_refused_at_the_read(
    copied: pathlib.Path, keep: int | None, found: str
) -> None:
    # ArrayRecord itself opens a truncated file without an error, as one of no records.
    dataset = open_dataset(str(copied))
    path = copied / SHARD
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    with pytest.raises(DataError, match=f"{SHARD}: expected 226 records in .*found {found}.*conv"):
        dataset.columns["steps"].read(0)


def test_flipped_bit_names_the_shard_and_the_record_and_spares_the_others(
    copied: pathlib.Path,
) -> None:
    flip_a_bit(copied / SHARD)
    reader = open_dataset(str(copied)).columns["steps"]
    errors = []
    for index in range(226):
        try:
            reader.read(index)
        except DataError as error:
            errors.append((index, str(error)))
    ((index, message),) = errors
    assert f"{SHARD}, record {index}: expected a readable record" in message
    assert "convert the dataset again" in message


def test_shard_in_the_place_of_another_is_refused(copied: pathlib.Path) -> None:
    # The two shards of the column `episodes` have two records and 131072 bytes each.
    first, second = sorted((copied / "episodes").iterdir())
    first.write_bytes(second.read_bytes())
    reader = open_dataset(str(copied)).columns["episodes"]
    with pytest.raises(
        DataError,
        match=r"00000-of.*, record 1: expected record 1 of shard 0; found record 1 of shard 1",
    ):
        reader.read(1)


def test_directory_without_a_manifest_does_not_open(copied: pathlib.Path) -> None:
    (copied / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"copied: expected .* dataset.json; found none in it"):
        open_dataset(str(copied))


def test_directory_without_statistics_does_not_open(copied: pathlib.Path) -> None:
    (copied / "statistics.json").unlink()
    with pytest.raises(DataError, match=r"statistics.json: expected statistics"):
        open_dataset(str(copied))


def test_count_that_the_shard_does_not_have_is_refused(
    copied: pathlib.Path, edit_json: Callable
) -> None:
    def shift(manifest: dict) -> None:
        manifest["episode_lengths"] = [102, 125, 122, 106]
        for column in ("steps", "vggt_tokens"):
            first, second = manifest["shards"][column]
            first["records"] += 1
            second["records"] -= 1

    edit_json(copied / "dataset.json", shift)
    dataset = open_dataset(str(copied))
    with pytest.raises(DataError, match="expected 227 records in 3211264 bytes; found 226 records"):
        dataset.columns["steps"].read(0)


def first_bytes(dataset: Dataset, index: int) -> bytes:
    return dataset.columns["steps"].read(index)["observation/image_primary"]


def test_dataset_and_reader_work_in_another_process(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    expected = first_bytes(dataset, 300)  # opens a shard, which does not cross the border
    assert first_bytes(pickle.loads(pickle.dumps(dataset)), 300) == expected
    reader = pickle.loads(pickle.dumps(dataset.columns["steps"]))
    assert reader.read(300)["observation/image_primary"] == expected


def test_closed_reader_opens_again(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    expected = first_bytes(dataset, 0)
    dataset.columns["steps"].close()
    assert first_bytes(dataset, 0) == expected


def test_threads_that_read_at_once_get_the_right_records(mini_dataset: pathlib.Path) -> None:
    indices = np.random.default_rng(0).integers(0, 455, 800).tolist()
    alone = open_dataset(str(mini_dataset))
    expected = {index: first_bytes(alone, index) for index in set(indices)}
    shared = open_dataset(str(mini_dataset))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: first_bytes(shared, index), indices))
    assert found == [expected[index] for index in indices]


def test_columns_that_are_not_read_may_be_missing(copied: pathlib.Path) -> None:
    shutil.rmtree(copied / "vggt_tokens")
    keys = ("action", "observation/image_primary")
    assert open_dataset(str(copied), keys).num_steps == 455
    with pytest.raises(DataError, match=r"vggt_tokens.*no such file"):
        open_dataset(str(copied), (*keys, "observation/vggt_tokens"))


CHANGES = [
    {"episode": 1, "step": 5, "task": 1},
    {"episode": 1, "step": 9, "task": 0},
    {"episode": 1, "step": 123, "task": 1},
    {"episode": 3, "step": 1, "task": 0},
]


@pytest.mark.parametrize(
    ("episode", "step", "task"),
    [
        (0, 0, 0),
        (0, 101, 0),
        (1, 0, 0),
        (1, 4, 0),
        (1, 5, 1),
        (1, 8, 1),
        (1, 9, 0),
        (1, 122, 0),
        (1, 123, 1),
        (2, 0, 1),
        (2, 122, 1),
        (3, 0, 1),
        (3, 1, 0),
        (3, 105, 0),
    ],
)
def test_a_step_has_the_instruction_that_began_last(
    copied: pathlib.Path, edit_json: Callable, episode: int, step: int, task: int
) -> None:
    edit_json(
        copied / "dataset.json",
        lambda manifest: manifest.update(task_changes=CHANGES, episode_tasks=[0, 0, 1, 1]),
    )
    assert open_dataset(str(copied)).task_index(episode, step) == task


def test_without_changes_every_step_has_the_instruction_of_its_episode(
    mini_dataset: pathlib.Path,
) -> None:
    dataset = open_dataset(str(mini_dataset))
    assert dataset.manifest.task_changes == ()
    first_and_last = [[dataset.task_index(e, t) for t in (0, n - 1)] for e, n in LENGTHS]
    assert first_and_last == [[task, task] for task in dataset.manifest.episode_tasks]


def test_a_step_is_decoded_as_nested_arrays(mini_dataset: pathlib.Path) -> None:
    step = open_dataset(str(mini_dataset)).step(3, 10)
    found = {key: (array.dtype.name, array.shape) for key, array in step["observation"].items()}
    assert found == {
        "proprio": ("float32", (8,)),
        "joint_state": ("float32", (7,)),
        "image_primary": ("uint8", (128, 128, 3)),
        "image_wrist": ("uint8", (128, 128, 3)),
        "vggt_tokens": ("float16", (21, 64)),
    }
    assert step["instruction"].startswith("pick up the black bowl")
    assert step["source_id"] == "scripted/libero_spatial-0-1.npz"
    assert (step["action"].shape, step["is_last"]) == ((7,), np.False_)


def test_an_episode_is_its_steps(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    keys = ["action", "observation/image_wrist", "observation/vggt_tokens"]
    episode = dataset.episode(1, keys)
    assert set(episode) == {"action", "observation", "instruction"}
    assert len(episode["instruction"]) == len(episode["action"]) == 124
    for step in (0, 123):
        alone = dataset.step(1, step, keys)
        np.testing.assert_array_equal(episode["action"][step], alone["action"])
        for name, array in episode["observation"].items():
            np.testing.assert_array_equal(array[step], alone["observation"][name])
    episode["action"][:] = 0  # it is the caller's own
    assert dataset.episode(1, ["action"])["action"].any()


def test_a_dataset_that_was_opened_for_some_features_reads_these(
    mini_dataset: pathlib.Path,
) -> None:
    dataset = open_dataset(str(mini_dataset), ["action", "observation/proprio"])
    step = dataset.step(0, 0)
    assert (set(step), set(step["observation"])) == (
        {"action", "observation", "instruction"},
        {"proprio"},
    )


def test_every_kind_of_feature_can_be_looked_at(tmp_path: pathlib.Path) -> None:
    shapes = {"action": (2,), "observation/image_a": (8, 6, 3), "observation/state": ()}
    pixels = write_dataset(tmp_path / "a", shapes, pixels=["observation/image_a"])
    episode = open_dataset(str(pixels)).episode(2)
    assert episode["observation"]["image_a"].shape == (LENGTH, 8, 6, 3)
    assert episode["observation"]["state"].shape == (LENGTH,)
    assert episode["instruction"] == ["lift the cup"] * LENGTH


@pytest.mark.parametrize(
    ("episode", "step", "message"),
    [
        (4, 0, "/libero_mini, episode: expected 0 to 3; found 4. There are 4 episodes, counted"),
        (-1, 0, "episode: expected 0 to 3; found -1"),
        (0, 102, "/libero_mini, step of episode 0: expected 0 to 101; found 102. There are 102 "),
        (0, -1, "step of episode 0: expected 0 to 101; found -1"),
    ],
)
def test_what_is_not_there_is_an_error(
    mini_dataset: pathlib.Path, episode: int, step: int, message: str
) -> None:
    dataset = open_dataset(str(mini_dataset))
    with pytest.raises(UserError, match=message):
        dataset.step(episode, step)
    with pytest.raises(SchemaError, match=r"Did you mean observation/image_wrist\?"):
        dataset.episode(0, ["observation/image"])


def test_a_printed_dataset_is_a_page(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    assert repr(dataset) == f"Dataset({str(mini_dataset)!r}, 4 episodes, 455 steps)"
    lines = str(dataset).splitlines()
    assert lines[0] == f"libero_mini: 4 episodes, 455 steps at 20 Hz ({mini_dataset})"
    assert lines[4] == "  observation/image_primary  uint8[128,128,3]"
    assert (lines[9], lines[10]) == ("  and 3 more", "2 instructions:")
    shapes = {f"observation/v{number}": (1,) for number in range(30)} | {"action": (2,)}
    many = write_dataset(tmp_path / "many", shapes, tasks=[f"task {n}" for n in range(30)])
    lines = str(open_dataset(str(many))).splitlines()
    assert len(lines) == 15
    assert lines[-1] == "  and 27 more"
