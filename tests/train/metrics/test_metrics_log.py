import dataclasses
import os
import pathlib
import re

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from converters.rlds.tfrecord import read_records
from pipeline.errors import DataError, UserError
from train.metrics import metrics_log
from train.metrics.metrics_log import Meter, MetricsLog
from train.metrics.step_metrics import StepMetrics, read_metrics


def metrics(step: int, align_loss: float | None = None) -> StepMetrics:
    return StepMetrics(
        step=step,
        loss=1.0 / step,
        grad_norm=2.0,
        update_norm=1e-3,
        param_norm=40.0,
        learning_rate=3e-4,
        applied=1,
        step_s=0.5,
        data_wait_s=0.01,
        memory_gb=1.5,
        batch_fingerprint=f"{step:08x}",
        align_loss=align_loss,
    )


def write(directory, steps, first_step=0):
    with MetricsLog(directory, 10, Meter(4, 1000), first_step) as log:
        for step in steps:
            log.write(metrics(step))


def test_metrics_come_back_as_they_were_written(tmp_path):
    write(tmp_path, [1, 2, 3])
    assert read_metrics(tmp_path) == [metrics(1), metrics(2), metrics(3)]


def test_what_is_no_number_is_null_in_the_file_and_nan_when_read(tmp_path):
    with MetricsLog(tmp_path, 10, Meter(4, 1000)) as log:
        log.write(dataclasses.replace(metrics(1), loss=float("nan"), grad_norm=float("inf")))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert '"loss": null, "grad_norm": null, "update_norm": 0.001' in line
    (row,) = read_metrics(tmp_path)
    assert np.isnan([row.loss, row.grad_norm]).all()
    assert row.update_norm == 1e-3


def test_an_alignment_that_is_no_number_is_not_taken_for_none(tmp_path):
    with MetricsLog(tmp_path, 10, Meter(4, 1000)) as log:
        log.write(metrics(1, align_loss=float("nan")))
    (row,) = read_metrics(tmp_path)
    assert np.isnan(row.align_loss)


def test_an_alignment_is_logged_where_there_is_one(tmp_path):
    with MetricsLog(tmp_path, 10, Meter(4, 1000)) as log:
        log.write(metrics(1))
        log.write(metrics(2, align_loss=0.75))
    first, second = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "align_loss" not in first
    assert '"align_loss": 0.75' in second
    assert [row.align_loss for row in read_metrics(tmp_path)] == [None, 0.75]


def test_a_resumed_log_drops_the_steps_that_are_taken_again(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], first_step=2)
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    write(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [row.step for row in read_metrics(tmp_path)] == [1, 2]


def test_tensorboard_gets_every_number(tmp_path):
    with MetricsLog(tmp_path, 10, Meter(4, 1000)) as log:
        for step in (1, 2):
            log.write(metrics(step, align_loss=0.75))
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(record) for record in read_records(epath.Path(path))]
    found = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }
    fields = {f.name for f in dataclasses.fields(StepMetrics)} - {"step", "batch_fingerprint"}
    assert {tag for tag, _ in found} == {f"train/{field}" for field in fields}
    assert found["train/loss", 2] == pytest.approx(0.5)


@pytest.mark.parametrize("line", ["garbage", "[]", '{"loss": 1.0}'])
def test_a_corrupt_line_is_named_and_nothing_is_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=r"metrics.jsonl, line 1: expected a JSON .*Delete that"):
        write(tmp_path, [2], first_step=1)
    assert path.read_text() == line + "\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [('"step": 3', '"step": 1'), ("0.5", "0.4"), ("}\n{", "} {"), ('"}\n', '"}x')],
)
def test_a_changed_byte_is_refused_and_nothing_is_dropped(
    tmp_path: pathlib.Path, old: str, new: str
):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    before, last, after = path.read_text().rpartition(old)
    changed = f"{before}{new}{after}"
    assert last
    path.write_text(changed)
    with pytest.raises(DataError, match=r"metrics.jsonl, line \d: .*Delete that line"):
        write(tmp_path, [3], first_step=2)
    assert path.read_text() == changed


def test_lines_without_checksums_are_of_an_earlier_release(tmp_path: pathlib.Path):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(re.sub(r', "checksum": "\w+"', "", path.read_text()))
    write(tmp_path, [2, 3], first_step=1)
    assert read_metrics(tmp_path) == [metrics(1), metrics(2), metrics(3)]
    assert path.read_text().count("checksum") == 2


@pytest.mark.parametrize("end", ["", " "])
def test_a_last_line_without_its_line_break_is_read(tmp_path: pathlib.Path, end: str):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().removesuffix("\n") + end)
    assert read_metrics(tmp_path) == [metrics(1), metrics(2)]
    write(tmp_path, [3], first_step=2)
    assert read_metrics(tmp_path) == [metrics(1), metrics(2), metrics(3)]


def test_lines_of_another_release_are_refused_with_the_fields_that_differ(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0, "speed": 2.0}\n')
    with pytest.raises(DataError, match=r"step 7: .*without .*grad_norm.*, with speed others"):
        read_metrics(tmp_path)


def write_to_a_full_disk(directory, file_of):
    with MetricsLog(directory, 10, Meter(4, 1000)) as log:
        log.write(metrics(1))
        with open("/dev/full", "ab", buffering=0) as full:
            os.dup2(full.fileno(), file_of(log).fileno())
        log.write(metrics(2))


@pytest.mark.parametrize(
    ("name", "file_of", "num_lines"),
    [
        ("metrics.jsonl", lambda log: log._file, 1),
        ("tensorboard", lambda log: log._events._writer._writer, 2),
    ],
)
def test_a_full_disk_is_reported_and_not_waited_for(
    tmp_path, monkeypatch, name, file_of, num_lines
):
    monkeypatch.setattr(metrics_log, "_FLUSH_S", 0.0)
    message = f"{name}: expected a destination that can be written; found No space left on device"
    with pytest.raises(UserError, match=message):
        write_to_a_full_disk(tmp_path, file_of)
    assert len(read_metrics(tmp_path)) == num_lines
