import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.benchmark import tfdata
from pipeline.benchmark.__main__ import main
from pipeline.benchmark.measure import Floor, Measurement, measure
from pipeline.data.images import decode_jpeg
from pipeline.errors import UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.window_reader import WindowReader

ROOT = pathlib.Path(__file__).parents[2]
CAMERAS = ("image_primary", "image_wrist")
SHORT = ["--num_batches", "6", "--rounds", "1", "--batch_size", "4"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.benchmark", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def window_reader_of(loader: Loader) -> WindowReader:
    window_reader = loader.transforms()[0]
    assert isinstance(window_reader, WindowReader)
    return window_reader


@pytest.mark.parametrize("settings", [{}, {"window_size": 3, "current_only": ("vggt_tokens",)}])
def test_floor_reads_each_record_of_the_samples_once_and_decodes_their_images(
    make_loader: Callable, mini_dataset: pathlib.Path, settings: dict
) -> None:
    loader = make_loader(mini_dataset, observations=(*CAMERAS, "vggt_tokens"), **settings)
    window_reader, samples = window_reader_of(loader), loader.order()[0]
    batch = window_reader(samples)
    reads = Floor(loader).plan(samples)
    windows = window_reader.locate(samples)
    steps = [len(set(history)) for history in windows.history.tolist()]
    num_tokens = len(steps) if settings else sum(steps)
    assert len(reads) == len(steps) + sum(steps) + num_tokens  # episodes, images, tokens
    decoded = []
    for read in reads:
        (record,) = read.reader.read(read.index, read.index + 1)
        for place, shape in read.images:
            pixels = np.empty(shape, np.uint8)
            decode_jpeg(record[place], pixels)
            decoded.append(pixels)
    primary, wrist = decoded[: 2 * steps[0] : 2], decoded[1 : 2 * steps[0] : 2]
    for name, images in (("image_primary", primary), ("image_wrist", wrist)):
        np.testing.assert_array_equal(images[-1], batch[f"observation/{name}"][0, -1])


def test_measurement_adds_up(mini_dataset: pathlib.Path) -> None:
    config = DataConfig((DatasetConfig(str(mini_dataset)),), "", CAMERAS)
    found, loader = measure(config, batch_size=8, num_batches=8, rounds=2)
    assert isinstance(found, Measurement)
    assert loader.batch_size == 8
    assert found.ratio_min <= found.ratio <= found.ratio_max
    assert 0 < found.floor_cpu_ms_per_sample < found.cpu_ms_per_sample * 1.5
    assert 0 < found.stages["read"] < found.stages["window_reader"]
    assert list(found.stages) == [
        "read",
        "decode",
        "order",
        "window_reader",
        "standardize_gripper",
        "normalize_action",
        "look_up_task",
        "check_batch",
    ]


def test_json_is_one_object_on_stdout(mini_dataset: pathlib.Path) -> None:
    done = command(str(mini_dataset), "--json", *SHORT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    lines = done.stderr.splitlines()
    assert set(figures) >= {
        "samples_per_s",
        "cpu_ms_per_sample",
        "floor_cpu_ms_per_sample",
        "first_batch_s",
        "peak_rss_mb",
        "predicted_rss_mb",
        "stages",
        "num_threads",
    }
    assert any("batches ahead keep up with 0.1 s steps" in line for line in lines)
    assert any("times the floor" in line for line in lines)
    assert max(map(len, lines)) <= 100 or str(mini_dataset) in max(lines, key=len)
    # Small batches: nearly all of it is the libraries.
    assert figures["peak_rss_mb"] == pytest.approx(figures["predicted_rss_mb"], rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "tfds"], "--compare tfds and --rlds SRC, .*found one of them. Add the oth"),
        (["--rlds", "nowhere"], "--compare tfds and --rlds SRC, .*found one of them. Add the oth"),
        (["--num_batches", "4"], "each of more than the 4 batches made ahead, and samples in a b"),
        (["--step_s", "nan"], "--step_s: expected a finite number of seconds above 0; found nan"),
        (["--batch_size", "0"], "found --num_batches 20, --rounds 5, --batch_size 0"),
        (["--observations", "propio"], "Did you mean observation/proprio"),
        (["--observations", "depth"], "expected a feature observation/depth"),
        (
            ["--current_only", "depth"],
            "current_only: expected some of .*; found depth. Add it to ob",
        ),
    ],
)
def test_what_cannot_be_measured_says_why(
    mini_dataset: pathlib.Path,
    arguments: list,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", str(mini_dataset), *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert re.search(message, errors), errors


def test_comparison_without_tensorflow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected TensorFlow, which nothing else here needs"):
        tfdata.check("tfds", "rlds")
