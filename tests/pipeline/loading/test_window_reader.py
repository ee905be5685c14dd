import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.conventions import Conventions
from pipeline.data.dataset import open_dataset
from pipeline.data.images import decode_image
from pipeline.errors import DataError, RecordError, SchemaError
from pipeline.loading.batch import LeafSpec, check_batch
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.samples.sampling import Samples
from pipeline.loading.samples.splits import select
from pipeline.loading.window_reader import WindowReader, step_spec

OBSERVATIONS = ("image_primary", "proprio", "vggt_tokens")


@pytest.fixture(scope="module")
def make(mini_dataset: pathlib.Path) -> Callable[..., WindowReader]:
    def make(path: pathlib.Path = mini_dataset, **settings: object) -> WindowReader:
        settings = {"observations": OBSERVATIONS, "window_size": 2, "action_horizon": 4} | settings
        part = DatasetConfig(str(path), excluded=settings.pop("excluded", ()))
        config = DataConfig((part,), "unused", **settings)
        dataset = open_dataset(str(path))
        return WindowReader((dataset,), (select(dataset, part, config),), config)

    return make


def at(*steps: int, goal: float = 0.0, condition: float = 0.0) -> Samples:
    """Steps of the first dataset, with the same draws for all."""
    zeros = np.zeros(len(steps), np.int64)
    draws = np.tile([goal, condition, 0.0, 0.0], (len(steps), 1))
    return Samples(np.arange(len(steps)), zeros, np.array(steps), draws)


def test_batch_has_the_types_that_its_spec_declares(make: Callable) -> None:
    window_reader = make()
    check_batch(window_reader(at(0, 200, 454)), window_reader.spec(3))


def test_windows_stay_inside_their_episode(make: Callable) -> None:
    # Episodes start at 0, 102, 226, 349; the second has 124 steps.
    windows = make(window_size=3).locate(at(102, 103, 225))
    np.testing.assert_array_equal(windows.episode, [1, 1, 1])
    np.testing.assert_array_equal(windows.history, [[0, 0, 0], [0, 0, 1], [121, 122, 123]])
    np.testing.assert_array_equal(windows.history_mask.sum(1), [1, 2, 3])
    np.testing.assert_array_equal(windows.chunk[2, 2], [123, 123, 123, 123])
    np.testing.assert_array_equal(windows.chunk_mask[2], [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])


def test_arrays_are_the_stored_ones_of_each_step(make: Callable) -> None:
    window_reader = make()
    (dataset,) = window_reader.datasets
    batch = window_reader(at(102, 300))
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
    window_reader = make(copied, observations=("proprio",))
    for path in (*(copied / "steps").iterdir(), *(copied / "vggt_tokens").iterdir()):
        path.unlink()
    assert window_reader(at(5))["observation/proprio"].shape == (1, 2, 8)


def test_observation_that_no_column_holds_is_named(make: Callable) -> None:
    message = "expected a feature observation/depth; found only action,.*Name in data.observations"
    with pytest.raises(SchemaError, match=message):
        _ = make(observations=("depth",)).features


def test_corrupt_record_is_named(make: Callable, copied: pathlib.Path) -> None:
    window_reader = make(copied)
    path = copied / "steps" / "00001-of-00002.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    message = r"steps/00001-of-00002.arrayrecord, record \d+: expected a readable record"
    with pytest.raises(DataError, match=message):
        window_reader(at(*range(226, 455)))


CAMERAS = ("image_primary", "image_wrist")


def test_goal_is_a_later_frame_of_the_same_episode(make: Callable) -> None:
    window_reader = make(observations=CAMERAS, conditioning="image_conditioned")
    reader = window_reader.datasets[0].columns["steps"]
    samples = at(102, 200, 225, goal=0.5)  # 124, 26 and 1 steps of the episode remain
    batch = window_reader(samples)
    check_batch(batch, window_reader.spec(3))
    np.testing.assert_array_equal(batch["task/timestep"], [62, 111, 123])
    for sample, step in enumerate((164, 213, 225)):
        expected = np.zeros((128, 128, 3), np.uint8)
        for name in CAMERAS:
            decode_image(reader.read(step)[f"observation/{name}"], expected, "")
            np.testing.assert_array_equal(batch[f"task/{name}"][sample], expected)
    for name in CAMERAS:
        assert batch[f"task/pad_mask_dict/{name}"].all()
    assert not batch["keeps_text"].any()


def test_actions_from_the_goal_on_do_not_count(make: Callable) -> None:
    window_reader = make(observations=CAMERAS, conditioning="image_conditioned")
    windows = window_reader.locate(at(102, 222, 225, goal=0.5))
    np.testing.assert_array_equal(windows.goal, [62, 122, 123])
    # At step 120, whose goal is 122: actions 119 to 122, and 120 to 123.
    np.testing.assert_array_equal(windows.chunk_mask[1], [[1, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(windows.chunk_mask[2], [[1, 0, 0, 0], [0, 0, 0, 0]])
    original = make(
        observations=CAMERAS, conditioning="image_conditioned", octo_action_mask=True
    ).locate(at(102, 222, 225, goal=0.5))
    np.testing.assert_array_equal(original.chunk_mask[1], [[1, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("condition", [0.29, 0.31])
def test_sample_keeps_its_goal_images_or_its_instruction(make: Callable, condition: float) -> None:
    keeps_images = condition < 0.3
    window_reader = make(observations=CAMERAS, conditioning="multimodal", keep_image_prob=0.3)
    batch = window_reader(at(102, 200, goal=0.5, condition=condition))
    for name in CAMERAS:
        np.testing.assert_array_equal(batch[f"task/pad_mask_dict/{name}"], [keeps_images] * 2)
        assert batch[f"task/{name}"].any() == keeps_images
    np.testing.assert_array_equal(batch["keeps_text"], [not keeps_images] * 2)
    np.testing.assert_array_equal(batch["task/timestep"], [62, 111] if keeps_images else [123] * 2)


def test_sample_without_an_instruction_keeps_its_goal_images(
    make: Callable, copied: pathlib.Path, edit_json: Callable
) -> None:
    edit_json(copied / "dataset.json", lambda manifest: manifest["tasks"].__setitem__(0, ""))
    window_reader = make(
        copied, observations=CAMERAS, conditioning="multimodal", keep_image_prob=0.0
    )
    batch = window_reader(at(0, 102, 226, 349))
    empty = [task == 0 for task in window_reader.datasets[0].manifest.episode_tasks]
    assert 0 < sum(empty) < 4
    np.testing.assert_array_equal(batch["keeps_text"], np.logical_not(empty))


def test_feature_is_read_for_the_current_step_alone(make: Callable) -> None:
    whole = make(window_size=3)(at(0, 103, 300))
    window_reader = make(window_size=3, current_only=("vggt_tokens", "proprio"))
    batch = window_reader(at(0, 103, 300))
    check_batch(batch, window_reader.spec(3))
    for name in ("vggt_tokens", "proprio"):
        key = f"observation/{name}"
        np.testing.assert_array_equal(batch[key], whole[key][:, -1:])
        mask = batch[f"observation/pad_mask_dict/{name}"]
        np.testing.assert_array_equal(mask, [[False, False, True]] * 3)
    np.testing.assert_array_equal(
        batch["observation/image_primary"], whole["observation/image_primary"]
    )
    assert batch["observation/pad_mask_dict/image_primary"].all()


def test_features_of_one_column_may_have_windows_of_their_own(make: Callable) -> None:
    whole = make(observations=CAMERAS)(at(0, 103))
    batch = make(observations=CAMERAS, current_only=("image_wrist",))(at(0, 103))
    np.testing.assert_array_equal(
        batch["observation/image_primary"], whole["observation/image_primary"]
    )
    np.testing.assert_array_equal(
        batch["observation/image_wrist"], whole["observation/image_wrist"][:, -1:]
    )


def test_each_observation_has_the_last_steps_of_its_own_window(make: Callable) -> None:
    # Episode 1 starts at 102: its second step has one step of padding, its sixth has none.
    samples = at(103, 107)
    names = ("image_primary", "image_wrist", "proprio", "vggt_tokens")
    whole = make(window_size=3, observations=names)(samples)
    windows = dict(zip(names, (3, 2, 2, 1), strict=True))
    window_reader = make(
        window_size=3,
        observations=names,
        windows=(("image_wrist", 2), ("proprio", 2)),
        current_only=("vggt_tokens",),
    )
    batch = window_reader(samples)
    check_batch(batch, window_reader.spec(2))
    for name, steps in windows.items():
        key = f"observation/{name}"
        np.testing.assert_array_equal(batch[key], whole[key][:, -steps:])
        mask = batch[f"observation/pad_mask_dict/{name}"]
        np.testing.assert_array_equal(mask, [[step >= 3 - steps for step in range(3)]] * 2)


def test_observation_that_a_dataset_lacks_is_black_and_masked(
    mini_dataset: pathlib.Path,
) -> None:
    parts = (DatasetConfig(str(mini_dataset)), DatasetConfig("other", missing=("image_wrist",)))
    config = DataConfig(parts, "unused", observations=CAMERAS, conditioning="image_conditioned")
    dataset = open_dataset(str(mini_dataset))
    selection = select(dataset, parts[0], config)
    window_reader = WindowReader((dataset, dataset), (selection, selection), config)
    samples = at(102, 102, goal=0.5)
    batch = window_reader(dataclasses.replace(samples, dataset=np.array([1, 0])))
    for part, mask in (("observation", [[False] * 2, [True] * 2]), ("task", [False, True])):
        np.testing.assert_array_equal(batch[f"{part}/pad_mask_dict/image_wrist"], mask)
        assert not batch[f"{part}/image_wrist"][0].any()
        assert batch[f"{part}/image_wrist"][1].any()
        assert batch[f"{part}/image_primary"][0].any()


@pytest.mark.parametrize("conditioning", ["language_conditioned", "image_conditioned"])
def test_excluded_record_is_not_read(
    make: Callable, copied: pathlib.Path, conditioning: str
) -> None:
    place = copied / "steps" / "00000-of-00002.arrayrecord"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    every = np.arange(226)
    settings = {"observations": ("image_primary",), "conditioning": conditioning}
    with pytest.raises(RecordError) as caught:
        make(copied, **settings)(at(*every, goal=0.3))
    window_reader = make(copied, excluded=(caught.value.record,), **settings)
    allowed = np.unique(window_reader.selections[0].steps(every))
    assert len(set(every) - set(allowed)) == 2  # a window of two steps
    window_reader(at(*allowed, goal=0.3))


def test_goal_is_never_an_excluded_image(make: Callable) -> None:
    # Step 102 + 62 is what the draw of one half chooses.
    excluded = ("steps/00000-of-00002.arrayrecord:164",)
    window_reader = make(observations=CAMERAS, conditioning="image_conditioned", excluded=excluded)
    batch = window_reader(at(102, goal=0.5))
    assert batch["task/timestep"] == [61]


def test_index_of_a_sample_is_kept_within_its_dtype(make: Callable) -> None:
    samples = dataclasses.replace(at(0, 1), index=np.array([2**31 - 1, 2**31]))
    np.testing.assert_array_equal(
        make(observations=("proprio",))(samples)["sample_index"], [2**31 - 1, 0]
    )


def test_spoiled_image_is_named_so_that_it_can_be_excluded(
    make: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(encoded: bytes, out: np.ndarray) -> None:
        raise ValueError("no image")

    window_reader = make(observations=("image_primary",))
    monkeypatch.setattr("pipeline.data.images.decode_jpeg", refuse)
    with pytest.raises(RecordError, match=r"record 2, observation/image_primary: .*no image") as e:
        window_reader(at(229))
    assert e.value.record == "steps/00001-of-00002.arrayrecord:2"


def test_a_rotation_that_datasets_write_differently_has_no_representation_of_all() -> None:
    first = Conventions("upright", "axis_angle", 10.0, "kept", gripper_dim=3)
    leaf, names = LeafSpec("float32", (4,)), ("rx", "ry", "rz", "gripper")
    alone = step_spec("action", leaf, names, [first])
    assert (alone.dims, alone.raw) == (names, {"gripper"})
    assert alone.rotations == dict.fromkeys(names[:3], "axis_angle")
    other = dataclasses.replace(first, rotation="euler_xyz")
    both = step_spec("action", leaf, names, [other, first])
    assert both.rotations == dict.fromkeys(names[:3], "axis_angle or euler_xyz")
    joints = dataclasses.replace(first, rotation="none")
    assert step_spec("action", leaf, names, [joints, first]).rotations == alone.rotations
