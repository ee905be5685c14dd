import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from pipeline.config_checks import ConfigError
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.samples.sampling import WHOLE_BATCH, HostShard
from pipeline.loading.transforms.input_transforms import (
    ConvertObservationRotation,
    DropObservation,
    StateNoise,
)
from pipeline.loading.transforms.transform import Draws, Transform
from tests.small_dataset import write_dataset

STATE = ("x_m", "y_m", "grip_m")
MASKS = "observation/pad_mask_dict/"


def spec_of(b: int = 4, w: int = 2) -> BatchSpec:
    """A camera with its goal, and a vector of one step less than the window."""
    return {
        "observation/wrist": LeafSpec("uint8", (b, w, 2, 3, 3)),
        f"{MASKS}wrist": LeafSpec("bool", (b, w)),
        "observation/state": LeafSpec("float32", (b, w - 1, 3), STATE),
        f"{MASKS}state": LeafSpec("bool", (b, w)),
        "observation/count": LeafSpec("int32", (b, w, 1), ("n",)),
        f"{MASKS}count": LeafSpec("bool", (b, w)),
        "observation/timestep": LeafSpec("int32", (b, w)),
        "task/wrist": LeafSpec("uint8", (b, 2, 3, 3)),
        "task/pad_mask_dict/wrist": LeafSpec("bool", (b,)),
    }


def batch_of(b: int = 4, w: int = 2) -> FlatBatch:
    """Every value is 7, and every step was read."""
    return {k: np.full(leaf.shape, 7, leaf.dtype) for k, leaf in spec_of(b, w).items()}


def draws_of(*index: int, seed: int = 42, place: int = 0) -> Draws:
    return Draws(seed, place, np.array(index))


def test_noise_of_a_sample_is_pinned() -> None:
    noise = StateNoise("state", (("grip_m", 0.5), ("x_m", 2.0)))
    found = noise.apply(batch_of(2), spec_of(2), draws_of(0, 5))["observation/state"]
    # By Philox4x64-10 of the seed 42, the place 0 and the samples 0 and 5: may never change.
    pinned = [[8.8034019, 7.0, 6.9292622], [5.8366213, 7.0, 6.7089853]]
    np.testing.assert_allclose(found[:, 0], pinned, rtol=1e-6)
    assert found.dtype == np.float32
    assert (found[..., 1] == 7).all()


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    noise = StateNoise("state", (("x_m", 0.01), ("y_m", 3.0)))
    count, window = 4000, 3
    found = noise.apply(batch_of(count, window), spec_of(count, window), draws_of(*range(count)))
    state = found["observation/state"].astype(np.float64) - 7
    assert state.shape == (count, 2, 3)
    # 8,000 normal numbers: their deviation is within 3 % of its expectation, the mean near 0.
    flat = state.reshape(-1, 3)
    np.testing.assert_allclose(flat.std(axis=0), [0.01, 3.0, 0.0], rtol=0.03)
    assert np.abs(flat.mean(axis=0) / [0.01, 3.0, 1.0]).max() < 0.05
    # Another number for each dimension and step of the window.
    numbers = state[..., :2].transpose(1, 2, 0).reshape(4, count)
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.08


TRANSFORMS = [StateNoise("state", (("x_m", 1.0),)), DropObservation(("wrist", "state"), 0.5)]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["noise", "drop"])
def test_a_draw_depends_on_the_seed_the_place_and_the_sample_alone(transform: Transform) -> None:
    def run(*index: int, **others: int) -> np.ndarray:
        b = len(index)
        return transform.apply(batch_of(b), spec_of(b), draws_of(*index, **others))[
            "observation/state"
        ][:, 0, 0]

    whole = run(*range(64))
    assert len(np.unique(whole)) > 1
    # Batches of another size, from another position, and the rows of one of two processes.
    np.testing.assert_array_equal(np.concatenate([run(0, 1, 2), run(*range(3, 64))]), whole)
    np.testing.assert_array_equal(run(*range(32, 64)), whole[32:])
    np.testing.assert_array_equal(run(63, 5, 17), whole[[63, 5, 17]])
    for others in ({"seed": 43}, {"place": 1}):
        assert (run(*range(64), **others) != whole).any()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["noise", "drop"])
def test_nothing_changes_without_draws_and_the_given_arrays_never_do(transform: Transform) -> None:
    batch, spec = batch_of(), spec_of()
    assert transform.apply(batch, spec, None) is batch
    assert transform.spec_after(spec) == spec
    given = {key: array.copy() for key, array in batch.items()}
    changed = transform.apply(batch, spec, draws_of(0, 1, 2, 3))
    assert changed.keys() == batch.keys()
    assert any(changed[key] is not batch[key] for key in batch)
    for key, array in given.items():
        np.testing.assert_array_equal(batch[key], array)
        assert (changed[key].dtype, changed[key].shape) == (array.dtype, array.shape)


def test_a_missing_state_stays_zero() -> None:
    batch = batch_of()
    batch["observation/state"][1] = 0
    batch[f"{MASKS}state"][1] = False
    noise = StateNoise("state", (("x_m", 1.0),))
    found = noise.apply(batch, spec_of(), draws_of(0, 1, 2, 3))["observation/state"]
    assert not found[1].any()
    assert (found[[0, 2, 3], :, 0] != 7).all()


def test_a_hidden_observation_looks_like_one_that_the_dataset_lacks() -> None:
    count = 4000
    drop = DropObservation(("wrist", "state"), 0.25)
    found = drop.apply(batch_of(count), spec_of(count), draws_of(*range(count)))
    hidden = {}
    for name in drop.observations:
        mask = found[f"{MASKS}{name}"]
        hidden[name] = ~mask[:, 0]
        # The whole window or none of it; elsewhere nothing changes.
        np.testing.assert_array_equal(mask[:, 0], mask[:, 1])
        values = found[f"observation/{name}"].reshape(count, -1)
        np.testing.assert_array_equal(values, np.where(hidden[name], 0, 7)[:, None] + 0 * values)
    np.testing.assert_array_equal(found["task/pad_mask_dict/wrist"], ~hidden["wrist"])
    np.testing.assert_array_equal(found["task/wrist"].any(axis=(1, 2, 3)), ~hidden["wrist"])
    # Each in a quarter of the samples, and both in a sixteenth: they are independent.
    shares = [hidden["wrist"].mean(), hidden["state"].mean()]
    np.testing.assert_allclose(shares, 0.25, atol=0.02)
    assert np.mean(hidden["wrist"] & hidden["state"]) == pytest.approx(1 / 16, abs=0.015)
    for key in (f"{MASKS}count", "observation/count", "observation/timestep"):
        assert (found[key] == batch_of(1)[key][0]).all()


@pytest.mark.parametrize(("probability", "hidden"), [(0.0, 0), (1.0, 4)])
def test_probabilities_of_0_and_1_are_never_and_always(probability: float, hidden: int) -> None:
    drop = DropObservation(("wrist",), probability)
    batch = batch_of()
    found = drop.apply(batch, spec_of(), draws_of(0, 1, 2, 3))
    assert (~found[f"{MASKS}wrist"]).all(axis=1).sum() == hidden
    # Nothing is copied where nothing is hidden.
    assert (found["observation/wrist"] is batch["observation/wrist"]) == (hidden == 0)


POSES = ("left_w", "x_m", "left_x", "left_y", "left_z", "grip_m")


def pose_spec(b: int = 3, w: int = 2) -> BatchSpec:
    """A quaternion among other dimensions, of the last step of a window of two."""
    stated: dict[str, str] = dict.fromkeys(POSES[:1] + POSES[2:5], "quaternion_wxyz")
    leaf = LeafSpec("float32", (b, w - 1, 6), POSES, frozenset({"grip_m"}), stated)
    return {
        "observation/state": leaf,
        f"{MASKS}state": LeafSpec("bool", (b, w)),
        "action": LeafSpec("float32", (b, w, 1, 6), POSES),
    }


TURN = ConvertObservationRotation(
    ("left_w", "left_x", "left_y", "left_z"), "quaternion_wxyz", "rot6d", "state", "left_"
)


def test_a_rotation_of_an_observation_is_converted_where_it_is_read() -> None:
    half = np.sqrt(0.5)
    # No turn, a quarter turn about z as its negative quaternion, and a sample without the state.
    rows = [[1, 5, 0, 0, 0, 0.25], [-half, 6, 0, 0, -half, 0.5], [0] * 6]
    batch: FlatBatch = {
        "observation/state": np.array(rows, np.float32)[:, None],
        f"{MASKS}state": np.array([[False, True], [False, True], [False, False]]),
    }
    spec = pose_spec()
    after = TURN.spec_after(spec)["observation/state"]
    assert after.shape == (3, 1, 8)
    assert after.dims == (*(f"left_rot6d_{n}" for n in range(6)), "x_m", "grip_m")
    assert after.rotations == dict.fromkeys(after.dims[:6], "rot6d")
    assert after.raw == {"grip_m"}
    found = TURN.apply(batch, spec, None)["observation/state"]
    assert found.dtype == np.float32
    # The first two columns of the matrices: x y z and y -x z.
    expected = [[1, 0, 0, 0, 1, 0, 5, 0.25], [0, 1, 0, -1, 0, 0, 6, 0.5], [0] * 8]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(batch["observation/state"][:, 0], np.array(rows, np.float32))

    wxyz = dataclasses.replace(TURN, target="quaternion_xyzw")
    found = wxyz.apply(batch, spec, None)["observation/state"]
    # With a real part that is not negative.
    np.testing.assert_allclose(found[1, 0], [0, 0, half, half, 6, 0.5], atol=1e-6)


def test_values_that_are_no_rotation_are_reported() -> None:
    batch: FlatBatch = {"observation/state": np.zeros((3, 1, 6), np.float32)}
    batch[f"{MASKS}state"] = np.ones((3, 2), bool)
    message = "ConvertObservationRotation, observation/state: expected rotations; .* norm 0 is no"
    with pytest.raises(UserError, match=message):
        TURN.apply(batch, pose_spec(), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"source": "quaternion_xyzw"},
            "expected left_w, left_x, left_y, left_z as quaternion_xyzw; found quaternion_wxyz in",
        ),
        ({"rotation": ("left_w", "qx", "qy", "qz")}, "which are left_w, .*; found qx, qy, qz"),
        ({"observation": "stat"}, "expected one of the vectors .*; found observation/stat. Did"),
    ],
)
def test_a_rotation_that_is_not_there_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TURN, **change).spec_after(pose_spec())


def test_two_arms_need_names_of_their_own() -> None:
    twice = ConvertObservationRotation(
        ("x_m", "left_rot6d_0", "left_rot6d_1"), "axis_angle", "rot6d", "state", "left_"
    )
    message = "new names of dimensions that observation/state does not have; found left_rot6d_2"
    spec = TURN.spec_after(pose_spec())
    leaf = dataclasses.replace(spec["observation/state"], rotations={})
    with pytest.raises(UserError, match=message):
        twice.spec_after(spec | {"observation/state": leaf})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StateNoise("state", ()), "std: expected one deviation or more.* found none. Name"),
        (
            lambda: StateNoise("state", (("x_m", 1.0), ("x_m", 2.0))),
            "std: expected one deviation or more, each of another dimension; found x_m, x_m",
        ),
        (
            lambda: StateNoise("state", (("x_m", -1.0),)),
            "std: expected a finite number above 0 for x_m; found -1.0. Give it in the dataset",
        ),
        (lambda: StateNoise("state", (("x_m", float("nan")),)), "above 0 for x_m; found nan"),
        (
            lambda: dataclasses.replace(TURN, rotation=("a", "b", "c")),
            "rotation: expected 4 names; found 3: a, b, c",
        ),
        (lambda: DropObservation((), 0.5), "observations: expected one name or more.* found none"),
        (lambda: DropObservation(("a", "a"), 0.5), "expected one name or more, each once; found a"),
        (lambda: DropObservation(("a",), 1.5), "probability: expected 0 to 1; found 1.5"),
        (lambda: DropObservation(("a",), float("nan")), "expected 0 to 1; found nan"),
    ],
)
def test_settings_without_a_meaning_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            StateNoise("state", (("z_m", 1.0),)),
            "StateNoise.std: expected dimensions of observation/state, which are x_m, y_m, grip_m; "
            "found z_m. Did you mean",
        ),
        (
            StateNoise("stat", (("x_m", 1.0),)),
            "StateNoise.std: expected one of the vectors .*; found observation/stat. Did you mean",
        ),
        (
            StateNoise("wrist", (("x_m", 1.0),)),
            "dimensions of observation/wrist, which are none; found x_m",
        ),
        (
            StateNoise("count", (("n", 1.0),)),
            r"StateNoise.observation: expected a vector of float32; found .*count int32\[4,2,1\]",
        ),
        (
            DropObservation(("wrst",), 0.5),
            "DropObservation.observations: expected an observation with a pad mask, of wrist, "
            "state, count; found wrst. Did you mean wrist",
        ),
        (DropObservation(("timestep",), 0.5), "with a pad mask, of .*; found timestep"),
    ],
)
def test_a_transform_that_does_not_fit_the_arrays_is_refused(
    transform: Transform, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        transform.spec_after(spec_of())


@pytest.mark.parametrize("transform", [*TRANSFORMS, TURN], ids=["noise", "drop", "turn"])
def test_a_transform_survives_json(transform: Transform) -> None:
    text = json.dumps(to_json_values(transform))
    assert from_json_text(type(transform), text, where="x", remedy="y") == transform


# --- in a loader


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four episodes of six steps, with two cameras and a state."""
    shapes = {
        "action": (2,),
        "observation/front": (4, 6, 3),
        "observation/wrist": (2, 3, 3),
        "observation/state": (3,),
    }
    return write_dataset(tmp_path_factory.mktemp("noisy") / "set", shapes)


RANDOM = (
    StateNoise("state", (("1", 0.5),)),
    DropObservation(("wrist", "state"), 0.4),
)
OBSERVATIONS = ("front", "wrist", "state")


def loader_of(
    *parts: DatasetConfig, batch_size: int, shard: HostShard = WHOLE_BATCH, **settings: Any
) -> Loader:
    names = {"observations": OBSERVATIONS, "transforms": RANDOM, "num_threads": 0}
    config = DataConfig(parts, "", **(names | settings))
    return Loader(config, batch_size, [open_dataset(p.path) for p in parts], None, shard)


def observations(loader: Loader, num_batches: int, position: int = 0) -> list[dict[str, Any]]:
    """The observations of some batches, and their goals."""
    batches = [b.arrays for b in itertools.islice(loader.batches(position), num_batches)]
    return [b["observation"] | {"goals": b["task"]} for b in batches]


def concatenated(batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def test_draws_of_a_loader_do_not_depend_on_how_samples_become_batches(
    directory: pathlib.Path,
) -> None:
    part = DatasetConfig(str(directory))
    (whole,) = observations(loader_of(part, batch_size=16), 1)
    assert 0 < whole["pad_mask_dict"]["wrist"][:, 0].sum() < 16
    halves = [loader_of(part, batch_size=16, shard=HostShard(n, 2)) for n in range(2)]
    for parts in (
        observations(loader_of(part, batch_size=4), 4),
        observations(loader_of(part, batch_size=4, num_threads=2), 4),
        observations(loader_of(part, batch_size=8), 1)
        + observations(loader_of(part, batch_size=8), 1, position=1),
        [observations(half, 1)[0] for half in halves],
    ):
        jax.tree.map(np.testing.assert_array_equal, concatenated(parts), whole)
    (other,) = observations(loader_of(part, batch_size=16, seed=7), 1)
    assert (other["pad_mask_dict"]["wrist"] != whole["pad_mask_dict"]["wrist"]).any()


def test_what_is_hidden_is_what_a_dataset_without_it_gives(directory: pathlib.Path) -> None:
    settings = {"conditioning": "image_conditioned", "windows": (("state", 1),), "batch_size": 32}
    lacks = DatasetConfig(str(directory), missing=("wrist", "state"))
    always = (DropObservation(("wrist", "state"), 1.0),)
    # Another dataset has them, which the config of a mixture needs.
    other = DatasetConfig(str(directory))
    (hidden,) = observations(loader_of(other, other, transforms=always, **settings), 1)
    (missing,) = observations(loader_of(lacks, other, transforms=(), **settings), 1)
    rows = np.flatnonzero(~missing["pad_mask_dict"]["state"][:, -1])
    assert len(rows) == 16
    for name in ("wrist", "state"):
        for found in (
            lambda batch, name=name: batch[name],
            lambda batch, name=name: batch["pad_mask_dict"][name],
        ):
            np.testing.assert_array_equal(found(hidden)[rows], found(missing)[rows])
            assert not found(hidden).any()
    goals = hidden["goals"]
    np.testing.assert_array_equal(goals["wrist"][rows], missing["goals"]["wrist"][rows])
    assert not goals["wrist"].any()
    assert not goals["pad_mask_dict"]["wrist"].any()
    assert goals["pad_mask_dict"]["front"].all()
    # Whatever else a sample has stays.
    (plain,) = observations(loader_of(other, other, transforms=(), **settings), 1)
    np.testing.assert_array_equal(hidden["front"], plain["front"])


def test_noise_is_in_the_units_of_the_dataset_and_changes_no_statistics(
    directory: pathlib.Path,
) -> None:
    part = DatasetConfig(str(directory))
    # With a window that the statistics do not read.
    noisy = loader_of(part, batch_size=8, transforms=RANDOM[:1], windows=(("wrist", 1),))
    plain = loader_of(part, batch_size=8, transforms=())
    ours, theirs = (one.statistics["observation/state"][0] for one in (noisy, plain))
    np.testing.assert_array_equal(ours.std, theirs.std)
    (first,), (second,) = observations(noisy, 1), observations(plain, 1)
    difference = (first["state"] - second["state"]) * theirs.std
    expected = 0.5 * Draws(noisy.config.seed, 0, np.arange(8)).normal(2)
    np.testing.assert_allclose(difference[..., 1], expected, atol=1e-5)
    assert not difference[..., [0, 2]].any()
    # A validation, and a policy, draw nothing.
    (quiet,) = observations(noisy.without_random(), 1)
    np.testing.assert_array_equal(quiet["state"], second["state"])


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_dataset_may_lack_what_a_transform_changes(directory: pathlib.Path, lacking: int) -> None:
    parts = [DatasetConfig(str(directory)), DatasetConfig(str(directory))]
    parts[lacking] = DatasetConfig(str(directory), missing=("state",))
    turn = ConvertObservationRotation(("0", "1", "2"), "axis_angle", "rot6d", "state")
    loader = loader_of(*parts, batch_size=8, transforms=(*RANDOM[:1], turn))
    (batch,) = observations(loader, 1)
    has_state = batch["pad_mask_dict"]["state"][:, -1]
    assert has_state.sum() == 4
    assert batch["state"].shape == (8, 2, 6)
    assert not batch["state"][~has_state].any()
    assert batch["state"][has_state].any(axis=-1).all()
    # Of the six numbers after the transform, and those of the dataset that has them for both.
    first, second = loader.statistics["observation/state"]
    assert first.mean.shape == (6,)
    np.testing.assert_array_equal(first.mean, second.mean)
