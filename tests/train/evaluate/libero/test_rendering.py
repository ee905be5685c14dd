import pathlib
from typing import Any

import pytest

from pipeline.errors import UserError
from train.evaluate.libero import rendering
from train.evaluate.libero.rendering import APT_PACKAGES, choose_backend, probe


def answers(monkeypatch: pytest.MonkeyPatch, **reasons: str | None) -> list[str]:
    """Lets backends fail for reasons; returns the list of those that are tried."""
    tried: list[str] = []

    def answer(backend: str, environ: Any) -> str | None:
        tried.append(backend)
        return reasons[backend]

    monkeypatch.setattr(rendering, "probe", answer)
    return tried


def test_the_first_that_draws_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = answers(monkeypatch, egl=None, osmesa=None)
    assert choose_backend({}) == "egl"
    assert tried == ["egl"]
    answers(monkeypatch, egl="no driver", osmesa=None)
    assert choose_backend({}) == "osmesa"


def test_the_users_own_is_respected_and_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = answers(monkeypatch, osmesa=None, glfw="no display")
    assert choose_backend({"MUJOCO_GL": "osmesa"}) == "osmesa"
    with pytest.raises(UserError, match=r"MUJOCO_GL=glfw: .*glfw: no display\. Unset MUJOCO_GL"):
        choose_backend({"MUJOCO_GL": "glfw"})
    assert tried == ["osmesa", "glfw"]


def test_where_none_draws_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, egl="no driver", osmesa="no library")
    with pytest.raises(UserError) as caught:
        choose_backend({})
    assert str(caught.value) == (
        "rendering, MUJOCO_GL=egl or osmesa: expected an image without a display; found "
        f"egl: no driver; osmesa: no library. Install the libraries: apt-get install {APT_PACKAGES}"
    )


@pytest.fixture
def mujoco(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A module of that name, to be written, which another process would import."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mujoco.py"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the process ended with -11"),
        ("raise ImportError('no ' + __import__('os').environ['MUJOCO_GL'])", "ImportError: no egl"),
    ],
)
def test_a_driver_that_fails_or_kills_is_survived(
    mujoco: pathlib.Path, source: str, reason: str
) -> None:
    mujoco.write_text(source)
    assert probe("egl") == reason


def test_a_driver_that_hangs_is_given_up(
    mujoco: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mujoco.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(rendering, "_PROBE_S", 0.5)
    assert probe("egl") == "no image after 0.5 s"
