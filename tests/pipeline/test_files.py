import dataclasses
import json
import pathlib

import pytest

from pipeline.errors import DataError
from pipeline.files import dump_json, from_json_text, to_json_values, write_text_atomically


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    rate_hz: float | None = None


WHOLE = Whole((Part("a", (1, 2)), Part("b")), 20.0)


def test_dataclass_survives_its_text() -> None:
    text = dump_json(to_json_values(WHOLE))
    assert from_json_text(Whole, text, where="file", remedy="Mend it.") == WHOLE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: .*object"),
        ("{}", "parts: Field required"),
        ('{"parts": [], "more": 1}', "more: Unexpected keyword argument"),
        (
            '{"parts": [{"name": 1, "sizes": ["2"]}]}',
            "parts.0.name: .*; parts.0.sizes.0: .*integer",
        ),
    ],
)
def test_text_that_does_not_fit_is_refused_field_by_field(text: str, found: str) -> None:
    with pytest.raises(DataError, match=f"file: expected a valid Whole; found {found}.*Mend it"):
        from_json_text(Whole, text, where="file", remedy="Mend it.")


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
