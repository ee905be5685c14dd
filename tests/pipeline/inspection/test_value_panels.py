import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.inspection import value_panels
from pipeline.inspection.value_panels import (
    PanelGroup,
    Selection,
    axis_limits,
    read_panels,
    select_episodes,
)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ((-1.0, 1.0, -0.9, 0.9), (-1.0, 1.0)),
        ((-1.0, 100.0, 0.0, 1.0), (-1.0, 2.0)),
        ((-9.0, 1.0, 0.0, 1.0), (-1.0, 1.0)),
        ((0.0, 1.0, 0.0, 0.0), (0.0, 1.0)),
        ((3.0, 3.0, 3.0, 3.0), (2.5, 3.5)),
    ],
)
def test_axis_leaves_outliers_out(
    values: tuple[float, float, float, float], limits: tuple[float, float]
) -> None:
    assert axis_limits(*values) == limits


def read(directory: pathlib.Path, shown: int = 0) -> tuple[PanelGroup, ...]:
    dataset = open_dataset(str(directory))
    return read_panels(dataset, select_episodes(dataset.num_episodes, shown))


def test_histograms_count_every_step(mini_dataset: pathlib.Path) -> None:
    groups = read(mini_dataset, 3)
    assert [g.key for g in groups] == ["action", "observation/proprio", "observation/joint_state"]
    dataset = open_dataset(str(mini_dataset))
    episodes = [np.asarray(dataset.columns["episodes"].read(n)["action"]) for n in range(4)]
    actions = np.concatenate(episodes).astype(float)
    for dim, panel in enumerate(groups[0].panels):
        expected, _ = np.histogram(actions[:, dim], value_panels.NUM_BINS, panel.limits)
        np.testing.assert_array_equal(panel.shares, expected / 455)
        assert panel.p01 == dataset.statistics["action"].p01[dim]
        np.testing.assert_array_equal(panel.curve, episodes[3][:, dim])
        assert [len(curve) for curve in panel.others] == [102, 124, 123]
    assert groups[1].panels[0].name == "x_m"


def test_large_dataset_is_sampled(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_panels, "MAX_EPISODES", 2)
    assert select_episodes(4, 1) == Selection(shown=1, behind=(0, 3), counted=(0, 3))
    shares = read(mini_dataset, 1)[0].panels[0].shares * (102 + 106)
    np.testing.assert_allclose(shares, shares.round(), atol=1e-9)


def test_few_of_many_episodes_are_drawn_behind_the_curve() -> None:
    selection = select_episodes(100, 99)
    assert selection.counted == tuple(range(100))
    assert (len(selection.behind), selection.behind[0]) == (15, 0)


def test_wide_feature_is_cut_to_its_first_dimensions(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_panels, "MAX_PANELS", 5)
    groups = read(mini_dataset)
    assert [len(group.panels) for group in groups] == [5, 5, 5]
    assert groups[0].note == "the first 5 of 7 dimensions"


def test_extremes_beyond_the_axis_are_kept(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    edit_json(copied / "statistics.json", lambda d: d["action"]["max"].__setitem__(0, 250.0))
    panel = read(copied)[0].panels[0]
    assert panel.max == 250.0
    assert panel.limits[1] < 3
