import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest

from pipeline.config_checks import deferred
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.transforms.input_transforms import DropObservation
from tests.train.conftest import rewrite_item, with_data, write_checkpoints
from train.checkpoints.run_directory import claimed, how_to_train_on
from train.dry_run import check_directory, diagnose, examine
from train.flags import Flags
from train.run_description import changed_settings, describe_short_warmup
from train.train_config import OptimizerConfig


def texts(config, level, **flags):
    return [f"{f.about}: {f.text}" for f in diagnose(Flags(config, **flags)) if f.level == level]


def copied(mini_dataset, tmp_path):
    """The bundled set with files that a test may change."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in mini_dataset.iterdir():
        if path.is_dir():
            (copy / path.name).symlink_to(path)
        else:
            shutil.copy(path, copy)
    return copy


def test_a_run_that_can_start_has_no_errors(tiny_config, capsys):
    config = with_data(
        tiny_config, validation_fraction=0.3, transforms=(DropObservation(("proprio",), 0.1),)
    )
    assert examine(Flags(config)) == 0
    output = capsys.readouterr().out
    assert (
        "transforms: DropObservation; the action is then dx, dy, dz, drx, dry, drz, grip" in output
    )
    assert "0 errors" in output
    assert "2 x cpu: batch 4, 2 samples per device at a time" in output
    assert "parameters" in output
    assert not pathlib.Path(config.save_dir).exists()


def test_threads_that_cannot_keep_up_are_a_warning_with_those_that_can(tiny_config):
    kept_up = "reads: a sample takes .* keep up with training steps of .* s or longer$"
    assert any(re.match(kept_up, text) for text in texts(tiny_config, "ok", step_s=60.0))
    (slow,) = (t for t in texts(tiny_config, "warning", step_s=1e-5) if t.startswith("reads"))
    assert re.search(
        r"For steps of 1e-05 s set data.num_threads=\d{3,} and data.prefetch_bat", slow
    )
    (error,) = texts(tiny_config, "error", step_s=0.0)
    assert "--step_s: expected a finite number of seconds above 0; found 0.0" in error


def test_what_a_flag_changed_is_marked(tiny_config, capsys):
    config = dataclasses.replace(tiny_config, batch_size=8)
    examine(Flags(config, unchanged=tiny_config))
    output = capsys.readouterr().out
    assert output.startswith("  set by a flag: batch_size = 8  (file: 4)\n")
    assert "num_steps = 20" not in output
    examine(Flags(config, unchanged=tiny_config, verbose=True))
    output = capsys.readouterr().out
    assert "* batch_size = 8  (file: 4)" in output
    assert "  num_steps = 20\n" in output


def test_a_long_setting_is_cut_with_a_count(tiny_config):
    (part,) = tiny_config.data.datasets
    part = dataclasses.replace(part, episode_list=(*range(100_000),))
    data = dataclasses.replace(tiny_config.data, datasets=(part,))
    (setting,) = changed_settings(dataclasses.replace(tiny_config, data=data), tiny_config)
    assert len(setting) < 1000
    assert re.search(r"\.\.\. \(\d{3},\d{3} characters in all\)  \(file: \[", setting)


def test_all_that_is_wrong_is_reported_at_once(tiny_config, tmp_path, capsys):
    with claimed(tiny_config, resume=False, overwrite=False):
        pass
    config = dataclasses.replace(
        tiny_config, batch_size=5, fsdp_devices=3, pretrained_path=str(tmp_path / "none")
    )
    assert examine(Flags(config)) == 2
    output = capsys.readouterr().out
    assert "ERROR   run directory: save_dir" in output
    assert "config.fsdp_devices: expected a divisor of 2" in output
    assert "expected Octo's config.json" in output
    assert "3 errors" in output


def test_every_problem_of_the_config_is_a_finding_beside_those_of_the_disk(tiny_config, tmp_path):
    with deferred():
        config = dataclasses.replace(
            with_data(tiny_config, window_size=0, observations=("image_primary", "vggt_tokens")),
            batch_size=0,
            save_dir=str(tmp_path),
        )
    (tmp_path / "notes").touch()
    assert texts(config, "error") == [
        "config: data.window_size: expected at least 1; found 0. Give a whole number from 1.",
        "config: batch_size: expected at least 1; found 0. Give a whole number from 1.",
        f"run directory: save_dir {tmp_path}: expected a new or empty directory; found files that "
        "are no run. Name another save_dir.",
    ]


def test_every_choice_that_does_not_fit_a_dataset_is_a_finding(tiny_config, mini_dataset):
    part = DatasetConfig(
        str(mini_dataset), episode_list=(1, 4), segments=((0, 0, 500),), outcome="success"
    )
    found = texts(with_data(tiny_config, datasets=(part,)), "error")
    assert [text.partition(": expected")[0] for text in found] == [
        f"choice of steps: {mini_dataset}, {field}"
        for field in ("episode_list", "segments", "outcome and failure_weight")
    ]


def test_what_two_parts_meet_is_one_finding(tiny_config):
    (error,) = texts(dataclasses.replace(tiny_config, batch_size=5), "error")
    assert "batch_size" in error


@pytest.mark.parametrize(
    ("save_dir", "found"),
    [
        ("{file}", "expected a new or empty directory; found a file"),
        ("{file}/run", "expected a directory at .*/file; found a file"),
        ("{file}/run/of/mine", "expected a directory at .*/file; found a file"),
        ("{link}", "expected a directory at .*/link; found a file"),
        ("/dev/full", "expected a new or empty directory; found a file"),
        ("/proc/run", "expected a directory that can be written; found .*: '/proc/run'"),
        ("{folder}/" + 300 * "x", "expected a directory that can be written; .*File name too long"),
        ("gs://bucket/run", "expected a local directory"),
    ],
)
def test_a_directory_that_cannot_be_made_is_an_error(tiny_config, tmp_path, save_dir, found):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    paths = {name: tmp_path / name for name in ("file", "link", "folder")}
    config = dataclasses.replace(tiny_config, save_dir=save_dir.format(**paths))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=found):
        check_directory(Flags(config))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("choice", "longest"),
    [({}, r"episode, of 1\d\d"), ({"segments": ((0, 0, 20), (1, 7, 30))}, "chosen part, of 23")],
)
def test_a_chunk_beyond_every_episode_is_a_warning(tiny_config, mini_dataset, choice, longest):
    head = dataclasses.replace(tiny_config.model.head, action_horizon=200)
    model = dataclasses.replace(tiny_config.model, head=head)
    with deferred():
        changed = with_data(
            tiny_config,
            action_horizon=200,
            datasets=(DatasetConfig(str(mini_dataset), **choice),),
        )
        config = dataclasses.replace(changed, model=model)
    warnings = [text for text in texts(config, "warning") if text.startswith("chunks of")]
    assert len(warnings) == 1
    assert re.search(f"action_horizon 200 is beyond its longest {longest} steps", warnings[0])


def test_a_warning_of_two_datasets_is_one_for_each(tiny_config, mini_dataset, tmp_path):
    paths = [str(mini_dataset), str(copied(mini_dataset, tmp_path))]
    config = with_data(tiny_config, datasets=tuple(map(DatasetConfig, paths)))
    head = dataclasses.replace(config.model.head, action_horizon=200)
    with deferred():
        config = dataclasses.replace(
            with_data(config, action_horizon=200),
            model=dataclasses.replace(config.model, head=head),
        )
    found = [text.split(": ")[0] for text in texts(config, "warning")]
    assert [one for one in found if one.startswith("chunks")] == [f"chunks of {p}" for p in paths]


@pytest.mark.parametrize(("own_bytes", "level"), [(0, "error"), (10_000_000, "ok")])
def test_the_disk_counts_the_checkpoints_that_a_run_replaces(
    tiny_config, monkeypatch, own_bytes, level
):
    write_checkpoints(tiny_config, (1,))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(0))
    (pathlib.Path(tiny_config.save_dir) / "checkpoints" / "1" / "more").write_bytes(
        bytes(own_bytes)
    )
    assert any(text.startswith("disk: ") for text in texts(tiny_config, level, overwrite=True))


@pytest.mark.parametrize("schedule", ["cosine", "constant", "rsqrt"])
def test_a_warmup_beyond_the_run_is_a_warning_with_what_happens(tiny_config, schedule):
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=50, schedule=schedule)
    config = dataclasses.replace(tiny_config, optimizer=optimizer)
    assert describe_short_warmup(config) == (
        "optimizer.warmup_steps 50 is not below num_steps 20: the rate only rises, to 0.00038 of "
        "0.001 at the last step. That is enough to see a run work; to train, lower warmup_steps"
    )
    assert describe_short_warmup(dataclasses.replace(config, num_steps=51)) is None


def test_a_frozen_glob_that_names_nothing_is_an_error(tiny_config):
    optimizer = dataclasses.replace(tiny_config.optimizer, frozen=("*hf_model*", "*/obz_*"))
    (error,) = texts(dataclasses.replace(tiny_config, optimizer=optimizer), "error")
    assert "found */obz_*, which match none" in error


def test_a_language_encoder_that_is_frozen_in_part_is_an_error(tiny_config):
    optimizer = dataclasses.replace(tiny_config.optimizer, frozen=("*hf_model/encoder*",))
    (error,) = texts(dataclasses.replace(tiny_config, optimizer=optimizer), "error")
    assert "expected all of the language encoder frozen" in error
    assert "hf_model/shared/embedding" in error


def test_a_disk_that_is_too_small_is_an_error(tiny_config, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    (error,) = texts(tiny_config, "error")
    assert "disk: a checkpoint takes" in error
    assert "lower keep_checkpoints" in error


def test_statistics_of_another_dataset_are_an_error(tiny_config, mini_dataset, tmp_path, reseal):
    other = copied(mini_dataset, tmp_path)
    statistics = json.loads((other / "statistics.json").read_text())
    statistics["action"]["count"] = 53_000
    (other / "statistics.json").write_text(json.dumps(statistics))
    reseal(other)
    part = dataclasses.replace(tiny_config.data.datasets[0], path=str(other))
    (error,) = texts(with_data(tiny_config, datasets=(part,)), "error")
    assert "statistics.json, action: expected statistics of 455 steps" in error
    assert "found those of 53000" in error


@pytest.mark.parametrize(
    ("kind", "found"), [("normal", "std 1e-05"), ("quantile", "p99 - p01 0.0005")]
)
def test_a_dimension_that_hardly_varies_is_a_warning(
    tiny_config, mini_dataset, tmp_path, reseal, kind, found
):
    other = copied(mini_dataset, tmp_path)
    statistics = json.loads((other / "statistics.json").read_text())
    statistics["action"]["std"][2] = 1e-5
    statistics["action"]["p01"][2], statistics["action"]["p99"][2] = 0.0, 5e-4
    (other / "statistics.json").write_text(json.dumps(statistics))
    reseal(other)
    part = dataclasses.replace(tiny_config.data.datasets[0], path=str(other))
    settings = {"normalization": kind, "validation_fraction": 0.3}
    config = with_data(tiny_config, datasets=(part,), **settings)
    assert any(f"action[2] ({found}) hardly varies" in text for text in texts(config, "warning"))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.0, r"action\[2\]: 0\. .*Write the source without it"),
        (float("nan"), r"action\[2\]: std nan\. Convert"),
    ],
)
def test_a_dimension_that_cannot_be_normalised_is_an_error(
    tiny_config, mini_dataset, tmp_path, reseal, value, found
):
    other = copied(mini_dataset, tmp_path)
    statistics = json.loads((other / "statistics.json").read_text())
    statistics["action"]["std"][2] = value
    (other / "statistics.json").write_text(json.dumps(statistics))
    reseal(other)
    part = dataclasses.replace(tiny_config.data.datasets[0], path=str(other))
    (error,) = texts(with_data(tiny_config, datasets=(part,)), "error")
    assert re.search(rf"found {other}/statistics.json, {found}", error)


def test_missing_token_column_and_missing_camera_are_errors(tiny_config):
    data = dataclasses.replace(tiny_config.data, observations=("image_primary", "vggt_layer_23"))
    vggt = dataclasses.replace(tiny_config.model.vggt, observation_key="vggt_layer_23")
    model = dataclasses.replace(tiny_config.model, vggt=vggt)
    (error,) = texts(dataclasses.replace(tiny_config, data=data, model=model), "error")
    assert "expected a feature observation/vggt_layer_23" in error


@pytest.mark.parametrize(("field", "is_on_hub"), [("conventions", False), ("normalization", True)])
def test_weights_of_a_run_with_other_conventions_are_a_warning(
    tiny_config, tmp_path, hub, field, is_on_hub
):
    write_checkpoints(dataclasses.replace(tiny_config, num_steps=1), (1,))
    checkpoint = pathlib.Path(tiny_config.save_dir) / "checkpoints" / "1"
    datasets = json.loads((checkpoint / "datasets" / "metadata").read_text())
    for dataset in datasets.values():
        if field == "conventions":
            dataset["conventions"]["image_orientation"] = "upright"
        else:
            dataset["normalization"] = "bounds"
    rewrite_item(checkpoint, "datasets", json.dumps(datasets))
    hub.model("owner/name").commit_folder(pathlib.Path(tiny_config.save_dir))
    path = "hf://owner/name" if is_on_hub else tiny_config.save_dir
    later = str(tmp_path / "later")
    config = dataclasses.replace(tiny_config, save_dir=later, pretrained_path=path)
    warnings = texts(config, "warning")
    assert any(text.startswith(f"{field} of ") and "were trained with" in text for text in warnings)
    assert np.all([("ERROR" not in text) for text in warnings])


@pytest.fixture
def begun(tiny_config):
    """A config of 20 steps whose run has taken 2."""
    config = dataclasses.replace(tiny_config, num_steps=2)
    with claimed(config, resume=False, overwrite=False):
        write_checkpoints(config, (2,))
    return tiny_config


def checkpoint_of(config):
    return pathlib.Path(config.save_dir) / "checkpoints" / "2"


def test_what_a_run_would_continue_from_is_looked_at(begun, tmp_path):
    assert not texts(begun, "error", resume=True)
    found = "checkpoint: resumes after step 2, whose arrays match their checksums"
    assert found in texts(begun, "ok", resume=True)
    (error,) = texts(dataclasses.replace(begun, num_steps=2), "error", resume=True)
    assert "expected a run of fewer than 2 steps; found one of 2. It is complete" in error
    assert error.endswith("To train on, raise --config.num_steps, to 100 at most.")
    finished = dataclasses.replace(begun.optimizer, decay_steps=None)
    assert "pretrained_path=runs/x and another" in how_to_train_on(
        dataclasses.replace(begun, optimizer=finished, save_dir="runs/x")
    )

    (error,) = texts(dataclasses.replace(begun, batch_size=8), "error", resume=True)
    assert "expected the config of the run; found batch_size: 4 then, 8 now" in error
    (error,) = texts(dataclasses.replace(begun, save_dir="/proc/run"), "error")
    assert error.startswith("run directory: save_dir /proc/run: expected a directory that can")

    with claimed(begun, resume=True, overwrite=False):
        (error,) = texts(begun, "error", resume=True)
    assert re.search(r"run directory: .* found process \d+ on .* at work on it", error)

    files = (checkpoint_of(begun) / "state" / "ocdbt.process_0" / "d").iterdir()
    largest = max(files, key=lambda path: path.stat().st_size)
    sound = largest.read_bytes()
    largest.write_bytes(
        sound[: len(sound) // 2]
        + bytes([sound[len(sound) // 2] ^ 1])
        + sound[len(sound) // 2 + 1 :]
    )
    (error,) = texts(begun, "error", resume=True)
    # The order of the writes decides what lies in the middle: an array, or the index of arrays.
    assert re.search(r"2: expected (its content as saved; found state/|a whole checkpoint)", error)
    assert "no earlier step is there: start the run from scratch with --overwrite" in error
    largest.write_bytes(sound)

    kept = checkpoint_of(begun) / "loader" / "metadata"
    kept.write_text(kept.read_text()[:20])
    (error,) = texts(begun, "error", resume=True)
    assert "checkpoint: " in error
    assert "release" not in error

    checkpoint_of(begun).rename(checkpoint_of(begun).with_name("lost"))
    warnings = texts(begun, "warning", resume=True)
    assert "checkpoint: there is none yet: the run starts from scratch" in warnings


def test_a_directory_that_may_not_be_written_is_an_error(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode, **_: path != tmp_path)
    (error,) = texts(tiny_config, "error")
    assert f"found {tmp_path}, which this user may not write" in error
