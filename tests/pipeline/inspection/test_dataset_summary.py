import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import Shard
from pipeline.errors import UserError
from pipeline.inspection.dataset_summary import (
    locate_records,
    spread,
    summarize,
    summarize_episode,
)

BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"
SOUP = "pick up the alphabet soup and place it in the basket"


@pytest.fixture(scope="module")
def summary(mini_dataset: pathlib.Path) -> dict[str, Any]:
    return summarize(open_dataset(str(mini_dataset)))


def test_lengths_and_columns_are_those_of_the_manifest(
    summary: dict[str, Any], mini_dataset: pathlib.Path
) -> None:
    lengths = {"episodes": 4, "min": 102, "median": 114.5, "max": 124, "total": 455}
    assert summary["lengths"] == lengths
    assert [
        [c[name] for name in ("name", "per", "records", "shards")] for c in summary["columns"]
    ] == [
        ["episodes", "episode", 4, 2],
        ["steps", "step", 455, 2],
        ["vggt_tokens", "step", 455, 2],
    ]
    for column in summary["columns"]:
        files = (mini_dataset / column["name"]).iterdir()
        assert column["num_bytes"] == sum(file.stat().st_size for file in files)
        assert column["bytes_per_step"] == column["num_bytes"] / 455


def test_features_have_both_types_and_the_bytes_of_a_step(summary: dict[str, Any]) -> None:
    features = {feature["key"]: feature for feature in summary["features"]}
    tokens = features["observation/vggt_tokens"]
    assert (tokens["dtype"], tokens["shape"], tokens["bytes_per_step"]) == (
        "float16",
        (21, 64),
        2688,
    )
    assert features["observation/image_primary"]["bytes_per_step"] is None
    assert features["source_id"]["batch_dtype"] is None
    assert features["action"]["dims"][3] == "drx"


def test_tasks_count_their_episodes_and_steps(summary: dict[str, Any]) -> None:
    rows = [tuple(task.values()) for task in summary["tasks"]]
    assert rows == [(0, BOWL, 2, 208, 0), (1, SOUP, 2, 247, 0)]


def test_a_step_counts_for_the_instruction_that_holds_at_it(
    copied: pathlib.Path, edit_json: Callable[..., None]
) -> None:
    changes = [{"episode": 0, "step": 40, "task": 1}, {"episode": 0, "step": 70, "task": 0}]
    edit_json(
        copied / "dataset.json",
        lambda d: d.update(task_changes=changes, removed_steps=[7, 0]),
    )
    summary = summarize(open_dataset(str(copied)))
    assert [(t["episodes"], t["steps"], t["removed_steps"]) for t in summary["tasks"]] == [
        (2, 178, 7),
        (3, 277, 0),
    ]


def test_statistics_stand_beside_the_names_of_their_dimensions(
    summary: dict[str, Any], mini_dataset: pathlib.Path
) -> None:
    stored = json.loads((mini_dataset / "statistics.json").read_text())["action"]
    dims = summary["statistics"]["action"]
    assert [dim["dim"] for dim in dims] == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    for name in ("mean", "std", "min", "p01", "p99", "max"):
        assert [dim[name] for dim in dims] == stored[name]
    assert [dim["dim"] for dim in summary["statistics"]["reward"]] == [""]


def test_episode_names_its_source_records_and_values(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    summary = summarize_episode(dataset, 3)
    counts = [summary[name] for name in ("steps", "duration_s", "first_step")]
    assert counts == [106, 106 / 20, 349]
    assert summary["source_id"]
    assert [tuple(record.values()) for record in summary["records"]] == [
        ("episodes", "episodes/00001-of-00002.arrayrecord", 1, 1),
        ("steps", "steps/00001-of-00002.arrayrecord", 123, 228),
        ("vggt_tokens", "vggt_tokens/00001-of-00002.arrayrecord", 123, 228),
    ]
    action = dataset.episode(3, ["action"])["action"][:, 2].tolist()
    expected = {"first": action[0], "last": action[-1], "min": min(action), "max": max(action)}
    assert summary["values"]["action"][2] == {"dim": "dz", **expected}
    expected = {"dim": "", "first": False, "last": True, "min": False, "max": True}
    assert summary["values"]["is_last"] == [expected]


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
    tasks = summarize_episode(open_dataset(str(copied)), 0)["tasks"]
    assert [tuple(task.values()) for task in tasks] == [(0, 0, BOWL), (40, 1, SOUP), (70, 0, BOWL)]


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(10, 3, [0, 4, 9]), (3, 8, [0, 1, 2]), (1, 8, [0]), (100, 2, [0, 99])],
)
def test_places_are_spread_evenly(total: int, count: int, places: list[int]) -> None:
    assert spread(total, count) == places
