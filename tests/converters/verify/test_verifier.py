"""Every kind of corruption is found and reported; intact data raises no complaint."""

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from converters.job.convert import convert
from converters.mapping.mapping_registry import registered
from converters.mapping.standardize import FeatureMapping
from converters.rlds.tfrecord import frame, read_records
from converters.sources.open_source import open_source
from converters.verify import __main__ as verify
from converters.verify.__main__ import open_converted
from converters.verify.findings import Findings, mismatches
from converters.verify.verifier import Verifier
from pipeline.data.conventions import Conventions
from pipeline.data.dataset_writer import WRITER_OPTIONS
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError
from pipeline.files import json_checksum

EPISODES = "episodes/00000-of-00002.arrayrecord"
STEPS = "steps/00000-of-00002.arrayrecord"
OTHER_STEPS = "steps/00001-of-00002.arrayrecord"


def findings(dataset: Path, source: Path | None = None) -> Findings:
    manifest = load_manifest(epath.Path(dataset))
    opened = None if source is None else open_converted(str(source), manifest)
    return Verifier(epath.Path(dataset), manifest, opened).run()


def text(dataset: Path, source: Path | None = None) -> str:
    return findings(dataset, source).text()


@pytest.fixture
def rlds(toy: Any, tmp_path: Path) -> Path:
    return toy.write(tmp_path / "source")


@pytest.fixture
def out(toy: Any, rlds: Path, tmp_path: Path) -> Path:
    """The toy, converted: four episodes of three steps, two shards per column."""
    convert(open_source(str(rlds)), tmp_path / "out", toy.mapping)
    return tmp_path / "out"


def converted(toy: Any, directory: Path) -> tuple[Path, Path]:
    """(dataset, source)."""
    source = toy.write(directory / "its_source")
    convert(open_source(str(source)), directory / "converted", toy.mapping)
    return directory / "converted", source


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replaces the first record of a shard by another whole one."""
    reader = array_record_module.ArrayRecordReader(str(path))
    first, *rest = reader.read_all()
    reader.close()
    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in (change(first), *rest):
        writer.write(record)
    writer.close()


def edit(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    if "checksum" in values:
        values.pop("checksum")
        values["checksum"] = json_checksum(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "name", ["shard_conversion", "job.convert", "dataset_writer", "ColumnReader", "open_dataset"]
)
def test_the_check_uses_neither_the_job_nor_the_writer_nor_the_reader(name: str) -> None:
    modules = [path.read_text() for path in Path(verify.__file__).parent.glob("*.py")]
    assert any("describe_unreadable" in text for text in modules)  # what it does use is there
    assert not any(name in text for text in modules)


# --- what is whole


def test_the_bundled_set_is_what_its_source_says(mini_rlds: Path, mini_dataset: Path) -> None:
    assert text(mini_dataset) == ""
    assert text(mini_dataset, mini_rlds) == ""


@pytest.mark.parametrize("name", ["libero_sim_no_noops", "libero_sim_vggt"])
def test_simulated_sets_are_what_their_sources_say(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "libero" / "rlds" / name
    if not source.exists():
        pytest.skip(f"{name} is missing")
    convert(open_source(str(source)), tmp_path / "out", registered("libero"))
    assert text(tmp_path / "out", source) == ""


def test_every_dtype_is_compared_under_the_dtype_law(toy: Any, tmp_path: Path) -> None:
    values = {
        "float64": [0.1, 1e-50, -3.0],
        "int8": [-128, 0, 127],
        "int64": [-(2**31), 0, 2**31 - 1],
        "uint64": [0, 1, 2**31 - 1],
        "uint8": [0, 1, 255],
        "bool": [1, 0, 1],
    }
    halves = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    for name, listed in values.items():
        toy = toy.having(f"steps/{name}", tfds.features.Scalar(np.dtype(name)), listed)
    for name, dtype in halves.items():
        feature = tfds.features.Scalar(np.dtype(dtype))
        toy = toy.declaring(f"steps/{name}", feature).holding(f"steps/{name}", [0.5, 1.0, -2.0])
        toy = toy.taking(FeatureMapping(name, f"steps/{name}", name))
    dataset, source = converted(toy, tmp_path)
    assert text(dataset, source) == ""


def test_a_value_of_the_whole_episode_is_compared_with_every_step(toy: Any, tmp_path: Path) -> None:
    feature = tfds.features.Scalar(np.float32)
    toy = toy.having("episode_metadata/mass_kg", feature, [2.5])
    dataset, source = converted(toy, tmp_path)
    assert text(dataset, source) == ""
    toy.holding("episode_metadata/mass_kg", [3.5]).write(tmp_path / "other")
    expected = r"record 0, mass_kg, step 0: expected 3\.5 at \[\], .*found 2\.5, and 2 more values"
    assert re.search(expected, text(dataset, tmp_path / "other" / "toy"))


def test_an_instruction_may_change_inside_an_episode(toy: Any, tmp_path: Path) -> None:
    toy = toy.holding("steps/language_instruction", [b"lift", b"lift", b"place"])
    dataset, source = converted(toy, tmp_path)
    assert text(dataset, source) == ""
    other = toy.holding("steps/language_instruction", [b"lift", b"place", b"place"])
    expected = r"task of episode 0, step 1: expected 'place', .*found 'lift'"
    assert re.search(expected, text(dataset, other.write(tmp_path / "other")))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 3), (3, 4)])
def test_a_range_of_episodes_is_compared_with_that_range(
    toy: Any, rlds: Path, tmp_path: Path, start: int, stop: int
) -> None:
    source = open_source(str(rlds)).select(start, stop)
    convert(source, tmp_path / "part", toy.mapping)
    assert text(tmp_path / "part", rlds) == ""


def test_a_range_of_a_source_of_another_length_is_refused(
    toy: Any, rlds: Path, tmp_path: Path
) -> None:
    convert(open_source(str(rlds)).select(1, 3), tmp_path / "part", toy.mapping)
    longer = dataclasses.replace(toy, episodes=toy.episodes + toy.episodes[:2])
    with pytest.raises(DataError, match=r"the episodes 1:3 of 4, .*; found 6 episodes"):
        findings(tmp_path / "part", longer.write(tmp_path / "longer"))


@pytest.fixture
def still(toy: Any) -> Any:
    """The toy with a no-op filter; its second step does not move, nor does its last episode."""
    moving = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    toy = toy.holding("steps/action", np.array(moving, np.float32))
    toy = toy.having("steps/is_first", tfds.features.Scalar(np.bool_), [1, 0, 0])
    *others, last = toy.episodes
    first = {**others[0], "steps/action": np.array(moving[1::-1] + moving[2:], np.float32)}
    last = {**last, "steps/action": np.zeros((3, 2), np.float32)}
    conventions = Conventions(
        "upright", "none", 10.0, no_ops="removed_at_conversion", no_op_threshold=0.01
    )
    mapping = dataclasses.replace(toy.mapping, conventions=conventions)
    return dataclasses.replace(toy, episodes=(first, *others[1:], last), mapping=mapping)


def test_a_dataset_without_no_ops_is_what_its_source_says(still: Any, tmp_path: Path) -> None:
    dataset, source = converted(still, tmp_path)
    assert load_manifest(epath.Path(dataset)).episode_lengths == (2, 2, 2)
    assert text(dataset) == ""
    assert text(dataset, source) == ""


def test_the_removed_steps_are_counted_again(still: Any, tmp_path: Path) -> None:
    dataset, source = converted(still, tmp_path)
    edit(dataset / "dataset.json", lambda m: m.update(removed_steps=[5]))
    assert re.fullmatch(
        r".*dataset\.json, removed_steps of 'lift the cup': expected 6; found 5",
        text(dataset, source),
    )


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("dtype", [np.bool_, np.float32])
@pytest.mark.parametrize("column", ["episodes", "flags"])
def test_the_new_first_step_has_the_shape_of_the_source(
    still: Any, tmp_path: Path, shape: tuple[int, ...], dtype: type, column: str
) -> None:
    taken = tuple(m for m in still.mapping.features if m.source != "steps/is_first")
    taken = (*taken, FeatureMapping("is_first", "steps/is_first", column))
    toy = dataclasses.replace(still, mapping=dataclasses.replace(still.mapping, features=taken))
    held = np.array([1, 0, 0], np.float32 if dtype is np.float32 else np.int64)
    toy = toy.declaring("steps/is_first", tfds.features.Tensor(shape=shape, dtype=dtype))
    dataset, source = converted(toy.holding("steps/is_first", held), tmp_path)
    assert text(dataset, source) == ""


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]] * 2, [b"words"]])
def test_keys_that_were_ignored_may_hold_anything(toy: Any, tmp_path: Path, values: Any) -> None:
    toy = toy.declaring("steps/debug", tfds.features.Scalar(np.float32))
    mapping = dataclasses.replace(toy.mapping, ignore=("steps/debug",))
    toy = dataclasses.replace(toy.holding("steps/debug", values), mapping=mapping)
    dataset, source = converted(toy, tmp_path)
    assert text(dataset, source) == ""


def test_one_key_may_be_two_features(toy: Any, tmp_path: Path) -> None:
    toy = toy.taking(FeatureMapping("observation/command", "steps/action"))
    dataset, source = converted(toy, tmp_path)
    assert text(dataset, source) == ""


# --- a dataset by itself


def flip(out: Path) -> None:
    data = bytearray((out / STEPS).read_bytes())
    data[data.index(b"JFIF")] ^= 1
    (out / STEPS).write_bytes(data)


def truncate(out: Path) -> None:
    (out / STEPS).write_bytes((out / STEPS).read_bytes()[:-1])


def swap(out: Path) -> None:
    (out / STEPS).rename(out / "steps" / "other")
    (out / OTHER_STEPS).rename(out / STEPS)
    (out / "steps" / "other").rename(out / OTHER_STEPS)


def manifest_with(**changes: object) -> Callable[[Path], None]:
    return lambda out: edit(out / "dataset.json", lambda manifest: manifest.update(changes))


def statistics_with(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda out: edit(out / "statistics.json", change)


def record_with(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda out: rewrite(out / file, change)


def action_with(value: float) -> Callable[[bytes], bytes]:
    """Changes the first value of the first step."""
    return lambda record: record[:32] + np.float32(value).tobytes() + record[36:]


CORRUPTIONS = {
    "a flipped byte": (flip, rf"{STEPS}, record 0: expected a readable record"),
    "a truncated shard": (truncate, rf"{STEPS}: expected (\d+) bytes; found \d+ bytes\n"),
    "its records": (truncate, rf"{STEPS}: expected 6 records; found 0"),
    "a missing shard": (
        lambda out: (out / STEPS).unlink(),
        rf"{STEPS}: expected \d+ bytes; found no such file$",
    ),
    "swapped shards": (
        swap,
        rf"{STEPS}, record 0: expected record 0 of shard 0; found record 0 of shard 1",
    ),
    "another record": (
        record_with(EPISODES, action_with(2.0)),
        rf"{EPISODES}: expected records with the checksum \w{{32}}; found \w{{32}}",
    ),
    "a value that is not finite": (
        record_with(EPISODES, action_with(np.nan)),
        rf"{EPISODES}, record 0, action, step 0: expected finite values; found \[nan, ",
    ),
    "a text that is not UTF-8": (
        record_with(EPISODES, lambda record: record[:-1] + b"\xff"),
        rf"{EPISODES}, record 0, source_id: expected a text in UTF-8; found b'demo_\\xff'",
    ),
    "an image that does not decode": (
        record_with(STEPS, lambda record: record.replace(b"\xff\xd8\xff", b"\xff\xd8\x00")),
        rf"{STEPS}, record 0, observation/image_primary: expected a readable JPEG or PNG image",
    ),
    "an image of another size": (
        record_with(STEPS, lambda record: record.replace(b"\x08\0\x08\0\x08", b"\x08\0\x08\0\x09")),
        r"record 0, observation/image_primary: expected an image of 8x8.*found 8x9",
    ),
    "no record": (
        record_with(STEPS, lambda record: b"junk"),
        rf"{STEPS}, record 0: expected a record header; found 4 bytes",
    ),
    "an edited number of statistics": (
        statistics_with(lambda s: s["action"]["mean"].__setitem__(1, 9.0)),
        r"statistics\.json: expected content with the checksum \w{32}, as dataset\.json says; "
        r"found \w{32}: .*\n.*statistics\.json, action, mean: expected \[.*\]; found \[.*, 9\.0\]",
    ),
    "other features in statistics": (
        statistics_with(lambda s: s.update(reward=s.pop("action"))),
        r"statistics\.json: expected \['action'\]; found \['reward'\]",
    ),
    "no statistics": (
        lambda out: (out / "statistics.json").unlink(),
        r"statistics\.json: expected statistics as the converter writes them; found no such file",
    ),
    "other lengths of episodes": (
        manifest_with(episode_lengths=[2, 4, 3, 3]),
        rf"{EPISODES}, record 0, action: expected 2 steps, as dataset\.json says; found 3",
    ),
    "a task of no episode": (
        manifest_with(tasks=["lift the cup", "wave"], removed_steps=[0, 0]),
        r"dataset\.json, tasks: expected tasks that an episode has; found others: 'wave'",
    ),
    "the hash of other actions": (
        manifest_with(action_hashes=["0" * 32, "1" * 32]),
        r"dataset\.json, action_hashes, episode 3: expected \w{16}, as .*record 1; found 1{16}$",
    ),
    "a shard that is not listed": (
        lambda out: shutil.copy(out / STEPS, out / "steps" / "mine.arrayrecord"),
        r"steps/mine\.arrayrecord: expected only the files that dataset\.json lists",
    ),
    "a shard that was being written": (
        lambda out: (out / "steps" / ".00000-of-00002.arrayrecord.7.tmp").touch(),
        r"\.7\.tmp: expected only the files that dataset\.json lists; found one more",
    ),
}


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_is_found_without_the_source(out: Path, kind: str) -> None:
    corrupt, message = CORRUPTIONS[kind]
    assert text(out) == ""
    corrupt(out)
    assert re.search(message, text(out), re.MULTILINE)


def test_half_precision_that_is_not_finite_is_found(toy: Any, tmp_path: Path) -> None:
    feature = tfds.features.Scalar(np.float16)
    toy = toy.declaring("steps/depth_m", feature).holding("steps/depth_m", [0.5, 1.5, 2.5])
    toy = toy.taking(FeatureMapping("depth_m", "steps/depth_m", "depth"))
    dataset, _ = converted(toy, tmp_path)
    infinite = np.float16(np.inf).tobytes()
    rewrite(dataset / EPISODES.replace("episodes", "depth"), lambda r: r[:32] + infinite + r[34:])
    assert re.search(r"record 0, depth_m, .*: expected values that fit float16", text(dataset))


def test_all_mismatches_are_counted_and_no_file_hides_another(out: Path) -> None:
    swap(out)
    (out / "statistics.json").unlink()
    found = findings(out)
    lines = found.text().splitlines()
    assert sum(STEPS in line for line in lines) == 5
    assert any("statistics.json" in line for line in lines)
    assert lines[-1] == f"... and {found.count - len(lines) + 1} more mismatches"
    assert found.count >= 12 + 1


def test_at_most_twenty_lines_are_kept() -> None:
    found = Findings()
    for number in range(30):
        found.add(f"file {number}", "this", "that")
    assert (found.count, len(found.lines)) == (30, 20)
    assert found.text().endswith("file 19: expected this; found that\n... and 10 more mismatches")


# --- against the source


def changed(toy: Any, index: int, key: str, step: int, value: Any) -> Any:
    """The toy with another value in one episode."""
    values = list(toy.episodes[index][key])
    values[step] = value
    episode = {**toy.episodes[index], key: values}
    episodes = (*toy.episodes[:index], episode, *toy.episodes[index + 1 :])
    return dataclasses.replace(toy, episodes=episodes)


def test_a_changed_value_is_found(toy: Any, out: Path, tmp_path: Path) -> None:
    source = changed(toy, 2, "steps/action", 1, np.array([9.0, 9.5], np.float32))
    report = text(out, source.write(tmp_path / "other"))
    record = r"episodes/00001-of-00002\.arrayrecord, record 0, action, step 1"
    origin = r"as .*toy-train\.tfrecord-00001-of-00002, episode 0"
    values = r"expected 9\.0 at \[0\], " + origin + r"; found -?\d.*, and 1 more values that differ"
    assert re.search(rf"{record}: {values}", report)
    assert re.search(r"statistics\.json, action, max: expected \[9\.0, 9\.5\]; found", report)
    assert "observation" not in report
    assert "source_id" not in report


def test_another_zero_is_found(toy: Any, tmp_path: Path) -> None:
    dataset, _ = converted(toy.holding("steps/action", np.zeros((3, 2), np.float32)), tmp_path)
    source = toy.holding("steps/action", np.float32([[0, 0], [0, -0.0], [0, 0]]))
    report = text(dataset, source.write(tmp_path / "other"))
    assert re.search(
        r"action, step 1: expected -0\.0 at \[1\], as .*; found 0\.0, and 0 more", report
    )


def test_a_value_that_does_not_fit_its_type_is_found(toy: Any, tmp_path: Path) -> None:
    toy = toy.having("steps/uint64", tfds.features.Scalar(np.uint64), [1, 2, 3])
    dataset, _ = converted(toy, tmp_path)
    source = toy.holding("steps/uint64", [1, 2, 2**32]).write(tmp_path / "other")
    assert "steps/uint64: expected values that fit int32; found 1 uint64" in text(dataset, source)


def test_a_changed_image_is_found(toy: Any, out: Path, tmp_path: Path) -> None:
    image = toy.episodes[0]["steps/observation/image"][0]
    source = changed(toy, 1, "steps/observation/image", 2, image)
    report = text(out, source.write(tmp_path / "other"))
    place = rf"{STEPS}, record 5, observation/image_primary: expected {len(image)} bytes b"
    assert re.fullmatch(rf".*{place}.*, as .*, episode 1, step 2; found \d+ bytes b.*", report)


def test_a_changed_id_is_found(toy: Any, out: Path, tmp_path: Path) -> None:
    source = changed(toy, 1, "episode_metadata/file_path", 0, b"demo_7")
    report = text(out, source.write(tmp_path / "other"))
    assert re.fullmatch(r".*record 1, source_id: expected b'demo_7', as .*found b'demo_1'", report)


def test_a_changed_token_is_found(toy: Any, tmp_path: Path) -> None:
    feature = tfds.features.Tensor(shape=(2,), dtype=np.float16)
    tokens = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    toy = toy.declaring("steps/tokens", feature).holding("steps/tokens", tokens)
    toy = toy.taking(FeatureMapping("tokens", "steps/tokens", "tokens"))
    dataset, _ = converted(toy, tmp_path)
    source = changed(toy, 3, "steps/tokens", 1, [3.0, 4.5]).write(tmp_path / "other")
    place = r"tokens/00001-of-00002\.arrayrecord, record 4, tokens"
    difference = r"expected 4\.5 at \[1\], as .*, episode 1, step 1; found 4\.0, and 0 more values"
    assert re.fullmatch(rf".*{place}: {difference} that differ", text(dataset, source))


def test_an_edited_task_is_found(out: Path, rlds: Path) -> None:
    edit(out / "dataset.json", lambda manifest: manifest.update(tasks=["drop the cup"]))
    report = text(out, rlds)
    assert re.search(
        r"dataset\.json, task of episode 3, step 0: expected 'lift the cup', .*; "
        r"found 'drop the cup'",
        report,
    )
    assert len(report.splitlines()) == 4


def test_another_source_is_found(out: Path, mini_rlds: Path) -> None:
    report = text(out, mini_rlds)
    assert "dataset.json, name: expected libero_mini, as the source; found toy" in report
    assert "features.json, steps/action: expected tensor of float32[2]; found tensor" in report


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (tfds.features.Tensor(shape=(2,), dtype=np.float64), r"found tensor of float64\[2\]"),
        (tfds.features.Text(), r"found text of utf8\[\]"),
    ],
)
def test_another_declared_type_is_found(
    toy: Any, out: Path, tmp_path: Path, feature: Any, message: str
) -> None:
    other = toy.declaring("steps/action", feature)
    if isinstance(feature, tfds.features.Text):
        other = other.holding("steps/action", [b"up"] * 3)
    report = text(out, other.write(tmp_path / "other"))
    place = r"features\.json, steps/action: expected tensor of float32\[2\]"
    assert re.fullmatch(rf".*{place}; {message}", report)


@pytest.mark.parametrize("key", ["steps/action", "steps/language_instruction"])
def test_a_key_that_the_source_lost_is_found(toy: Any, out: Path, tmp_path: Path, key: str) -> None:
    features = {name: feature for name, feature in toy.features.items() if name != key}
    other = dataclasses.replace(toy, features=features).without(key)
    report = text(out, other.write(tmp_path / "other"))
    assert re.fullmatch(rf".*features\.json, {key}: expected .*; found no such key", report)


def test_more_shards_in_the_source_are_found(toy: Any, out: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(toy, episodes=toy.episodes + toy.episodes[:2])
    report = text(out, other.write(tmp_path / "other"))
    assert re.fullmatch(r".*dataset\.json, shards: expected 3, as the source; found 2", report)


def test_fewer_shards_in_the_source_are_found(toy: Any, out: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(toy, episodes=toy.episodes[:2])
    report = text(out, other.write(tmp_path / "other"))
    assert "dataset.json, shards: expected 1, as the source; found 2" in report
    assert "expected 0 episodes, as shard 1 of the source has; found 2" in report


@pytest.mark.parametrize("num_episodes", [1, 3])
def test_an_episode_more_or_less_in_the_source_is_found(
    out: Path, rlds: Path, num_episodes: int
) -> None:
    info = rlds / "dataset_info.json"
    edit(info, lambda i: i["splits"][0].update(shardLengths=["2", str(num_episodes)]))
    path = rlds / "toy-train.tfrecord-00001-of-00002"
    records = [bytes(record) for record in read_records(epath.Path(path))]
    path.write_bytes(b"".join(map(frame, (records + records)[:num_episodes])))
    report = text(out, rlds)
    message = rf"expected {num_episodes} episodes, as shard 1 of the source has; found 2"
    assert re.search(rf"episodes/00001-of-00002\.arrayrecord: {message}", report)
    assert "00000-of-00002" not in report


def test_another_number_of_steps_is_found(toy: Any, out: Path, tmp_path: Path) -> None:
    shorter = {key: v[:2] if "steps/" in key else v for key, v in toy.episodes[1].items()}
    other = dataclasses.replace(toy, episodes=(toy.episodes[0], shorter, *toy.episodes[2:]))
    report = text(out, other.write(tmp_path / "other"))
    assert re.fullmatch(
        r".*dataset\.json, episode 1: expected 2 steps, as .*; found 3 steps", report
    )


def test_a_corrupt_source_is_reported_and_its_other_shards_are_compared(
    toy: Any, out: Path, tmp_path: Path
) -> None:
    source = changed(toy, 3, "episode_metadata/file_path", 0, b"demo_7").write(tmp_path / "other")
    first = source / "toy-train.tfrecord-00000-of-00002"
    first.write_bytes(first.read_bytes()[:-1])
    report = text(out, source).splitlines()
    assert len(report) == 2
    assert "toy-train.tfrecord-00000-of-00002, record 1: expected" in report[0]
    assert "record 1, source_id: expected b'demo_7'" in report[1]


def test_an_episode_that_cannot_be_read_does_not_hide_the_next(
    toy: Any, out: Path, tmp_path: Path
) -> None:
    source = changed(toy, 1, "episode_metadata/file_path", 0, b"demo_7").write(tmp_path / "other")
    path = source / "toy-train.tfrecord-00000-of-00002"
    _, second = (bytes(record) for record in read_records(epath.Path(path)))
    path.write_bytes(frame(b"\xff") + frame(second))
    report = text(out, source).splitlines()
    assert len(report) == 2
    assert "episode 0: expected a serialized tf.train.Example" in report[0]
    assert "record 1, source_id: expected b'demo_7'" in report[1]


# --- the command


def test_mismatches_are_counted_in_words() -> None:
    found = Findings()
    assert mismatches(1) == "1 mismatch"
    assert mismatches(1234) == "1,234 mismatches"
    found.add("file", "this", "that")
    found.count = 2
    assert found.text().endswith("\n... and 1 more mismatch")


def test_many_steps_are_grouped_in_the_summary(out: Path) -> None:
    verifier = Verifier(epath.Path(out), load_manifest(epath.Path(out)))
    lengths = (1000, 1000, 1000, 1000)
    verifier.manifest = dataclasses.replace(verifier.manifest, episode_lengths=lengths)
    assert verify.summary(verifier, 1.0).startswith(
        "4 episodes, 4,000 steps, 1 task: whole and of their declared types\n"
        "4,000 tensors, 4,000 images, 4,004 texts, 1 statistics\n"
    )


@pytest.mark.parametrize("with_source", [False, True])
def test_an_object_store_is_refused(
    rlds: Path,
    object_store: epath.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    with_source: bool,
) -> None:
    source = [str(rlds)] if with_source else []
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *source, str(object_store / "out"))
    report = capsys.readouterr().err
    assert re.fullmatch(r"error: s3://bucket/out: .*found an object store\. Copy .*\n", report)


def test_an_rlds_directory_alone_is_shown_how_to_verify(
    rlds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, str(rlds))
    report = capsys.readouterr().err
    assert re.fullmatch(
        rf"error: .*found an RLDS directory\. .*octograin verify {rlds} DST\n", report
    )


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["verify", *arguments])
    verify.main()


def test_the_command_tells_what_it_checked(
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy = toy.declaring("steps/reward", tfds.features.Scalar(np.float32))
    toy = toy.holding("steps/reward", [0.0, 0.5, 1.0])
    mapping = dataclasses.replace(toy.mapping, ignore=("steps/reward",))
    dataset, source = converted(dataclasses.replace(toy, mapping=mapping), tmp_path)
    run(monkeypatch, str(source), str(dataset))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "4 episodes, 12 steps, 1 task: as in the source",
        "12 tensors, 12 images, 16 texts, 1 statistics",
        "not converted: steps/reward",
    ]
    assert lines[3] == "conventions: not compared; name the mapping with --mapping FILE"
    assert re.fullmatch(r"0\.0 MB read in \d+\.\d s, \d+\.\d MB/s", lines[4])
    run(monkeypatch, str(dataset))
    assert "12 steps, 1 task: whole and of their declared types" in capsys.readouterr().out


def test_the_command_tells_what_is_wrong_and_exits_with_2(
    out: Path,
    rlds: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(out / "dataset.json", lambda manifest: manifest.update(tasks=["drop the cup"]))
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, str(rlds), str(out))
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"error: .*its source say; found 4 mismatches\. Fix .*", last)


def test_what_is_no_dataset_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, str(tmp_path))
    assert re.fullmatch(r"error: .*a dataset directory .*found none.*\n", capsys.readouterr().err)
