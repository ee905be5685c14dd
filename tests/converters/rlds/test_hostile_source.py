"""What a source may be instead of what it declares: each kind has its own sentence, and ends."""

import dataclasses
import gzip
import json
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

import converters.job.convert_command as rlds
from converters.mapping import mapping_registry
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.rlds.tfrecord import masked_crc32c, read_records
from converters.sources.open_source import open_source
from pipeline.errors import DataError, UserError
from pipeline.files import parse_json, read_text, toml_to_json

FIRST = "toy-train.tfrecord-00000-of-00002"
LAST = "toy-train.tfrecord-00001-of-00002"
HUGE = "1" + "0" * 400
DEEP = 100_000

Spoil = Callable[[Path], object]


@pytest.fixture
def refused(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Converts the toy after it was spoiled; returns the one line of the error."""

    def run(spoil: Spoil, *flags: str, path: str = "") -> str:
        monkeypatch.setattr(mapping_registry, "find_registered", lambda *named: toy.mapping)
        source = toy.write(tmp_path)
        spoil(source)
        arguments = ["rlds", str(source / path), str(tmp_path / "out"), *flags]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            rlds.main()
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2, line
        assert not (tmp_path / "out" / "dataset.json").exists()
        return line

    return run


def frame_of(length: int, data: bytes = b"x" * 100) -> bytes:
    """A record whose length is any number, with the checksum of it."""
    header = struct.pack("<Q", length)
    return header + struct.pack("<I", masked_crc32c(header)) + data


def shard(change: Callable[[bytes], bytes]) -> Spoil:
    """Replaces the first shard by what `change` makes of it."""

    def spoil(source: Path) -> None:
        (source / FIRST).write_bytes(change((source / FIRST).read_bytes()))

    return spoil


def instead(make: Callable[[Path], object], name: str = FIRST) -> Spoil:
    """Puts something else in the place of a file."""

    def spoil(source: Path) -> None:
        (source / name).unlink()
        make(source / name)

    return spoil


def info(**fields: Any) -> Spoil:
    """Changes the split in dataset_info.json."""

    def spoil(source: Path) -> None:
        values = json.loads((source / "dataset_info.json").read_text())
        values["splits"][0].update(fields)
        (source / "dataset_info.json").write_text(json.dumps(values))

    return spoil


def renamed(source: Path) -> None:
    """The files of another writing of the dataset, in three shards."""
    (source / LAST).unlink()
    (source / FIRST).rename(source / "toy-train.tfrecord-00000-of-00003")


def only(*names: str) -> Spoil:
    """Leaves empty files of these names and nothing else."""

    def spoil(source: Path) -> None:
        for path in source.iterdir():
            path.unlink()
        for name in names:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(b"")

    return spoil


def text(name: str, content: str) -> Spoil:
    return lambda source: (source / name).write_text(content)


def declared(change: Callable[[str], str]) -> Spoil:
    def spoil(source: Path) -> None:
        (source / "features.json").write_text(change((source / "features.json").read_text()))

    return spoil


NESTED = '{"a":' * DEEP + "1" + "}" * DEEP
SOURCES: dict[str, tuple[Spoil, str]] = {
    "a record of 2^33 bytes": (
        shard(lambda _: frame_of(2**33)),
        rf"{FIRST}, record 0: expected 8589934596 bytes; found 100 bytes\. .* incomplete",
    ),
    "a record of 2^63 bytes": (
        shard(lambda data: data + frame_of(2**63)),
        rf"{FIRST}, record 2: expected {2**63 + 4} bytes; found 100 bytes\.",
    ),
    "gzip": (shard(gzip.compress), rf"{FIRST}: .*; found a gzip-compressed file: .* 1f 8b\. De"),
    "zlib": (shard(zlib.compress), rf"{FIRST}: .*; found a zlib-compressed file: .* 78 9c\. De"),
    "a pointer of Git LFS": (
        shard(lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        rf"{FIRST}: .*; found a pointer of Git LFS: .*git lfs pull\.",
    ),
    "a web page": (shard(lambda _: b"<html>not found</html>"), "; found a web page, not the file"),
    "a FIFO for a shard": (
        instead(os.mkfifo),
        rf"{FIRST}: expected a TFRecord file that can be read; found a FIFO\.",
    ),
    "a device for a shard": (
        instead(lambda path: path.symlink_to("/dev/zero")),
        rf"{FIRST}: expected a TFRecord file that can be read; found a device\.",
    ),
    "a FIFO for a declaration": (
        instead(os.mkfifo, "features.json"),
        r"features\.json: expected a JSON file .*; found a FIFO\.",
    ),
    "part of the shards": (
        lambda source: (source / FIRST).unlink(),
        rf"expected 2 files of episodes, .*; found 1 of them: {LAST}; missing: {FIRST}\. .*Or "
        r"convert what is there, with --episodes 2:4\.",
    ),
    "no shards at all": (
        lambda source: [path.unlink() for path in source.glob("*tfrecord*")],
        r"expected 2 files of episodes, .*; found none of them\. Fetch the missing files\.",
    ),
    "another number of shards": (
        renamed,
        r"; found none of them, but toy-train\.tfrecord-00000-of-00003\. .* fetch both again\.",
    ),
    "a million shards": (
        info(shardLengths=["1"] * 1_000_000),
        r"dataset_info\.json: expected splits of at most 99,999 files; found 1,000,000\.",
    ),
    "splits that are none": (
        text("dataset_info.json", '{"splits": 5}'),
        "expected a features.json and a dataset_info.json that tensorflow-datasets reads",
    ),
    "HDF5": (only("demo.hdf5"), r"demo.hdf5: expected an HDF5 file that can be read; found .*"),
    "a converted dataset": (only("dataset.json"), "; found a dataset that has been converted"),
    "no declarations": (
        lambda source: (source / "features.json").unlink(),
        r"; found TFRecord files, but no features\.json .* Fetch features\.json",
    ),
    "deep features.json": (
        text("features.json", NESTED),
        r"features\.json: .*; found values that are nested too deep to be read\.",
    ),
    "deep dataset_info.json": (text("dataset_info.json", NESTED), "nested too deep to be read"),
    "features.json nested deeper than protobuf reads": (
        text("features.json", '{"a":' * 500 + "1" + "}" * 500),
        "expected a features.json and a dataset_info.json that tensorflow-datasets reads",
    ),
    "a size of 10^400": (
        declared(lambda text: text.replace('"2"', f'"{HUGE}"')),
        "features.json and a dataset_info.json that tensorflow-datasets reads; found ParseError",
    ),
    "a size of 10^9": (
        declared(lambda text: text.replace('"2"', '"1000000000"')),
        rf"{FIRST}, episodes 0, 1: steps/action: expected a multiple of 1000000000 values; found 6",
    ),
    "more values than a record holds": (
        declared(lambda text: text.replace('"2"', '"1000000000", "1000000000", "1000000000"')),
        r"steps/action: expected .*; found float32\[1000000000, .*, of more values than a record",
    ),
    "a shard of 10^400 episodes": (info(shardLengths=[HUGE]), "; found ParseError"),
    "a shard of 10^18 episodes": (
        info(shardLengths=[str(10**18), "2"]),
        rf"{FIRST}: expected {10**18} episodes, as dataset_info\.json says; found 2\.",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_kind_of_source_that_cannot_be_read_has_its_own_sentence(
    refused: Callable[..., str], kind: str
) -> None:
    spoil, message = SOURCES[kind]
    line = refused(spoil)
    assert re.search(message, line), line
    assert len(line) < 2000


@pytest.mark.parametrize("mention", ["--episodes"])
def test_part_of_the_shards_converts_with_the_flag_that_is_named(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mention: str
) -> None:
    monkeypatch.setattr(mapping_registry, "find_registered", lambda *named: toy.mapping)
    source = toy.write(tmp_path)
    (source / LAST).unlink()
    command = ["rlds", str(source), str(tmp_path / "out"), mention, "0:2"]
    monkeypatch.setattr(sys, "argv", command)
    rlds.main()
    assert (tmp_path / "out" / "dataset.json").exists()


def test_a_file_is_no_source(refused: Callable[..., str]) -> None:
    line = refused(lambda source: None, path=FIRST)
    assert "; found TFRecord files, but no features.json" in line


def test_data_of_another_format_is_found_behind_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "set [1]"
    folder.mkdir()
    (folder / "steps.parquet").touch()
    with pytest.raises(DataError, match=r"; found Parquet files \(such as steps.parquet\)"):
        open_source(str(folder))


def test_skipping_does_not_reach_beyond_the_file(toy: Any, tmp_path: Path) -> None:
    path = epath.Path(toy.write(tmp_path) / FIRST)
    path.write_bytes(frame_of(2**40) + path.read_bytes())
    with pytest.raises(DataError, match="record 0: expected 1099511627780 bytes"):
        list(read_records(path, skip=1))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (tfds.features.Tensor(shape=(), dtype=np.str_), "bytes such as serialized Examples"),
        (tfds.features.Sequence(tfds.features.Text()), "expected a dataset or sequence of a dict"),
    ],
)
def test_steps_that_are_declared_as_bytes_are_refused(
    toy: Any, tmp_path: Path, steps: Any, message: str
) -> None:
    directory = toy.write(tmp_path)
    features = tfds.features.FeaturesDict({"steps": steps, "id": tfds.features.Text()})
    features.save_config(str(directory))
    with pytest.raises(UserError, match=message):
        open_source(str(directory))


def test_steps_that_are_stored_as_examples_inside_bytes_are_refused(
    toy: Any, tmp_path: Path
) -> None:
    toy = dataclasses.replace(toy, episodes=({**toy.episodes[0], "steps": [b"\n\x00"]},) * 2)
    source = toy.open(tmp_path)
    from converters.sources.reading import read_episodes

    with pytest.raises(UserError, match="the steps as one value, such as serialized Examples"):
        list(read_episodes(source, source.shards[0]))


# --- the mapping


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "a = " + "[" * DEEP + "]" * DEEP, "nested too deep to be read"),
        (lambda text: text + "\n[" + ".".join(["a"] * 2000) + "]\n", "a valid SourceMapping|deep"),
        (lambda text: text.replace("gripper_dim = 1", f"gripper_dim = {HUGE}"), "."),
        (lambda text: text.replace("hz = 10.0", f"hz = {HUGE}"), "control_frequency_hz|finite"),
        (lambda text: text.replace("hz = 10.0", f"hz = {HUGE}.0"), "control_frequency_hz|finite"),
        (lambda text: text.replace("hz = 10.0", "hz = 1e400"), "control_frequency_hz|finite"),
        (lambda text: text.replace("open = 1.0", "open = 1e400"), "gripper_open|finite"),
        (lambda text: text.replace("hz = 10.0", "hz = " + "1" * 5000), "a mapping in TOML"),
    ],
)
def test_a_mapping_that_is_nested_deep_or_has_huge_numbers_is_one_line(
    toy: Any,
    tmp_path: Path,
    refused: Callable[..., str],
    change: Callable[[str], str],
    message: str,
) -> None:
    path = tmp_path / "mapping.toml"
    described = describe(open_source(str(toy.write(tmp_path / "described"))))
    path.write_text(change(described))
    line = refused(lambda source: None, "--mapping", str(path))
    assert re.search(message, line), line


@pytest.mark.parametrize("path", ["/dev/zero", "fifo", "folder", "large", "latin"])
def test_a_mapping_that_is_no_text_file_is_one_line(tmp_path: Path, path: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "large").open("wb") as large:
        large.truncate(2**40)
    (tmp_path / "latin").write_bytes("task = 'crème'".encode("latin-1"))
    with pytest.raises(DataError, match=f"{path}: expected a mapping in TOML; found .*Start from"):
        read_mapping(tmp_path / path)


# --- the helper that every file goes through


@pytest.mark.parametrize("parse", [parse_json, toml_to_json])
def test_text_that_no_parser_holds_is_named(parse: Callable[..., Any]) -> None:
    for content in ("[" * DEEP, "a = " + "[" * DEEP, "a = " + "9" * 5000, "9" * 5000, "}"):
        with pytest.raises(DataError, match=r"place: expected a file; found .+\. Fetch it\."):
            parse(content, where="place", expected="a file", remedy="Fetch it.")


def test_text_is_utf8_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("crème".encode())
    assert read_text(tmp_path / "a", expected="a file", remedy="Fetch it.") == "crème"
