import dataclasses
import pathlib
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from pipeline.position import LoaderState
from train.checkpoints import (
    Checkpoints,
    Constants,
    checkpoint_bytes,
    has_checkpoint,
    read_checkpoint,
    read_datasets,
)
from train.state import TrainState

STEPS = (5, 10, 15, 20, 25)


def state(step: int, *, ema: bool = True) -> TrainState:
    params = {
        "head": {"kernel": jnp.full((3, 2), float(step))},
        "hf_model": {"kernel": jnp.ones((2,))},
    }
    average = {"head/kernel": jnp.full((3, 2), -float(step))} if ema else {}
    return TrainState(jnp.asarray(step, jnp.int32), params, {"mu": jnp.zeros((3, 2))}, average)


@pytest.fixture
def constants(tiny_config):
    return Constants(tiny_config, {"data/x": {"name": "x"}}, b"a vocabulary")


def save(directory, constants, steps=STEPS, **options):
    ema = options.pop("ema", True)
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(state(step, ema=ema), LoaderState(step, "f", ()), constants)


def steps_of(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def test_the_last_ones_and_every_so_many_are_kept(tmp_path, constants):
    save(tmp_path, constants, keep_last=2, keep_every=10)
    assert steps_of(tmp_path) == [10, 20, 25]


def test_what_a_policy_needs_comes_back_from_a_step_alone(tmp_path, constants):
    save(tmp_path / "run", constants)
    (tmp_path / "moved").mkdir()
    kept = tmp_path / "moved" / "checkpoints" / "20"
    shutil.copytree(tmp_path / "run" / "checkpoints" / "20", kept)
    found = read_checkpoint(tmp_path / "moved")
    assert found.step == 20
    assert found.config == constants.config
    assert found.datasets == read_datasets(tmp_path / "moved", 20) == {"data/x": {"name": "x"}}
    assert found.vocabulary == b"a vocabulary"
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((3, 2), -20.0))
    np.testing.assert_array_equal(found.params["hf_model"]["kernel"], np.ones(2))
    assert isinstance(found.params["head"]["kernel"], np.ndarray)


def test_without_an_average_the_parameters_themselves_come_back(tmp_path, constants):
    save(tmp_path, constants, ema=False)
    found = read_checkpoint(tmp_path, 5)
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((3, 2), 5.0))


def test_state_and_loader_go_on_where_they_were(tmp_path, constants):
    save(tmp_path, constants)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.loader_state() == LoaderState(25, "f", ())
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(0))
        restored = checkpoints.restore(like)
    jax.tree.map(np.testing.assert_array_equal, restored, state(25))


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path, constants):
    with pytest.raises(UserError, match="expected a complete checkpoint; found none"):
        read_checkpoint(tmp_path)
    assert not has_checkpoint(tmp_path)
    save(tmp_path, constants, steps=(5,))
    assert has_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"a checkpoint of step 7; found the steps \[5\]"):
        read_checkpoint(tmp_path, 7)


def damage(path: pathlib.Path, kind: str) -> None:
    if kind == "no state":
        shutil.rmtree(path / "state")
    elif kind == "cut a little":
        largest = max((path / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-40])
    elif kind == "cut short":
        for file in (path / "state").rglob("d/*"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (path / "loader" / "metadata").write_text("{")
        (path / "config" / "metadata").write_text("{")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads
@pytest.mark.parametrize("kind", ["no state", "cut short", "cut a little", "no json"])
def test_a_damaged_checkpoint_is_named_with_the_way_on(tmp_path, constants, kind):
    save(tmp_path, constants, steps=(5, 10))
    damage(tmp_path / "checkpoints" / "10", kind)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(0))
    with pytest.raises(DataError, match=r"checkpoints/10"):
        read_checkpoint(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        read = checkpoints.loader_state if kind == "no json" else lambda: checkpoints.restore(like)
        with pytest.raises(DataError, match=r"checkpoints/10"):
            read()
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    assert read_checkpoint(tmp_path).step == 5


def test_a_full_disk_is_told_with_what_is_kept(tmp_path, constants, monkeypatch):
    save(tmp_path, constants, steps=(5,))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    message = r"found 0.00 GB are needed, 0.00 GB free \(that of step 5 is complete\). Free space"
    with pytest.raises(UserError, match=message), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(10), LoaderState(10, "f", ()), constants)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [5]


def test_a_write_that_fails_is_told_at_the_next_one(tmp_path, constants, as_nobody):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    with as_nobody():
        save(directory, constants, steps=(5,))
        (directory / "checkpoints").chmod(0o555)
        message = r"a checkpoint that can be written; found .*\(that of step 5 is complete\)"
        with pytest.raises(UserError, match=message), Checkpoints(directory) as checkpoints:
            checkpoints.save(state(10), LoaderState(10, "f", ()), constants)
        (directory / "checkpoints").chmod(0o755)
    assert read_checkpoint(directory).step == 5


def test_bytes_are_those_of_the_arrays():
    assert checkpoint_bytes(state(0)) == 4 + 24 + 8 + 24 + 24


def test_fields_of_a_config_survive(tmp_path, constants):
    config = dataclasses.replace(constants.config, name="a name", keep_every=10)
    save(tmp_path, dataclasses.replace(constants, config=config), steps=(5,))
    assert read_checkpoint(tmp_path).config == config
