"""What is wrong with an input is reported in one line, leaves no dataset, and can be fixed.

One table over all that a conversion may be given, and one over all that may lie where a dataset is
read. Each line of a table is a kind of mistake, what makes it, and the line that a person sees.
"""

import io
import json
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters.job import convert_command as rlds
from converters.job.convert import convert
from converters.mapping import mapping_registry
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.mapping.standardize import FeatureMapping
from converters.rlds.tfrecord import frame, read_records
from converters.sources.open_source import open_source
from converters.verify import __main__ as verify
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from tests.file_checksums import contents

ROOT = Path(__file__).parents[2]
FIRST = "toy-train.tfrecord-00000-of-00002"
LAST = "toy-train.tfrecord-00001-of-00002"
INFO = "dataset_info.json"
HEADER, FOOTER = 12, 4

Spoil = Callable[[Path], object]
MAPPING_TABLE = re.compile(r"((.+\n)+\n)?")
"""All that a refused conversion prints: its mapping, where it was read, up to an empty line."""
Command = Callable[..., list[str]]


@pytest.fixture
def rich(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy with an integer, a wide float and tokens in a column of their own; built in."""
    toy = toy.having("steps/count", tfds.features.Scalar(np.int64), [1, 2, 3])
    toy = toy.having("steps/mass_kg", tfds.features.Scalar(np.float64), [0.5, 1.5, 2.5])
    toy = toy.declaring("steps/tokens", tfds.features.Tensor(shape=(2,), dtype=np.float16))
    toy = toy.holding("steps/tokens", np.arange(6, dtype=np.float32).reshape(3, 2))
    toy = toy.taking(FeatureMapping("tokens", "steps/tokens", "tokens"))
    monkeypatch.setattr(mapping_registry, "find_registered", lambda *named: toy.mapping)
    return toy


@pytest.fixture
def source(rich: Any, tmp_path: Path) -> Path:
    """Four episodes of three steps in two shards; the last episode is the one that is spoiled."""
    return rich.write(tmp_path)


@pytest.fixture
def undisturbed(rich: Any, source: Path, tmp_path: Path) -> Path:
    """The source, converted before anything was spoiled."""
    convert(open_source(str(source)), tmp_path / "undisturbed", rich.mapping)
    return tmp_path / "undisturbed"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a `main` with arguments in this process; returns the lines on stderr."""

    def run(main: Callable[[], None], *arguments: object, code: int = 0) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        capsys.readouterr()
        found = 0
        try:
            main()
        except SystemExit as ended:
            found = ended.code
        streams = capsys.readouterr()
        assert found == code, streams.err
        assert code == 0 or MAPPING_TABLE.fullmatch(streams.out)
        return streams.err.splitlines()

    return run


def check_refused(command: Command, source: Path, out: Path, message: str, *flags: object) -> None:
    """The command says one line that is the whole of `message`, and leaves nothing that opens."""
    lines = command(rlds.main, source, out, *flags, code=2)
    assert len(lines) == 1, lines
    assert re.fullmatch(rf"error: \S*{message}", lines[0]), lines[0]
    with pytest.raises(UserError, match=r": expected .*; found "):
        open_dataset(str(out))


# --- the source


def record(change: Callable[[Any], object]) -> Spoil:
    """Changes the features of the last episode; the file around it stays whole."""

    def spoil(source: Path) -> None:
        first, last = read_records(epath.Path(source / LAST))
        example = tf_example.Example.FromString(last)
        change(example.features.feature)
        (source / LAST).write_bytes(frame(first) + frame(example.SerializeToString()))

    return spoil


def floats(key: str, index: int, value: float) -> Spoil:
    return record(lambda f: f[key].float_list.value.__setitem__(index, value))


def blob(key: str, index: int, change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(features: Any) -> None:
        values = features[key].bytes_list.value
        values[index] = change(values[index])

    return record(spoil)


def kept(part: Callable[[bytes, int], bytes]) -> Spoil:
    """Leaves of the last file a part: of its bytes and the offset of the last record."""

    def spoil(source: Path) -> None:
        data = (source / LAST).read_bytes()
        start = HEADER + int.from_bytes(data[:8], "little") + FOOTER
        (source / LAST).write_bytes(part(data, start))

    return spoil


def flipped(offset: int, *, of_end: bool = False) -> Spoil:
    """Flips a bit at an offset in the last record, or before the end of the file."""

    def part(data: bytes, start: int) -> bytes:
        place = len(data) - offset if of_end else start + offset
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]

    return kept(part)


def edited(file: str, change: Callable[[Any], object]) -> Spoil:
    def spoil(directory: Path) -> None:
        values = json.loads((directory / file).read_text())
        change(values)
        (directory / file).write_text(json.dumps(values))

    return spoil


def lengths(*counts: int) -> Spoil:
    """Another number of episodes by shard in `dataset_info.json`."""
    listed = [str(count) for count in counts]
    return edited(INFO, lambda info: info["splits"][0].update(shardLengths=listed))


def declared(change: Callable[[dict], object]) -> Spoil:
    """Changes what `features.json` declares of a step."""

    def spoil(values: Any) -> None:
        steps = values["featuresDict"]["features"]["steps"]
        change(steps["sequence"]["feature"]["featuresDict"]["features"])

    return edited("features.json", spoil)


def no_steps(features: Any) -> None:
    for key, feature in features.items():
        if key.startswith("steps/"):
            del getattr(feature, feature.WhichOneof("kind")).value[:]


def other_image(kind: str, size: int) -> Callable[[bytes], bytes]:
    out = io.BytesIO()
    Image.new("RGB", (size, 8)).save(out, kind)
    return lambda _: out.getvalue()


def png_header(size: int) -> bytes:
    """A PNG that claims to be square, up to the beginning of its pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0), b"IDAT")
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def emptied(source: Path) -> None:
    lengths(0, 0)(source)
    for file in (FIRST, LAST):
        (source / file).write_bytes(b"")


IMAGE = "steps/observation/image"
EPISODE = f"/{LAST}, episode 1"
FETCH = r"The file is corrupt or its download incomplete: fetch it again\."
SKIP = r" Or leave such episodes out: --bad_episodes skip\."
DECLARED = r"The records must be what features\.json declares: write the source again\."
DECLARES = DECLARED + SKIP
MAP = r"Correct the mapping, or write one: `octograin convert SRC --describe > mapping\.toml`.*"
CRC = r"expected CRC32C [0-9a-f]{8}; found [0-9a-f]{8}\."
FINITE = r"Fix the episode at the source, or ignore the key in the mapping\." + SKIP
FIT = r"Fix or rescale them at the source, or ignore the key in the mapping\." + SKIP
FIX_IMAGE = r"Fix the image at the source and convert again\." + SKIP
RESIZE = r"Every image of a feature has one size: resize it at the source\." + SKIP
UTF8 = r"Write the text in UTF-8 at the source\." + SKIP
READABLE = "expected a readable JPEG or PNG image; found"

SOURCES: dict[str, tuple[Spoil, str]] = {
    # TFRecord
    "truncated in a header": (
        kept(lambda data, start: data[: start + 5]),
        rf"/{LAST}, record 1: expected a record header of 12 bytes; found 5 bytes\. {FETCH}",
    ),
    "truncated in the data": (
        kept(lambda data, start: data[: start + HEADER + 100]),
        rf"/{LAST}, record 1: expected \d+ bytes; found 100 bytes\. {FETCH}",
    ),
    "truncated in a footer": (
        kept(lambda data, start: data[:-1]),
        rf"/{LAST}, record 1: expected \d+ bytes; found \d+ bytes\. {FETCH}",
    ),
    "truncated between records": (
        kept(lambda data, start: data[:start]),
        rf"/{LAST}: expected 2 episodes, as .* says; found 1\. .*both files again\.",
    ),
    "a flipped bit in a length": (flipped(2), rf"/{LAST}, record 1, length: {CRC} {FETCH}"),
    "a flipped bit in a length's CRC": (flipped(8), rf"/{LAST}, record 1, length: {CRC} {FETCH}"),
    "a flipped bit in the data": (flipped(500), rf"/{LAST}, record 1, data: {CRC} {FETCH}{SKIP}"),
    "a flipped bit in the data's CRC": (
        flipped(2, of_end=True),
        rf"/{LAST}, record 1, data: {CRC} {FETCH}{SKIP}",
    ),
    "a missing shard": (
        lambda source: (source / LAST).unlink(),
        rf", split train: expected 2 files of episodes, as dataset_info\.json says: {FIRST} and 1 "
        rf"more; found 1 of them: {FIRST}; missing: {LAST}\. Fetch the missing files\. Or convert "
        r"what is there, with --episodes 0:2\.",
    ),
    "no message in a record": (
        lambda source: (source / LAST).write_bytes(2 * frame(b"\xff" * 9)),
        r", split train: expected 4 episodes that can be used; found 2 that cannot: "
        rf"{LAST}, episodes 0, 1: expected a serialized tf\.train\.Example; found 9 bytes: .*\. "
        rf"Convert from a directory that tensorflow-datasets wrote\.{SKIP}",
    ),
    # what is declared of the files
    "too few episodes declared": (
        lengths(1, 2),
        rf"/{FIRST}: expected 1 episodes, as dataset_info\.json says; found 2\. .+\.",
    ),
    "too many episodes declared": (
        lengths(3, 2),
        rf"/{FIRST}: expected 3 episodes, as dataset_info\.json says; found 2\. .+\.",
    ),
    "no shards": (lengths(), rf"/{INFO}: expected a split train with episodes; found .*\. .+\."),
    "shards of no episodes": (
        emptied,
        rf"/{INFO}: expected a split train with episodes; found .*\. .+\.",
    ),
    # keys
    "a key that is not declared": (
        record(lambda f: f["steps/reward"].float_list.value.extend([0.0] * 3)),
        rf"{EPISODE}: expected only keys of features\.json; found steps/reward\. {DECLARES}",
    ),
    "a declared key that is missing": (
        record(lambda f: f.pop("steps/count")),
        rf"{EPISODE}, steps/count: expected int64\[\]; found no such key\. {DECLARES}",
    ),
    "a key neither mapped nor ignored": (
        declared(lambda steps: steps.update(reward=steps["count"])),
        r"/features\.json: expected every key mapped or ignored, and every mapped key there; "
        rf"found unmapped: steps/reward; missing: none\. {MAP}",
    ),
    "a mapped key that is not declared": (
        declared(lambda steps: steps.pop("count")),
        r"/features\.json: expected every key mapped or ignored, and every mapped key there; "
        rf"found unmapped: none; missing: steps/count\. {MAP}",
    ),
    "a mapped key that is misspelt": (
        declared(lambda steps: steps.update(counts=steps.pop("count"))),
        r"/features\.json: expected every key mapped or ignored, and every mapped key there; "
        rf"found unmapped: steps/counts; missing: steps/count \(steps/counts\?\)\. {MAP}",
    ),
    # kinds and shapes
    "a string for a number": (
        record(lambda f: f["steps/action"].bytes_list.value.extend([b"a"] * 6)),
        rf"{EPISODE}, steps/action: expected float_list; found bytes_list\. {DECLARES}",
    ),
    "a number for a string": (
        record(lambda f: f["steps/language_instruction"].int64_list.value.extend([1] * 3)),
        rf"{EPISODE}, steps/language_instruction: expected bytes_list; found int64_list\. "
        rf"{DECLARES}",
    ),
    "a float for an integer": (
        record(lambda f: f["steps/count"].float_list.value.extend([1.0] * 3)),
        rf"{EPISODE}, steps/count: expected int64_list; found float_list\. {DECLARES}",
    ),
    "an integer for a float": (
        record(lambda f: f["steps/mass_kg"].int64_list.value.extend([1] * 3)),
        rf"{EPISODE}, steps/mass_kg: expected float_list; found int64_list\. {DECLARES}",
    ),
    "a ragged length": (
        record(lambda f: f["steps/action"].float_list.value.pop()),
        rf"{EPISODE}, steps/action: expected a multiple of 2 values; found 5\. {DECLARES}",
    ),
    "another shape": (
        record(lambda f: f["steps/action"].float_list.value.extend([0.0] * 3)),
        rf"{EPISODE}, steps/action: expected a multiple of 2 values; found 9\. {DECLARES}",
    ),
    "steps of different counts": (
        record(lambda f: f["steps/count"].int64_list.value.pop()),
        rf"{EPISODE}: expected the same number of steps for every key; "
        rf"found .*'steps/action': 3, 'steps/count': 2.*\. {DECLARES}",
    ),
    "an episode of no steps": (
        record(no_steps),
        rf"{EPISODE}: expected an episode of at least one step; found one without steps\. "
        rf"Write the source without it\.{SKIP}",
    ),
    "two names of an episode": (
        record(lambda f: f["episode_metadata/file_path"].bytes_list.value.append(b"b")),
        rf"{EPISODE}, episode_metadata/file_path: expected one value per episode; found 2\. "
        rf"{DECLARES}",
    ),
    # numbers
    "a float64 beyond float32": (  # tensorflow-datasets stores it as float32: it arrives infinite
        floats("steps/mass_kg", 1, float("inf")),
        rf"{EPISODE}, steps/mass_kg, step 1: expected finite values, for its statistics; "
        rf"found inf, and 0 more such steps\. {FINITE}",
    ),
    "an int64 beyond int32": (
        record(lambda f: f["steps/count"].int64_list.value.__setitem__(2, 2**31)),
        rf"{EPISODE}, steps/count: expected values that fit int32; found 1 int64 values that do "
        rf"not, such as 2147483648\. {FIT}",
    ),
    "NaN": (
        floats("steps/action", 3, float("nan")),
        rf"{EPISODE}, steps/action, step 1: expected finite values, for its statistics; "
        rf"found \[.*, nan\], and 0 more such steps\. {FINITE}",
    ),
    "infinity": (
        floats("steps/action", 4, float("-inf")),
        rf"{EPISODE}, steps/action, step 2: expected finite values, for its statistics; "
        rf"found \[-inf, .*\], and 0 more such steps\. {FINITE}",
    ),
    "NaN in tokens": (
        floats("steps/tokens", 5, float("nan")),
        rf"{EPISODE}, steps/tokens: expected values that fit float16; found 1 float16 values that "
        rf"do not, such as nan\. {FIT}",
    ),
    "infinity in tokens": (
        floats("steps/tokens", 0, float("inf")),
        rf"{EPISODE}, steps/tokens: expected values that fit float16; found 1 float16 values that "
        rf"do not, such as inf\. {FIT}",
    ),
    "a float beyond float16 in tokens": (
        floats("steps/tokens", 0, 65520.0),
        rf"{EPISODE}, steps/tokens: expected values that fit float16; found 1 float16 values that "
        rf"do not, such as inf\. {FIT}",
    ),
    # images
    "bytes that are no image": (
        blob(IMAGE, 2, lambda _: b"no image"),
        rf"{EPISODE}, {IMAGE}, step 2: {READABLE} 8 bytes that start with b'no image': "
        rf"no header of one\. {FIX_IMAGE}",
    ),
    "no bytes": (
        blob(IMAGE, 0, lambda _: b""),
        rf"{EPISODE}, {IMAGE}, step 0: {READABLE} 0 bytes that start with b'': .+\. {FIX_IMAGE}",
    ),
    "an image of another format": (
        blob(IMAGE, 0, other_image("BMP", 8)),
        rf"{EPISODE}, {IMAGE}, step 0: {READABLE} \d+ bytes that start with b'BM.+: .+\. "
        rf"{FIX_IMAGE}",
    ),
    "a truncated JPEG header": (
        blob(IMAGE, 1, lambda encoded: encoded[:30]),
        rf"{EPISODE}, {IMAGE}, step 1: {READABLE} 30 bytes that start with .+: .+\. {FIX_IMAGE}",
    ),
    "a truncated PNG header": (
        blob(IMAGE, 1, lambda encoded: other_image("PNG", 8)(encoded)[:20]),
        rf"{EPISODE}, {IMAGE}, step 1: {READABLE} 20 bytes that start with .+: .+\. {FIX_IMAGE}",
    ),
    "a PNG of a size beyond any camera's": (
        blob(IMAGE, 1, lambda _: png_header(60_000)),
        rf"{EPISODE}, {IMAGE}, step 1: {READABLE} \d+ bytes that start with .+: .+\. {FIX_IMAGE}",
    ),
    "an image of another size": (
        blob(IMAGE, 1, other_image("JPEG", 9)),
        rf"{EPISODE}, {IMAGE}, step 1: expected an image of 8x8, as the schema declares; "
        rf"found 8x9\. {RESIZE}",
    ),
    "a PNG of another size": (
        blob(IMAGE, 1, other_image("PNG", 9)),
        rf"{EPISODE}, {IMAGE}, step 1: expected an image of 8x8, as the schema declares; "
        rf"found 8x9\. {RESIZE}",
    ),
    # texts
    "an instruction that is not UTF-8": (
        blob("steps/language_instruction", 1, lambda _: b"lift \xff"),
        rf"{EPISODE}, steps/language_instruction: expected a text in UTF-8; "
        rf"found b'lift \\xff'\. {UTF8}",
    ),
    "a name that is not UTF-8": (
        blob("episode_metadata/file_path", 0, lambda _: b"\xe9"),
        rf"{EPISODE}, episode_metadata/file_path: expected a text in UTF-8; found b'\\xe9'\. "
        rf"{UTF8}",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_refused_in_one_line_until_it_is_fixed(
    source: Path, undisturbed: Path, tmp_path: Path, command: Command, kind: str
) -> None:
    spoil, message = SOURCES[kind]
    out = tmp_path / "out"
    shutil.copytree(source, tmp_path / "whole")
    spoil(source)
    assert contents(source) != contents(tmp_path / "whole")
    for _ in range(2):  # a rerun of what is still wrong says the same
        check_refused(command, source, out, message)
    shutil.rmtree(source)
    shutil.copytree(tmp_path / "whole", source)
    assert command(rlds.main, source, out) == []
    assert contents(out) == contents(undisturbed)


# --- permissions

ALLOW = r"Allow writing, free space, or name another destination\."
Block = Callable[[], AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            LAST,
            rf"/{LAST}: expected a TFRecord file that can be read; found Permission denied\. "
            r"Fetch the file again, or allow reading it\.",
        ),
        (INFO, rf"/{INFO}: expected a JSON file .*; found PermissionError: .*Permission denied.*"),
    ],
)
def test_a_source_without_read_permission_is_named(
    source: Path,
    undisturbed: Path,
    tmp_path: Path,
    command: Command,
    as_nobody: Block,
    file: str,
    message: str,
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o777)
    mode = (source / file).stat().st_mode
    (source / file).chmod(0)
    with as_nobody():
        check_refused(command, source, place / "out", message)
    (source / file).chmod(mode)
    with as_nobody():
        assert command(rlds.main, source, place / "out") == []
    assert contents(place / "out") == contents(undisturbed)


@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize("name", ["out", "out/below"])
def test_a_destination_without_write_permission_is_named(
    source: Path,
    undisturbed: Path,
    tmp_path: Path,
    command: Command,
    as_nobody: Block,
    name: str,
    mode: int,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(mode)
    message = rf"/out\S*: expected a destination that can be written; found Permission den.*{ALLOW}"
    with as_nobody():
        check_refused(command, source, tmp_path / name, message)
    folder.chmod(0o777)
    assert list(folder.iterdir()) == []
    with as_nobody():
        assert command(rlds.main, source, tmp_path / name) == []
    assert contents(tmp_path / name) == contents(undisturbed)


# --- the destination

IN_USE = "expected an empty or new directory; found"
DESTINATIONS: dict[str, tuple[Spoil, str, str]] = {
    "other files": (
        lambda place: (place / "out").mkdir() or (place / "out" / "notes.txt").write_text("mine"),
        "out",
        rf"/out: {IN_USE} other files: notes\.txt\. Name another destination\.",
    ),
    "a file": (
        lambda place: (place / "out").write_text("mine"),
        "out",
        rf"/out: {IN_USE} a file\. Name another destination\.",
    ),
    "a file in the way": (
        lambda place: (place / "out").write_text("mine"),
        "out/below/it",
        rf"/out\S*: expected a destination that can be written; found Not a directory\. {ALLOW}",
    ),
    "a file in the place of the work folder": (
        lambda place: (place / "out").mkdir() or (place / "out" / ".conversion").write_text("mine"),
        "out",
        r"/out\S*: expected .*; found .*\. .+\.",
    ),
    "a link to nowhere": (
        lambda place: (place / "out").symlink_to(place / "gone" / "far"),
        "out",
        r"/out\S*: expected .*; found .*\. .+\.",
    ),
}


@pytest.mark.parametrize("kind", DESTINATIONS)
def test_a_destination_that_is_in_use_is_left_alone(
    source: Path, undisturbed: Path, tmp_path: Path, command: Command, kind: str
) -> None:
    occupy, name, message = DESTINATIONS[kind]
    place = tmp_path / "place"
    place.mkdir()
    occupy(place)
    before = contents(place)
    check_refused(command, source, place / name, message)
    assert contents(place) == before
    shutil.rmtree(place)
    place.mkdir()
    assert command(rlds.main, source, place / name) == []
    assert contents(place / name) == contents(undisturbed)


def test_a_destination_that_holds_a_dataset_is_left_alone(
    source: Path, undisturbed: Path, command: Command
) -> None:
    before = contents(undisturbed)
    (line,) = command(rlds.main, source, undisturbed, code=2)
    message = rf"/undisturbed: {IN_USE} a dataset\. Replace it with --overwrite\."
    assert re.fullmatch(rf"error: \S*{message}", line)
    assert contents(undisturbed) == before
    assert command(rlds.main, source, undisturbed, "--overwrite") == []
    assert contents(undisturbed) == before


ON_A_FULL_DISK = """
import resource
import sys
from converters.job.convert_command import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""


@pytest.mark.parametrize(
    ("limit", "place"),
    [
        (100, r"/out\S*"),  # too little for the plan
        pytest.param(
            50_000, r"/out/vggt_tokens/00000-of-00002\.arrayrecord", marks=pytest.mark.slow
        ),
        (2_000_000, r"/out/steps/00000-of-00002\.arrayrecord"),
    ],
)
def test_a_full_disk_is_reported_and_a_rerun_resumes(
    mini_rlds: Path, mini_dataset: Path, tmp_path: Path, command: Command, limit: int, place: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, str(limit), str(mini_rlds), str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert MAPPING_TABLE.fullmatch(result.stdout)
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(
        rf"error: \S*{place}: expected .*; found .*[Ff]ile too large.*\. .+\.", line
    )
    assert re.search(r"[Ff]ree space", line)
    with pytest.raises(UserError, match="found an unfinished conversion"):
        open_dataset(str(tmp_path / "out"))
    assert command(rlds.main, mini_rlds, tmp_path / "out") == []
    assert contents(tmp_path / "out") == contents(mini_dataset)


# --- the mapping

DOUBLED = '\n[[features]]\nkey = "action"\nsource = "steps/other"\n'
MAPPINGS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "an unknown field": (
        lambda text: text.replace("licence =", "license ="),
        r"unknown field license \(licence\?\)",
    ),
    "a field of another type": (
        lambda text: text.replace("control_frequency_hz = 10.0", 'control_frequency_hz = "fast"'),
        r"conventions\.control_frequency_hz: Input should be a valid number, not 'fast'",
    ),
    "a word that is no choice": (
        lambda text: text.replace('"axis_angle"', '"roll_pitch"'),
        r"conventions\.rotation: Input should be 'axis_angle', .*",
    ),
    "a missing field": (
        lambda text: text.replace('source = "steps/action"', ""),
        r"features \(1st, action\): action needs either source or from: the keys in the source",
    ),
    "a doubled feature": (
        lambda text: text + DOUBLED,
        r".*mapped more than once: action",
    ),
    "a column that is no folder": (
        lambda text: text.replace('column = "steps"', 'column = "../steps"'),
        r".*column '\.\./steps' of observation/image_primary must be the name of a folder",
    ),
    "no TOML": (lambda text: text.replace("[conventions]", "[conventions"), r".*at line \d+.*"),
    "no UTF-8": (lambda text: text.encode() + b"# \xff\n", r".*codec can't decode byte 0xff.*"),
}


@pytest.mark.parametrize("kind", MAPPINGS)
def test_a_mapping_is_refused_in_one_line_until_it_is_fixed(
    source: Path, tmp_path: Path, command: Command, kind: str
) -> None:
    change, found = MAPPINGS[kind]
    mapping, out = tmp_path / "mapping.toml", tmp_path / "out"
    whole = describe(open_source(str(source)))
    spoiled = change(whole)
    assert spoiled != whole
    mapping.write_bytes(spoiled if isinstance(spoiled, bytes) else spoiled.encode())
    message = (
        rf"/mapping\.toml: expected a (valid SourceMapping|mapping in TOML); found {found}\. "
        r".*`octograin convert SRC --describe.*\."
    )
    check_refused(command, source, out, message, "--mapping", mapping)
    assert not out.exists()
    mapping.write_text(whole)
    assert command(rlds.main, source, out, "--mapping", mapping) == []
    convert(open_source(str(source)), tmp_path / "fresh", read_mapping(mapping))
    assert contents(out) == contents(tmp_path / "fresh")


# --- reading

EPISODES = "episodes/00000-of-00002.arrayrecord"
STEPS = "steps/00000-of-00002.arrayrecord"


def read_all(directory: Path) -> Iterator[dict[str, bytes]]:
    """Every value of every record, as bytes."""
    dataset = open_dataset(str(directory))
    for reader in dataset.columns.values():
        for index in range(len(reader)):
            values = reader.read(index).items()
            yield {key: np.asarray(value).tobytes() for key, value in values}


def exchanged(column: str) -> Spoil:
    def spoil(out: Path) -> None:
        first, last = sorted((out / column).iterdir())
        first.rename(out / "aside")
        last.rename(first)
        (out / "aside").rename(last)

    return spoil


def shard(change: Callable[[bytes], bytes], file: str = STEPS) -> Spoil:
    return lambda out: (out / file).write_bytes(change((out / file).read_bytes()))


def flipped_at(find: Callable[[bytes], int]) -> Spoil:
    def change(data: bytes) -> bytes:
        place = find(data)
        return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]

    return shard(change)


def footer(data: bytes) -> int:
    """A byte of the last block of 64 KiB, which tells where the records lie."""
    return len(data) - (1 << 16)


COPY = r"It is corrupt or may not be read: copy it again, or convert the dataset again\."
SIZE = r"It is incomplete, or another file: copy or convert the dataset again\."
OTHER = r"Another shard has this name: put the right one back, or convert the dataset again\."
CONVERT = r"Convert the dataset again\."
NO_RECORDS = rf"/{STEPS}: expected 6 records in \d+ bytes; found 0 records\. {COPY}"
HASH = rf"/{STEPS}, record 0: expected a readable record; found Corrupted .*hash mismatch.*{COPY}"

DATASETS: dict[str, tuple[Spoil, str, str]] = {
    "a truncated shard": (
        shard(lambda data: data[:-1]),
        rf"/{STEPS}, column steps: expected \d+ bytes; found \d+ bytes\. {SIZE}",
        rf"/{STEPS}: expected \d+ bytes; found \d+ bytes",
    ),
    "a missing shard": (
        lambda out: (out / STEPS).unlink(),
        rf"/{STEPS}, column steps: expected \d+ bytes; found no such file\. {SIZE}",
        rf"/{STEPS}: expected \d+ bytes; found no such file",
    ),
    "an empty shard": (
        shard(lambda data: b""),
        rf"/{STEPS}, column steps: expected \d+ bytes; found 0 bytes\. {SIZE}",
        rf"/{STEPS}: expected \d+ bytes; found 0 bytes",
    ),
    "zeros": (
        shard(lambda data: bytes(len(data))),
        NO_RECORDS,
        rf"/{STEPS}: expected 6 records; found 0 records",
    ),
    "exchanged shards of steps": (
        exchanged("steps"),
        rf"/{STEPS}, record 0: expected record 0 of shard 0; found record 0 of shard 1, out of its "
        rf"place\. {OTHER}",
        rf"/{STEPS}, record 0: expected record 0 of shard 0; found record 0 of shard 1, .*",
    ),
    "exchanged shards of episodes": (
        exchanged("episodes"),
        rf"/{EPISODES}, record 0: expected record 0 of shard 0; found record 0 of shard 1, out of "
        rf"its place\. {OTHER}",
        rf"/{EPISODES}, record 0: expected record 0 of shard 0; found record 0 of shard 1, .*",
    ),
    "a shard of another column": (
        lambda out: shutil.copy(out / STEPS.replace("steps", "tokens"), out / STEPS),
        rf"/{STEPS}, record 0: expected layout \w{{8}}; found layout \w{{8}} of other features\. "
        rf"{OTHER}",
        rf"/{STEPS}, record 0: expected layout \w{{8}}; found layout \w{{8}} of other features",
    ),
    "a flipped bit in an image": (
        flipped_at(lambda data: data.index(b"JFIF")),
        HASH,
        rf"/{STEPS}, record 0: expected a readable record; found .*",
    ),
    "a flipped bit in a record's header": (
        flipped_at(lambda data: data.index(b"OGR1") + 12),
        HASH,
        rf"/{STEPS}, record 0: expected a readable record; found .*",
    ),
    "a flipped bit in the framing of a chunk": (
        flipped_at(lambda data: data.index(b"OGR1") - 20),
        HASH,
        rf"/{STEPS}, record 0: expected a readable record; found .*",
    ),
    "a flipped bit in the footer": (
        flipped_at(footer),
        NO_RECORDS,
        rf"/{STEPS}: expected 6 records; found 0 records",
    ),
    "a foreign format version": (
        edited("dataset.json", lambda values: values.update(format_version=2)),
        r"/dataset\.json: expected format version 1; found version 2\. Read it with the release "
        r"that wrote it, or convert the source again\.",
        "",
    ),
    "a truncated dataset.json": (
        shard(lambda data: data[:-100], "dataset.json"),
        rf"/dataset\.json: expected a JSON object; found .*: line \d+ .*\. {CONVERT}",
        "",
    ),
    "an empty dataset.json": (
        shard(lambda data: b"", "dataset.json"),
        rf"/dataset\.json: expected a JSON object; found .*\. {CONVERT}",
        "",
    ),
    "a dataset.json that is not UTF-8": (
        shard(lambda data: data.replace(b"lift", b"lif\xff"), "dataset.json"),
        r"/dataset\.json: expected a JSON object; found .* can't decode byte 0xff .*\. Allow "
        r"reading it, or convert the dataset again\.",
        "",
    ),
    "a missing statistics.json": (
        lambda out: (out / "statistics.json").unlink(),
        r"/statistics\.json: expected statistics as the converter writes them; "
        rf"found no such file\. {CONVERT}",
        r"/statistics\.json: expected statistics as the converter writes them; found .*",
    ),
    "a truncated statistics.json": (
        shard(lambda data: data[:-50], "statistics.json"),
        r"/statistics\.json: expected statistics as the converter writes them; "
        rf"found JSONDecodeError: .*\. {CONVERT}",
        r"/statistics\.json: expected statistics as the converter writes them; found .*",
    ),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_that_is_corrupt_is_reported_by_every_reader(
    undisturbed: Path, command: Command, kind: str
) -> None:
    spoil, message, finding = DATASETS[kind]
    assert len(list(read_all(undisturbed))) == 4 + 12 + 12
    spoil(undisturbed)
    with pytest.raises(UserError, match=rf"^\S*{message}$") as caught:
        list(read_all(undisturbed))
    assert "\n" not in str(caught.value)
    *found, last = command(verify.main, undisturbed, code=2)
    if not finding:
        assert (found, last) == ([], f"error: {caught.value}")
        return
    assert any(re.fullmatch(rf"\S*{finding}", line) for line in found), found
    assert re.fullmatch(
        r"error: \S*/undisturbed: expected a dataset that is what its files and its source say; "
        r"found \d+ mismatch(es)?\. .+, or convert the source again\.",
        last,
    )


@pytest.mark.parametrize(
    ("file", "message", "finding"),
    [
        (STEPS, NO_RECORDS.replace("0 records", "Permission denied"), rf"/{STEPS}: expected 6 rec"),
        (
            "steps",
            rf"/{STEPS}, column steps: expected .*; found Permission denied\. Allow reading .*",
            "/steps: expec",
        ),
        (
            "dataset.json",
            r"/dataset\.json: expected a JSON object; found .*Permission denied.* Allow reading.*",
            "",
        ),
        (
            "statistics.json",
            r"/statistics\.json: expected .*; found PermissionError: .*denied.* Convert .*",
            r"/statistics\.json: expected .*; found PermissionError: .*",
        ),
    ],
)
def test_a_dataset_without_read_permission_is_named(
    undisturbed: Path, command: Command, as_nobody: Block, file: str, message: str, finding: str
) -> None:
    mode = (undisturbed / file).stat().st_mode
    (undisturbed / file).chmod(0)
    with as_nobody():
        with pytest.raises(UserError, match=rf"^\S*{message}$"):
            list(read_all(undisturbed))
        found = command(verify.main, undisturbed, code=2)
    (undisturbed / file).chmod(mode)
    assert any(re.match(rf"(error: )?\S*{finding or message}", line) for line in found), found
    assert command(verify.main, undisturbed) == []


def test_a_shard_of_another_dataset_of_the_same_size_is_found(
    rich: Any, undisturbed: Path, tmp_path: Path, command: Command
) -> None:
    other = rich.holding("steps/action", np.full((3, 2), 7, np.float32))
    convert(other.open(tmp_path / "other"), tmp_path / "foreign", rich.mapping)
    sizes = [(path / EPISODES).stat().st_size for path in (undisturbed, tmp_path / "foreign")]
    assert sizes[0] == sizes[1]
    shutil.copy(tmp_path / "foreign" / EPISODES, undisturbed / EPISODES)
    found = command(verify.main, undisturbed, code=2)
    expected = rf"\S*/{EPISODES}: expected records with the checksum \w{{32}}; found \w{{32}}"
    assert any(re.fullmatch(expected, line) for line in found), found


def test_no_flipped_bit_of_a_shard_gives_another_value(undisturbed: Path) -> None:
    """Flips every byte of its records, framing and footer, and some of its padding."""
    path = undisturbed / EPISODES
    reader = open_dataset(str(undisturbed)).columns["episodes"]
    whole = path.read_bytes()
    expected = [values_or_error(reader, index) for index in range(2)]
    places = [at for at, byte in enumerate(whole) if byte] + list(range(0, len(whole), 997))
    refused = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        reader.close()
        found = [values_or_error(reader, index) for index in range(2)]
        assert all(value in (None, held) for value, held in zip(found, expected, strict=True))
        refused += None in found
    assert refused > len(places) // 2


def values_or_error(reader: Any, index: int) -> dict[str, bytes] | None:
    """The values of a record; None where it is refused."""
    try:
        return {key: np.asarray(value).tobytes() for key, value in reader.read(index).items()}
    except UserError:
        return None
