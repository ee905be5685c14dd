import dataclasses
import json
import pathlib
import re
import shutil
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module
from etils import epath

from pipeline.data.conventions import Conventions, Gripper, PoseRotation
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.dataset_writer import WRITER_OPTIONS, ShardWriter
from pipeline.data.manifest import FORMAT_VERSION, Manifest, Shard, TaskChange, load_manifest
from pipeline.data.record import RecordLayout
from pipeline.data.schema import Column, Feature, Schema
from pipeline.data.statistics import FeatureStatistics
from pipeline.data.token_provenance import Keep, TokenOrigin
from pipeline.errors import DataError
from pipeline.files import to_json_values
from pipeline.loading.samples.splits import episode_places
from pipeline.vggt.encoder_spec import EncoderSpec

FORMAT = pathlib.Path(__file__).parents[1] / "docs" / "format.md"
_NUM_COLUMNS = 100
_NUM_LINES = 20
_BLOCK = re.compile(r"^```(\w[^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEX_LINE = re.compile(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})  +\S.*")


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """(words after the language, content) of the fenced blocks of a language."""
    found = [(info.partition(" "), content) for info, content in _BLOCK.findall(text)]
    return [(words, content) for (name, _, words), content in found if name == language]


def is_contained(excerpt: Any, whole: Any) -> bool:
    """Whether all that an excerpt of JSON says is in the whole; objects of a list may be left out.

    A list of anything but objects has to be the whole list.
    """
    if isinstance(excerpt, dict):
        return isinstance(whole, dict) and all(
            key in whole and is_contained(value, whole[key]) for key, value in excerpt.items()
        )
    if isinstance(excerpt, list) and excerpt and isinstance(excerpt[0], dict):
        return all(any(is_contained(one, other) for other in whole) for one in excerpt)
    return type(excerpt) is type(whole) and excerpt == whole


@pytest.fixture(scope="module")
def text() -> str:
    return FORMAT.read_text()


@pytest.fixture(scope="module")
def documented(text: str) -> dict[str, Callable]:
    """The functions that the document defines, by name; each block runs without the others."""
    defined: dict[str, Any] = {}
    for _, code in blocks(text, "python"):
        alone: dict[str, Any] = {}
        exec(compile(code, str(FORMAT), "exec"), alone)
        defined |= alone
    return {name: value for name, value in defined.items() if callable(value)}


@pytest.fixture(scope="module")
def dataset(mini_dataset: pathlib.Path) -> Dataset:
    return open_dataset(str(mini_dataset))


@pytest.fixture(scope="module")
def manifest(mini_dataset: pathlib.Path) -> dict[str, Any]:
    """The content of `dataset.json` as another program would see it."""
    return json.loads((mini_dataset / "dataset.json").read_text())


def without_checksums(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest as written before there were checksums."""
    return {k: v for k, v in manifest.items() if k not in ("checksum", "statistics_checksum")}


def stored(dataset: Dataset, column: str, shard: int, place: int) -> bytes:
    """The bytes of a record."""
    path = pathlib.Path(dataset.path) / dataset.manifest.shards[column][shard].file
    (record,) = array_record_module.ArrayRecordReader(str(path)).read(place, place + 1)
    return record


def feature(key: str, kind: str, shape: tuple, dtype: str) -> Feature:
    batch_dtype = None if kind == "text" else "float32"
    return Feature(
        key, kind, shape, dtype, batch_dtype, f"steps/{key}", dims=("größe_m", "\U0001f916")
    )


SCHEMA = Schema(
    (
        Column(
            "episodes",
            "episode",
            (
                feature("scalar", "tensor", (), "bool"),
                feature("größe", "tensor", (3,), "float32"),
                feature("source_id", "text", (), "utf8"),
            ),
        ),
        Column(
            "mixed",
            "step",
            (
                feature("camera", "image", (8, 9, 3), "uint8"),
                feature("tokens", "tensor", (2, 5), "float16"),
                feature("empty", "tensor", (0,), "int32"),
                feature("wrist", "image", (4, 4, 3), "uint8"),
            ),
        ),
        Column("nothing", "step", ()),
    )
)
"""Every kind, every number of axes, and text that is not ASCII."""


def as_json(value: Any) -> Any:
    return to_json_values(value)


@pytest.mark.parametrize(("episode", "step"), [(0, 0), (1, 123), (2, 0), (3, 105)])
def test_step_read_without_the_project_is_that_of_the_project(
    documented: dict, dataset: Dataset, episode: int, step: int
) -> None:
    image, action, instruction = documented["read_step"](dataset.path, episode, step)
    images = dataset.columns["steps"].read(int(dataset.episode_starts[episode]) + step)
    assert image == images["observation/image_primary"]
    expected = dataset.columns["episodes"].read(episode)["action"][step]
    np.testing.assert_array_equal(action, expected)
    assert action.dtype == expected.dtype
    assert instruction == dataset.manifest.tasks[dataset.task_index(episode, step)]


def test_instruction_that_changes_is_read_without_the_project(
    documented: dict, dataset: Dataset, manifest: dict, tmp_path: pathlib.Path
) -> None:
    changes = [(1, 5, 0), (2, 3, 0), (2, 9, 1)]
    named = [dict(zip(("episode", "step", "task"), change, strict=True)) for change in changes]
    (tmp_path / "dataset.json").write_text(json.dumps(manifest | {"task_changes": named}))
    for column in manifest["shards"]:
        (tmp_path / column).symlink_to(pathlib.Path(dataset.path) / column)
    changed = dataclasses.replace(
        dataset,
        manifest=dataclasses.replace(
            dataset.manifest, task_changes=tuple(TaskChange(*change) for change in changes)
        ),
    )
    for episode, step in [(1, 4), (1, 5), (1, 100), (2, 2), (2, 3), (2, 8), (2, 9), (3, 9)]:
        _, _, instruction = documented["read_step"](tmp_path, episode, step)
        assert instruction == dataset.manifest.tasks[changed.task_index(episode, step)]


def test_split_is_known_without_the_project(
    documented: dict, dataset: Dataset, manifest: dict
) -> None:
    for fraction in (0.1, 0.3, 0.5, 0.9):
        expected = (episode_places(dataset) < fraction).tolist()
        assert documented["held_out"](manifest, fraction) == expected


def test_snippet_of_one_step_is_short_and_imports_nothing_of_the_project(text: str) -> None:
    (code,) = (code for _, code in blocks(text, "python") if "def read_step" in code)
    assert len([line for line in code.splitlines() if line.strip()]) <= _NUM_LINES
    imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    assert set(imported) == {"json", "numpy", "array_record"}


@pytest.mark.parametrize("column", ["episodes", "steps", "vggt_tokens"])
def test_every_record_decodes_as_documented(
    documented: dict, dataset: Dataset, manifest: dict, column: str
) -> None:
    (declared,) = (c for c in manifest["schema"]["columns"] if c["name"] == column)
    reader = dataset.columns[column]
    for index in range(0, len(reader), 1 if column == "episodes" else 37):
        record = documented["read_record"](dataset.path, manifest, column, index)
        values = documented["decode_record"](declared, record)
        expected = reader.read(index)
        assert values.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(values[key], value, strict=True)
            else:
                assert values[key] == value


@pytest.mark.parametrize("column", SCHEMA.columns, ids=lambda column: column.name)
def test_record_of_any_kinds_decodes_as_documented(documented: dict, column: Column) -> None:
    num_steps = 3 if column.per == "episode" else 1
    leading = (num_steps,) if column.per == "episode" else ()
    values: dict[str, Any] = {
        f.key: np.ones((*leading, *f.shape), f.dtype) if f.kind == "tensor" else f.key.encode()
        for f in column.features
    }
    record = RecordLayout(column).encode((2, 7), num_steps, values)
    decoded = documented["decode_record"](as_json(column), record)
    assert decoded.keys() == values.keys()
    for key, value in values.items():
        assert np.array_equal(decoded[key], value)


@pytest.mark.parametrize("code", ["int8x128+5", "int8x64"])
def test_quantized_tokens_decode_as_documented(documented: dict, code: str) -> None:
    tokens = Feature("t", "quantized", (9, 256), code, "float32", "")
    numbers = np.random.default_rng(0).integers(0, 256, tokens.nbytes, np.uint8)
    blob = (numbers & 0xBF).tobytes()  # without exponents of what is not finite
    expected = np.empty((9, 256), np.float32)
    tokens.code.decode(blob, expected, "here")
    np.testing.assert_array_equal(documented["decode_quantized"](as_json(tokens), blob), expected)


def test_every_way_to_keep_tokens_is_documented(text: str) -> None:
    ((_, table),) = re.findall(r"^`(keep)`:\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    values = re.findall(r"^\| `([\w:]+)` \|", table, re.MULTILINE)
    spec = EncoderSpec("w", "d", "MIT")
    shapes = [Keep.parse(value.replace("N", "4")).shape(spec) for value in values]
    assert shapes == [(261, 2048), (261, 2048), (261, 2048), (4, 2048), (261, 4)]


def test_schema_hash_is_computed_as_documented(
    documented: dict, dataset: Dataset, manifest: dict
) -> None:
    assert documented["schema_hash"](manifest["schema"]) == dataset.manifest.schema_hash
    assert documented["schema_hash"](as_json(SCHEMA)) == SCHEMA.hash()


def test_layout_tag_is_computed_as_documented(
    documented: dict, dataset: Dataset, text: str
) -> None:
    for column in (*SCHEMA.columns, *dataset.manifest.schema.columns):
        assert documented["layout_tag"](as_json(column)) == RecordLayout(column).tag
    (steps,) = (c for c in dataset.manifest.schema.columns if c.name == "steps")
    ((_, example),) = blocks(text, "text")
    assert example.replace("\n", "") == documented["layout_text"](as_json(steps))
    assert f"{RecordLayout(steps).tag:08x}" in text


def test_digest_is_computed_as_documented(
    documented: dict, dataset: Dataset, text: str, tmp_path: pathlib.Path
) -> None:
    for shard in (shard for shards in dataset.manifest.shards.values() for shard in shards):
        assert documented["digest"](pathlib.Path(dataset.path) / shard.file) == shard.digest
    with ShardWriter(tmp_path, "empty.arrayrecord") as writer:
        pass
    assert f"`{writer.finished().digest}`" in text


@pytest.mark.parametrize(
    "kind",
    [
        Manifest,
        Schema,
        Feature,
        Column,
        Shard,
        TaskChange,
        Conventions,
        Gripper,
        PoseRotation,
        FeatureStatistics,
        TokenOrigin,
        EncoderSpec,
    ],
)
def test_every_field_is_documented(text: str, kind: type) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) | {"columns"}
    assert "an object with one field, `columns`" in text.replace("\n", " ").lower()
    missing = {field.name for field in dataclasses.fields(kind)} - rows
    assert not missing


def test_no_documented_field_is_unknown(text: str) -> None:
    """The tables headed `field`, all together, list the fields of the classes and no other."""
    tables = re.findall(r"^\| field \|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    documented = {name for table in tables for name in re.findall(r"^\| `(\w+)`", table, re.M)}
    kinds = (Manifest, Feature, Column, Shard, TaskChange, Conventions, FeatureStatistics)
    kinds = (*kinds, Gripper, PoseRotation, TokenOrigin, EncoderSpec)
    assert documented == {field.name for kind in kinds for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", ["image_orientation", "rotation", "no_ops"])
def test_every_value_of_the_conventions_is_documented(text: str, name: str) -> None:
    (annotation,) = (f.type for f in dataclasses.fields(Conventions) if f.name == name)
    ((_, table),) = re.findall(rf"^`({name})`:\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    values = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(values) == sorted(annotation.__args__)


def test_excerpts_are_those_of_the_bundled_set(
    text: str, manifest: dict, mini_dataset: pathlib.Path
) -> None:
    statistics = json.loads((mini_dataset / "statistics.json").read_text())
    excerpts = [json.loads(content) for _, content in blocks(text, "json")]
    shown = {key for excerpt in excerpts for key in excerpt}
    assert shown >= manifest.keys()
    for excerpt in excerpts:
        assert is_contained(excerpt, manifest | statistics), excerpt


def test_an_excerpt_that_differs_is_seen() -> None:
    whole = {"a": [1, 2], "b": [{"x": 2}, {"x": 1, "y": 2}]}
    assert all(is_contained(excerpt, whole) for excerpt in (whole, {"b": [{"x": 1}]}))
    for excerpt in ({"a": [1]}, {"b": [{"x": 3}]}, {"b": [{"x": 2, "y": 2}]}, {"c": 1}):
        assert not is_contained(excerpt, whole)


def test_hex_dumps_are_what_the_code_writes(text: str, dataset: Dataset) -> None:
    dumps = blocks(text, "hex")
    assert [words for words, _ in dumps] == ["steps 0 0", "episodes 0 0"]
    for words, content in dumps:
        column, shard, place = words.split()
        record = stored(dataset, column, int(shard), int(place))
        assert f"of `{column}`: {len(record):,} bytes" in text
        for line in content.splitlines():
            match = _HEX_LINE.fullmatch(line)
            assert match, line
            offset, shown = int(match[1], 16), bytes.fromhex(match[2])
            found = record[offset : offset + len(shown)]
            assert found == shown, f"{line}: {found.hex(' ')}"


def test_sizes_are_those_of_the_bundled_set(text: str, dataset: Dataset) -> None:
    for column, shards in dataset.manifest.shards.items():
        records = [
            stored(dataset, column, number, place)
            for number, shard in enumerate(shards)
            for place in range(shard.records)
        ]
        of_files = sum(shard.num_bytes for shard in shards)
        of_records = sum(map(len, records))
        assert f"| `{column}` | {len(records)} | {of_records:,} | {of_files:,} |" in text


def test_column_is_added_as_documented(
    documented: dict, dataset: Dataset, manifest: dict, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(dataset.path, tmp_path, dirs_exist_ok=True)
    column = Column("depth", "step", (feature("depth", "tensor", (2,), "float32"),))
    expected = np.arange(2 * dataset.num_steps, dtype=np.float32).reshape(-1, 2)
    values, shards = iter(expected), []
    for number, beside in enumerate(manifest["shards"]["steps"]):
        with ShardWriter(tmp_path, beside["file"].replace("steps", "depth")) as writer:
            for place in range(beside["records"]):
                tag = documented["layout_tag"](as_json(column))
                header = struct.pack("<4sIIIII8x", b"OGR1", tag, number, place, 1, 0)
                writer.write(header + next(values).tobytes() + bytes(8))
        shards.append(as_json(writer.finished()))
    schema = {"columns": [*manifest["schema"]["columns"], as_json(column)]}
    added = {
        "schema": schema,
        "schema_hash": documented["schema_hash"](schema),
        "shards": manifest["shards"] | {"depth": shards},
        "licences": manifest["licences"] | {"depth": "unknown"},
        "provenance": manifest["provenance"] | {"depth": "a test"},
    }
    changed = {name: value for name, value in (manifest | added).items() if name != "checksum"}
    changed["checksum"] = documented["json_checksum"](changed)
    (tmp_path / "dataset.json").write_text(json.dumps(changed))
    opened = open_dataset(str(tmp_path))
    reader = opened.columns["depth"]
    stored_values = [reader.read(index)["depth"] for index in range(len(reader))]
    np.testing.assert_array_equal(stored_values, expected)
    kept = ["episodes", "steps", "vggt_tokens"]
    assert opened.manifest.digest(kept) == dataset.manifest.digest(kept)


def test_field_that_is_not_documented_is_refused(manifest: dict, tmp_path: pathlib.Path) -> None:
    manifest = without_checksums(manifest)
    for other in (
        manifest | {"more": 1},
        manifest | {"conventions": manifest["conventions"] | {"more": 1}},
        manifest | {"conventions": manifest["conventions"] | {"rotation": "matrix"}},
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(other))
        with pytest.raises(DataError, match="a valid Manifest"):
            load_manifest(epath.Path(tmp_path))


def test_field_with_a_default_may_be_missing(
    dataset: Dataset, manifest: dict, tmp_path: pathlib.Path
) -> None:
    shorter = json.loads(json.dumps(without_checksums(manifest)))
    del shorter["conventions"]["no_op_threshold"]
    for declared in (f for column in shorter["schema"]["columns"] for f in column["features"]):
        if not declared["dims"]:
            del declared["dims"]
    (tmp_path / "dataset.json").write_text(json.dumps(shorter))
    expected = dataclasses.replace(dataset.manifest, statistics_checksum="")
    assert load_manifest(epath.Path(tmp_path)) == expected


def test_options_and_version_are_those_of_the_code(text: str) -> None:
    assert f"`{WRITER_OPTIONS}`" in text
    assert f"# Dataset format, version {FORMAT_VERSION}\n" in text


def test_dimensions_of_every_feature_are_named(dataset: Dataset) -> None:
    text = (FORMAT.parent / "reference" / "libero.md").read_text()
    for _, declared in dataset.manifest.schema.features():
        assert f"`{declared.key}`" in text
        shown = declared.dims if "joint" not in declared.key else declared.dims[::6]
        assert all(f"`{name}`" in text for name in shown), declared


def test_lines_are_short(text: str) -> None:
    long = [line for line in text.splitlines() if len(line) > _NUM_COLUMNS]
    assert not long
