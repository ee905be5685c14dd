import dataclasses
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
import xxhash

from converters.edit import Args, edit
from converters.job.convert import convert
from converters.mapping.mapping_registry import registered
from converters.rlds.rlds_source import RldsSource
from converters.sources.open_source import open_source
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError, RecordError, UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.samples.selection import Selection
from pipeline.loading.samples.splits import _other_fraction, episode_places, select

# Episodes of the bundled set: 102, 124, 123 and 106 steps, from 0, 102, 226 and 349.


@pytest.fixture(scope="module")
def dataset(mini_dataset: pathlib.Path) -> Dataset:
    return open_dataset(str(mini_dataset))


def chosen(dataset: Dataset, *, window_size: int = 2, **settings: object) -> Selection:
    """A selection by fields of `DatasetConfig` and `DataConfig`."""
    names = {field.name for field in dataclasses.fields(DatasetConfig)}
    part = DatasetConfig(dataset.path, **{k: v for k, v in settings.items() if k in names})
    rest = {k: v for k, v in settings.items() if k not in names}
    return select(dataset, part, DataConfig((part,), "unused", window_size=window_size, **rest))


def steps(selection: Selection) -> list[int]:
    return selection.steps(np.arange(selection.num_steps)).tolist()


def test_without_filters_every_step_is_selected(dataset: Dataset) -> None:
    assert steps(chosen(dataset)) == list(range(455))


def test_range_of_episodes_is_selected(dataset: Dataset) -> None:
    assert steps(chosen(dataset, episodes=(1, 3))) == list(range(102, 349))


def test_tasks_are_selected_by_globs(dataset: Dataset) -> None:
    tasks, of_episodes = dataset.manifest.tasks, dataset.manifest.episode_tasks
    selection = chosen(dataset, tasks=(f"{tasks[1][:-3]}*",))
    starts = dataset.episode_starts
    expected = [
        step
        for episode, task in enumerate(of_episodes)
        if task == 1
        for step in range(starts[episode], starts[episode + 1])
    ]
    assert 0 < len(expected) < 455
    assert steps(selection) == expected


def test_only_the_steps_that_have_the_task_are_selected(
    copied: pathlib.Path, edit_json: Callable
) -> None:
    changes = [{"episode": 1, "step": 10, "task": 1}, {"episode": 1, "step": 20, "task": 0}]
    edit_json(
        copied / "dataset.json",
        lambda manifest: manifest.update(task_changes=changes, episode_tasks=[0, 0, 0, 1]),
    )
    changed = open_dataset(str(copied))
    selection = chosen(changed, tasks=(changed.manifest.tasks[1],))
    assert steps(selection) == [*range(112, 122), *range(349, 455)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("fly*",)}, r"tasks: expected a glob over .*bowl.*found 'fly\*'"),
        ({"episodes": (2, 5)}, "episodes 2 5: expected at most 4, .*found 5"),
        (
            {"excluded": ("steps/00000-of-00002.arrayrecord:900",)},
            "excluded: expected FILE:RECORD .*found steps/00000-of-00002.arrayrecord:900. Copy",
        ),
        ({"excluded": ("seventeen",)}, "excluded: expected FILE:RECORD .*found seventeen"),
    ],
)
def test_filter_that_names_nothing_is_reported(
    dataset: Dataset, settings: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen(dataset, **settings)


def test_filters_that_leave_nothing_are_named_together(dataset: Dataset) -> None:
    other = dataset.manifest.tasks[1 - dataset.manifest.episode_tasks[0]]
    with pytest.raises(UserError, match=r"found none in: tasks .*; episode 0; split train"):
        chosen(dataset, tasks=(other,), episodes=(0, 1))


def test_split_is_a_partition_of_the_episodes(dataset: Dataset) -> None:
    fraction = float(np.sort(episode_places(dataset))[1:3].mean())
    held_out = chosen(dataset, split="validation", validation_fraction=fraction)
    trained = chosen(dataset, split="train", validation_fraction=fraction)
    assert sorted(steps(held_out) + steps(trained)) == list(range(455))
    assert len({dataset.locate(np.array(steps(s)))[0].tobytes() for s in (held_out, trained)}) == 2
    assert steps(chosen(dataset, split="all", validation_fraction=fraction)) == list(range(455))


def test_places_of_the_split_are_pinned(dataset: Dataset) -> None:
    # May change with the bundled data only: an episode that changes sides was seen in training.
    places = episode_places(dataset)
    np.testing.assert_allclose(places, [0.151436, 0.449222, 0.898691, 0.655136], atol=1e-6)


@pytest.fixture
def before(copied: pathlib.Path, edit_json: Callable) -> Dataset:
    """The bundled set as a release before 0.9.0 wrote it: without hashes of its actions."""
    edit_json(copied / "dataset.json", lambda manifest: manifest.pop("action_hashes"))
    return open_dataset(str(copied))


def test_places_are_stored_so_that_no_trajectory_is_read(
    dataset: Dataset, before: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert before.manifest.action_hashes == ()
    assert before.manifest.digest() == dataset.manifest.digest()
    read = [np.asarray(before.columns["episodes"].read(i)["action"]).tobytes() for i in range(4)]
    expected = [xxhash.xxh3_64_intdigest(actions) / 2**64 for actions in read]
    assert episode_places(before).tolist() == episode_places(dataset).tolist() == expected
    settings = {"split": "validation", "validation_fraction": 0.5}
    digest = chosen(before, **settings).digest()
    (pathlib.Path(before.path) / "episodes" / "00000-of-00002.arrayrecord").write_bytes(b"")
    moved = dataclasses.replace(dataset, path=before.path)
    assert chosen(moved, **settings).digest() == digest
    with pytest.raises(DataError, match=r"00000-of-00002.arrayrecord: expected 2 records"):
        chosen(dataclasses.replace(before), **settings)
    assert not caplog.text


def test_a_split_that_takes_long_says_how_later_ones_do_not(
    before: Dataset, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.loading.samples.start_reading._NOTICEABLE_S", 0.0)
    episode_places(before, lost=(0,))
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == (
        f"{before.path}: the split reads every trajectory at each start, 1 of 3 so far; store "
        f"what it needs once: octograin edit {before.path}"
    )


def test_a_record_that_is_excluded_later_does_not_move_the_split(dataset: Dataset) -> None:
    held_out = {"split": "validation", "validation_fraction": 0.3}
    record = ("episodes/00000-of-00002.arrayrecord:0",)
    digest = chosen(dataset, validation_fraction=0.3).digest()
    assert chosen(dataset, validation_fraction=0.3, excluded=record).digest() == digest
    # The only one that is held out.
    with pytest.raises(DataError, match="a selected step whose sample reads no excluded record"):
        chosen(dataset, excluded=record, **held_out)


def test_split_is_stable_under_adding_and_moving_episodes(
    mini_rlds: pathlib.Path, dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    source = open_source(str(mini_rlds))
    fewer = dataclasses.replace(source, shards=source.shards[1:])
    assert isinstance(fewer, RldsSource)
    convert(fewer, tmp_path / "fewer", registered("libero"))
    moved = episode_places(open_dataset(str(tmp_path / "fewer")))
    np.testing.assert_array_equal(moved, episode_places(dataset)[2:])


@pytest.mark.parametrize(
    ("split", "fraction", "count"), [("validation", 1e-9, 1), ("train", 0.999999, 3)]
)
def test_empty_side_of_a_split_is_refused_with_a_fraction_that_fits(
    dataset: Dataset, split: str, fraction: float, count: int
) -> None:
    message = rf"split {split}: .*use validation_fraction=0\.\d+, which holds out {count} of 4, or"
    with pytest.raises(UserError, match=message) as caught:
        chosen(dataset, split=split, validation_fraction=fraction)
    proposed = float(re.findall(r"validation_fraction=(0\.\d+)", str(caught.value))[0])
    places = episode_places(dataset)
    assert (places < proposed).sum() == count
    assert chosen(dataset, split=split, validation_fraction=proposed).num_steps


@pytest.mark.parametrize(
    ("places", "is_validation", "proposed"),
    [
        ([0.648, 0.7], True, "=0.7, which holds out 1 of 2"),
        ([0.95, 0.99], True, "=0.96, which holds out 1 of 2"),
        ([0.9999, 0.99999], True, "=0.999901, which holds out 1 of 2"),
        ([0.12, 0.05], False, "=0.1, which holds out 1 of 2"),
        ([0.004], False, "=0.004, which holds out 0 of 1"),
    ],
)
def test_the_proposed_fraction_has_few_digits(places, is_validation, proposed) -> None:
    assert proposed in _other_fraction(np.array(places), is_validation=is_validation)


STEP_9 = "steps/00000-of-00002.arrayrecord:9"
TOKENS_9 = "vggt_tokens/00000-of-00002.arrayrecord:9"
EVERYTHING = ("image_primary", "image_wrist", "proprio", "vggt_tokens")


def unsampled(selection: Selection) -> list[int]:
    """Selected steps that no sample stands at."""
    everything = set(range(selection.num_steps))
    return sorted(everything - set(steps(selection)))


def test_sample_whose_window_has_an_excluded_record_gives_way_to_another(
    dataset: Dataset,
) -> None:
    selection = chosen(dataset, window_size=3, excluded=(STEP_9,))
    assert unsampled(selection) == [9, 10, 11]
    others = [step for step in range(455) if step not in (9, 10, 11)]
    assert [steps(selection)[step] for step in others] == others
    assert selection.digest() == chosen(dataset, window_size=3).digest()


def test_stand_ins_are_pinned_and_scattered(dataset: Dataset) -> None:
    # May change with their hash only: a resumed run would read other steps.
    assert steps(chosen(dataset, window_size=3, excluded=(STEP_9,)))[9:12] == [319, 122, 444]
    lost = chosen(dataset, excluded=("episodes/00000-of-00002.arrayrecord:1",))
    assert unsampled(lost) == list(range(102, 226))
    counts = np.bincount(steps(lost), minlength=455)
    assert counts.max() <= 5  # 124 steps give way to 331


def test_windows_of_the_next_episode_are_not_concerned(dataset: Dataset) -> None:
    excluded = ("steps/00000-of-00002.arrayrecord:101",)
    assert unsampled(chosen(dataset, window_size=3, excluded=excluded)) == [101]
    last = ("steps/00001-of-00002.arrayrecord:228",)
    assert unsampled(chosen(dataset, window_size=3, excluded=last)) == [454]


def test_only_samples_that_would_read_the_record_are_concerned(dataset: Dataset) -> None:
    unread = chosen(dataset, excluded=(TOKENS_9,))
    assert unsampled(unread) == []
    read = chosen(dataset, excluded=(TOKENS_9,), observations=EVERYTHING, window_size=3)
    assert unsampled(read) == [9, 10, 11]
    current = chosen(
        dataset,
        excluded=(TOKENS_9,),
        observations=EVERYTHING,
        window_size=3,
        current_only=("vggt_tokens",),
    )
    assert unsampled(current) == [9]
    two = (("vggt_tokens", 2),)
    shorter = chosen(
        dataset, excluded=(TOKENS_9,), observations=EVERYTHING, window_size=3, windows=two
    )
    assert unsampled(shorter) == [9, 10]


def test_goal_with_an_excluded_image_gives_way_to_the_one_before(dataset: Dataset) -> None:
    selection = chosen(dataset, excluded=(STEP_9,))
    found = selection.goals(np.array([3, 8, 11]), np.array([9, 9, 12]))
    np.testing.assert_array_equal(found, [8, 8, 12])
    tokens = chosen(dataset, excluded=(TOKENS_9,), observations=EVERYTHING)
    np.testing.assert_array_equal(tokens.goals(np.array([3]), np.array([9])), [9])


def spoil_trajectory(dataset: Dataset, episode: int) -> Dataset:
    """Changes one bit of an episode's actions on the disk; returns the dataset opened again."""
    actions = np.asarray(dataset.columns["episodes"].read(episode)["action"])
    for path in (pathlib.Path(dataset.path) / "episodes").iterdir():
        data = bytearray(path.read_bytes())
        if (place := data.find(actions.tobytes())) >= 0:
            data[place] ^= 1
            path.write_bytes(data)
    return open_dataset(dataset.path)


def test_excluded_trajectory_is_not_needed_for_the_split(before: Dataset) -> None:
    spoiled = spoil_trajectory(before, 2)
    with pytest.raises(RecordError) as caught:
        chosen(spoiled, validation_fraction=0.3)
    record = caught.value.record
    assert record == "episodes/00001-of-00002.arrayrecord:0"
    kept = chosen(spoiled, validation_fraction=0.3, excluded=(record,))
    episodes = set(spoiled.locate(np.array(steps(kept)))[0].tolist())
    assert episodes == {1, 3}  # the first one is held out


def test_a_run_resumes_its_split_after_hashes_were_added(before: Dataset) -> None:
    path = pathlib.Path(before.path) / "episodes" / "00000-of-00002.arrayrecord"
    whole = path.read_bytes()
    spoiled = spoil_trajectory(before, 0)
    settings = {
        "validation_fraction": 0.5,
        "excluded": ("episodes/00000-of-00002.arrayrecord:0",),
    }
    trained = chosen(spoiled, **settings).digest()
    held_out = chosen(spoiled, split="validation", **settings).digest()
    assert edit(Args(before.path)).splitlines() == [
        f"{before.path}: hashes of the actions of 3 episodes added",
        f"{before.path}: no hash of 0, whose trajectories are corrupt (octograin verify "
        f"{before.path}): a split does not hold them out",
    ]
    hashed = open_dataset(before.path)
    assert hashed.manifest.action_hashes[0].startswith("f" * 16)
    assert hashed.manifest.digest() == before.manifest.digest()
    assert chosen(hashed, **settings).digest() == trained
    assert chosen(hashed, split="validation", **settings).digest() == held_out
    # Read again where the record was repaired.
    path.write_bytes(whole)
    assert edit(Args(before.path)) == f"{before.path}: hashes of the actions of 1 episode added\n"
    places = episode_places(open_dataset(before.path))
    np.testing.assert_allclose(places, [0.151436, 0.449222, 0.898691, 0.655136], atol=1e-6)
    unchanged = f"{before.path}: unchanged; it has checksums and hashes of its actions\n"
    assert edit(Args(before.path)) == unchanged


def test_nothing_left_to_read_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="a selected step whose sample reads no excluded record"):
        chosen(dataset, episodes=(1, 2), excluded=("episodes/00000-of-00002.arrayrecord:1",))


def test_episodes_that_are_excluded_in_the_manifest_are_not_sampled(copied: pathlib.Path) -> None:
    before = open_dataset(str(copied))
    edit(Args(str(copied), exclude="1"))
    changed = open_dataset(str(copied))
    assert steps(chosen(changed)) == [*range(102), *range(226, 455)]
    assert chosen(changed).digest() != chosen(before).digest()
    held_out = chosen(changed, split="validation", validation_fraction=0.7)
    assert steps(held_out) == [*range(102), *range(349, 455)]
    # Its trajectory is not read for a split either: an episode may be excluded as it is corrupt.
    manifest = dataclasses.replace(changed.manifest, action_hashes=())
    spoiled = dataclasses.replace(spoil_trajectory(changed, 1), manifest=manifest)
    again = chosen(spoiled, split="validation", validation_fraction=0.7)
    assert again.digest() == held_out.digest()


def test_an_edit_that_excludes_everything_that_is_selected_is_reported(
    copied: pathlib.Path,
) -> None:
    edit(Args(str(copied), exclude="1-2"))
    with pytest.raises(UserError, match="found none in: episodes 1-2; split train; excluded: 1-2"):
        chosen(open_dataset(str(copied)), episodes=(1, 3))
