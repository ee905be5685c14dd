import dataclasses
import shutil

import jax
import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from tests.train.conftest import loader_of
from train.checkpoints.checkpoint_copy import copy_checkpoint
from train.checkpoints.checkpoint_store import SavedStep, check_arrays, read_checkpoint
from train.checkpoints.run_directory import resume_position


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


def paths_of_this_machine(copy):
    return [p for p in copy.rglob("*") if p.is_file() and b" to /" in p.read_bytes()]


def test_a_copy_has_no_path_of_this_machine(policy_run, copied):
    assert paths_of_this_machine(policy_run / "checkpoints")
    assert not paths_of_this_machine(copied)
    marker = copied / "checkpoints" / "2" / "config" / "commit_success.txt"
    assert marker.read_text().endswith(" to checkpoints/2/config")


def test_a_copy_without_the_optimizer_says_that_no_run_resumes_from_it(copied, policy_config):
    config = dataclasses.replace(policy_config, save_dir=str(copied))
    with pytest.raises(
        UserError,
        match=r"expected an optimizer state .*; found the parameters alone: .* --with_optimizer\. "
        rf"Start a new run from its weights, with --config\.pretrained_path={copied} and",
    ):
        resume_position(config, loader_of(config), new_mixture=False)


def test_a_copy_with_the_optimizer_is_whole(policy_run, tmp_path):
    copy = copy_checkpoint(policy_run, tmp_path, 1, with_optimizer=True)
    assert not paths_of_this_machine(copy)
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
