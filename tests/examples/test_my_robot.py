"""The folder to copy: its commands run on a robot of the kind that it is for."""

import io
import pathlib
import re
import shlex
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from octograin.cli import main
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from tests.converters.conftest import Toy
from train.flags import load_config
from train.octo.functional import init_params
from train.octo.octo_config import OctoConfig, octo_small
from train.octo.released.weight_loading import Allowed, Pretrained, account

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "my_robot"
SIZES = {"front": (96, 128), "side": (64, 64)}
VECTORS = {"action": 7, "observation/joint_position": 6, "observation/gripper_position": 1}
FLAGS = ("is_first", "is_last", "is_terminal")
NUM_STEPS = 12


def image(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def episode(seed: int) -> dict[str, Any]:
    """What the robot records: its state in two keys, two cameras, no wrist camera."""
    rng = np.random.default_rng(seed)
    vectors = {
        f"steps/{key}": rng.normal(size=(NUM_STEPS, size)).astype(np.float32)
        for key, size in VECTORS.items()
    }
    vectors["steps/action"][:, 6] = rng.integers(0, 2, NUM_STEPS)
    images = {
        f"steps/observation/{name}_image": [image(rng, size) for _ in range(NUM_STEPS)]
        for name, size in SIZES.items()
    }
    last = np.arange(NUM_STEPS) == NUM_STEPS - 1
    flags = {"steps/is_first": last[::-1], "steps/is_last": last, "steps/is_terminal": last}
    rewards = {
        f"steps/{name}": np.ones(NUM_STEPS, np.float32).tolist() for name in ("discount", "reward")
    }
    texts = {
        "steps/language_instruction": [b"pick up the black bowl"] * NUM_STEPS,
        "episode_metadata/file_path": [f"episode_{seed}".encode()],
    }
    return vectors | images | {k: v.astype(np.int64) for k, v in flags.items()} | rewards | texts


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A user's folder: a copy of the example, and an RLDS set."""
    vector = {
        f"steps/{key}": tfds.features.Tensor(shape=(size,), dtype=np.float32)
        for key, size in VECTORS.items()
    }
    cameras = {
        f"steps/observation/{name}_image": tfds.features.Image(
            shape=(*size, 3), encoding_format="jpeg"
        )
        for name, size in SIZES.items()
    }
    flags = {f"steps/{name}": tfds.features.Scalar(np.bool_) for name in FLAGS}
    rewards = {f"steps/{n}": tfds.features.Scalar(np.float32) for n in ("discount", "reward")}
    texts = {
        "steps/language_instruction": tfds.features.Text(),
        "episode_metadata/file_path": tfds.features.Text(),
    }
    declared = vector | cameras | flags | rewards | texts
    version = Toy(declared, tuple(episode(seed) for seed in range(20))).write(tmp_path)
    (tmp_path / "path" / "to" / "my_robot").mkdir(parents=True)
    (tmp_path / "path" / "to" / "my_robot" / "1.0.0").symlink_to(version)
    (tmp_path / "my_robot").symlink_to(FOLDER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> list[str]:
    """The commands of the README that run in seconds and fetch nothing."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", (FOLDER / "README.md").read_text(), re.M | re.S)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    assert all(line.startswith("octograin ") for line in lines)
    return [line for line in lines if " train " not in line or ":laptop" in line]


def exit_code(command: str, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr("sys.argv", shlex.split(command))
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_steps_of_the_readme_run(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(commands()) == 4
    assert {command: exit_code(command, monkeypatch) for command in commands()} == dict.fromkeys(
        commands(), 0
    )
    output = capsys.readouterr().out
    assert "0 errors, 0 warnings" in output, output
    dataset = open_dataset("data/my_robot")
    step = dataset.step(0, 0)["observation"]
    shapes = {name: array.shape for name, array in step.items()}
    assert shapes == {"proprio": (7,), "image_primary": (96, 128, 3), "image_side": (64, 64, 3)}
    assert dataset.manifest.tasks == ("pick up the black bowl",)
    assert (folder / "my_robot.png").exists()


def shapes_of(model: OctoConfig) -> Any:
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def test_released_weights_differ_where_the_config_says() -> None:
    config = load_config(str(FOLDER / "my_robot.py"))
    model = shapes_of(config.model)
    released = Pretrained(octo_small(), shapes_of(octo_small()))
    account(config.model, model, released, Allowed(config.pretrained_differs))
    for glob in config.pretrained_differs:
        others = tuple(other for other in config.pretrained_differs if other != glob)
        with pytest.raises(UserError):
            account(config.model, model, released, Allowed(others))
