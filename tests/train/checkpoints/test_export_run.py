import copy
import dataclasses
import json
import pathlib
import sys
from typing import get_args

import jax
import numpy as np
import pytest

from pipeline.data.statistics import FeatureStatistics, compute
from pipeline.errors import DataError, UserError
from pipeline.loading.data_config import Normalization
from pipeline.loading.loader_state import LoaderState
from pipeline.loading.normalize import Normalizer
from tests.train.conftest import random_state
from train.checkpoints.checkpoint_store import Checkpoints, Constants
from train.checkpoints.export_run import main, original_conventions, original_statistics
from train.checkpoints.initial_weights import load_pretrained
from train.train_config import TrainConfig
from train.update.train_state import TrainState


def dataset(name: str, mean: float) -> dict:
    """The description of a dataset with one action of 2 numbers, the last a gripper."""
    action = {"mean": [mean, 0.0], "std": [1.0, 1.0], "count": 10}
    proprio = {"mean": [mean], "std": [1.0], "count": 10}
    return {
        "name": name,
        "statistics": {"action": action, "observation/proprio": proprio},
        "conventions": {"gripper_dim": 1},
    }


def of_dataset(mean: float) -> dict:
    return {
        "action": {"mean": [mean, 0.0], "std": [1.0, 1.0], "mask": [True, False]},
        "proprio": {"mean": [mean], "std": [1.0]},
        "num_transitions": 10,
    }


@pytest.mark.parametrize(
    ("datasets", "statistics"),
    [
        ({"a/1": dataset("libero", 1.0)}, of_dataset(1.0)),
        (
            {"a/1": dataset("libero", 1.0), "b/1": dataset("bridge", 2.0)},
            {"libero": of_dataset(1.0), "bridge": of_dataset(2.0)},
        ),
        (
            {"a/1": dataset("libero", 1.0), "a/2": dataset("libero", 2.0)},
            {"a/1": of_dataset(1.0), "a/2": of_dataset(2.0)},
        ),
    ],
)
def test_statistics_are_laid_out_as_those_of_the_original(datasets: dict, statistics: dict):
    assert original_statistics(datasets) == statistics


def real_dataset(normalization: str, **conventions: float) -> dict:
    """The description of a dataset with random actions of 3 numbers, the last a gripper."""
    rng = np.random.default_rng(0)
    action = np.c_[rng.normal(0.2, 2.0, (500, 2)), rng.choice([-1.0, 1.0], 500)]
    proprio = rng.gamma(2.0, 3.0, (500, 4))
    return {
        "name": "robot",
        "num_episodes": 7,
        "normalization": normalization,
        "conventions": {"gripper_dim": 2, "rotation": "none"} | conventions,
        "statistics": {
            "action": compute(action.astype(np.float32)).to_json(),
            "observation/proprio": compute(proprio.astype(np.float32)).to_json(),
        },
    }


@pytest.mark.parametrize("kind", get_args(Normalization))
def test_the_originals_default_undoes_every_normalization(kind):
    dataset = real_dataset(kind)
    exported = original_statistics({"a": dataset})
    for key, name in (("action", "action"), ("observation/proprio", "proprio")):
        statistics = FeatureStatistics.from_json(dataset["statistics"][key])
        mask = np.array(exported[name].get("mask", [True] * len(statistics.mean)))
        ours = Normalizer.create([statistics], [mask], kind)
        values = np.random.default_rng(1).uniform(-1, 1, (32, len(mask))).astype(np.float32)
        mean, std = (np.array(exported[name][moment], np.float32) for moment in ("mean", "std"))
        theirs = np.where(mask, values * std + mean, values)
        np.testing.assert_allclose(theirs, ours.unnormalize(values, np.zeros(32, int)), atol=2e-6)
    assert (exported["num_transitions"], exported["num_trajectories"]) == (500, 7)


@pytest.mark.parametrize(("opens", "closes"), [(-1.0, 1.0), (1.0, -1.0)])
def test_the_gripper_is_exported_as_the_model_gives_it(opens, closes):
    dataset = real_dataset("bounds", gripper_open=opens, gripper_close=closes)
    before = copy.deepcopy(dataset)
    action = original_statistics({"a": dataset})["action"]
    assert dataset == before
    assert [action[name][2] for name in ("min", "p01", "p99", "max")] == [0.0, 0.0, 1.0, 1.0]
    assert action["std"][2] == pytest.approx(0.5, abs=1e-2)
    gripper = original_conventions({"a": dataset})["robot"]["gripper"]
    assert (gripper["dim"], gripper["open"], gripper["close"]) == (2, 1.0, 0.0)
    assert (gripper["command_open"], gripper["command_close"]) == (opens, closes)


def test_several_grippers_are_exported_each_with_its_commands():
    grippers = [{"dim": 0, "open": 5.0, "close": -5.0, "kind": "continuous"}, {"dim": 2}]
    dataset = real_dataset("normal", grippers=grippers, gripper_dim=None)
    action = original_statistics({"a": dataset})["action"]
    assert action["mask"] == [False, True, False]
    assert action["mean"][0] == pytest.approx(0.5 + 0.2 / 10, abs=0.03)
    exported = original_conventions({"a": dataset})["robot"]
    assert "gripper" not in exported
    first, second = exported["grippers"]
    assert (first["dim"], first["command_open"], first["command_close"]) == (0, 5.0, -5.0)
    assert first["kind"] == "continuous: a command between the two is mapped linearly"
    assert (second["dim"], "kind" in second) == (2, False)


@pytest.fixture
def config(tiny_config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, vggt=None))


@pytest.fixture
def state(config: TrainConfig) -> TrainState:
    return random_state(config)


@pytest.fixture
def run(config: TrainConfig, state: TrainState) -> pathlib.Path:
    """The directory of a run that stopped at step 0, with two datasets of one name."""
    return save(config, state)


def save(config: TrainConfig, state: TrainState) -> pathlib.Path:
    directory = pathlib.Path(config.save_dir)
    datasets = {"a/1": dataset("libero", 1.0), "a/2": dataset("libero", 2.0)}
    constants = Constants(config, datasets, b"vocabulary")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, LoaderState(0, "0" * 16, ()), constants)
    return directory


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    main()


def test_the_directory_of_a_checkpoint_is_enough(run, tmp_path, monkeypatch, capsys):
    export(monkeypatch, run, tmp_path / "out", "--language_encoder", "t5_tiny")
    assert f"octo checkpoint: {tmp_path / 'out'}, step 0" in capsys.readouterr().out
    statistics = json.loads((tmp_path / "out" / "dataset_statistics.json").read_text())
    assert statistics.keys() == {"a/1", "a/2"}
    conventions = json.loads((tmp_path / "out" / "conventions.json").read_text())
    assert conventions["a/1"]["gripper"]["open"] == 1.0
    ours, theirs = load_pretrained(str(run)), load_pretrained(str(tmp_path / "out"))
    assert ours.config == theirs.config


def test_another_language_encoder_than_the_originals_must_be_named(
    run, tmp_path, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as caught:
        export(monkeypatch, run, tmp_path / "out")
    assert caught.value.code == 2
    assert "expected the sizes of t5-base" in capsys.readouterr().err


def test_a_destination_that_is_a_file_is_reported_in_one_line(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        export(monkeypatch, run, tmp_path / "file", "--language_encoder", "t5_tiny")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected a new or empty directory; found a file" in error


def test_a_directory_that_is_no_run_is_reported(tmp_path, monkeypatch, capsys):
    for directory, found in ((tmp_path, "none in it"), (tmp_path / "x", "no such directory")):
        with pytest.raises(SystemExit) as caught:
            export(monkeypatch, directory, tmp_path / "out")
        assert caught.value.code == 2
        message = f"expected the directory of a run, with checkpoints; found {found}"
        assert message in capsys.readouterr().err


def test_a_folder_inside_a_run_is_reported_with_the_run_directory(run):
    for inside, remedy in (
        ("checkpoints", f"Give {run}."),
        ("checkpoints/0", f"Give {run}, with pretrained_step 0."),
    ):
        with pytest.raises(UserError, match="found a folder inside one") as caught:
            load_pretrained(str(run / inside))
        assert caught.value.remedy == remedy


def test_a_run_that_diverged_gives_no_weights(config, state):
    head = jax.tree.map(lambda leaf: leaf * np.float32("nan"), state.params["heads_action"])
    run = save(config, state.replace(params=state.params | {"heads_action": head}))
    message = r"run, step 0: expected \d+ tensors of finite floats; found \d+ others, .* NaN"
    with pytest.raises(DataError, match=message):
        load_pretrained(str(run))
