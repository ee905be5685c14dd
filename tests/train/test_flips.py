"""A corrupt byte of a run either gives an error in one line, or changes no value."""

import contextlib
import dataclasses
import gc
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from pipeline.checksums import to_json_line, write_json
from pipeline.errors import DataError, UserError
from pipeline.files import to_json_values
from pipeline.loading.device import make_mesh
from tests.train.conftest import untrained
from train.checkpoints.checkpoint_checksums import digest_arrays
from train.checkpoints.checkpoint_store import SavedStep, read_datasets
from train.checkpoints.run_directory import CONFIG_NAME, ENVIRONMENT_NAME
from train.metrics.step_metrics import METRICS_NAME, StepMetrics
from train.metrics.validation_files import ValidationMetrics, append_validation
from train.octo.released.weights_report import LoadReport, LoadRow
from train.report.__main__ import main
from train.report.report_inputs import read_run
from train.run_description import describe_environment
from train.train_config import TrainConfig

RUN_FILES = (
    "config.json",
    "datasets.json",
    "environment.json",
    "load_report.json",
    "metrics.jsonl",
    "validation.jsonl",
)
STATE = ("step", "params", "opt_state", "ema")
JSON_ITEMS = ("config", "datasets", "loader", "digests")


@pytest.fixture(scope="module")
def step(policy_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Copies the directory of one checkpoint."""
    copied = tmp_path_factory.mktemp("flips") / "checkpoints" / "2"
    return pathlib.Path(shutil.copytree(policy_run / "checkpoints" / "2", copied))


@contextlib.contextmanager
def flipped(path: pathlib.Path, rng: np.random.Generator) -> Iterator[None]:
    """Flips one bit of a file, or replaces one byte, while the block lasts."""
    before = path.read_bytes()
    changed = bytearray(before)
    place = int(rng.integers(len(changed)))
    if rng.random() < 0.5:
        changed[place] ^= 1 << int(rng.integers(8))
    else:
        changed[place] = (changed[place] + int(rng.integers(1, 256))) % 256
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(before)


def flip(files: list[pathlib.Path], number: int, seed: int, read: Callable[[], Any]) -> int:
    """Flips that many bytes, one at a time; returns how many give an error, in one line each."""
    rng = np.random.default_rng(seed)
    expected = read()
    reported = []
    for _ in range(number):
        path = files[int(rng.integers(len(files)))]
        with flipped(path, rng):
            try:
                found = read()
            except UserError as error:
                reported.append(str(error))
            else:
                jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert not [line for line in reported if "\n" in line]
    return len(reported)


@pytest.fixture
def record(policy_config: TrainConfig, tmp_path: pathlib.Path) -> pathlib.Path:
    """The JSON files of a run of two training steps with pretrained weights and validations."""
    write_json(tmp_path / CONFIG_NAME, to_json_values(policy_config))
    write_json(tmp_path / "datasets.json", dict(untrained(policy_config).datasets))
    write_json(tmp_path / ENVIRONMENT_NAME, describe_environment(make_mesh()))
    values = dict.fromkeys((field.name for field in dataclasses.fields(StepMetrics)), 0.5)
    values |= {"applied": 1, "batch_fingerprint": "0123456789abcdef"}
    del values["align_loss"]
    lines = (to_json_line(values | {"step": number}) for number in (1, 2))
    (tmp_path / METRICS_NAME).write_text("".join(lines))
    rows = (LoadRow("head/kernel", "loaded", (2, 3), (2, 3)),)
    write_json(tmp_path / "load_report.json", to_json_values(LoadReport(rows)))
    for step in (1, 2):
        metrics = ValidationMetrics(step, 1 / 3, 0.25, {"delta_x": 0.2}, {"open it": 0.1}, 8)
        append_validation(tmp_path, metrics)
    return tmp_path


def read_values(step: pathlib.Path, arrays: dict[str, str]) -> list[Any]:
    """Reads all but the arrays, whose checksums are given."""
    saved = SavedStep(step.parents[1])
    saved.compare(arrays, "state", "vocabulary")
    return [
        repr(saved.config()),
        json.loads(saved.text("datasets")),
        json.loads(saved.text("loader")),
    ]


def read_arrays(step: pathlib.Path, items: tuple[str, ...]) -> dict[str, Any]:
    saved, names = SavedStep(step.parents[1]), {"state": STATE, "vocabulary": ("bytes",)}
    return {i: dict(zip(names[i], saved.arrays(i, *names[i]), strict=True)) for i in items}


@pytest.mark.parametrize("number", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_flips_in_the_json_of_a_checkpoint_are_seen(step: pathlib.Path, number: int) -> None:
    arrays = digest_arrays(read_arrays(step, ("state", "vocabulary")))
    files = [step / item / "metadata" for item in JSON_ITEMS]
    refused = flip(files, number, seed=number, read=lambda: read_values(step, arrays))
    assert refused > number // 2  # a blank between values may change without a meaning


@pytest.mark.parametrize("number", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_flips_in_the_json_of_a_run_are_seen(record: pathlib.Path, number: int) -> None:
    files = [record / name for name in RUN_FILES]
    refused = flip(files, number, seed=number, read=lambda: repr(read_run(record)))
    assert refused > number // 2  # a blank between values may change without a meaning


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.json", '"save_interval": 1', '"save_interval": 3'),
        ("datasets.json", '"checksum"', '"checksun"'),
        ("environment.json", '"python": "3', '"python": "2'),
        ("load_report.json", '"loaded"', '"unused"'),
        ("metrics.jsonl", '"step": 2', '"step": 3'),
        ("validation.jsonl", '"loss": 0.3', '"loss": 0.2'),
    ],
)
def test_a_changed_value_of_a_run_is_one_line_and_exit_code_2(
    record: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str, old: str, new: str
) -> None:
    text = (record / name).read_text()
    assert old in text
    (record / name).write_text(text.replace(old, new, 1))
    monkeypatch.setattr(sys, "argv", ["train.report", str(record)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: {record / name}.*: the file is corrupt or was edited\. ", line)


@pytest.mark.parametrize("text", ["[]", "{}", '{"x": 3}', "[" * 100_000, ""])
def test_datasets_that_are_none_are_reported(
    step: pathlib.Path, tmp_path: pathlib.Path, text: str
) -> None:
    copied = pathlib.Path(shutil.copytree(step, tmp_path / "checkpoints" / "2"))
    (copied / "datasets" / "metadata").write_text(text)
    with pytest.raises(DataError, match=r"2: expected .*; found .*Check the disk"):
        read_datasets(tmp_path)


# If one array cannot be read, Orbax leaves the reads of the others unfinished.
@pytest.mark.filterwarnings(
    "ignore:coroutine:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    ("items", "number"),
    [
        (("vocabulary",), 20),  # 0.6 s for a state
        pytest.param(("state", "vocabulary"), 100, marks=pytest.mark.slow),
    ],
)
def test_flips_in_the_arrays_of_a_checkpoint_are_seen(
    step: pathlib.Path, items: tuple[str, ...], number: int
) -> None:
    files = [
        path
        for item in items
        for path in sorted((step / item).rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    gc.freeze()  # collecting visits what is made from here on
    refused = flip(files, number, seed=number, read=lambda: read_arrays(step, items))
    assert refused > 0
    gc.collect()  # what is unfinished warns here, not in a later test
