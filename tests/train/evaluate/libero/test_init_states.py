import os
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from tests.train.evaluate.libero.conftest import zipped
from train.evaluate.libero.suites import read_init_states

STATES = np.random.default_rng(0).normal(size=(50, 92))


class Call:
    """What a pickle calls as it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def test_states_are_read_exactly(tmp_path: pathlib.Path) -> None:
    read = read_init_states(zipped(tmp_path / "a.pruned_init", STATES))
    assert read.dtype == np.float64
    assert np.array_equal(read, STATES)


def test_the_names_of_old_numpy_are_known(tmp_path: pathlib.Path) -> None:
    path = zipped(tmp_path / "new", STATES)
    pickled = zipfile.ZipFile(path).read("archive/data.pkl")
    renamed = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    with zipfile.ZipFile(tmp_path / "old", "w") as file:
        file.writestr("archive/data.pkl", renamed)
    assert renamed != pickled
    assert np.array_equal(read_init_states(tmp_path / "old"), STATES)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Call(os.system, "touch harm"), r"posix\.system"),
        (Call(eval, "open('harm', 'w')"), r"__builtin__\.eval"),
        (Call(getattr, "text", "join"), r"__builtin__\.getattr"),
        (Call(np.fromfile, "/etc/passwd"), r"numpy\.fromfile"),
    ],
)
def test_a_pickle_that_calls_anything_else_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: Call, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "bad.pruned_init", [STATES, call])
    with pytest.raises(DataError, match=rf"bad\.pruned_init: .*it names {name}"):
        read_init_states(path)
    assert not (tmp_path / "harm").exists()


def test_the_calls_would_have_done_harm(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "bad", Call(eval, "open('harm', 'w').close()"))
    pickle.loads(zipfile.ZipFile(path).read("archive/data.pkl"))
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (STATES.astype(np.float32), "found float32"),
        (STATES[0], r"found float64\[92\]"),
        (np.full((2, 3), np.nan), "finite"),
        ([1.0], "found list"),
        (np.array([[None]]), "found object"),
    ],
)
def test_anything_but_finite_states_is_refused(
    tmp_path: pathlib.Path, value: Any, found: str
) -> None:
    with pytest.raises(DataError, match=found):
        read_init_states(zipped(tmp_path / "a", value))


def test_a_file_that_is_missing_corrupt_or_another_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"gone: .*FileNotFoundError.*make libero"):
        read_init_states(tmp_path / "gone")
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(DataError, match=r"text: .*BadZipFile"):
        read_init_states(tmp_path / "text")
    with pytest.raises(DataError, match=r"0 files data\.pkl"):
        read_init_states(zipped(tmp_path / "other", STATES, "archive/version"))
    with zipfile.ZipFile(tmp_path / "cut", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(STATES, 2)[:-9])
    with pytest.raises(DataError, match=r"cut: .*found \w+Error"):
        read_init_states(tmp_path / "cut")
