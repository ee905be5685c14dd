"""Reading demonstrations in HDF5: LIBERO's two forms, robomimic's, and files of one episode."""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
import pytest
import simplejpeg
from etils import epath

from converters.hdf5 import hdf5_layout
from converters.hdf5.hdf5_source import Hdf5Source
from converters.job.convert import convert
from converters.job.shard_conversion import ShardJob
from converters.mapping import mapping_registry
from converters.mapping.computed_source import compute_source
from converters.mapping.standardize import FeatureMapping, SourceMapping
from converters.sources.image_encoding import encode_source
from converters.sources.open_source import open_source
from converters.sources.reading import read_episodes
from converters.sources.source import Source
from converters.verify.verifier import Verifier
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError

STOVE = "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
BOWL = "pick_up_the_bowl_demo.hdf5"
LIBERO_ATTRIBUTES = {
    "bddl_file_name": "libero_spatial/pick_up_the_bowl.bddl",
    "problem_info": json.dumps({"language_instruction": "pick up the bowl"}),
}


def libero_demo(seed: int, num_steps: int) -> dict[str, np.ndarray]:
    """The arrays of one demo of LIBERO's, as random numbers."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 255, (2, num_steps, 8, 8, 3), np.uint8)
    return {
        "actions": random.normal(size=(num_steps, 7)),
        "rewards": (np.arange(num_steps) == num_steps - 1).astype(np.uint8),
        "dones": (np.arange(num_steps) == num_steps - 1).astype(np.uint8),
        "states": random.normal(size=(num_steps, 5)),
        "obs/agentview_rgb": images[0],
        "obs/eye_in_hand_rgb": images[1],
        "obs/ee_states": random.normal(size=(num_steps, 6)),
        "obs/gripper_states": random.normal(size=(num_steps, 2)),
        "obs/joint_states": random.normal(size=(num_steps, 7)),
        "obs/ee_pos": np.zeros((num_steps, 3)),
        "obs/ee_ori": np.zeros((num_steps, 3)),
        "robot_states": np.zeros((num_steps, 9)),
    }


def write(
    path: pathlib.Path,
    demos: dict[int, dict[str, np.ndarray]],
    attributes: dict[str, str] | None = None,
    num_samples: dict[int, int] | None = None,
) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes or {})
        for number, arrays in demos.items():
            group = data.create_group(f"demo_{number}")
            for name, values in arrays.items():
                group[name] = values
            if num_samples is not None:
                group.attrs["num_samples"] = num_samples[number]
    return path


def opened(path: pathlib.Path, split: str | None = None) -> Hdf5Source:
    source = open_source(str(path), split)
    assert isinstance(source, Hdf5Source)
    return source


def test_demos_are_read_by_number_with_their_texts_and_flags(tmp_path: pathlib.Path) -> None:
    demos = {10: libero_demo(10, 3), 2: libero_demo(2, 4)}
    source = opened(write(tmp_path / STOVE, demos))
    assert (source.format, source.name) == ("LIBERO HDF5", STOVE.removesuffix(".hdf5"))
    episodes = list(read_episodes(source, source.shards[0]))
    assert [where.rpartition(", ")[2] for where, _ in episodes] == ["data/demo_2", "data/demo_10"]
    for number, (_, episode) in zip((2, 10), episodes, strict=True):
        for name, values in demos[number].items():
            np.testing.assert_array_equal(episode[f"steps/{name}"], values)
        # The prefix up to the scene is no part of the instruction.
        assert episode["file_instruction"] == [b"turn on the stove"]
        assert episode["episode_id"] == [f"{STOVE}/demo_{number}".encode()]
    np.testing.assert_array_equal(episodes[0][1]["steps/is_first"], [True, False, False, False])
    np.testing.assert_array_equal(episodes[0][1]["steps/is_last"], [False, False, False, True])


def test_the_files_of_a_folder_are_one_source(tmp_path: pathlib.Path) -> None:
    long = {number: libero_demo(number, 2) for number in range(53)}
    write(tmp_path / "suite" / STOVE, {0: libero_demo(0, 3), 1: libero_demo(1, 3)})
    write(tmp_path / "suite" / BOWL, long)
    source = opened(tmp_path)
    assert source.name == tmp_path.name
    assert [(shard.name, shard.num_episodes) for shard in source.shards] == [
        (f"suite/{STOVE}", 2),
        (f"suite/{BOWL}", 50),
        (f"suite/{BOWL}, demos from 50", 3),
    ]
    selected = source.select(1, 54)
    read = [
        episode["episode_id"][0]
        for shard in selected.shards
        for _, episode in read_episodes(selected, shard, {"episode_id", "steps/rewards"})
    ]
    names = [f"{STOVE}/demo_1", *(f"{BOWL}/demo_{number}" for number in range(52))]
    assert [bytes(name).decode() for name in read] == names
    assert selected.selection == "1:54 of 55"


def test_files_of_both_endings_and_levels_are_one_source(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "set [1]"  # no pattern
    for number, name in enumerate(("a.hdf5", "b.h5", "sub/c.hdf5", "sub/d.h5")):
        write(folder / name, {0: libero_demo(number, 2), 1: libero_demo(number, 2)})
    shards = [(shard.name, shard.num_episodes) for shard in open_source(str(folder)).shards]
    assert shards == [("a.hdf5", 2), ("b.h5", 2), ("sub/c.hdf5", 2), ("sub/d.h5", 2)]


def test_arrays_behind_links_are_read(tmp_path: pathlib.Path) -> None:
    elsewhere = write(tmp_path / "other" / BOWL, {0: libero_demo(7, 3)})
    path = write(tmp_path / STOVE, {0: libero_demo(0, 3)})
    with h5py.File(path, "a") as file:
        obs = file["data/demo_0/obs"]
        obs["soft"] = h5py.SoftLink("/data/demo_0/obs/ee_states")
        obs["hard"] = obs["ee_states"]
        file["data/demo_0/beside"] = h5py.ExternalLink(elsewhere, "/data/demo_0/obs")
    source = opened(path)
    ((_, episode),) = read_episodes(source, source.shards[0])
    states = libero_demo(0, 3)["obs/ee_states"]
    for name in ("ee_states", "soft", "hard"):
        np.testing.assert_array_equal(episode[f"steps/obs/{name}"], states)
    others = libero_demo(7, 3)["obs/ee_states"]
    np.testing.assert_array_equal(episode["steps/beside/ee_states"], others)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("/data/demo_0/nowhere", "a link whose target is missing"),
        ("/data/demo_0", "a group that it lies in"),
    ],
)
def test_a_link_that_leads_nowhere_is_refused(
    tmp_path: pathlib.Path, target: str, found: str
) -> None:
    path = write(tmp_path / STOVE, {0: libero_demo(0, 3)})
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/link"] = h5py.SoftLink(target)
    with pytest.raises(UserError, match=f"/data/demo_0/obs/link: expected a link .* found {found}"):
        open_source(str(path))


def test_links_that_multiply_groups_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / STOVE, {0: libero_demo(0, 2)})
    with h5py.File(path, "a") as file:
        # Two links from each group to the next: the last of 20 has a million paths.
        for level in range(20):
            below = file.require_group(f"level_{level + 1}")
            file[f"level_{level}/left"] = file[f"level_{level}/right"] = below
        file["data/demo_0/links"] = file["level_0"]
    monkeypatch.setattr(hdf5_layout, "_MAX_ITEMS", 1_000)
    with pytest.raises(UserError, match=r"data/demo_0: expected at most 1,000 arrays and groups"):
        open_source(str(path))


def test_demos_keep_their_names(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / STOVE, {0: libero_demo(0, 2), 1: libero_demo(1, 3)})
    with h5py.File(path, "a") as file:
        file.move("data/demo_0", "data/demo_010")
        file.move("data/demo_1", "data/demo_002")
    source = opened(path)
    episodes = list(read_episodes(source, source.shards[0]))
    ids = [f"{STOVE}/demo_002".encode(), f"{STOVE}/demo_010".encode()]
    assert [episode["episode_id"] for _, episode in episodes] == [[name] for name in ids]
    assert [len(episode["steps/actions"]) for _, episode in episodes] == [3, 2]


def test_a_file_whose_name_is_no_text_has_an_escaped_id(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "demo.hdf5", {0: libero_demo(0, 2)})
    path = path.rename(tmp_path / os.fsdecode(b"demo_\xff.hdf5"))
    source = opened(path)
    ((_, episode),) = read_episodes(source, source.shards[0])
    assert episode["episode_id"] == [rb"demo_\udcff.hdf5/demo_0"]


def test_groups_beside_the_demos_are_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / STOVE, {0: libero_demo(0, 2)})
    with h5py.File(path, "a") as file:
        file.create_group("data/demo_extra_1")
        file.create_group("data/episode_2")
        file["data/demo_3"] = np.zeros(2)
        file["data/demo_4"] = h5py.SoftLink("/nowhere")
    message = "demo_1, ... alone: .* found demo_3, demo_4, demo_extra_1, episode_2 beside 1 of them"
    with pytest.raises(UserError, match=message):
        open_source(str(path))


def test_the_two_forms_of_libero_are_told_apart(tmp_path: pathlib.Path) -> None:
    released = write(tmp_path / "a" / BOWL, {0: libero_demo(0, 2)}, LIBERO_ATTRIBUTES)
    assert opened(released).format == "LIBERO HDF5 as released"
    assert opened(released).keys["language_instruction"].kind == "text"
    write(tmp_path / "both" / STOVE, {0: libero_demo(0, 2)})
    write(tmp_path / "both" / BOWL, {0: libero_demo(0, 2)}, LIBERO_ATTRIBUTES)
    with pytest.raises(UserError, match=r"both: expected files of one layout; found LIBERO HDF5"):
        opened(tmp_path / "both")


def test_an_array_of_another_width_in_another_file_can_only_be_ignored(
    tmp_path: pathlib.Path,
) -> None:
    write(tmp_path / STOVE, {0: libero_demo(0, 2)})
    write(tmp_path / BOWL, {0: {**libero_demo(1, 2), "states": np.zeros((2, 9))}})
    key = opened(tmp_path).keys["steps/states"]
    assert key.kind == "other"
    first, second = f"float64[5] in {STOVE}", f"float64[9] in {BOWL}"
    assert key.dtype == f"arrays of other types in other files: {first}, {second}"


def robomimic(path: pathlib.Path) -> pathlib.Path:
    arrays = {"actions": np.zeros((3, 7)), "obs/robot0_eef_pos": np.zeros((3, 3))}
    write(path, dict.fromkeys(range(3), arrays), {"env_args": "{}"})
    with h5py.File(path, "a") as file:
        file["data/demo_0/next_obs/robot0_eef_pos"] = np.zeros((3, 3))
        file["mask/train"] = np.array([b"demo_2", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_1"])
    return path


def test_a_mask_of_robomimic_is_a_split(tmp_path: pathlib.Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    source = opened(path, "train")
    assert (source.format, source.split) == ("robomimic HDF5", "train")
    assert [demo.group for demo in source.demos["lift.hdf5"]] == ["data/demo_0", "data/demo_2"]
    assert opened(path).shards[0].num_episodes == 3
    with pytest.raises(UserError, match=r"expected a mask test, .*; found the masks train, valid"):
        opened(path, "test")


def test_what_some_demos_alone_have_can_only_be_ignored(tmp_path: pathlib.Path) -> None:
    source = opened(robomimic(tmp_path / "lift.hdf5"))
    key = source.keys["steps/next_obs/robot0_eef_pos"]
    assert (key.kind, key.dtype) == ("other", "float64[3] of some demos alone")
    assert len(list(read_episodes(source, source.shards[0]))) == 3


def test_a_mask_without_demos_is_refused(tmp_path: pathlib.Path) -> None:
    path = robomimic(tmp_path / "low_dim.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/empty"] = np.array([], "S8")
    with pytest.raises(UserError, match="expected demos of the mask empty; found no"):
        open_source(str(path), "empty")


@pytest.mark.parametrize(("mask", "num_demos"), [(b"demo_1", 1), (["demo_0", "demo_1"], 2)])
def test_a_mask_is_one_name_or_several(tmp_path: pathlib.Path, mask: Any, num_demos: int) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/other"] = mask
    assert opened(path, "other").shards[0].num_episodes == num_demos


def test_what_holds_no_names_of_demos_is_no_mask(tmp_path: pathlib.Path) -> None:
    path = robomimic(tmp_path / "lift.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/references"] = np.array([file["data/demo_0"].ref], h5py.ref_dtype)
        file["mask/numbers"] = [0, 1]
        file["mask/empty"] = h5py.Empty("S8")
        file["mask/link"] = h5py.SoftLink("/nowhere")
    with pytest.raises(UserError, match="found the masks train, valid"):
        opened(path, "link")
    with h5py.File(path, "a") as file:
        del file["mask"]
        file["mask"] = np.array([b"demo_0"])
    with pytest.raises(UserError, match=r"a mask train, .*; found no masks. Leave --split out"):
        opened(path, "train")


def test_a_single_value_of_a_demo_can_only_be_ignored(tmp_path: pathlib.Path) -> None:
    single: dict[str, Any] = {"success": np.array(1.0), "note": np.bytes_(b"a")}
    path = write(tmp_path / STOVE, {0: {**libero_demo(0, 3), **single}})
    source = opened(path)
    assert source.keys["steps/success"].kind == source.keys["steps/note"].kind == "other"
    assert source.keys["steps/success"].dtype == "a single float64 and not one per step"
    (episode,) = source.episodes(source.shards[0])
    assert isinstance(episode.values, dict)


def test_a_demo_without_actions_per_step_has_no_texts_either(tmp_path: pathlib.Path) -> None:
    demos = {0: libero_demo(0, 3), 1: {"actions": np.array(1.0)}}
    source = opened(write(tmp_path / STOVE, demos))
    first, second = source.episodes(source.shards[0], {"episode_id"})
    assert first.values == {"episode_id": [f"{STOVE}/demo_0".encode()]}
    assert "demo_1: expected the same number of steps" in str(second.values)
    assert "found no actions, one per step" in str(second.values)


def test_files_of_one_episode_share_a_shard(tmp_path: pathlib.Path) -> None:
    for number in range(3):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "w") as file:
            file["action"] = np.full((4, 14), number, np.float32)
            file["observations/qpos"] = np.zeros((4, 14), np.float32)
    source = opened(tmp_path)
    assert source.format == "HDF5"
    assert [(s.name, s.num_episodes) for s in source.shards] == [("episode_0.hdf5 and 2 more", 3)]
    actions = [e["steps/action"] for _, e in read_episodes(source, source.shards[0])]
    assert [float(np.asarray(action)[0, 0]) for action in actions] == [0.0, 1.0, 2.0]


def write_episodes(folder: pathlib.Path, values: dict[str, int]) -> pathlib.Path:
    """Writes files of one episode each, whose actions are a number."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file["action"] = np.full((2, 3), value, np.float32)
    return folder


def test_files_that_share_a_shard_are_known_by_their_names_and_sizes(
    tmp_path: pathlib.Path,
) -> None:
    features = (FeatureMapping("action", "steps/action"),)
    conventions = Conventions("upright", "none", control_frequency_hz=10.0, no_ops="kept")
    mapping = SourceMapping(features, conventions, "", "episode_id", ignore=("steps/is_*",))
    out = epath.Path(tmp_path / "out")
    (out / ".conversion").mkdir(parents=True)

    def job(folder: pathlib.Path) -> ShardJob:
        source = opened(folder)
        return ShardJob(source, mapping, mapping.schema(source), out)

    folder = write_episodes(tmp_path / "set", {"a": 0, "b": 1, "c": 2})
    job(folder).convert(0, lambda num_bytes: None)
    moved = write_episodes(tmp_path / "moved" / "set", {"a": 0, "b": 1, "c": 2})
    assert job(folder).is_done(0)
    assert job(moved).is_done(0)
    # A recording that is removed and made again under another name: as many bytes and episodes.
    (folder / "b.hdf5").unlink()
    assert job(write_episodes(folder, {"b2": 1000})).plan_digest == job(moved).plan_digest
    assert not job(folder).is_done(0)
    # Notes of earlier releases have no digest.
    part = out / ".conversion" / "00000.part.json"
    noted = json.loads(part.read_text())
    assert len(noted.pop("digest")) == 32
    part.write_text(json.dumps(noted))
    assert job(moved).is_done(0)


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {key: values for key, values in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: {**arrays, "actions": np.array(1.0)},
            r"demo_1, actions: expected float64\[7\] for each step.*; found a single float64",
        ),
        (
            without("obs/ee_states"),
            r"demo_1, obs/ee_states: expected float64\[6\] .*first demo; found no such array",
        ),
        (
            lambda arrays: {**arrays, "actions": arrays["actions"][:, :6]},
            r"demo_1, actions: expected float64\[7\] for each step.*; found float64\[6\]",
        ),
        (
            lambda arrays: {**arrays, "obs/agentview_rgb": arrays["obs/agentview_rgb"][:2]},
            r"demo_1: expected the same number of steps for every array, .*"
            r"found 3 of .*; 2 of obs/agentview_rgb",
        ),
        (
            lambda arrays: {key: values[:0] for key, values in arrays.items()},
            r"demo_1: expected an episode of at least one step; found one without steps",
        ),
    ],
    ids=["a single value", "a missing array", "another width", "another length", "no steps"],
)
def test_a_demo_that_is_wrong_is_an_error_in_its_place(
    tmp_path: pathlib.Path, change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    demos = {0: libero_demo(0, 3), 1: change(libero_demo(1, 3)), 2: libero_demo(2, 3)}
    source = opened(write(tmp_path / STOVE, demos))
    first, second, third = (episode.values for episode in source.episodes(source.shards[0]))
    assert isinstance(second, UserError)
    assert isinstance(first, dict)
    assert isinstance(third, dict)
    with pytest.raises(UserError, match=message):
        raise second


def test_another_number_of_samples_than_declared_is_refused(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / STOVE, {0: libero_demo(0, 3)}, num_samples={0: 99})
    source = opened(path)
    (episode,) = source.episodes(source.shards[0])
    assert "found 3 of actions" in str(episode.values)
    assert "99 of num_samples" in str(episode.values)


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        (np.array([4, 4]), r"\[4, 4\]"),
        ("four", "'four'"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (h5py.Empty("i8"), "Empty"),
    ],
    ids=["two", "a word", "nan", "inf", "empty"],
)
def test_a_number_of_samples_that_is_none_is_an_error_of_its_demo(
    tmp_path: pathlib.Path, declared: Any, found: str
) -> None:
    path = write(tmp_path / STOVE, {number: libero_demo(number, 4) for number in range(2)})
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["num_samples"] = declared
        file["data/demo_1"].attrs["num_samples"] = np.array([4])
    source = opened(path)
    first, second = source.episodes(source.shards[0])
    message = f"demo_0, num_samples: expected the number of steps; found {found}"
    assert re.search(message, str(first.values))
    assert isinstance(second.values, dict)


def test_an_array_without_a_row_per_step_can_be_ignored(tmp_path: pathlib.Path) -> None:
    demo = {**libero_demo(0, 5), "obs/intrinsics": np.eye(3)}
    source = opened(write(tmp_path / STOVE, {0: demo}))
    (episode,) = source.episodes(source.shards[0], {"steps/actions", "steps/obs/intrinsics"})
    assert "found 5 of actions; 3 of obs/intrinsics. Ignore keys" in str(episode.values)
    (episode,) = source.episodes(source.shards[0], {"steps/actions"})
    assert isinstance(episode.values, dict)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_data(path: pathlib.Path) -> None:
    with h5py.File(path, "a") as file:
        file.move("data", "episodes")


def without_demos(path: pathlib.Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_0"]


def with_deep_groups(path: pathlib.Path) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_0" + "/below" * 33 + "/array"] = np.zeros(3)


def with_a_name_of_other_bytes(path: pathlib.Path) -> None:
    with h5py.File(path, "a") as file:
        file["data/demo_0"][b"\xff"] = np.zeros(3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, f"{STOVE}: expected an HDF5 file that can be read; found truncated file"),
        (
            lambda path: path.write_text("<html>"),
            f"{STOVE}: expected an HDF5 file that can be read; found file signature not found",
        ),
        (
            without_data,
            f"{STOVE}: expected a group data with demos, or an array actions or action of one "
            "episode; found episodes at the root",
        ),
        (without_demos, f"{STOVE}, data: expected groups demo_0, demo_1, .*; found an empty group"),
        (with_deep_groups, "/below: expected at most 32 groups inside one another; found more"),
        (with_a_name_of_other_bytes, r"demo_0: expected names in UTF-8; found b'\\xff'\. Rename"),
    ],
)
def test_a_file_of_another_form_is_refused_when_it_is_opened(
    tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], object], message: str
) -> None:
    path = write(tmp_path / STOVE, {0: libero_demo(0, 3)})
    damage(path)
    with pytest.raises(UserError, match=message):
        open_source(str(path))


def test_golden_demonstrations(shared: pathlib.Path) -> None:
    golden = shared / "golden" / "hdf5"
    num_compared = 0
    for form in ("libero", "regenerated"):
        expected = np.load(golden / f"expected_{form}.npz")
        numbers = {pathlib.Path(str(expected[k])).name: k[0] for k in expected if "> file" in k}
        source = opened(golden / form)
        for shard in source.shards:
            for where, episode in read_episodes(source, shard):
                demo = f"{numbers[shard.name]} > {where.rpartition('/')[2]} >"
                joined = [episode["steps/obs/ee_states"], episode["steps/obs/gripper_states"]]
                found = {
                    "action": episode["steps/actions"],
                    "state": np.concatenate([np.asarray(part) for part in joined], axis=1),
                    "joint_state": episode["steps/obs/joint_states"],
                    "reward": episode["steps/rewards"],
                    "is_last": episode["steps/is_last"],
                }
                for name, values in found.items():
                    stored = expected[f"{demo} {name}"]
                    np.testing.assert_array_equal(np.asarray(values).astype(stored.dtype), stored)
                frames = expected[f"{demo} image_frames"]
                for name, key in (("image", "agentview_rgb"), ("wrist_image", "eye_in_hand_rgb")):
                    turned = np.asarray(episode[f"steps/obs/{key}"])[frames][:, ::-1, ::-1]
                    np.testing.assert_array_equal(turned, expected[f"{demo} {name}"])
                spelled = str(expected[f"{numbers[shard.name]} > language_from_name"])
                assert episode["file_instruction"] == [spelled.encode()]
                num_compared += 1
    assert num_compared == 8


def mapped(name: str) -> SourceMapping:
    """A mapping of the registry."""
    registry = pathlib.Path(mapping_registry.__file__).with_name("registry")
    return mapping_registry.read_mapping(registry / f"{name}.toml")


def test_a_regenerated_file_gives_what_the_published_rlds_has(tmp_path: pathlib.Path) -> None:
    demos = {0: libero_demo(0, 5)}
    source = opened(write(tmp_path / STOVE, demos))
    convert(source, tmp_path / "out", mapped("libero_hdf5"))
    dataset = open_dataset(str(tmp_path / "out"))
    assert dataset.manifest.tasks == ("turn on the stove",)
    episode = dataset.episode(0)
    np.testing.assert_array_equal(episode["action"], demos[0]["actions"].astype(np.float32))
    np.testing.assert_array_equal(episode["is_last"], [False] * 4 + [True])
    proprio = np.concatenate([demos[0]["obs/ee_states"], demos[0]["obs/gripper_states"]], axis=1)
    np.testing.assert_array_equal(episode["observation"]["proprio"], proprio.astype(np.float32))
    # Both cameras are turned by 180 degrees, and encoded as TensorFlow encoded the published ones.
    for key, name in (("image_primary", "agentview_rgb"), ("image_wrist", "eye_in_hand_rgb")):
        turned = np.ascontiguousarray(demos[0][f"obs/{name}"][2][::-1, ::-1])
        stored = dataset.columns["steps"].read(2)[f"observation/{key}"]
        assert bytes(stored) == simplejpeg.encode_jpeg(turned, 95, "RGB", "420")
    verifier = Verifier(
        epath.Path(tmp_path / "out"), dataset.manifest, encode_source(computed(source))
    )
    assert verifier.run().count == 0


def computed(source: Hdf5Source) -> Source:
    return compute_source(source, mapped("libero_hdf5"))[0]


def test_a_released_file_is_timed_again(tmp_path: pathlib.Path) -> None:
    demos = {0: libero_demo(0, 5)}
    source = opened(write(tmp_path / STOVE, demos, LIBERO_ATTRIBUTES))
    convert(source, tmp_path / "out", mapped("libero_hdf5_released"))
    episode = open_dataset(str(tmp_path / "out")).episode(0)
    # Row i was observed after action i, so it is followed by action i + 1.
    np.testing.assert_array_equal(episode["action"], demos[0]["actions"][1:].astype(np.float32))
    observed = np.asarray(episode["observation"]["proprio"])[:, :6]
    np.testing.assert_array_equal(observed, demos[0]["obs/ee_states"][:-1].astype(np.float32))
    np.testing.assert_array_equal(episode["reward"], [0, 0, 0, 1])


def test_a_mapping_is_found_by_the_layout_of_the_files(tmp_path: pathlib.Path) -> None:
    regenerated = opened(write(tmp_path / "a" / STOVE, {0: libero_demo(0, 2)}))
    assert mapping_registry.find_mapping(regenerated) == mapped("libero_hdf5")
    lift = opened(robomimic(tmp_path / "lift.hdf5"))
    assert mapping_registry.find_mapping(lift) == mapped("robomimic_hdf5")
    released = opened(write(tmp_path / "b" / STOVE, {0: libero_demo(0, 2)}, LIBERO_ATTRIBUTES))
    message = (
        r"expected LIBERO's regenerated files, .*; found the released ones, .* observed after it\. "
        r".*--mapping libero_hdf5_released"
    )
    with pytest.raises(UserError, match=message):
        mapping_registry.find_mapping(released)
