"""The loader in a training loop of one's own."""

import contextlib
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.loader_opening import open_loader
from tests.processes import Command
from tests.small_dataset import LENGTH, write_dataset

ROOT = pathlib.Path(__file__).parents[2]
SHAPES = {"action": (2,), "observation/state": (3,), "observation/image_a": (8, 6, 3)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_dataset(tmp_path_factory.mktemp("own") / "toy", SHAPES))


@pytest.fixture
def loader(directory: str) -> Loader:
    return open_loader(directory, batch_size=4)


def test_a_directory_is_all_that_a_loop_needs(loader: Loader) -> None:
    with loader:
        for number, batch in enumerate(loader):
            assert batch["observation"]["image_a"].shape == (4, 1, 8, 6, 3)
            assert batch["action"].shape == (4, 1, 1, 2)
            assert set(batch["task"]) == {"task_index", "pad_mask_dict"}
            if number == 2:
                break
    assert loader.num_steps == 4 * LENGTH


def test_every_loop_has_the_batches_of_the_order_from_the_first(loader: Loader) -> None:
    with loader:
        first, again = iter(loader), iter(loader)
        expected = loader.batches()
        for _ in range(2):
            batch = next(expected).arrays
            for stream in (first, again):
                np.testing.assert_array_equal(next(stream)["action"], batch["action"])
        expected.close()


@pytest.mark.parametrize("ends_by_error", [False, True])
def test_a_loop_that_ends_leaves_no_thread(loader: Loader, *, ends_by_error: bool) -> None:
    def reading() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name.startswith("read-samples")}

    before = reading()
    for _ in range(3):
        with contextlib.suppress(ZeroDivisionError):
            for batch in loader:
                assert len(reading() - before) == 2
                if ends_by_error:
                    batch["action"].size / 0
                break
        assert reading() <= before
    loader.close()


def test_a_closed_loader_ends_its_loops(loader: Loader) -> None:
    stream = iter(loader)
    next(stream)
    loader.close()
    assert list(stream) == []
    with loader:
        assert next(iter(loader))["action"].shape == (4, 1, 1, 2)


def test_another_thread_may_close_a_loader(loader: Loader) -> None:
    is_reading, is_closed = threading.Event(), threading.Event()

    def wait(batch: dict[str, Any]) -> dict[str, Any]:
        is_reading.set()
        is_closed.wait(20)
        return batch

    waiting = loader.map(wait)

    def close() -> None:
        is_reading.wait(20)
        waiting.close()
        is_closed.set()

    thread = threading.Thread(target=close)
    thread.start()
    assert list(waiting) == []
    thread.join()


def test_a_program_may_end_in_the_middle_of_a_loop(directory: str) -> None:
    code = f"""
from pipeline.loading.loader_opening import open_loader
loader = open_loader({directory!r}, batch_size=4)
stream = iter(loader)
print(next(stream)["action"].shape)
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "(4, 1, 1, 2)\n", "")


def test_ones_own_transform_ends_the_chain(loader: Loader) -> None:
    def doubled(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"twice": 2 * batch["action"]}

    def renamed(batch: dict[str, Any]) -> dict[str, Any]:
        return {"x": batch["twice"], "scale": 0.5, "none": None}

    with loader.map(doubled).map(renamed) as mapped:
        batch = next(iter(mapped))
    np.testing.assert_array_equal(batch["x"], 2 * next(iter(loader))["action"])
    assert mapped.window(3)["x"].shape == (1, 1, 2)
    assert "twice" not in loader.window(3)
    loader.close()


def test_a_window_is_a_sample_without_the_batch_axis(loader: Loader) -> None:
    window, batch = loader.window(7), loader.read(0, [3, 7])
    np.testing.assert_array_equal(window["action"], batch["action"][1])
    assert window["observation"]["image_a"].shape == (1, 8, 6, 3)
    stored = loader.datasets[0].step(1, 7 - LENGTH)["observation"]["image_a"]
    np.testing.assert_array_equal(window["observation"]["image_a"][0], stored)


def test_values_are_unnormalised_as_they_were_normalised(loader: Loader) -> None:
    window = loader.window(7)
    for key, found in (
        ("action", window["action"][0, 0]),
        ("observation/state", window["observation"]["state"][0]),
    ):
        stored = loader.datasets[0].step(1, 7 - LENGTH, [key])
        stored = stored["action"] if key == "action" else stored["observation"]["state"]
        np.testing.assert_allclose(loader.unnormalize(key, found), stored, atol=1e-6)
        np.testing.assert_allclose(loader.normalize(key, stored), found, atol=1e-6)
    assert loader.unnormalize("action", np.zeros((5, 4, 2), np.float32)).shape == (5, 4, 2)


def test_a_config_says_the_rest(directory: str, vocabulary_path: pathlib.Path) -> None:
    config = DataConfig((DatasetConfig(directory),), str(vocabulary_path), ("state",))
    loader = open_loader(config, 2, action_horizon=3)
    window = loader.window(0)
    assert window["action"].shape == (2, 3, 2)
    assert window["task"]["language_instruction"]["input_ids"].shape == (16,)
    assert set(window["observation"]) >= {"state"}
    narrow = open_loader(directory, 2, observations=["image_a"], window_size=2)
    assert "state" not in narrow.window(0)["observation"]


def ragged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"task": {"x": [[1, 2], [3]]}}


def texts(batch: dict[str, Any]) -> dict[str, Any]:
    return batch | {"x": np.array(["a"]), "y": "b", "z": object()}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda loader: loader.read(0, [5, 24]),
            "/toy: expected one or more integers from 0 to 23; found 24",
        ),
        (lambda loader: loader.read(0, [-1]), "or more integers from 0 to 23; found -1"),
        (lambda loader: loader.read(0, []), "or more integers from 0 to 23; found none"),
        (lambda loader: loader.window(0, 1), "expected an index in the mixture, 0 to 0; found 1"),
        (lambda loader: next(loader.batches(-1)), r"an integer from 0 to \d+; found -1"),
        (lambda loader: next(loader.batches(2**63)), r"an integer from 0 to \d+; found 92233720"),
        (
            lambda loader: loader.statistics["state_"],
            "statistics: expected one of .* found 'state_'. Did you mean observation/state",
        ),
        (
            lambda loader: next(iter(loader.map(ragged))),
            "map, ragged: .*found task/x: a list of parts of different lengths. Return arrays",
        ),
        (
            lambda loader: loader.map(texts).window(0),
            r"map, texts: .*found x: a ndarray of dtype <U1; y: a str of dtype <U1; z: a object",
        ),
        (
            lambda loader: loader.normalize("state", np.zeros(3)),
            "expected one of action, observation/state; found state",
        ),
        (
            lambda loader: loader.unnormalize("action", np.zeros((2, 3))),
            r"expected an array whose last axis has 2 numbers; found the shape \(2, 3\)",
        ),
        (
            lambda loader: next(iter(loader.map(lambda batch: batch["action"]))),
            "expected a dictionary, the changed batch; found a ndarray",
        ),
    ],
)
def test_a_mistake_says_what_was_expected(loader: Loader, call: Any, message: str) -> None:
    with loader, pytest.raises(UserError, match=message):
        call(loader)


def test_a_missing_dataset_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"gone"):
        open_loader(str(tmp_path / "gone"), 4)


def test_a_printed_loader_shows_its_chain(loader: Loader, directory: str) -> None:
    def jitter(batch: dict[str, Any]) -> dict[str, Any]:
        return batch

    assert repr(loader) == f"Loader(4 of 24 steps of {directory})"
    lines = str(loader.map(jitter)).splitlines()
    assert lines[:2] == [
        "batches of 4 from 24 sampled steps of",
        f"  {directory}: 24 steps, 100.0%",
    ]
    assert [line.split()[0] for line in lines[3:-1]] == [
        "WindowReader",
        "StandardizeGripper",
        "NormalizeAction",
        "Normalize",
        "LookUpTask",
        "CheckBatch",
        "jitter",
    ]
    assert len(lines) <= 15


WRONG_TYPES = [
    ("open_loader(path, 4, seed=1)", "argument 'seed'. Other settings are fields of DataConfig"),
    ("open_loader(path, 4, windowsize=1)", "'windowsize'. Did you mean window_size?"),
    ("open_loader(path)", "missing a required argument: 'batch_size'."),
    ("open_loader(None, 4)", "expected a dataset directory, or a DataConfig; found None."),
    (
        "open_dataset(None)",
        "open_dataset, path: expected a path, as a string or a Path; found None.",
    ),
    ("open_dataset(3)", "expected a path, as a string or a Path; found a int."),
    ("open_dataset(path, key=['action'])", "arguments path, keys; found an unexpected keyword"),
    ("open_dataset()", "open_dataset: expected the arguments path, keys; found missing"),
    ("load_config(None)", "load_config, name: expected FILE, FILE:VARIANT or a preset"),
    ("Policy.from_run(None)", "Policy.from_run, directory: expected a run directory; found None."),
    ("Policy.from_run('x', bach_size=2)", "'bach_size'. PolicyConfig has the batch_size"),
    ("finetune(None)", "finetune, config: expected a TrainConfig; found a NoneType."),
    ("serving()", "serving: expected the arguments policy, config, host, port, api_key; found"),
    ("open_loader(path, 0)", "batch_size: expected an integer of at least 1; found 0."),
    ("open_loader(path, -1)", "batch_size: expected an integer of at least 1; found -1."),
    ("open_loader(path, 2.5)", "batch_size: expected an integer of at least 1; found 2.5."),
    ("open_loader(path, None)", "batch_size: expected an integer of at least 1; found None."),
    ("open_loader(path, 4, window_size=1.5)", "window_size: expected an integer; found 1.5"),
    ("open_loader(path, 4, observations='state')", "list: observations=['state']."),
    ("open_loader(path, 4).window(1.5)", "integers from 0 to 23; found 1.5."),
    ("open_loader(path, 4).window('3')", "integers from 0 to 23; found '3'."),
    ("open_loader(path, 4).map(3)", "expected a function from a batch to another; found a int."),
    ("open_dataset(path).step('0', 0)", "episode: expected 0 to 3; found '0'."),
    ("open_dataset(path).step(0, 1.0)", "step of episode 0: expected 0 to 5; found 1.0."),
    ("open_dataset(path).episode(0, keys='action')", "list: keys=['action']."),
]
"""Calls that a type checker refuses, and a part of the error of a program that uses none."""


def test_a_wrong_type_is_reported_like_a_wrong_value(directory: str) -> None:
    # In another process: here beartype would refuse the arguments first.
    script = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from octograin import *\n"
        "from pipeline.errors import UserError\n"
        "path, *calls = sys.argv[1:]\n"
        "for call in calls:\n"
        "    try: eval(call)\n"
        "    except (UserError, ValueError) as error: print(error)\n"
        "    else: print('no error')\n"
        "loader = open_loader(Path(path), 4)\n"
        "print(loader.normalize('action', [1.0, 2.0]).shape, loader.window(np.int64(3)).keys())\n"
    )
    calls = [call for call, _ in WRONG_TYPES]
    done = Command("tests.code", script, directory, *calls).finish()
    *lines, last = done.stdout.splitlines()
    for (call, message), line in zip(WRONG_TYPES, lines, strict=True):
        assert message in line, (call, line)
    assert last.startswith("(2,) dict_keys("), last


def test_a_description_says_that_own_transforms_are_not_in_the_size(loader: Loader) -> None:
    assert "own transforms" not in str(loader)
    assert "MB, before your own transforms; `loader.spec`" in str(loader.map(lambda batch: batch))
