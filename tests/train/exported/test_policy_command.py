"""Policies that are exported as small directories, and what opens them."""

import contextlib
import io
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from tests.command_line import call
from train.checkpoints import checkpoint_copy
from train.checkpoints.checkpoint_copy import copy_checkpoint, in_half_precision
from train.checkpoints.checkpoint_store import SavedStep, read_checkpoint
from train.checkpoints.initial_weights import load_pretrained
from train.checkpoints.relative_paths import absolute_paths
from train.policy.policy_spec import PolicySpec


@pytest.fixture(scope="module")
def exported(policy_run, tmp_path_factory):
    """A policy in half precision, in a directory with a file of the user's, and what is printed."""
    directory = tmp_path_factory.mktemp("exported") / "policy"
    directory.mkdir()
    (directory / "README.md").write_text("mine")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        assert call(patch, *export(policy_run, directory), "--dtype", "float16") == 0
    return directory, printed.getvalue()


@pytest.fixture(scope="module")
def policy(exported):
    return exported[0]


def export(run, directory):
    return ("export", run, directory, "--to", "policy")


def files_of(directory):
    return {path for path in directory.rglob("*") if path.is_file()}


def test_an_export_prints_how_far_its_actions_are_from_those_of_the_run(policy_run, exported):
    directory, printed = exported
    found = re.search(
        r"checked: actions, which are up to (\S+), differ .* up to (\S+) in ", printed
    )
    assert found is not None
    assert 0 < float(found[2]) < 0.01 * float(found[1])
    written = r"training step 2, [\d,]+ parameters as float16; 5 files, \d+\.\d kB\n"
    assert re.search(written, printed)
    assert f"path: {policy_run} is now {policy_run.name}\n" in printed
    assert printed.endswith(f"try it: octograin serve {directory}\n")


def test_parameters_are_rounded_once_and_read_as_float32(policy_run, policy):
    before, after = read_checkpoint(policy_run), read_checkpoint(policy)

    def check(one, other):
        assert other.dtype == np.float32
        np.testing.assert_array_equal(other, one.astype(np.float16).astype(np.float32))

    jax.tree.map(check, before.params, after.params)
    assert (before.step, before.vocabulary) == (after.step, after.vocabulary)
    stored = policy / "checkpoints" / "2" / "arrays.safetensors"
    assert stored.stat().st_size < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(before.params))
    # Its weights start another run, and a copy of it is as large.
    assert load_pretrained(str(policy)).config == before.config.model
    copy_checkpoint(policy, policy.with_name("copy"))
    assert (policy.with_name("copy") / stored.relative_to(policy)).read_bytes() == (
        stored.read_bytes()
    )


def test_no_file_has_a_path_of_this_machine(policy_run, policy, mini_dataset):
    assert len(files_of(policy)) == 6
    for path in files_of(policy):
        assert str(policy_run.parent).encode() not in path.read_bytes()
        assert path.name != "metadata" or absolute_paths(json.loads(path.read_text())) == []
    assert (policy / "README.md").read_text() == "mine"
    after = read_checkpoint(policy)
    assert list(after.datasets) == [mini_dataset.name]
    assert after.config.save_dir == policy_run.name
    assert PolicySpec.of(after, None).dataset == mini_dataset.name


def test_a_run_does_not_resume_from_it(policy, policy_config, tmp_path, monkeypatch, capsys):
    code = call(
        monkeypatch,
        *("train", "--config", "tests/data/tiny_config.py", "--resume"),
        *("--config.save_dir", policy),
    )
    error = capsys.readouterr().err
    assert code == 2
    assert "expected an optimizer state to resume from; found the parameters alone: it was" in error
    assert f"--config.pretrained_path={policy}" in error


def test_it_gets_no_report(policy, monkeypatch, capsys):
    before = files_of(policy)
    assert call(monkeypatch, "report", policy) == 2
    assert capsys.readouterr().err == (
        f"error: {policy}: expected a run directory with a record of its training, such as "
        "metrics.jsonl; found checkpoints alone, as in a policy that was handed on. Report on the "
        f"run that it came from; octograin evaluate {policy} measures a policy for LIBERO.\n"
    )
    assert files_of(policy) == before


def test_what_is_in_the_way_is_not_replaced(policy_run, policy, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    other = tmp_path / "run"
    shutil.copytree(policy_run, other)
    pulled = tmp_path / "pulled"
    shutil.copytree(policy, pulled)
    (pulled / "hub.json").touch()
    aside = "Name another, or move it away."
    foreign = f"checkpoints that are not of an exported policy. {aside}"
    for directory, found, flags in (
        (policy, "an exported policy. Replace it with --overwrite, or name another.", ()),
        (other, foreign, ("--overwrite",)),
        (pulled, foreign, ("--overwrite",)),
        (tmp_path / "file", f"a file. {aside}", ("--overwrite",)),
    ):
        before = files_of(directory)
        assert call(monkeypatch, *export(policy_run, directory), *flags) == 2
        message = (
            f"{directory}: expected a new directory, or one without checkpoints; found {found}"
        )
        assert message in capsys.readouterr().err
        assert files_of(directory) == before
    assert call(monkeypatch, *export(tmp_path / "none", tmp_path / "to")) == 2
    assert "none: expected the directory of a run" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_an_exported_policy_is_replaced_once_the_new_one_is_whole(
    policy_run, policy, tmp_path, monkeypatch, capsys
):
    directory = tmp_path / "policy"
    shutil.copytree(policy, directory)
    before = {path: path.read_bytes() for path in files_of(directory)}

    def fail(path, target=None):
        # The new one is of step 1; the old one, of step 2, gets its name back.
        if target is None or target.name == "1":
            raise OSError(28, "No space left on device")
        path.replace(target)

    flags = ("--step", "1", "--overwrite")
    for place, name in ((checkpoint_copy, "sync"), (pathlib.Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            assert call(monkeypatch, *export(policy_run, directory), *flags) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in files_of(directory)} == before
    # Again, with the checkpoint of the same step in the way.
    for _ in range(2):
        assert call(monkeypatch, *export(policy_run, directory), *flags) == 0
        assert [path.name for path in (directory / "checkpoints").iterdir()] == ["1"]
    assert read_checkpoint(directory).step == 1
    assert (directory / "README.md").read_text() == "mine"


def test_a_killed_export_is_not_in_the_way(policy_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints" / ".2.01234567.4711.tmp").mkdir(parents=True)
    assert call(monkeypatch, *export(policy_run, tmp_path)) == 0
    assert "training step 2, " in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


@pytest.mark.parametrize("value", [65520.0, -1e5, np.nan, np.inf])
def test_values_out_of_range_of_float16_are_refused_by_name(value):
    head = {"kernel": np.array([1.0, value], np.float32), "bias": np.zeros(2, np.float32)}
    message = r"parameters within \+-65504, the range of float16; found others in head/kernel\."
    with pytest.raises(UserError, match=message):
        in_half_precision({"head": head}, where="here")


def test_integers_stay_and_the_largest_value_fits():
    params = {"a": np.array([65504.0, 1e-9], np.float32), "b": np.array([1 << 20])}
    halves = in_half_precision(params, where="here")
    assert halves["a"].dtype == np.float16
    assert halves["a"].tolist() == [65504.0, 0.0]
    assert halves["b"] is params["b"]


@pytest.mark.parametrize("part", ["arrays.safetensors", "config/metadata", "digests/metadata"])
def test_corruption_is_found(policy, tmp_path, part):
    shutil.copytree(policy, tmp_path / "policy")
    path = tmp_path / "policy" / "checkpoints" / "2" / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoints/2: .* copy or export it again\."):
        read_checkpoint(tmp_path / "policy")
    path.unlink()
    with pytest.raises(DataError, match=r"checkpoints/2: "):
        read_checkpoint(tmp_path / "policy")


def test_missing_arrays_are_found(policy, tmp_path):
    shutil.copytree(policy, tmp_path / "policy")
    path = tmp_path / "policy" / "checkpoints" / "2" / "arrays.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    del header["vocabulary/bytes"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + length :])
    with pytest.raises(DataError, match="checkpoints/2"):
        SavedStep(tmp_path / "policy").arrays("vocabulary", "bytes")
