"""Five ways of using a robot: a policy sees the training batch, and its actions return."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from pipeline.data.conventions import Conventions, Gripper
from pipeline.data.dataset import open_dataset
from pipeline.data.rotations import convert_rotation
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.transforms.action_transforms import MaskActions, PadActions, RelativeActions
from pipeline.loading.transforms.input_transforms import (
    ConvertObservationRotation,
    DropObservation,
    StateNoise,
)
from pipeline.loading.transforms.rotation_transforms import RelativePose
from pipeline.loading.transforms.transform import Draws
from pipeline.loading.transforms.transform_chain import TransformChain
from tests.small_dataset import LENGTH, write_dataset
from tests.train.conftest import TensorsConfig, with_data, without_params
from train.flags import load_config
from train.octo.octo_config import LowdimTokenizerConfig, RegressionConfig
from train.policy.parity import compare_episode
from train.policy.planned_actions import PlannedActions, guide_of, planned_batch
from train.policy.policy_spec import PolicySpec
from train.train_config import TrainConfig

STEPS = 4 * LENGTH
CAMERA = {"observation/image_primary": (8, 8, 3)}
JOINTS = tuple(f"{side}_joint_{n}_rad" for side in ("left", "right") for n in range(6))
ARMS = (*JOINTS[:6], "left_gripper", *JOINTS[6:], "right_gripper")
POSE = ("x_m", "y_m", "z_m", "rx_rad", "ry_rad", "rz_rad", "gripper")
FREE = Conventions("upright", "none", control_frequency_hz=50.0, no_ops="kept")


@dataclasses.dataclass(frozen=True)
class Distance:
    """Adds the distance of the state from its origin, an observation without a mask."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        shape = (*spec["observation/proprio"].shape[:2], 1)
        return spec | {"observation/distance": LeafSpec("float32", shape, ("distance_m",))}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        length = np.linalg.norm(batch["observation/proprio"], axis=-1, keepdims=True)
        return batch | {"observation/distance": length}


def poses(rng: np.random.Generator) -> np.ndarray:
    """Positions, axis-angle and a gripper of 0 or 1; float32 (t 7)."""
    quaternions = rng.normal(size=(STEPS, 4))
    rotations = convert_rotation(quaternions, "quaternion_xyzw", "axis_angle")
    gripper = rng.integers(0, 2, (STEPS, 1))
    return np.concatenate([rng.normal(size=(STEPS, 3)), rotations, gripper], 1).astype(np.float32)


def two_arms(rng: np.random.Generator) -> np.ndarray:
    """Joints of two arms, each with a gripper from 0 (closed) to 0.08 m; float32 (t 14)."""
    values = rng.normal(1.0, 2.0, (STEPS, 14))
    values[:, [6, 13]] = rng.uniform(0, 0.08, (STEPS, 2))
    return values.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Robot:
    """One way of using a robot."""

    arrays: dict[str, Any]
    dims: dict[str, tuple[str, ...]]
    conventions: Conventions
    transforms: tuple[Any, ...]
    size: int
    """Dimensions of the action that the model predicts."""
    proprio: int
    """Dimensions of the state that it reads."""
    horizon: int = 4
    masked: tuple[str, ...] = ()


def robots() -> dict[str, Robot]:
    rng = np.random.default_rng(0)
    arms = tuple(Gripper(n, open=0.08, close=0.0, kind="continuous") for n in (6, 13))
    one = dataclasses.replace(FREE, rotation="axis_angle", gripper_dim=6)
    pose = {"action": poses(rng), "observation/proprio": poses(rng)}
    posed = {"action": POSE, "observation/proprio": POSE}
    state = {"action": rng.normal(size=(STEPS, 3)).astype(np.float32), "observation/proprio": (3,)}
    named = {"action": POSE[:3], "observation/proprio": POSE[:3]}
    depth = {"observation/depth_primary": rng.integers(0, 2**16, (STEPS, 4, 6, 1), np.uint16)}
    return {
        "two arms": Robot(
            {"action": two_arms(rng), "observation/proprio": two_arms(rng)} | CAMERA,
            {"action": ARMS, "observation/proprio": ARMS},
            dataclasses.replace(FREE, grippers=arms),
            (RelativeActions(JOINTS),),
            size=14,
            proprio=14,
            horizon=50,
        ),
        "pose in SE(3) with rot6d": Robot(
            pose | CAMERA,
            posed,
            one,
            (
                RelativePose(POSE[:3], POSE[3:6], "axis_angle"),
                ConvertObservationRotation(POSE[3:6], "axis_angle", "rot6d"),
            ),
            size=10,
            proprio=10,
        ),
        "depth": Robot(
            state | CAMERA | depth, named, FREE, (RelativeActions(("x_m",)), Distance()), 3, 3
        ),
        "continuous gripper": Robot(
            {"action": two_arms(rng)[:, :7], "observation/proprio": two_arms(rng)[:, :7]} | CAMERA,
            {"action": ARMS[:7], "observation/proprio": ARMS[:7]},
            dataclasses.replace(FREE, grippers=arms[:1]),
            (MaskActions(("left_joint_5_rad",)), PadActions(9)),
            size=9,
            proprio=7,
            masked=("left_joint_5_rad",),
        ),
        "dropout": Robot(
            state | CAMERA,
            named,
            FREE,
            (
                StateNoise("proprio", (("x_m", 0.01),)),
                RelativeActions(("y_m",)),
                DropObservation(("image_primary", "proprio"), 0.5),
            ),
            size=3,
            proprio=3,
        ),
    }


@pytest.fixture(params=robots())
def robot(request: pytest.FixtureRequest) -> Robot:
    return robots()[request.param]


@pytest.fixture
def config(robot: Robot, tmp_path: pathlib.Path, tiny_config_path: pathlib.Path) -> TrainConfig:
    path = write_dataset(
        tmp_path / "robot", robot.arrays, dims=robot.dims, conventions=robot.conventions
    )
    names = tuple(key.removeprefix("observation/") for key in robot.arrays if key != "action")
    lowdims = {"proprio": robot.proprio}
    if any(isinstance(transform, Distance) for transform in robot.transforms):
        lowdims["distance"] = 1
    depth = tuple((name, 4, 6, 1) for name in names if name == "depth_primary")
    return with_data(
        load_config(f"{tiny_config_path}:shallow"),
        datasets=(DatasetConfig(str(path)),),
        observations=names,
        transforms=robot.transforms,
        action_horizon=robot.horizon,
        validation_fraction=0.0,
        model={
            "vggt": None,
            "lowdims": tuple(LowdimTokenizerConfig(n, n, size) for n, size in lowdims.items()),
            "tokenizers": (TensorsConfig(depth),) if depth else (),
            "head": RegressionConfig("l1", robot.horizon, robot.size),
        },
    )


def around_transforms(loader: Loader, number: int) -> tuple[FlatBatch, FlatBatch]:
    """A batch before the transforms of the config, and after those that normalise."""
    read, standardize, *stages = loader.transforms()[:-2]
    batch = standardize(read(loader.order()[number]))
    before = batch
    for stage in stages:
        batch = stage(batch)
    return before, batch


def test_a_policy_sees_the_training_batch_and_its_actions_return(
    config: TrainConfig, robot: Robot
) -> None:
    dataset = open_dataset(config.data.datasets[0].path)
    spec = PolicySpec.of(without_params(config))
    assert spec.chain.spec["action"].shape == (1, 2, robot.horizon, robot.size)
    *inputs, returned = compare_episode(without_params(config), spec, dataset, episode=2)
    assert {one.key: one.max_difference for one in inputs} == dict.fromkeys(spec.leaves, 0.0)
    assert (returned.key, returned.steps) == ("action", [])
    assert returned.max_difference < 1e-5


def test_a_whole_chunk_returns(config: TrainConfig, robot: Robot) -> None:
    """Also the actions after the current one, and those of a padded window."""
    dataset = open_dataset(config.data.datasets[0].path)
    spec = PolicySpec.of(without_params(config))
    loader = Loader(config.data, 8, [dataset], lambda text: [len(text)])
    before, after = around_transforms(loader.without_random(), 0)
    inputs = {key: value for key, value in before.items() if "action" not in key}
    restored = spec.chain.invert(after["action"][:, -1], spec.chain.trace(inputs))
    kept = [n for n, name in enumerate(robot.dims["action"]) if name not in robot.masked]
    expected = before["action"][:, -1][..., kept]
    np.testing.assert_allclose(restored[..., kept], expected, rtol=1e-5, atol=1e-5)


def test_planned_actions_take_the_way_of_the_training_batch(
    config: TrainConfig, robot: Robot
) -> None:
    """They become what the model learned as the actions after this observation."""
    dataset = open_dataset(config.data.datasets[0].path)
    spec = PolicySpec.of(without_params(config))
    loader = Loader(config.data, 8, [dataset], lambda text: [len(text)])
    before, after = around_transforms(loader.without_random(), 0)
    plans = [PlannedActions(actions[-1, :2], delay=1) for actions in before["action"]]
    inputs = {key: value for key, value in before.items() if "action" not in key}
    traced = spec.chain.trace(inputs | planned_batch(plans, spec.before))
    guide = guide_of(plans, traced[-1])
    np.testing.assert_array_equal(guide.target[:, :2], after["action"][:, -1, :2])
    used = [name not in spec.chain.spec["action"].unused for name in spec.chain.spec["action"].dims]
    weights = np.zeros(robot.horizon)
    weights[:2] = [1, 0.1888]
    np.testing.assert_allclose(
        guide.weights, np.broadcast_to(np.outer(weights, used), guide.weights.shape), atol=5e-5
    )
    # The inputs that the model reads are the same with and without a plan.
    alone = spec.chain.trace(inputs)[-1]
    assert {key for key in alone if not np.array_equal(alone[key], traced[-1][key])} == set()


def test_random_transforms_draw_the_same_on_both_ways(config: TrainConfig, robot: Robot) -> None:
    dataset = open_dataset(config.data.datasets[0].path)
    loader = Loader(config.data, 8, [dataset], lambda text: [len(text)])
    before, after = around_transforms(loader, 3)
    spec = PolicySpec.of(without_params(config))
    transforms = [stage.transform for stage in spec.chain.stages]
    drawing = TransformChain.bind(transforms, spec.before, config.data.seed)
    inputs = {key: value for key, value in before.items() if "action" not in key}
    seen = drawing.trace(inputs)[-1]
    assert {key for key in seen if not np.array_equal(seen[key], after[key])} == set()
    dropped = ~after["observation/pad_mask_dict/image_primary"].any(axis=1)
    assert dropped.any() == any(isinstance(t, DropObservation) for t in robot.transforms)
