"""Episodes, parts of episodes and weights: what is sampled, how often, and what windows reach."""

import dataclasses
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tyro
from hypothesis import given, strategies

from converters.edit import Args, edit
from pipeline.config_checks import ConfigError
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, UserError
from pipeline.files import dump_json, from_json_text, to_json_values
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.samples.sampling import SampleOrder
from pipeline.loading.samples.splits import select
from pipeline.loading.samples.step_choice import Runs, choice_problems
from tests.small_dataset import LENGTH, write_dataset

CAMERA = "observation/image_primary"
SHAPES = {"action": (2,), "observation/proprio": (2,), CAMERA: (4, 4, 3)}
RECORD = "steps/0.arrayrecord:"


def ended(*values: float) -> np.ndarray:
    """A value at the last step of each episode, and the opposite before."""
    steps = [[float(value <= 0)] * (LENGTH - 1) + [value] for value in values]
    return np.array(steps, np.float32).ravel()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four episodes of six steps, of two instructions in turn."""
    return write_dataset(tmp_path_factory.mktemp("choice") / "data", SHAPES)


def config_of(path: pathlib.Path, settings: dict[str, Any], **fields: Any) -> DataConfig:
    observations = ("image_primary", "proprio")
    defaults = {"vocabulary": "", "observations": observations, "num_threads": 0}
    return DataConfig((DatasetConfig(str(path), **settings),), **(defaults | fields))


def loader_of(path: pathlib.Path, settings: dict[str, Any], **fields: Any) -> Loader:
    config = config_of(path, settings, **fields)
    return Loader(config, 4, [open_dataset(path)], None)


def steps_of(dataset: Dataset, **settings: Any) -> list[int]:
    config = config_of(pathlib.Path(dataset.path), settings)
    return select(dataset, config.datasets[0], config).all_steps.tolist()


def taken(loader: Loader, count: int, first: int = 0, seed: int = 3) -> list[tuple[int, int]]:
    """(dataset, step) of samples; `first` is a multiple of their number."""
    order = SampleOrder(loader._selections, loader._weights, seed, batch_size=count)
    samples = order[first // count]
    return [*zip(samples.dataset.tolist(), samples.step.tolist(), strict=True)]


# --- which steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"episode_list": (3, 0)}, [*range(6), *range(18, 24)]),
        ({"episode_list": (0, 2, 3), "episodes": (1, 3)}, [*range(12, 18)]),
        ({"trim": (1, 2)}, [1, 2, 3, 7, 8, 9, 13, 14, 15, 19, 20, 21]),
        ({"trim": (0, 5)}, [0, 6, 12, 18]),
        ({"segments": ((2, 0, 2), (0, 4, 6), (0, 1, 2))}, [1, 4, 5, 12, 13]),
        ({"segments": ((2, 0, 2), (0, 1, 6)), "trim": (2, 1)}, [2, 3, 4]),
        ({"segments": ((2, 0, 2), (1, 1, 3)), "tasks": ("open*",)}, [7, 8]),
    ],
)
def test_steps_are_chosen(path: pathlib.Path, settings: dict, expected: list[int]) -> None:
    assert steps_of(open_dataset(path), **settings) == expected


def test_changes_of_the_instruction_and_parts_cut_each_other(
    tmp_path: pathlib.Path, reseal: Callable
) -> None:
    out = write_dataset(tmp_path / "data", SHAPES)
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["task_changes"] = [
        {"episode": 0, "step": 2, "task": 1},
        {"episode": 0, "step": 4, "task": 0},
    ]
    (out / "dataset.json").write_text(json.dumps(manifest))
    reseal(out)
    dataset = open_dataset(out)
    assert steps_of(dataset, tasks=("lift*",)) == [0, 1, 4, 5, *range(12, 18)]
    assert steps_of(dataset, tasks=("lift*",), trim=(1, 1)) == [1, 4, *range(13, 17)]
    assert steps_of(dataset, tasks=("open*",), segments=((0, 1, 3), (0, 3, 5))) == [2, 3]


def borders(sizes: list[int]) -> np.ndarray:
    """Ascending stretches that share no step: every second of these sizes is a gap."""
    return np.cumsum(sizes)[: len(sizes) // 2 * 2].reshape(-1, 2)


@given(
    strategies.lists(strategies.integers(1, 4), max_size=9),
    strategies.lists(strategies.integers(1, 4), max_size=9),
)
def test_stretches_inside_spans_have_the_steps_of_both(runs: list[int], spans: list[int]) -> None:
    one, other = borders(runs), borders(spans)
    rows = np.arange(len(one))
    found = Runs(one[:, 0], one[:, 1], rows, rows).inside(other)
    steps = [s for a, b in zip(found.starts, found.ends, strict=True) for s in range(a, b)]
    sets = [{s for a, b in each.tolist() for s in range(a, b)} for each in (one, other)]
    assert steps == sorted(sets[0] & sets[1])
    assert all(found.starts < found.ends)
    for start, row in zip(found.starts, found.episodes, strict=True):
        assert one[row, 0] <= start < one[row, 1]


# --- what their windows reach


def test_windows_chunks_and_goals_stay_inside_a_part(path: pathlib.Path) -> None:
    # Steps 2 to 4 of episode 1.
    loader = loader_of(
        path,
        {"segments": ((1, 2, 5),)},
        window_size=3,
        action_horizon=3,
        conditioning="image_conditioned",
    )
    order = loader.order()
    reader: Any = loader.transforms()[0]
    for number in range(6):
        samples = order[number]
        windows = reader.locate(samples)
        for row, step in enumerate(samples.step.tolist()):
            now = step - 6
            assert 2 <= now < 5
            history = windows.history[row].tolist()
            assert history == [max(now - 2, 2), max(now - 1, 2), now]
            assert windows.history_mask[row].tolist() == [now >= 4, now >= 3, True]
            assert windows.chunk[row, 2].tolist() == [min(now + h, 4) for h in range(3)]
            goal = int(windows.goal[row])
            assert now <= goal < 5
            assert windows.chunk_mask[row, 2].tolist() == [now + h < goal for h in range(3)]
    batch = loader.window(6 + 2)
    assert batch["observation"]["timestep"].tolist() == [2, 2, 2]
    whole = loader_of(path, {}, window_size=3, action_horizon=3).window(6 + 2)
    np.testing.assert_array_equal(
        batch["observation"]["image_primary"][-1], whole["observation"]["image_primary"][-1]
    )
    # A step outside all parts can be read; its window stays in its episode.
    outside = reader.locate(dataclasses.replace(order[0], step=np.array([7, 7, 11, 0])))
    assert outside.history[:, 0].tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("mask", ["own", "octo"])
def test_a_part_is_read_like_an_episode_of_its_own(path: pathlib.Path, mask: str) -> None:
    dataset = open_dataset(path)
    values = {key: np.stack(list_of(dataset, key)) for key in ("action", "observation/proprio")}
    loader = loader_of(path, {"trim": (2, 1)}, window_size=4, octo_action_mask=mask == "octo")
    batch = loader.read(0, [2, 3, 4])
    t = np.array([0, 1, 2])
    steps = t[:, None] + np.arange(-3, 1)
    real = batch["observation"]["timestep_pad_mask"]
    np.testing.assert_array_equal(real, steps >= 0)
    np.testing.assert_array_equal(batch["observation"]["timestep"], np.maximum(steps, 0) + 2)
    raw = loader.unnormalize("action", batch["action"])
    chunk = np.minimum(np.maximum(steps, 0)[..., None] + np.arange(4), 2) + 2
    np.testing.assert_allclose(raw, values["action"][0][chunk], atol=1e-5)
    # Octo's mask ends a step later, and does not repeat the first step.
    first, end = (steps, 4) if mask == "octo" else (np.maximum(steps, 0), 3)
    real = first[..., None] + np.arange(4) < end
    np.testing.assert_array_equal(batch["action_pad_mask"][..., 0], real)


def list_of(dataset: Dataset, key: str) -> list[np.ndarray]:
    records = (dataset.columns["episodes"].read(e) for e in range(dataset.num_episodes))
    return [np.asarray(record[key]) for record in records]


def test_a_corrupt_record_outside_a_part_concerns_no_sample(path: pathlib.Path) -> None:
    dataset = open_dataset(path)
    config = config_of(path, {"trim": (2, 0), "excluded": (f"{RECORD}7",)}, window_size=3)
    selection = select(dataset, config.datasets[0], config)
    assert selection.unsampled.tolist() == [7]
    assert selection.steps(np.arange(16)).tolist() == selection.all_steps.tolist()
    config = config_of(path, {"trim": (1, 0), "excluded": (f"{RECORD}7",)}, window_size=3)
    assert select(dataset, config.datasets[0], config).unsampled.tolist() == [7, 8, 9]


# --- success


@pytest.mark.parametrize("key", ["success", "next/success"])
def test_success_is_the_feature_at_the_last_step(tmp_path: pathlib.Path, key: str) -> None:
    values = ended(1, 0, 1, -1)
    for number, stored in enumerate((values, values > 0)):
        out = write_dataset(tmp_path / str(number), SHAPES | {key: stored})
        dataset = open_dataset(out)
        successes = [*range(6), *range(12, 18)]
        assert steps_of(dataset, outcome="success") == successes
        assert steps_of(dataset, outcome="failure") == [*range(6, 12), *range(18, 24)]
        # What is declared wins.
        edit(Args(str(out), failed="0-2"))
        assert steps_of(open_dataset(out), outcome="success") == [*range(18, 24)]
        edit(Args(str(out), failed="none"))
        with pytest.raises(UserError, match="found none in: failures only; split train"):
            steps_of(open_dataset(out), outcome="failure")
        edit(Args(str(out), failed="unknown"))
        assert steps_of(open_dataset(out), outcome="success") == successes


def test_recorded_success_is_declared_so_that_no_trajectory_is_read(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = write_dataset(tmp_path / "out", SHAPES | {"success": ended(1, -1, 0, math.nan)})
    settings = {"outcome": "failure", "failure_weight": 0.5}
    monkeypatch.setattr("pipeline.loading.samples.start_reading._NOTICEABLE_S", 0.0)
    before = loader_of(out, settings).state(0)
    (message,) = caplog.messages
    assert message == (
        f"{out}: success is read from the trajectory of every episode at each start, 1 of 4 so "
        f"far; declare it once: octograin edit {out} --failed recorded"
    )
    edit(Args(str(out), failed="3"))
    (line,) = edit(Args(str(out), failed="recorded")).splitlines()
    assert line.endswith('failed_episodes: "3" -> "1-3"')
    # An excluded one may be included again.
    edit(Args(str(out), failed="none", exclude="1"))
    edit(Args(str(out), failed="recorded"))
    edit(Args(str(out), include="1"))
    assert open_dataset(out).manifest.failed_episodes == (1, 2, 3)
    caplog.clear()
    (out / "episodes" / "0.arrayrecord").write_bytes(
        bytes((out / "episodes" / "0.arrayrecord").stat().st_size)
    )
    assert loader_of(out, settings).state(0) == before
    assert not caplog.messages
    # Excluded episodes may be corrupt; others may not.
    with pytest.raises(DataError, match="expected 4 records"):
        edit(Args(str(out), failed="recorded"))


def test_no_feature_is_no_recorded_success(path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="neither declared failures nor a feature success"):
        edit(Args(str(path), failed="recorded"))


def test_unknown_success_is_an_error_that_says_how_to_declare_it(path: pathlib.Path) -> None:
    message = (
        r"outcome and failure_weight: expected to know which episodes succeeded; found neither "
        r"declared failures nor a feature success or next/success of one number. Declare them: "
        rf"octograin edit {path} --failed 3,7-9"
    )
    for settings in ({"outcome": "success"}, {"failure_weight": 0.5}):
        with pytest.raises(UserError, match=message):
            loader_of(path, settings)


# --- how often


@pytest.mark.parametrize(("twice", "half"), [(2, 0.5), (2e-9, 5e-10), (2e30, 5e29)])
def test_tasks_are_sampled_as_often_as_their_weights_say(
    path: pathlib.Path, twice: float, half: float
) -> None:
    # 12 steps each of "lift the cup", in episodes 0 and 2, and "open the drawer".
    loader = loader_of(path, {"task_weights": (("lift*", twice), ("*", half))})
    lift = [*range(6), *range(12, 18)]
    others = sorted({*range(24)} - {*lift})
    # Four to one: in 60 samples each step four times or once, exactly; and so in every 60.
    expected = Counter({(0, step): 4 for step in lift} | {(0, step): 1 for step in others})
    for first in (0, 60, 6_000_000):
        assert Counter(taken(loader, 60, first)) == expected
    # None comes again before all others of its weight have come, in a new order each time.
    turns = [step for _, step in taken(loader, 60) if step in lift]
    rounds = [tuple(turns[place : place + 12]) for place in range(0, 48, 12)]
    assert all(sorted(one) == lift for one in rounds)
    assert len({*rounds}) == 4


def test_weights_of_tasks_and_of_failures_multiply(tmp_path: pathlib.Path) -> None:
    out = write_dataset(tmp_path / "data", SHAPES)
    edit(Args(str(out), failed="1-2"))
    loader = loader_of(out, {"task_weights": (("lift*", 3.0),), "failure_weight": 0.25})
    # Episode 0: 3; 1: 0.25; 2: 0.75; 3: 1. In units of a quarter: 12, 1, 3, 4.
    expected = {(0, step): (12, 1, 3, 4)[step // 6] for step in range(24)}
    assert Counter(taken(loader, 6 * 20)) == expected


def test_weighted_steps_count_by_their_weight_beside_other_datasets(
    path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = write_dataset(tmp_path / "other", SHAPES, num_episodes=2)

    def loader(settings: dict[str, Any], *weights: float) -> Loader:
        parts = (
            DatasetConfig(str(path), *weights[:1], **settings),
            DatasetConfig(str(other), *weights[1:]),
        )
        config = dataclasses.replace(config_of(path, {}), datasets=parts)
        return Loader(config, 4, [open_dataset(path), open_dataset(other)], None)

    # 12 steps of the weight 2 and 12 of 1, beside 12 of 1.
    weighted = loader({"task_weights": (("open*", 2.0),)})
    assert weighted.shares == pytest.approx((0.75, 0.25))
    found = Counter(taken(weighted, 48))
    assert Counter(found.values()) == Counter({1: 24, 2: 12})
    assert {dataset for (dataset, _), number in found.items() if number == 2} == {0}
    # A share of its own stays, whatever the weights inside are.
    halves = loader({"task_weights": (("open*", 2.0),)}, 1.0, 1.0)
    found = Counter(taken(halves, 72))
    assert Counter(dataset for dataset, _ in found.elements()) == {0: 36, 1: 36}
    # A weight that all steps have is no reason for another order inside the dataset.
    assert loader({"task_weights": (("*", 2.0),)}).shares == pytest.approx((0.8, 0.2))
    # The other dataset's own order does not depend on these weights.
    orders = [[s for d, s in taken(each, 72) if d == 1] for each in (weighted, loader({}))]
    assert orders[0] == orders[1][: len(orders[0])]


def test_a_weighted_order_is_pinned(path: pathlib.Path) -> None:
    # May change with Grain's shuffle, the turns or the seeds of strata only: a resumed run would
    # read other steps.
    loader = loader_of(path, {"task_weights": (("lift*", 2.0),)})
    assert [step for _, step in taken(loader, 12, seed=7)] == [
        4,
        8,
        12,
        3,
        10,
        16,
        2,
        23,
        17,
        13,
        6,
        14,
    ]


def test_a_weight_whose_steps_cannot_be_read_is_reported(tmp_path: pathlib.Path) -> None:
    out = write_dataset(tmp_path / "data", SHAPES, num_episodes=2)
    settings = {"task_weights": (("open*", 2.0),), "excluded": ("episodes/0.arrayrecord:1",)}
    with pytest.raises(DataError, match="steps of the weight 2: expected a selected step"):
        loader_of(out, settings)


# --- what does not fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episode_list": (1, -2)}, "episode_list: expected different numbers .*found -2"),
        ({"episode_list": (1, 2**63)}, "episode_list: expected different .*found 922337203685477"),
        ({"segments": ((2**63, 0, 3),)}, r"one after the last; found \(9223372036854775808, 0, 3"),
        ({"episode_list": (1, 3, 1)}, "episode_list: expected different numbers .*found 1. Name"),
        ({"trim": (-1, 0)}, r"trim: expected two numbers of steps, of 0 or more; found \(-1, 0\)"),
        ({"segments": ((0, 3, 3),)}, r"the one after the last; found \(0, 3, 3\). Count from 0"),
        ({"segments": ((1, 0, 4), (1, 3, 5))}, r"share no step; found \(1, 0, 4\) and \(1, 3, 5\)"),
        ({"failure_weight": 0.0}, "failure_weight: expected a finite .*outcome='success'"),
        (
            {"failure_weight": math.nan},
            "failure_weight: expected a finite number above 0; found nan",
        ),
        ({"task_weights": (("a*", -1.0),)}, r"finite and above 0; found 'a\*' -1.0. To leave"),
        ({"task_weights": (("a*", 1.0), ("a*", 2.0))}, r"each glob once; found 'a\*'. The first"),
        ({"task_weights": (("a*", True),)}, r"task_weights.0.1: expected a number; found True"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetConfig("d", **settings)


def test_all_that_the_datasets_lack_is_one_error(tmp_path: pathlib.Path) -> None:
    out = write_dataset(tmp_path / "data", SHAPES)
    edit(Args(str(out), exclude="2"))
    settings = {
        "episode_list": (1, 2, 4, 5, 6),
        "segments": ((0, 2, 9), (7, 0, 1)),
        "tasks": ("fly*",),
        "task_weights": (("swim*", 2.0), ("open*", 1.0)),
        "failure_weight": 0.5,
        "excluded": ("seventeen",),
    }
    parts = (DatasetConfig(str(out), **settings), DatasetConfig(str(out), episodes=(0, 5)))
    config = dataclasses.replace(config_of(out, {}), datasets=parts)
    with pytest.raises(UserError) as caught:
        Loader(config, 4, [open_dataset(out)] * 2, None)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(
        "data.datasets: expected choices that fit the datasets; found 9 problems"
    )
    for line, message in zip(
        lines,
        [
            "episode_list: expected episodes from 0 to 3; found 4-6. Take them out",
            f"episodes that are not excluded from the dataset; found 2. Take them out, or use them "
            f"again: octograin edit {out} --include 2",
            "segments: expected episodes from 0 to 3; found 7",
            "segments: expected ends of at most the steps of their episodes; found 0 2 9 of 6",
            "tasks: expected a glob over its instructions: lift the cup; open the drawer; found",
            "task_weights: expected a glob over its instructions: lift the cup; open the drawer",
            "expected to know which episodes succeeded",
            "excluded: expected FILE:RECORD of one of its shards",
            "episodes 0 5: expected at most 4",
        ],
        strict=True,
    ):
        assert message in line


def test_parts_that_leave_nothing_are_named(path: pathlib.Path) -> None:
    message = (
        "found none in: tasks 'lift.*'; episodes 0-1; without the first 4 steps and the last "
        "2 steps of each episode; 1 segment of 1 episode, 2 steps; split train"
    )
    settings = {"tasks": ("lift*",), "episode_list": (0, 1), "trim": (4, 2)}
    with pytest.raises(UserError, match=message):
        loader_of(path, {**settings, "segments": ((0, 0, 2),)})
    with pytest.raises(UserError, match="found none in: without the first 1,000,000,000,000,000,0"):
        loader_of(path, {"trim": (10**30, 0)})


# --- identity, words, flags


def test_a_choice_is_described_in_words(path: pathlib.Path) -> None:
    settings = {"episode_list": (2, 0, 1), "trim": (1, 0), "task_weights": (("lift*", 2.0),)}
    loader = loader_of(path, settings)
    words = "episodes 0-2; without the first 1 step of each episode; 'lift*' 2 times as often"
    assert f"{path}: 24 steps, 100.0%: {words}" in str(loader)
    (described,) = loader.describe_datasets().values()
    assert described["choice"] == words
    (described,) = loader_of(path, {}).describe_datasets().values()
    assert "choice" not in described


def test_a_config_that_chooses_nothing_is_written_as_before() -> None:
    values = to_json_values(DatasetConfig("d"))
    assert list(values) == [
        *("path", "weight", "tasks", "episodes", "missing", "excluded", "commands"),
    ]


def test_a_choice_survives_its_file_and_its_flags() -> None:
    part = DatasetConfig(
        "d",
        episode_list=(0, 1, 15),
        trim=(10, 5),
        segments=((3, 10, 50), (7, 0, 20)),
        outcome="success",
        failure_weight=0.5,
        task_weights=(("open*", 2.0), ("*drawer*", 0.5)),
    )
    assert (
        from_json_text(DatasetConfig, dump_json(to_json_values(part)), where="", remedy="") == part
    )
    flags = (
        "--path d --episode_list 0 1 15 --trim 10 5 --segments 3 10 50 7 0 20 --outcome success "
        "--failure_weight 0.5 --task_weights open* 2 *drawer* 0.5"
    )
    assert tyro.cli(DatasetConfig, args=flags.split(), use_underscores=True) == part


@pytest.mark.parametrize(
    "change",
    [
        {"trim": (0, 1)},
        {"segments": ((0, 0, 6), (1, 0, 6), (2, 0, 6), (3, 0, 6))},
        {"segments": ((0, 0, 3), (0, 3, 6), (1, 0, 6), (2, 0, 6), (3, 0, 6))},
        {"episode_list": (0, 1, 2)},
        {"task_weights": (("lift*", 2.0),)},
    ],
)
def test_another_choice_is_not_silent_on_resume(path: pathlib.Path, change: dict) -> None:
    state = loader_of(path, {}).state(5)
    changed = loader_of(path, change)
    words = re.escape(changed.config.datasets[0].choice())
    message = rf"{path}: choice \(none noted\) then, \({words}\) now, .* add --new_mixture"
    with pytest.raises(DataError, match=message):
        changed.restore(state)
    assert changed.restore(changed.state(5)) == 5


def test_other_words_for_the_same_steps_are_no_difference(path: pathlib.Path) -> None:
    state = loader_of(path, {}).state(5)
    assert loader_of(path, {"episode_list": (0, 1, 2, 3), "tasks": ("*",)}).restore(state) == 5


def test_a_resumed_loader_gives_the_same_weighted_batches(path: pathlib.Path) -> None:
    settings = {"task_weights": (("lift*", 2.0),), "trim": (1, 1)}
    loader = loader_of(path, settings)
    stream = loader.batches()
    whole = [next(stream).fingerprint for _ in range(9)]
    stream.close()
    resumed = loader_of(path, settings).batches(loader.restore(loader.state(4)))
    assert [next(resumed).fingerprint for _ in range(5)] == whole[4:]
    resumed.close()


def test_statistics_are_those_of_the_whole_dataset(path: pathlib.Path) -> None:
    chosen = loader_of(path, {"trim": (1, 1), "episode_list": (0,)})
    assert chosen.statistics["action"][0].count == 24


def test_a_dataset_that_is_listed_twice_has_shares_of_its_tasks(path: pathlib.Path) -> None:
    parts = (
        DatasetConfig(str(path), 0.75, tasks=("lift*",)),
        DatasetConfig(str(path), 0.25, tasks=("open*",), trim=(4, 0)),
    )
    config = dataclasses.replace(config_of(path, {}), datasets=parts)
    loader = Loader(config, 4, [open_dataset(path)] * 2, None)
    lift = {*range(6), *range(12, 18)}
    assert Counter(step in lift for _, step in taken(loader, 16)) == {True: 12, False: 4}
    (described,) = loader.describe_datasets().values()
    assert described["choice"] == (
        "tasks 'lift*' | tasks 'open*'; without the first 4 steps of each episode"
    )
    assert [loader.longest_episode(number) for number in (0, 1)] == [6, 2]


def test_an_error_lists_a_few_of_many_instructions(path: pathlib.Path) -> None:
    tasks = tuple(f"open drawer {number}" for number in range(1000))
    dataset = open_dataset(path)
    manifest = dataclasses.replace(dataset.manifest, tasks=tasks)
    part = DatasetConfig(dataset.path, tasks=("close*",))
    (error,) = choice_problems(dataclasses.replace(dataset, manifest=manifest), part)
    expected = "a glob over its instructions: open drawer 0; open drawer 1; "
    assert error.expected.startswith(expected)
    assert error.expected.endswith("; open drawer 4 and 995 more")
