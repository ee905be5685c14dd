import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import Shard
from pipeline.data.schema import EPISODES
from pipeline.errors import UserError
from pipeline.inspection.episode_summary import DimRange, locate_records, summarize_episode


def test_episode_names_its_source_records_and_values(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    summary = summarize_episode(dataset, 3)
    assert (summary.steps, summary.duration_s, summary.first_step) == (106, 106 / 20, 349)
    assert summary.source_id
    assert [(r.column, r.file, r.first, r.last) for r in summary.records] == [
        ("episodes", "episodes/00001-of-00002.arrayrecord", 1, 1),
        ("steps", "steps/00001-of-00002.arrayrecord", 123, 228),
        ("vggt_tokens", "vggt_tokens/00001-of-00002.arrayrecord", 123, 228),
    ]
    action = np.asarray(dataset.columns[EPISODES].read(3)["action"])[:, 2].tolist()
    expected = DimRange("dz", action[0], action[-1], min(action), max(action))
    assert summary.values["action"][2] == expected
    (is_last,) = summary.values["is_last"]
    assert dataclasses.asdict(is_last) == {
        "dim": "",
        "first": False,
        "last": True,
        "min": False,
        "max": True,
    }


@pytest.mark.parametrize("episode", [-1, 4])
def test_missing_episode_names_the_range(mini_dataset: pathlib.Path, episode: int) -> None:
    message = f"--episode: expected a whole number from 0 to 3; found {episode}.*4 episodes"
    with pytest.raises(UserError, match=message):
        summarize_episode(open_dataset(str(mini_dataset)), episode)


@pytest.mark.parametrize(
    ("first", "count", "places"),
    [
        (0, 4, [("a", 0, 3)]),
        (3, 7, [("a", 3, 3), ("b", 0, 4), ("c", 0, 0)]),
        (13, 1, [("c", 4, 4)]),
    ],
)
def test_records_may_lie_in_several_shards(
    first: int, count: int, places: list[tuple[str, int, int]]
) -> None:
    shards = [Shard(name, records, 0, "") for name, records in (("a", 4), ("b", 5), ("c", 5))]
    assert locate_records(shards, first, count) == places


def test_instructions_of_an_episode_stand_in_the_order_of_its_steps(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    changes = [{"episode": 0, "step": 40, "task": 1}, {"episode": 0, "step": 70, "task": 0}]
    edit_json(copied / "dataset.json", lambda d: d.update(task_changes=changes))
    dataset = open_dataset(str(copied))
    tasks = summarize_episode(dataset, 0).tasks
    assert [(task.step, task.index) for task in tasks] == [(0, 0), (40, 1), (70, 0)]
    assert [task.text for task in tasks] == [dataset.manifest.tasks[i] for i in (0, 1, 0)]
