import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from pipeline.errors import DataError, UserError
from tests.train.conftest import write_checkpoints
from train.checkpoints import checkpoint_copy, run_directory
from train.checkpoints.checkpoint_copy import copy_checkpoint
from train.checkpoints.checkpoint_store import SavedStep, check_arrays, read_checkpoint


def contents(directory):
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def copied(policy_run, tmp_path_factory):
    """A copy of the last checkpoint without its optimizer state."""
    directory = tmp_path_factory.mktemp("copied")
    assert copy_checkpoint(policy_run, directory) == directory / "checkpoints" / "2"
    return directory


def test_a_copy_without_the_optimizer_acts_as_the_checkpoint_does(policy_run, copied):
    before, after = read_checkpoint(policy_run), read_checkpoint(copied)
    for name in ("config", "datasets", "vocabulary", "step"):
        assert getattr(before, name) == getattr(after, name)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)


def test_a_copy_keeps_the_checksums_of_what_it_has(policy_run, copied):
    before, after = SavedStep(policy_run).digests, SavedStep(copied).digests
    assert before is not None
    assert after is not None
    assert {path.split("/")[1] for path in before if "/" in path} > {"opt_state", "step"}
    assert {path.split("/")[1] for path in after if "/" in path} == {"params", "bytes"}
    assert after.items() <= before.items()


def test_a_copy_has_few_files_that_are_the_same_each_time(policy_run, copied, tmp_path):
    items = ("config", "datasets", "digests", "loader")
    copy_checkpoint(policy_run, tmp_path)
    assert contents(copied) == contents(tmp_path)
    assert contents(copied).keys() == {
        "checkpoints/2/arrays.safetensors",
        *(f"checkpoints/2/{item}/metadata" for item in items),
    }


def test_a_copy_holds_the_average_in_place_of_the_last_parameters(policy_config, tmp_path):
    optimizer = dataclasses.replace(policy_config.optimizer, ema_decay=0.9)
    run = dataclasses.replace(policy_config, optimizer=optimizer, save_dir=str(tmp_path / "run"))
    write_checkpoints(run, (1,))
    copy_checkpoint(tmp_path / "run", tmp_path / "copy")
    last, average = SavedStep(tmp_path / "run").arrays("state", "params", "ema")
    before, after = read_checkpoint(tmp_path / "run"), read_checkpoint(tmp_path / "copy")
    assert average
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    changed = traverse_util.flatten_dict(after.params, sep="/")
    name = next(iter(average))
    assert not np.array_equal(changed[name], traverse_util.flatten_dict(last, sep="/")[name])


def test_a_copy_without_the_optimizer_says_that_no_run_resumes_from_it(copied, policy_config):
    config = dataclasses.replace(policy_config, save_dir=str(copied))
    with pytest.raises(
        UserError,
        match=r"expected an optimizer state .*; found the parameters alone: .* --with_optimizer\. "
        rf"Start a new run from its weights, with --config\.pretrained_path={copied} and",
    ):
        run_directory.check(config, resume=True, overwrite=False)


def test_a_copy_with_the_optimizer_is_whole(policy_run, tmp_path):
    copy = copy_checkpoint(policy_run, tmp_path, 1, with_optimizer=True)
    assert any(b" to /" in content for content in contents(policy_run).values())
    assert not any(b" to /" in content for content in contents(tmp_path).values())
    marker = copy / "config" / "commit_success.txt"
    assert marker.read_text().endswith(" to checkpoints/1/config")
    names = {path.name for path in (policy_run / "checkpoints" / "1" / "state").iterdir()}
    assert {path.name for path in (copy / "state").iterdir()} == names
    SavedStep(tmp_path).check_resumable()
    assert check_arrays(tmp_path)


def test_an_unknown_step_and_a_missing_optimizer_are_refused(policy_run, copied, tmp_path):
    with pytest.raises(UserError, match=r"expected a checkpoint of step 3; found the steps \[1, 2"):
        copy_checkpoint(policy_run, tmp_path, 3)
    with pytest.raises(UserError, match="an optimizer state"):
        copy_checkpoint(copied, tmp_path, with_optimizer=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_a_copy_that_fails_leaves_nothing(policy_run, tmp_path, monkeypatch, with_optimizer):
    def fail(path):
        assert path.name.endswith(".tmp")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_copy, "sync", fail)
    with pytest.raises(UserError, match="No space left on device"):
        copy_checkpoint(policy_run, tmp_path / "a" / "b", with_optimizer=with_optimizer)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "checkpoints" / ".2.01234567.4711.tmp" / "config").mkdir(parents=True)
    copy_checkpoint(policy_run, tmp_path, with_optimizer=with_optimizer)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_a_corrupt_checkpoint_is_not_copied(policy_run, tmp_path, with_optimizer):
    run, to = tmp_path / "run", tmp_path / "to"
    shutil.copytree(policy_run, run)
    largest = max(
        (path for path in (run / "checkpoints" / "2").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(DataError, match=r"use step 1, the checkpoint before it"):
        copy_checkpoint(run, to, with_optimizer=with_optimizer)
    assert not to.exists()
