import dataclasses
import json
import pathlib

import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import DataError, UserError
from train.directory import check, claimed


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
        ("{file}", "expected a directory; found a"),
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


@pytest.mark.parametrize("change", [{"num_steps": 10}, {"save_interval": 7}])
def test_a_resumed_run_may_end_and_save_at_other_steps(tiny_config, change):
    started(tiny_config)
    check(dataclasses.replace(tiny_config, **change), resume=True, overwrite=False)


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
    optimizer = dataclasses.replace(tiny_config.optimizer, decay_steps=None)
    config = dataclasses.replace(tiny_config, optimizer=optimizer)
    started(config)
    with pytest.raises(UserError, match=r"num_steps: 20 then, 30 now.*optimizer.decay_steps"):
        check(dataclasses.replace(config, num_steps=30), resume=True, overwrite=False)


def test_a_damaged_config_is_named(tiny_config):
    directory = started(tiny_config)
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json: expected a valid TrainConfig"):
        check(tiny_config, resume=True, overwrite=False)
