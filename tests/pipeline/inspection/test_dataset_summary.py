import json
import pathlib
from collections.abc import Callable

import pytest

from pipeline.data.dataset import open_dataset
from pipeline.inspection.dataset_summary import LengthSummary, Summary, summarize

BOWL = "pick up the black bowl between the plate and the ramekin and place it on the plate"
SOUP = "pick up the alphabet soup and place it in the basket"


@pytest.fixture(scope="module")
def summary(mini_dataset: pathlib.Path) -> Summary:
    return summarize(open_dataset(str(mini_dataset)))


def test_lengths_and_columns_are_those_of_the_manifest(
    summary: Summary, mini_dataset: pathlib.Path
) -> None:
    assert summary.lengths == LengthSummary(episodes=4, min=102, median=114.5, max=124, total=455)
    assert [(c.name, c.per, c.records, c.shards) for c in summary.columns] == [
        ("episodes", "episode", 4, 2),
        ("steps", "step", 455, 2),
        ("vggt_tokens", "step", 455, 2),
    ]
    for column in summary.columns:
        files = (mini_dataset / column.name).iterdir()
        assert column.num_bytes == sum(file.stat().st_size for file in files)
        assert column.bytes_per_step == column.num_bytes / 455


def test_features_have_both_types_and_the_bytes_of_a_step(summary: Summary) -> None:
    features = {feature.key: feature for feature in summary.features}
    tokens = features["observation/vggt_tokens"]
    assert (tokens.dtype, tokens.shape, tokens.bytes_per_step) == ("float16", (21, 64), 2688)
    assert features["observation/image_primary"].bytes_per_step is None
    assert features["source_id"].batch_dtype is None
    assert features["action"].dims[3] == "drx"


def test_tasks_count_their_episodes_and_steps(summary: Summary) -> None:
    rows = [(t.index, t.text, t.episodes, t.steps, t.removed_steps) for t in summary.tasks]
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
    assert [(t.episodes, t.steps, t.removed_steps) for t in summary.tasks] == [
        (2, 178, 7),
        (3, 277, 0),
    ]


def test_statistics_stand_beside_the_names_of_their_dimensions(
    summary: Summary, mini_dataset: pathlib.Path
) -> None:
    stored = json.loads((mini_dataset / "statistics.json").read_text())["action"]
    dims = summary.statistics["action"]
    assert [dim.dim for dim in dims] == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    for name in ("mean", "std", "min", "p01", "p99", "max"):
        assert [getattr(dim, name) for dim in dims] == stored[name]
    assert [dim.dim for dim in summary.statistics["reward"]] == [""]
