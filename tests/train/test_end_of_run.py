"""What follows a run's last checkpoint; tests/train/test_run.py has a whole run."""

import logging
import pathlib

import numpy as np
import pytest

from pipeline.errors import UserError
from train.end_of_run import make_up, reported
from train.metrics.validation import constant_errors
from train.run_description import find_commit


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (UserError(where="a", expected="b", found="c", remedy="D."), "a: expected b; found c. D."),
        (ValueError("shapes\n(1,) (2,)"), "ValueError: shapes (1,) (2,)"),
        (KeyError("dims"), "KeyError: 'dims'"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_what_fails_after_the_last_checkpoint_is_reported(error, printed, caplog):
    with caplog.at_level(logging.WARNING), reported("the report", pathlib.Path("runs/x")):
        raise error
    assert f"the run is complete, but the report failed: {printed}\n" in caplog.text
    assert "`octograin report runs/x`" in caplog.text


def test_an_interrupt_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), reported("the report", pathlib.Path("runs/x")):
        raise KeyboardInterrupt


def test_a_directory_without_checkpoints_is_left_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    make_up(tmp_path, lambda config: pytest.fail(f"asked for {config}"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_the_constant_action_is_the_median_of_the_real_ones():
    actions = np.array([[[0.0, 5.0], [1.0, 5.0]], [[4.0, 5.0], [100.0, 5.0]]], np.float32)
    real = np.array([[[True, False], [True, False]], [[True, False], [False, False]]])
    by_dim, overall = constant_errors(actions, real)
    np.testing.assert_allclose(by_dim, [4 / 3, 0.0])  # of 0, 1 and 4 around 1; none are real
    assert overall == pytest.approx(4 / 3)


def test_a_folder_that_is_no_checkout_has_no_commit(tmp_path):
    assert find_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert find_commit(tmp_path) is None
