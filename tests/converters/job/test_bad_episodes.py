import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from converters.job import convert_command
from converters.job.bad_episodes import BadEpisode, Checks, listed
from converters.job.convert import LocalRunner, convert
from converters.rlds.tfrecord import frame, read_records
from converters.sources.open_source import open_source
from converters.sources.source import SourceShard
from converters.verify.__main__ import open_converted, summary
from converters.verify.verifier import Verifier
from pipeline.data.dataset import open_dataset
from pipeline.data.images import decode_image
from pipeline.data.manifest import SkippedEpisode, load_manifest
from pipeline.errors import DataError, UserError
from tests.converters.memory_source import MemorySource
from tests.file_checksums import contents

FLAGS = {key: tfds.features.Scalar(np.bool_) for key in ("steps/is_first", "steps/is_last")}
IMAGE = "steps/observation/image"
SKIP = Checks("skip")
TOML = """
task = "steps/language_instruction"
ignore = ["episode_metadata/file_path", "steps/observation/image"]

[conventions]
image_orientation = "upright"
rotation = "none"
control_frequency_hz = 10.0
no_ops = "removed_at_conversion"
no_op_threshold = 0.5

[[features]]
key = "action"
source = "steps/action"
dims = ["x", "y"]
"""


def with_flags(toy: Any) -> Any:
    """The toy with `is_first` and `is_last`, right in every episode."""
    toy = toy.having("steps/is_first", FLAGS["steps/is_first"], [1, 0, 0])
    return toy.having("steps/is_last", FLAGS["steps/is_last"], [0, 0, 1])


def changed(toy: Any, **episodes: dict[str, Any]) -> Any:
    """The toy with other values in some episodes, by `eN`."""
    every = [{**values, **episodes.get(f"e{i}", {})} for i, values in enumerate(toy.episodes)]
    return dataclasses.replace(toy, episodes=tuple(every))


def without_steps(toy: Any) -> dict[str, Any]:
    """Values of an episode of no steps."""
    return {k: v[:0] for k, v in toy.episodes[0].items() if k.startswith("steps/")}


def spoiled(toy: Any) -> Any:
    """Four episodes: the second has no steps, the last one a value that is not finite."""
    nan = np.array([[0, 0], [np.nan, 0], [0, 0]], np.float32)
    return changed(toy, e1=without_steps(toy), e3={"steps/action": nan})


NAMES = [f"toy-train.tfrecord-{i:05d}-of-00002" for i in range(2)]
SKIPPED = (
    SkippedEpisode(
        NAMES[0], 1, "expected an episode of at least one step; found one without steps"
    ),
    SkippedEpisode(
        NAMES[1],
        1,
        "steps/action, step 1: expected finite values, for its statistics; found [nan, 0.0], "
        "and 0 more such steps",
    ),
)


@pytest.mark.parametrize(
    ("place", "shard", "reason"),
    [
        (
            "/memory/a.hdf5, data/demo_53, x",
            "/memory/a.hdf5, demos from 50",
            "a.hdf5, data/demo_53, x: ",
        ),
        (
            "/memory/data/f.parquet, episode 7",
            "/memory, episodes 0 to 9",
            "data/f.parquet, episode 7: ",
        ),
        ("/memory/t, episode 7, x", "/memory/t", "x: "),
        ("/memory/t, episode 7", "/memory/t", ""),
    ],
)
def test_the_reason_of_a_skipped_episode_is_without_the_folder_of_the_source(
    place: str, shard: str, reason: str
) -> None:
    source = MemorySource(({},))
    bad = BadEpisode(7, place, "one", "none", "Fix it.")
    skipped = bad.skipped(SourceShard("t", shard, (), 10), source)
    assert skipped.reason == f"{reason}expected one; found none"


def verified(source: Path, out: Path) -> tuple[str, str]:
    """(findings, summary) of a check against the source."""
    directory = epath.Path(out)
    manifest = load_manifest(directory)
    verifier = Verifier(directory, manifest, open_converted(str(source), manifest))
    return verifier.run().text(), summary(verifier, 1.0)


# --- the job


def test_stop_lists_every_bad_episode_and_skipping_finishes_what_was_written(
    toy: Any, tmp_path: Path
) -> None:
    directory = spoiled(toy).write(tmp_path)
    source = open_source(str(directory))
    for _ in range(2):
        with pytest.raises(DataError) as refused:
            convert(source, tmp_path / "out", toy.mapping)
        assert str(refused.value) == (
            f"{directory}, split train: expected 4 episodes that can be used; found 2 that cannot: "
            f"{NAMES[0]}, episode 1: {SKIPPED[0].reason}; {NAMES[1]}, episode 1: "
            f"{SKIPPED[1].reason}. Write the source without it. Or leave such episodes out: "
            "--bad_episodes skip."
        )
    written = (tmp_path / "out" / "episodes" / "00000-of-00002.arrayrecord").stat().st_mtime_ns
    manifest = convert(source, tmp_path / "out", toy.mapping, checks=SKIP)
    after = (tmp_path / "out" / "episodes" / "00000-of-00002.arrayrecord").stat().st_mtime_ns
    assert (manifest.skipped_episodes, manifest.episode_lengths) == (SKIPPED, (3, 3))
    assert written == after  # the shards are those of the job that stopped
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped_episodes"]
    assert open_dataset(str(tmp_path / "out")).num_steps == 6
    found, words = verified(directory, tmp_path / "out")
    assert (found, "skipped at conversion: 2 episodes" in words) == ("", True)


def test_the_summary_of_a_conversion_says_what_was_left_out(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    still = np.array([[1, 0], [0, 0.1], [0, 1]], np.float32)
    toy = changed(spoiled(toy), e0={"steps/action": still})
    (tmp_path / "toy.toml").write_text(TOML)
    command = f"convert {toy.write(tmp_path)} {tmp_path / 'out'} --mapping {tmp_path / 'toy.toml'}"
    monkeypatch.setattr("sys.argv", [*command.split(), "--bad_episodes", "skip"])
    convert_command.main()
    output = capsys.readouterr().out
    assert f"no-ops removed: 1 step\n  {1:6} of 'lift the cup'\n" in output
    assert "skipped: 2 of the source, listed in dataset.json\n" in output
    assert f"{NAMES[0]}, episode 1: {SKIPPED[0].reason}" in output


def test_shards_in_any_order_are_the_same_bytes(toy: Any, tmp_path: Path) -> None:
    source = spoiled(toy).open(tmp_path)
    convert(source, tmp_path / "one", toy.mapping, checks=SKIP)
    convert(source, tmp_path / "two", toy.mapping, checks=SKIP, runner=backwards)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def backwards(job: Any, numbers: Any, on_progress: Any) -> None:
    """Converts the last shard first, as any worker may."""
    LocalRunner()(job, list(numbers)[::-1], on_progress)


def test_an_episode_that_is_fixed_in_place_is_read_again(toy: Any, tmp_path: Path) -> None:
    directory = spoiled(toy).write(tmp_path)
    source = open_source(str(directory))
    with pytest.raises(DataError, match="2 that cannot"):
        convert(source, tmp_path / "out", toy.mapping)
    fixed = toy.write(tmp_path / "fixed")
    sizes = {path.name: path.stat().st_size for path in directory.glob("*tfrecord*")}
    shutil.copy(fixed / NAMES[1], directory / NAMES[1])
    assert (directory / NAMES[1]).stat().st_size == sizes[NAMES[1]]
    manifest = convert(source, tmp_path / "out", toy.mapping, checks=SKIP)
    assert manifest.skipped_episodes == SKIPPED[:1]


def test_a_dataset_without_bad_episodes_says_nothing_of_them(toy: Any, tmp_path: Path) -> None:
    manifest = convert(toy.open(tmp_path), tmp_path / "out", toy.mapping, checks=SKIP)
    assert manifest.skipped_episodes == ()
    assert "skipped" not in (tmp_path / "out" / "dataset.json").read_text()


def test_corrupt_bytes_of_one_record_are_one_bad_episode(toy: Any, tmp_path: Path) -> None:
    directory = toy.write(tmp_path)
    path = directory / NAMES[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    manifest = convert(open_source(str(directory)), tmp_path / "out", toy.mapping, checks=SKIP)
    (skipped,) = manifest.skipped_episodes
    assert (skipped.file, skipped.episode) == (NAMES[0], 0)
    assert re.match("record 0, data: expected CRC32C .*; found", skipped.reason)
    assert verified(directory, tmp_path / "out")[0] == ""


def test_a_source_of_bad_episodes_alone_is_refused_with_either_flag(
    toy: Any, tmp_path: Path
) -> None:
    source = changed(toy, **{f"e{i}": without_steps(toy) for i in range(4)}).open(tmp_path)
    for checks in (Checks(), SKIP):
        with pytest.raises(DataError, match=r"found 4 that cannot.*[^-]Write the source without"):
            convert(source, tmp_path / "out", toy.mapping, checks=checks)


def test_a_mapping_or_source_that_fits_no_episode_is_a_warning_before_all_are_listed(
    toy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = toy.write(tmp_path)
    many = 150
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = [str(many)]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    path = directory / "toy-train.tfrecord-00000-of-00001"
    path.write_bytes(frame(b"\xff") * many)
    with pytest.raises(DataError, match="150 episodes that can be used; found 150 that cannot"):
        convert(open_source(str(directory)), tmp_path / "out", toy.mapping)
    (early,) = caplog.messages
    assert early.startswith(f"none of the first 100 episodes of {path.name} can be used, such as ")
    assert early.endswith(". All are listed at the end; Ctrl-C ends the job now")


def test_a_long_list_is_bounded_and_counted() -> None:
    same = [SkippedEpisode("a", i, "empty") for i in range(30)]
    assert listed(same) == [f"a, episodes {', '.join(map(str, range(20)))} and 10 more: empty"]
    others = [SkippedEpisode("a", i, f"reason {i}") for i in range(30)]
    assert listed(others)[-1] == "and 10 more episodes"
    assert len(listed(others)) == 21


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda skipped: skipped[:1], "episode 1, steps/action, step 1: expected finite"),
        (
            lambda skipped: [*skipped, {**skipped[0], "episode": 7}],
            "skipped_episodes: expected episodes of the source; found " + NAMES[0] + ", episode 7",
        ),
        (
            lambda skipped: [*skipped, {**skipped[0], "episode": 0}],
            "episode 0: expected an episode that cannot be used, as dataset.json lists it as "
            "skipped; found one without a fault",
        ),
    ],
)
def test_verify_compares_the_list_with_the_source(
    toy: Any, tmp_path: Path, change: Callable[[Any], Any], finding: str
) -> None:
    directory = spoiled(toy).write(tmp_path)
    convert(open_source(str(directory)), tmp_path / "out", toy.mapping, checks=SKIP)
    manifest = load_manifest(epath.Path(tmp_path / "out"))
    entries = [dataclasses.asdict(skipped) for skipped in manifest.skipped_episodes]
    edited = tuple(SkippedEpisode(**entry) for entry in change(entries))
    manifest = dataclasses.replace(manifest, skipped_episodes=edited)
    verifier = Verifier(epath.Path(tmp_path / "out"), manifest, open_source(str(directory)))
    assert finding in verifier.run().text() or "episodes, as shard" in verifier.findings.text()


# --- boundaries that the data declare


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ([1, 0, 0], [0, 0, 1], None),
        ([1, 0, 0], [0, 0, 0], None),  # cut off before its end
        ([0, 0, 0], [0, 0, 1], "is_first false at step 0 of 3"),
        ([1, 0, 1], [0, 0, 1], "is_first at step 2 of 3"),
        ([1, 0, 0], [0, 1, 1], "is_last at step 1 of 3"),
        (None, [0, 0, 0], "is_last false at the last of 3 steps"),
    ],
)
def test_records_that_contradict_their_own_boundaries_are_refused_unless_ignored(
    toy: Any, tmp_path: Path, first: list[int] | None, last: list[int], message: str | None
) -> None:
    flagged = with_flags(toy)
    values = {"steps/is_last": last, **({} if first is None else {"steps/is_first": first})}
    flagged = changed(flagged, e2=values)
    ignored = ("steps/is_first",) if first is None else ()
    source = flagged.open(tmp_path)
    mapping = _ignoring(flagged.mapping, *ignored)
    if message is None:
        convert(source, tmp_path / "out", mapping)
        return
    with pytest.raises(DataError, match=rf"{NAMES[1]}, episode 0: expected one.*{message}"):
        convert(source, tmp_path / "out", mapping)
    mapping = _ignoring(flagged.mapping, "steps/is_first", "steps/is_last")
    convert(source, tmp_path / "ignored", mapping)


def _ignoring(mapping: Any, *keys: str) -> Any:
    taken = tuple(m for m in mapping.features if m.source not in keys)
    return dataclasses.replace(mapping, features=taken, ignore=keys)


# --- images


@pytest.mark.parametrize(
    "spoil",
    [
        lambda jpeg, body: jpeg[: body + 10],
        lambda jpeg, body: jpeg[: body + 10] + bytes(len(jpeg) - body - 10),
        lambda jpeg, body: jpeg[:body] + bytes(len(jpeg) - body - 2) + jpeg[-2:],
    ],
    ids=["cut", "zeroed to its end", "zeroed body"],
)
def test_an_image_with_an_intact_header_alone_is_found_by_decoding(
    toy: Any, tmp_path: Path, spoil: Callable[[bytes, int], bytes]
) -> None:
    whole = toy.episodes[2][IMAGE]
    broken = spoil(whole[1], whole[1].rindex(b"\xff\xda") + 14)
    source = changed(toy, e2={IMAGE: [whole[0], broken, whole[2]]}).open(tmp_path)
    convert(source, tmp_path / "unchecked", toy.mapping)
    message = rf"{NAMES[1]}, episode 0, {IMAGE}, step 1: expected a readable JPEG or PNG image"
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "out", toy.mapping, checks=Checks(check_images=True))
    with pytest.raises(DataError, match="readable JPEG"):
        decode_image(broken, np.empty((8, 8, 3), np.uint8), "as training would")
    checks = Checks("skip", check_images=True)
    manifest = convert(source, tmp_path / "out", toy.mapping, checks=checks)
    assert [(s.file, s.episode) for s in manifest.skipped_episodes] == [(NAMES[1], 0)]


def test_a_job_with_images_unchecked_is_not_continued_with_them_checked(
    toy: Any, tmp_path: Path
) -> None:
    source = spoiled(toy).open(tmp_path)
    with pytest.raises(DataError):
        convert(source, tmp_path / "out", toy.mapping)
    with pytest.raises(Exception, match="unfinished conversion with another --check_images"):
        convert(source, tmp_path / "out", toy.mapping, checks=Checks(check_images=True))


# --- changed bytes


def test_a_random_byte_of_a_source_file_is_refused(toy: Any, tmp_path: Path) -> None:
    """Every byte of a TFRecord file is under a checksum."""
    path = toy.write(tmp_path) / NAMES[0]
    rng = np.random.default_rng(16)
    whole = path.read_bytes()
    for _ in range(100):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= rng.integers(1, 256)
        path.write_bytes(data)
        with pytest.raises(DataError):
            list(read_records(epath.Path(path)))


@pytest.mark.parametrize("column", ["episodes", "steps"])
def test_a_random_byte_of_a_shard_is_refused_or_changes_no_value(
    toy: Any, tmp_path: Path, column: str
) -> None:
    convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    reader = open_dataset(str(tmp_path / "out")).columns[column]
    path = tmp_path / "out" / column / "00000-of-00002.arrayrecord"
    rng = np.random.default_rng(16)
    whole = path.read_bytes()
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))  # most bytes are padding
    expected = values_or_error(reader, 1)
    refused = 0
    for place in rng.choice(used, 100):
        data = bytearray(whole)
        data[place] ^= rng.integers(1, 256)
        path.write_bytes(data)
        reader.close()
        found = values_or_error(reader, 1)
        assert found in (None, expected)
        refused += found is None
    assert expected is not None
    assert refused > 10


def values_or_error(reader: Any, index: int) -> dict[str, bytes] | None:
    """The values of a record; None where it is refused."""
    try:
        return {key: np.asarray(value).tobytes() for key, value in reader.read(index).items()}
    except UserError:
        return None
