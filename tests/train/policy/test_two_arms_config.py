"""The config for two arms on a small set of that kind: batches, dry run, and the way back."""

import dataclasses
import io
import pathlib
import runpy
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from converters.job.convert import convert
from converters.mapping.mapping_registry import read_mapping
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from tests.converters.conftest import FEATURES, Toy, episode
from tests.train.conftest import without_params
from train.dry_run import diagnose
from train.flags import Flags, load_config
from train.octo.functional import init_params
from train.octo.octo_config import octo_small
from train.octo.released.weight_loading import Allowed, Pretrained, account
from train.policy import PolicySpec
from train.policy.parity import compare_episode
from train.train_config import TrainConfig

ROOT = pathlib.Path(__file__).parents[3]
FILE = ROOT / "configs" / "two_arms.py"
NUM_STEPS, NUM_EPISODES = 60, 4
GRIPPERS = [6, 13]
CAMERAS = {"primary": (12, 16), "wrist": (8, 8), "left_wrist": (8, 10)}


def conventions() -> str:
    """The lines of the config file that tell a mapping's conventions."""
    text = FILE.read_text().partition("conventions:\n\n")[2].partition("\n\nThe model")[0]
    return text.replace("    ", "")


def mapping(dims: tuple[str, ...]) -> str:
    """The mapping that the config describes, for the sources of this test."""
    cameras = "".join(
        f'[[features]]\nkey = "observation/image_{name}"\n'
        f'source = "steps/observation/{name}"\ncolumn = "steps"\n'
        for name in CAMERAS
    )
    vectors = "".join(
        f'[[features]]\nkey = "{key}"\nsource = "steps/{key.replace("proprio", "state")}"\n'
        f"dims = {list(dims)}\n"
        for key in ("action", "observation/proprio")
    )
    first = 'source_id = "episode_metadata/file_path"\nignore = ["steps/observation/image"]\n'
    header = '[conventions]\nimage_orientation = "upright"\nno_ops = "kept"\n'
    return f"{first}{header}{conventions()}\n{vectors}{cameras}"


def source() -> Toy:
    """Smooth joints, whose targets are a tenth of a radian ahead, and grippers from 0 to 1."""
    features = dict(FEATURES)
    for key in ("steps/action", "steps/observation/state"):
        features[key] = tfds.features.Tensor(shape=(14,), dtype=np.float32)
    for name, size in CAMERAS.items():
        features[f"steps/observation/{name}"] = tfds.features.Image(
            shape=(*size, 3), encoding_format="jpeg"
        )
    return Toy(features, tuple(map(recorded, range(NUM_EPISODES))))


def recorded(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    state = np.cumsum(rng.normal(0, 0.01, (NUM_STEPS, 14)), axis=0) + rng.normal(size=14)
    state[:, GRIPPERS] = rng.uniform(0, 1, (NUM_STEPS, 2))
    action = state + rng.normal(0.1, 0.02, state.shape)
    action[:, GRIPPERS] = rng.uniform(0, 1, (NUM_STEPS, 2))
    vectors = {"steps/action": action, "steps/observation/state": state}
    images = {
        f"steps/observation/{name}": [jpeg(rng, size)] * NUM_STEPS for name, size in CAMERAS.items()
    }
    texts = {"steps/language_instruction": [b"pick up the black bowl"] * NUM_STEPS}
    floats = {key: values.astype(np.float32) for key, values in vectors.items()}
    return episode(seed, NUM_STEPS) | texts | images | floats


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("two_arms")
    (folder / "mapping.toml").write_text(mapping(runpy.run_path(str(FILE))["ACTION"]))
    convert(source().open(folder), folder / "out", read_mapping(folder / "mapping.toml"))
    return open_dataset(str(folder / "out"))


@pytest.fixture(scope="module")
def config(dataset: Dataset, vocabulary_path: pathlib.Path) -> TrainConfig:
    """The variant `laptop` on that set."""
    config = load_config(f"{FILE}:laptop")
    data = dataclasses.replace(
        config.data,
        datasets=(DatasetConfig(dataset.path),),
        vocabulary=str(vocabulary_path),
        # Of four episodes one or more are held out.
        validation_fraction=0.5,
        num_threads=0,
        prefetch_batches=0,
    )
    return dataclasses.replace(config, data=data)


def test_joints_are_relative_to_the_state_and_grippers_absolute(
    dataset: Dataset, config: TrainConfig
) -> None:
    assert dataset.manifest.conventions.control_frequency_hz == 50
    data = dataclasses.replace(config.data, split="all")
    with Loader(data, 2, [dataset], lambda _: [1]) as loader:
        batch = loader.read(0, [3, 70])
        statistics = loader.statistics["action"][0]
        (chunk, last) = loader.unnormalize("action", batch["action"])
    assert batch["action"].shape == (2, 1, 50, 14)
    shapes = {name: batch["observation"][name].shape for name in config.data.observations}
    assert shapes == {
        "image_primary": (2, 1, 12, 16, 3),
        "image_wrist": (2, 1, 8, 8, 3),
        "image_left_wrist": (2, 1, 8, 10, 3),
        "proprio": (2, 1, 14),
    }
    record = dataset.columns["episodes"].read(0)
    action, state = np.asarray(record["action"]), np.asarray(record["observation/proprio"])
    expected = action[3:53] - state[3]
    expected[:, GRIPPERS] = action[3:53, GRIPPERS]
    np.testing.assert_allclose(chunk[0], expected, atol=1e-5)
    # Of the relative actions, whose targets are 0.1 rad ahead, not of the positions.
    joints = np.delete(np.arange(14), GRIPPERS)
    assert np.abs(statistics.mean[joints] - 0.1).max() < 0.2
    assert statistics.std[joints].max() < 0.2
    # Step 70 is step 10 of an episode of 60, and its chunk ends with it.
    assert batch["action_pad_mask"][1, 0].all(axis=-1).sum() == 50
    assert np.isfinite(last).all()


def test_a_policy_sees_what_training_saw_and_gives_back_the_recorded_actions(
    dataset: Dataset, config: TrainConfig
) -> None:
    checkpoint = without_params(config)
    spec = PolicySpec.of(checkpoint)
    found = {one.key: one for one in compare_episode(checkpoint, spec, dataset, 1)}
    assert {key for key, one in found.items() if one.steps} == set()
    assert found["observation/proprio"].type == "float32[1,14]"
    assert found["action"].max_difference < 1e-5
    assert spec.action_dims[GRIPPERS[1]] == "right_gripper"


def test_the_config_passes_a_dry_run(config: TrainConfig, tmp_path: pathlib.Path) -> None:
    found = diagnose(Flags(dataclasses.replace(config, save_dir=str(tmp_path / "run"))))
    assert [f for f in found if f.level == "error"] == []
    # Episodes of 60 steps hold a whole chunk of 50.
    assert not any("action_horizon" in f.text for f in found)


def test_released_weights_differ_where_the_config_says() -> None:
    config = load_config(str(FILE))
    model, released = (
        jax.eval_shape(lambda model=model: init_params(model, jax.random.key(0)))
        for model in (config.model, octo_small())
    )
    pretrained = Pretrained(octo_small(), released)
    account(config.model, model, pretrained, Allowed(config.pretrained_differs))
    for glob in config.pretrained_differs:
        others = tuple(other for other in config.pretrained_differs if other != glob)
        with pytest.raises(UserError):
            account(config.model, model, pretrained, Allowed(others))
