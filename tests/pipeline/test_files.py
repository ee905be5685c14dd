import dataclasses
import errno
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
import pytest
from etils import epath

from pipeline.errors import DataError
from pipeline.files import (
    dump_json,
    from_json_text,
    is_remote,
    matching,
    sync,
    temporary_of,
    temporary_path,
    to_json_values,
    write_text_atomically,
)


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a part has a name")


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    rate_hz: float | None = None
    named: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    best: Part | None = None

    def __post_init__(self) -> None:
        if self.rate_hz is not None and self.rate_hz <= 0:
            raise ValueError("rate_hz must be positive")


WHOLE = Whole((Part("a", (1, 2)), Part("b")), 20.0)


def test_dataclass_survives_its_text() -> None:
    text = dump_json(to_json_values(WHOLE))
    assert from_json_text(Whole, text, where="file", remedy="Fix it.") == WHOLE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "parts: Field required"),
        ('{"parts": [], "more": 1}', "unknown field more[.]"),
        ('{"parts": [], "rate": 1}', r"unknown field rate \(rate_hz\?\)"),
        (
            '{"parts": [{"name": "a", "size": []}]}',
            r"parts \(1st, a\): unknown field size \(sizes\?\)",
        ),
        ('{"parts": [{"name": "a", "rate_h": 1}]}', r"parts \(1st, a\): unknown field rate_h[.]"),
        ('{"parts": [], "named": {"a": {"nam": 1}}}', r".*named.a: unknown field nam \(name\?\)"),
        ('{"parts": [], "rate_hz": -1}', "rate_hz must be positive[.]"),
        ('{"parts": [], "best": {"name": ""}}', "best: a part has a name[.]"),
        (
            '{"parts": [{"name": 1, "sizes": ["2"]}]}',
            r"parts \(1st\).name: .*; parts \(1st\).sizes \(1st\): .*integer",
        ),
    ],
)
def test_text_that_does_not_fit_is_refused_field_by_field(text: str, found: str) -> None:
    with pytest.raises(DataError, match=f"file: expected a valid Whole; found {found}.*Fix it"):
        from_json_text(Whole, text, where="file", remedy="Fix it.")


@pytest.mark.parametrize(
    "values",
    [
        {"a": [1, 2.5, -3e-7], "b": [[1, 2], [3]], "c": []},
        {"text": "[\n 1,\n 2\n]", "words": ["1", "2"]},
        [float("inf"), 1.0],
    ],
)
def test_lists_of_numbers_on_one_line_are_the_same_values(values: object) -> None:
    assert json.loads(dump_json(values)) == values


def test_list_of_numbers_stays_on_one_line() -> None:
    assert dump_json({"shape": [7, 8]}) == '{\n "shape": [7, 8]\n}\n'


def test_text_replaces_the_file_and_leaves_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "dataset.json"
    for text in ("first", "second"):
        write_text_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_written_leaves_the_file_of_before(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "dataset.json"
    write_text_atomically(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "second \ud800")
    assert path.read_text() == "first"


# --- files


def test_a_temporary_is_hidden_beside_its_file_and_of_this_process_alone() -> None:
    path = pathlib.Path("folder") / "0.arrayrecord"
    temporary = temporary_path(path)
    assert temporary.parent == path.parent
    assert re.fullmatch(rf"\.0\.arrayrecord\.[0-9a-f]{{8}}\.{os.getpid()}\.tmp", temporary.name)
    assert temporary_path(path) != temporary
    assert temporary_of(temporary.name) == path.name
    for other in (path.name, ".notes.tmp", ".a.0123abcd.tmp", "a.0123abcd.7.tmp", ".a.7.tmp.txt"):
        assert temporary_of(other) is None


@pytest.mark.parametrize("name", ["set", "set[1]", "s*t?", "[!a]"])
def test_the_name_of_a_folder_is_no_pattern(
    tmp_path: pathlib.Path, object_store: epath.Path, name: str
) -> None:
    for root in (epath.Path(tmp_path), object_store):
        for file in (f"{name}/b/2.txt", f"{name}/a/1.txt", f"{name}/a/1.json", "set1/a/3.txt"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text("")
        found = [root / name / "a" / "1.txt", root / name / "b" / "2.txt"]
        assert matching(root / name, "*/*.txt") == found
        assert matching(root / "missing", "*.txt") == []


@pytest.mark.parametrize("path", ["s3://bucket/set", "gs://bucket", epath.Path("gs://bucket/set")])
def test_an_object_store_is_recognised_by_its_scheme(path: epath.PathLike) -> None:
    assert is_remote(path)


@pytest.mark.parametrize(
    "path", ["/data/set", "set", "a:b/c", pathlib.Path("set"), epath.Path("set")]
)
def test_another_path_is_local(path: epath.PathLike) -> None:
    assert not is_remote(path)


def test_syncing_what_is_missing_names_it(tmp_path: pathlib.Path) -> None:
    sync(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        sync(tmp_path / "gone")


def test_text_is_written_to_an_object_store_whole(object_store: epath.Path) -> None:
    path = object_store / "set" / "dataset.json"
    for text in ("first", "second"):
        write_text_atomically(path, text)
        assert path.read_text() == text
    write_text_atomically(str(object_store / "set" / "plan.json"), "third")
    assert sorted(p.name for p in (object_store / "set").iterdir()) == ["dataset.json", "plan.json"]


def test_an_object_appears_when_its_upload_ends(object_store: epath.Path) -> None:
    path = object_store / "set" / "0"
    with path.open("wb") as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("text", ["second \ud800", "second"])
def test_a_failed_write_leaves_the_file_of_before_and_nothing_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "dataset.json"
    write_text_atomically(path, "first")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        (UnicodeEncodeError, OSError), match=r"surrogates not allowed|No space left"
    ):
        write_text_atomically(path, text)
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_text_for_a_missing_folder_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone/\.x\.[0-9a-f]+\.\d+\.tmp"):
        write_text_atomically(tmp_path / "gone" / "x", "text")
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class _Scale:
    by: float | tuple[float, ...]
    op: Literal["scale"] = "scale"


@dataclasses.dataclass(frozen=True)
class _Negate:
    op: Literal["negate"] = "negate"


@dataclasses.dataclass(frozen=True)
class _Joined:
    """Either a text or an operation, as the parts of a mapping are."""

    parts: tuple[str | Annotated[_Scale | _Negate, pydantic.Field(discriminator="op")], ...]


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"op": "scale", "bye": 2}, r"parts \(1st, scale\).by: Field required; parts \(1st, "),
        ({"op": "scael"}, r"parts \(1st, scael\): op 'scael' is not known \(scale\?\): it is one"),
        ({"by": 2}, r"parts \(1st\): it needs the field op\. "),
        ({"op": "scale", "by": "2"}, r"parts \(1st, scale\).by: Input should be a valid number"),
        (7, r"parts \(1st\): Input should be a valid string, not 7"),
        ([1], r"parts \(1st\): Input should be"),
    ],
)
def test_a_mismatch_in_a_union_is_reported_at_its_place_alone(part: object, found: str) -> None:
    with pytest.raises(DataError, match=f"found {found}") as error:
        from_json_text(_Joined, json.dumps({"parts": [part]}), where="a.json", remedy="Fix it.")
    # No name of a type that pydantic tried.
    assert not re.search(r"\.str\b|_Scale|\.scale\b|\.float|tuple", str(error.value))
