import errno
import logging
import os

import pytest

from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import Repository
from train.checkpoints.checkpoint_errors import complete_steps, damage, reading, writing
from train.checkpoints.pulled_run import note_pull


def of_system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def raised_by_tensorstore(number: int) -> ValueError:
    return ValueError(f"UNKNOWN: Failed to write 8 bytes: X [os_error_code='{number}']")


def raised_by_an_older_one(number: int) -> ValueError:
    return ValueError(f"UNKNOWN: Error writing local file: [OS error {number}: X]")


def behind_another(number: int) -> ValueError:
    outer = ValueError("failed to finalize")
    outer.__cause__ = of_system(number)
    return outer


WAYS = (of_system, raised_by_tensorstore, raised_by_an_older_one, behind_another)


@pytest.mark.parametrize("made", WAYS)
@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ESTALE, "Check the disk and its mount"),
        (errno.EIO, "Check the disk and its mount"),
        (errno.EACCES, "Give this user the right to use it"),
    ],
)
def test_each_cause_of_a_failed_read_has_its_own_remedy(tmp_path, made, number, remedy):
    path = tmp_path / "10"
    with pytest.raises(UserError) as caught, reading(path):
        raise made(number)
    assert type(caught.value) is UserError
    assert caught.value.expected == "a checkpoint that can be read"
    assert caught.value.remedy == f"{remedy}, then read it again."


@pytest.mark.parametrize(
    "error", [of_system(errno.ENOENT), ValueError("Invalid JSON"), KeyError(1)]
)
def test_all_else_is_damage(tmp_path, error):
    (tmp_path / "5").mkdir()
    message = r"a whole checkpoint; found .* step 5, the checkpoint before it"
    with pytest.raises(DataError, match=message) as caught, reading(tmp_path / "10"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("made", WAYS)
@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EROFS, "Give this user the right to use it"),
        (errno.ESTALE, "Check the disk and its mount"),
        (errno.ENAMETOOLONG, "Check the disk and its mount"),
    ],
)
def test_each_cause_of_a_failed_write_has_its_own_remedy(tmp_path, made, number, remedy):
    with pytest.raises(UserError, match=r"\(none is complete\)") as caught, writing(tmp_path):
        raise made(number)
    assert caught.value.remedy == f"{remedy}, then continue with --resume."


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, TypeError])
def test_what_is_not_of_the_system_is_no_matter_of_the_disk(tmp_path, kind):
    with pytest.raises(kind, match="a mistake of the program"), writing(tmp_path):
        raise kind("a mistake of the program")


def test_steps_under_way_are_not_complete(tmp_path):
    assert complete_steps(tmp_path / "none") == []
    for name in ("20", "5", "30.orbax-checkpoint-tmp", "moved"):
        (tmp_path / name).mkdir()
    assert complete_steps(tmp_path) == [5, 20]


def test_the_step_before_is_named_not_one_after(tmp_path):
    for step in (5, 10, 20):
        (tmp_path / str(step)).mkdir()
    assert "step 5, the checkpoint before it" in damage(tmp_path / "10", "e", "f").remedy
    assert "no earlier step is there" in damage(tmp_path / "5", "e", "f").remedy


def test_a_checkpoint_that_was_pulled_is_pulled_again(tmp_path):
    for step in (5, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    note_pull(tmp_path, Repository("owner/name", "0" * 40), [5])
    pulled, trained = (damage(tmp_path / "checkpoints" / step, "e", "f") for step in ("5", "10"))
    again = f"octograin pull hf://owner/name@{'0' * 40} {tmp_path}"
    assert pulled.remedy == f"Move the run directory away, and pull it again: {again}"
    assert "use step 5, the checkpoint before it" in trained.remedy
    (tmp_path / "hub.json").write_text("{")
    with pytest.raises(DataError, match=r"hub\.json: .* Remove it: then the directory counts as"):
        damage(tmp_path / "checkpoints" / "5", "e", "f")


def test_a_long_message_keeps_the_reason_at_its_end(tmp_path):
    text = f"Error writing {'x' * 500}: No space left on device [os_error_code='28']"
    with pytest.raises(UserError) as caught, writing(tmp_path):
        raise ValueError(text)
    assert caught.value.found.startswith("Error writing x")
    assert (
        "x: No space left on device [os_error_code='28'] (none is complete)" in caught.value.found
    )
    assert len(caught.value.found) < 350


@pytest.mark.parametrize(
    ("path", "level", "is_logged"),
    [
        ("site-packages/orbax/checkpoint/futures.py", logging.ERROR, False),
        ("site-packages/orbax/checkpoint/futures.py", logging.WARNING, True),
        ("site-packages/other.py", logging.ERROR, True),
    ],
)
def test_an_error_that_orbax_raises_is_not_logged_as_well(path, level, is_logged):
    record = logging.LogRecord("absl", level, path, 1, "run() raised", None, None)
    assert bool(logging.getLogger("absl").filter(record)) == is_logged
