import dataclasses
import errno
import fcntl
import json
import pathlib
import re
import shutil

import jax.numpy as jnp
import pytest

from pipeline.checksums import read_json
from pipeline.errors import DataError, UserError
from pipeline.files import temporary_path, to_json_values
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader_state import LoaderState
from pipeline.loading.transforms.gripper_rules import GripperThreshold
from train.checkpoints.checkpoint_store import Checkpoints, Constants
from train.checkpoints.run_directory import check, check_usable, claimed, how_to_train_on
from train.update.optimizer import learning_rate
from train.update.train_state import TrainState


def started(config):
    with claimed(config, resume=False, overwrite=False) as directory:
        (directory / "checkpoints").mkdir()
    return directory


def test_the_resolved_config_is_kept(tiny_config):
    kept = json.loads((started(tiny_config) / "config.json").read_text())
    assert kept["optimizer"]["learning_rate"] == 1e-3
    assert kept["model"]["vggt"]["num_tokens"] == 21


def test_a_run_is_not_written_over(tiny_config):
    started(tiny_config)
    with pytest.raises(UserError, match=r"found a run.*--resume.*--overwrite"):
        check(tiny_config, resume=False, overwrite=False)


def test_overwrite_deletes_the_run(tiny_config):
    directory = started(tiny_config)
    with claimed(tiny_config, resume=False, overwrite=True):
        assert {path.name for path in directory.iterdir()} == {".lock", "config.json"}


def test_overwrite_deletes_no_file_that_a_run_has_not_written(tiny_config):
    directory = started(tiny_config)
    (directory / "notes.txt").write_text("mine")
    (directory / "plots").mkdir()
    message = r"found files that are not the run's: notes\.txt, plots\. Move them elsewhere"
    with (
        pytest.raises(UserError, match=message),
        claimed(tiny_config, resume=False, overwrite=True),
    ):
        pass
    assert (directory / "notes.txt").read_text() == "mine"
    check(tiny_config, resume=True, overwrite=False)


def test_a_run_with_a_link_to_elsewhere_is_not_half_deleted(tiny_config, tmp_path):
    directory = with_checkpoint(tiny_config)
    (directory / "checkpoints").rename(tmp_path / "elsewhere")
    (directory / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (directory / ".notes.tmp").write_text("mine")
    before = sorted(path.name for path in directory.iterdir() if path.name != ".lock")
    message = "found files that are not the run's: .*checkpoints -> "
    with (
        pytest.raises(UserError, match=message),
        claimed(tiny_config, resume=False, overwrite=True),
    ):
        pass
    assert sorted(path.name for path in directory.iterdir() if path.name != ".lock") == before
    assert list((tmp_path / "elsewhere").iterdir())


def test_a_run_is_one_processs_alone(tiny_config):
    config = dataclasses.replace(tiny_config, num_steps=7)
    with claimed(tiny_config, resume=False, overwrite=False) as directory:
        for resume in (True, False):
            with (
                pytest.raises(UserError, match=r"found process \d+ on .* at work on it"),
                claimed(config, resume=resume, overwrite=not resume),
            ):
                pass
        assert json.loads((directory / "config.json").read_text())["num_steps"] == 20
    with claimed(config, resume=True, overwrite=False):
        assert json.loads((directory / "config.json").read_text())["num_steps"] == 7


def test_a_run_that_began_meanwhile_is_not_deleted(tiny_config):
    check(tiny_config, resume=False, overwrite=False)  # there is none yet
    directory = started(tiny_config)
    with pytest.raises(UserError, match="found a run"):
        started(tiny_config)
    assert (directory / "checkpoints").exists()


def test_a_directory_that_was_claimed_and_left_empty_is_new(tiny_config):
    (started(tiny_config) / "config.json").unlink()
    (pathlib.Path(tiny_config.save_dir) / "checkpoints").rmdir()
    check(tiny_config, resume=False, overwrite=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "", "files that are no run"),
        ("config.json", '{"model": {"use_correct_attention": true}}', "expected a valid TrainC"),
    ],
)
def test_what_is_no_run_is_left_alone(tiny_config, name, content, message):
    path = pathlib.Path(tiny_config.save_dir) / name
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        check(tiny_config, resume=False, overwrite=True)
    assert path.exists()


@pytest.mark.parametrize(
    ("save_dir", "message"),
    [
        ("gs://bucket/run", "expected a local directory"),
        ("{file}", "expected a new or empty directory; found a file"),
    ],
)
def test_a_run_directory_is_a_directory_of_this_machine(tiny_config, tmp_path, save_dir, message):
    file = tmp_path / "file"
    file.touch()
    config = dataclasses.replace(tiny_config, save_dir=save_dir.replace("{file}", str(file)))
    with pytest.raises(UserError, match=message):
        check(config, resume=False, overwrite=False)


def test_a_directory_that_cannot_be_made_is_named(tiny_config, tmp_path):
    (tmp_path / "file").touch()
    config = dataclasses.replace(tiny_config, save_dir=str(tmp_path / "file" / "run"))
    message = r"can be written; found .*Not a directory"
    with pytest.raises(UserError, match=message), claimed(config, resume=False, overwrite=False):
        pass


def test_there_must_be_a_run_to_resume(tiny_config):
    with pytest.raises(UserError, match=r"a run to resume.*Start it without --resume"):
        check(tiny_config, resume=True, overwrite=False)


def test_both_flags_are_refused(tiny_config):
    with pytest.raises(UserError, match="Choose one"):
        check(tiny_config, resume=True, overwrite=True)


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 10},
        {"save_interval": 7},
        {"pretrained_path": "elsewhere", "pretrained_step": 3},
        {"pretrained_differs": ("*vggt*",), "pretrained_resized": ("*_pos_embedding",)},
    ],
)
def test_a_resumed_run_may_differ_in_what_it_no_longer_reads(tiny_config, change):
    started(tiny_config)
    check(dataclasses.replace(tiny_config, **change), resume=True, overwrite=False)


def test_a_resumed_run_may_have_other_gripper_rules(tiny_config):
    started(tiny_config)
    data = dataclasses.replace(tiny_config.data, gripper_rules=(GripperThreshold("gripper", 0.4),))
    check(dataclasses.replace(tiny_config, data=data), resume=True, overwrite=False)


def test_a_resumed_run_may_find_its_data_elsewhere(tiny_config):
    started(tiny_config)
    data = dataclasses.replace(tiny_config.data, datasets=(DatasetConfig("moved"),))
    check(dataclasses.replace(tiny_config, data=data), resume=True, overwrite=False)


def test_a_resumed_run_must_be_the_same(tiny_config):
    started(tiny_config)
    other = dataclasses.replace(tiny_config, seed=1, num_steps=10)
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        check(other, resume=True, overwrite=False)


def test_another_length_would_change_a_rate_that_decays_over_it(tiny_config):
    optimizer = dataclasses.replace(tiny_config.optimizer, decay_steps=None, warmup_steps=4)
    config = dataclasses.replace(tiny_config, optimizer=optimizer)
    with_checkpoint(config)
    with pytest.raises(
        UserError, match=r"num_steps: 20 then, 30 now.*decay_steps.*pretrained_path="
    ):
        check(dataclasses.replace(config, num_steps=30), resume=True, overwrite=False)


def test_a_run_is_extended_whose_rate_has_only_risen(tiny_config):
    optimizer = dataclasses.replace(tiny_config.optimizer, decay_steps=None, warmup_steps=5)
    trial = dataclasses.replace(tiny_config, optimizer=optimizer, num_steps=5)
    with_checkpoint(trial)
    assert how_to_train_on(trial) == "To train on, raise --config.num_steps."
    check(dataclasses.replace(trial, num_steps=30), resume=True, overwrite=False)
    short, long = (
        [float(learning_rate(optimizer, num_steps)(step)) for step in range(5)]
        for num_steps in (5, 30)
    )
    # Two programs of one ramp.
    assert short == pytest.approx(long, rel=1e-6)
    assert short[4] == pytest.approx(4 / 5 * optimizer.learning_rate)
    # One step longer, and the rate has decayed.
    longer = dataclasses.replace(trial, num_steps=6)
    assert how_to_train_on(longer).startswith("Its learning rate has decayed to 0;")
    assert float(learning_rate(optimizer, 6)(6)) == 0


def test_a_corrupt_config_is_named(tiny_config):
    directory = started(tiny_config)
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json: expected a JSON object"):
        check(tiny_config, resume=True, overwrite=False)


def with_checkpoint(config):
    """The directory of a run with a checkpoint of step 5."""
    directory = started(config)
    state = TrainState(jnp.asarray(5, jnp.int32), {"a": jnp.ones(3)}, (), {})
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, LoaderState(5, "f", ()), Constants(config, {}, b"v"))
    return directory


@pytest.mark.parametrize("text", [None, "{", '{"seed": 0}', "\x00" * 40])
def test_a_config_that_is_lost_or_corrupt_is_taken_from_a_checkpoint(tiny_config, text, caplog):
    directory = with_checkpoint(tiny_config)
    path = directory / "config.json"
    path.unlink() if text is None else path.write_text(text)
    check(tiny_config, resume=True, overwrite=False)
    assert "the config is taken from the last checkpoint" in caplog.text
    check(tiny_config, resume=False, overwrite=True)
    with pytest.raises(UserError, match="found a run"):
        check(tiny_config, resume=False, overwrite=False)
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        check(dataclasses.replace(tiny_config, seed=1), resume=True, overwrite=False)
    with claimed(tiny_config, resume=True, overwrite=False):
        pass
    assert read_json(directory / "config.json", remedy="") == to_json_values(tiny_config)


def edited(directory):
    """A config.json with another `save_interval`, which a resumed run may change."""
    path = directory / "config.json"
    text = path.read_text()
    path.write_text(re.sub(r'"save_interval": \d+', '"save_interval": 7', text))
    assert path.read_text() != text


def test_an_edited_config_is_refused_with_the_place_where_settings_are_changed(tiny_config):
    edited(started(tiny_config))
    message = r"config.json: .*was edited. If you edited it, undo .* the file that --config names"
    with pytest.raises(DataError, match=message):
        check(tiny_config, resume=True, overwrite=False)


def test_an_edited_config_gives_way_to_that_of_the_checkpoint_and_of_the_command(
    tiny_config, caplog
):
    directory = with_checkpoint(tiny_config)
    edited(directory)
    with claimed(tiny_config, resume=True, overwrite=False):
        pass
    assert "was edited; change settings in the file that --config names)" in caplog.text
    assert read_json(directory / "config.json", remedy="") == to_json_values(tiny_config)


def test_a_config_of_an_earlier_release_has_no_checksum_and_is_compared(tiny_config):
    path = started(tiny_config) / "config.json"
    path.write_text(json.dumps(to_json_values(tiny_config)))
    check(tiny_config, resume=True, overwrite=False)
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        check(dataclasses.replace(tiny_config, seed=1), resume=True, overwrite=False)


def test_checkpoints_of_another_program_are_no_run(tiny_config):
    kept = pathlib.Path(tiny_config.save_dir) / "checkpoints" / "100" / "model.bin"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(UserError, match="found files that are no run"):
        check(tiny_config, resume=False, overwrite=True)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_run_that_was_half_deleted_is_still_a_run(tiny_config, monkeypatch, is_lost):
    directory = with_checkpoint(tiny_config)
    for name in ("views.png", "report.html", "metrics.jsonl"):
        (directory / name).touch()
    if is_lost:
        (directory / "config.json").unlink()
    # Deletion has to keep the config for last, although it is listed first here.
    names = ("config.json", "checkpoints", "metrics.jsonl")
    monkeypatch.setattr(pathlib.Path, "iterdir", lambda path: (path / name for name in names))

    def killed(path, *_):
        assert path == directory / "checkpoints"
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), claimed(tiny_config, resume=False, overwrite=True):
        pass
    monkeypatch.undo()
    shutil.rmtree(directory / "checkpoints")
    with claimed(tiny_config, resume=False, overwrite=True):
        assert {path.name for path in directory.iterdir()} == {".lock", "config.json"}


def test_a_claim_is_seen_and_nothing_is_left_behind(tiny_config):
    directory = pathlib.Path(tiny_config.save_dir)
    check_usable(tiny_config)
    assert not directory.exists()
    message = r"found process \d+ on .* at work on it"
    with (
        claimed(tiny_config, resume=False, overwrite=False),
        pytest.raises(UserError, match=message),
    ):
        check_usable(tiny_config)
    before = {path: path.read_bytes() for path in directory.iterdir()}
    check_usable(tiny_config)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    with claimed(tiny_config, resume=True, overwrite=False):  # looking took no claim
        pass


@pytest.mark.parametrize("name", ["", ".", "checkpoints", "config.json"])
def test_what_may_not_be_written_is_named(tiny_config, tmp_path, as_nobody, name):
    """The cases: the parent of the run's directory, that directory, and its content."""
    if name:
        started(tiny_config)
    path = pathlib.Path(tiny_config.save_dir) / name if name else tmp_path
    for other in (tmp_path, *pathlib.Path(tiny_config.save_dir).rglob("*")):
        other.chmod(0o777)
    if name:
        pathlib.Path(tiny_config.save_dir).chmod(0o777)
    with as_nobody():
        check_usable(tiny_config)
    path.chmod(0o555)
    message = rf"can be written; found {path}, which this user may not write. Allow it"
    with as_nobody(), pytest.raises(UserError, match=message):
        check_usable(tiny_config)


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_that_a_kill_left_unfinished_is_no_obstacle_and_is_deleted(tiny_config, resume):
    directory = pathlib.Path(tiny_config.save_dir)
    if resume:
        started(tiny_config)
    directory.mkdir(exist_ok=True)
    unfinished = temporary_path(directory / "config.json")
    unfinished.write_text("{")
    probe = temporary_path(directory / "probe")  # of a dry run
    (probe / "inner").mkdir(parents=True)
    check(tiny_config, resume=resume, overwrite=False)
    assert unfinished.exists()
    with claimed(tiny_config, resume=resume, overwrite=False):
        assert not unfinished.exists()
        assert not probe.exists()


def test_a_file_system_without_locks_is_reported(tiny_config, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UserError, match=r"that can lock files; found No locks available"),
        claimed(tiny_config, resume=False, overwrite=False),
    ):
        pass
