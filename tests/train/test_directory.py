import dataclasses
import json
import pathlib

import pytest

from pipeline.errors import DataError, UserError
from train.directory import prepare


def started(config):
    directory = prepare(config, resume=False, overwrite=False)
    (directory / "checkpoints").mkdir()
    return directory


def test_the_resolved_config_is_kept(tiny_config):
    directory = prepare(tiny_config, resume=False, overwrite=False)
    kept = json.loads((directory / "config.json").read_text())
    assert kept["optimizer"]["learning_rate"] == 1e-3
    assert kept["model"]["vggt"]["num_tokens"] == 21


def test_a_run_is_not_written_over(tiny_config):
    started(tiny_config)
    with pytest.raises(UserError, match=r"found a run.*--resume.*--overwrite"):
        prepare(tiny_config, resume=False, overwrite=False)


def test_overwrite_deletes_the_run(tiny_config):
    directory = started(tiny_config)
    prepare(tiny_config, resume=False, overwrite=True)
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_other_files_are_left_alone(tiny_config):
    path = pathlib.Path(tiny_config.save_dir) / "thesis.tex"
    path.parent.mkdir()
    path.touch()
    with pytest.raises(UserError, match="files that are no run"):
        prepare(tiny_config, resume=False, overwrite=True)
    assert path.exists()


def test_there_must_be_a_run_to_resume(tiny_config):
    with pytest.raises(UserError, match=r"a run to resume.*Start it without --resume"):
        prepare(tiny_config, resume=True, overwrite=False)


def test_both_flags_are_refused(tiny_config):
    with pytest.raises(UserError, match="Choose one"):
        prepare(tiny_config, resume=True, overwrite=True)


@pytest.mark.parametrize("change", [{"num_steps": 30}, {"save_interval": 7}])
def test_a_resumed_run_may_be_longer_and_save_more_often(tiny_config, change):
    started(tiny_config)
    prepare(dataclasses.replace(tiny_config, **change), resume=True, overwrite=False)


def test_a_resumed_run_must_be_the_same(tiny_config):
    started(tiny_config)
    other = dataclasses.replace(tiny_config, seed=1, num_steps=30)
    with pytest.raises(UserError, match="seed: 0 then, 1 now"):
        prepare(other, resume=True, overwrite=False)


def test_another_length_would_change_a_rate_that_decays_over_it(tiny_config):
    optimizer = dataclasses.replace(tiny_config.optimizer, decay_steps=None)
    config = dataclasses.replace(tiny_config, optimizer=optimizer)
    started(config)
    with pytest.raises(UserError, match=r"num_steps: 20 then, 30 now.*optimizer.decay_steps"):
        prepare(dataclasses.replace(config, num_steps=30), resume=True, overwrite=False)


def test_a_damaged_config_is_named(tiny_config):
    directory = started(tiny_config)
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json: expected the run's config"):
        prepare(tiny_config, resume=True, overwrite=False)
