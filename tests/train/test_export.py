import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from pipeline.errors import DataError, UserError
from pipeline.position import LoaderState
from train.checkpoints import Checkpoints, Constants
from train.config import TrainConfig
from train.export import main, original_statistics
from train.optimizer import make_optimizer
from train.pretrained import load_pretrained
from train.state import TrainState, fresh_state


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


@pytest.fixture
def config(tiny_config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, vggt=None))


@pytest.fixture
def run(config: TrainConfig) -> pathlib.Path:
    """The directory of a run that stopped at step 0, with two datasets of one name."""
    return save(config, fresh_state(config, make_optimizer(config.optimizer)))


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
    ours, theirs = load_pretrained(str(run)), load_pretrained(str(tmp_path / "out"))
    assert ours.config == theirs.config


def test_another_language_encoder_than_the_originals_must_be_named(
    run, tmp_path, monkeypatch, capsys
):
    with pytest.raises(SystemExit) as caught:
        export(monkeypatch, run, tmp_path / "out")
    assert caught.value.code == 2
    assert "expected the sizes of t5-base" in capsys.readouterr().err


def test_a_destination_that_is_a_file_is_told_in_one_line(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        export(monkeypatch, run, tmp_path / "file", "--language_encoder", "t5_tiny")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected a new or empty directory; found a file" in error


def test_a_directory_that_is_no_run_is_told(tmp_path, monkeypatch, capsys):
    for directory, found in ((tmp_path, "none in it"), (tmp_path / "x", "no such directory")):
        with pytest.raises(SystemExit) as caught:
            export(monkeypatch, directory, tmp_path / "out")
        assert caught.value.code == 2
        message = f"expected the directory of a run, with checkpoints; found {found}"
        assert message in capsys.readouterr().err


def test_a_folder_inside_a_run_is_told_with_the_runs(run):
    for inside, remedy in (
        ("checkpoints", f"Give {run}."),
        ("checkpoints/0", f"Give {run}, with pretrained_step 0."),
    ):
        with pytest.raises(UserError, match="found a folder inside one") as caught:
            load_pretrained(str(run / inside))
        assert caught.value.remedy == remedy


def test_a_run_that_diverged_gives_no_weights(config):
    state = fresh_state(config, make_optimizer(config.optimizer))
    head = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params["heads_action"])
    run = save(config, state.replace(params=state.params | {"heads_action": head}))
    message = r"run, step 0: expected \d+ tensors of finite floats; found \d+ others, .* NaN"
    with pytest.raises(DataError, match=message):
        load_pretrained(str(run))
