import dataclasses
import importlib
import json
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol, get_type_hints, runtime_checkable

import pytest

from pipeline.added_fields import LATER
from pipeline.config_checks import (
    Problem,
    all_problems,
    check,
    check_positive,
    deferred,
    marks_of,
)
from pipeline.errors import DataError
from pipeline.files import from_json_text, to_json_values
from pipeline.loading import transforms
from pipeline.loading.data_config import DataConfig
from pipeline.parts.part import (
    Part,
    fields_of_parts,
    files_of_parts,
    lacked,
    without_sources,
)
from train import octo
from train.octo.octo_config import OctoConfig


@runtime_checkable
class Head(Protocol):
    @property
    def horizon(self) -> int: ...

    def loss(self, x: float) -> float: ...


@runtime_checkable
class Transform(Protocol):
    def apply(self, x: float) -> float: ...


@dataclasses.dataclass(frozen=True)
class Released:
    horizon: int = 4
    pooling: Literal["mean", "map"] = "mean"

    def loss(self, x: float) -> float:
        return x


@dataclasses.dataclass(frozen=True)
class Other:
    horizon: int = 4
    error: Literal["l1", "mse"] = "l1"

    def loss(self, x: float) -> float:
        return x


@dataclasses.dataclass(frozen=True)
class Bins:
    num_bins: int = 8

    def __post_init__(self) -> None:
        check(self)

    def problems(self) -> Iterator[Problem]:
        yield from check_positive(self, "num_bins")


@dataclasses.dataclass(frozen=True)
class Scale:
    factor: float = 2.0
    dims: tuple[str, ...] = ()
    bins: Bins | None = None
    added: int = dataclasses.field(default=0, metadata=LATER)

    def apply(self, x: float) -> float:
        return self.factor * x


@dataclasses.dataclass(frozen=True)
class Config:
    head: Annotated[Head, Part(plain=(Released, Other))] = Released()
    transforms: tuple[Annotated[Transform, Part()], ...] = dataclasses.field(
        default=(), metadata=LATER
    )
    last: Annotated[Transform, Part()] | None = None

    def __post_init__(self) -> None:
        check(self)

    def problems(self) -> Iterator[Problem]:
        yield from ()


@dataclasses.dataclass(frozen=True)
class Before:
    head: Released | Other = Released()
    last: None = None


@dataclasses.dataclass(frozen=True)
class OwnConfig:
    transforms: tuple[Annotated[Transform, Part(__name__)], ...] = ()


def read(text: str, kind: Any = Config) -> Any:
    return from_json_text(kind, text, where="config.json", remedy="Read it elsewhere.")


def again(config: Any) -> Any:
    return read(json.dumps(to_json_values(config)), type(config))


def test_a_config_without_parts_has_the_text_of_before_and_is_read() -> None:
    for head in (Released(8, "map"), Other(error="mse")):
        text = json.dumps(to_json_values(Config(head)))
        assert text == json.dumps(to_json_values(Before(head)))
        assert read(text) == Config(head)


def test_parts_are_read_as_they_were_written() -> None:
    config = Config(Other(2), (Scale(3.0, ("x_m",), Bins(2)), Scale(added=1)), Scale())
    assert again(config) == config
    values = to_json_values(config)["transforms"][0]
    assert list(values) == ["part", "module", "file", "checksum", "fields"]
    assert (values["part"], values["file"]) == ("Scale", "test_part.py")
    # A later field that has its default is left out here too.
    assert values["fields"] == {"factor": 3.0, "dims": ["x_m"], "bins": {"num_bins": 2}}


def test_a_part_of_the_library_is_recorded_by_its_name() -> None:
    config = OwnConfig((Scale(),))
    (values,) = to_json_values(config)["transforms"]
    assert values == {"part": "Scale", "fields": {"factor": 2.0, "dims": [], "bins": None}}
    assert again(config) == config


def test_sources_can_be_left_out_to_compare_what_parts_do() -> None:
    values = without_sources(to_json_values(Config(transforms=(Scale(),))))
    assert list(values["transforms"][0]) == ["part", "fields"]
    assert values["head"] == {"horizon": 4, "pooling": "mean"}


def test_the_fields_of_parts_lie_as_flags_call_them() -> None:
    values = to_json_values(Config(transforms=(Scale(3.0), Scale()), last=Scale()))
    shown = fields_of_parts({"name": ["a"], "model": values})
    assert shown["name"] == ["a"]
    assert shown["model"]["head"] == values["head"]
    scale = {"part": "Scale", "factor": 2.0, "dims": [], "bins": None}
    assert shown["model"]["transforms"] == {"0": {**scale, "factor": 3.0}, "1": scale}
    assert shown["model"]["last"] == scale
    assert list(files_of_parts(values)) == ["test_part.py"] * 3
    assert list(files_of_parts(to_json_values(OwnConfig((Scale(),))))) == []


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"head": {"horizn": 4}}, r"head: unknown field horizn \(horizon\?\)"),
        ({"head": {"pooling": "max"}}, "head.pooling: Input should be 'mean' or 'map', not 'max'"),
        ({"transforms": [3]}, r"transforms \(1st\): it needs the field part, .*, not 3"),
        (
            {"transforms": [{"fields": {}}]},
            r"transforms \(1st\): it needs the field part, which has the name of a class",
        ),
        (
            {"transforms": [{"part": "Scale", "module": __name__, "file": None, "fiels": {}}]},
            r"transforms \(1st, Scale\)\.fields: Field required; transforms \(1st, Scale\): "
            r"unknown field fiels \(fields\?\)",
        ),
        (
            {"transforms": [{"part": 3, "fields": {}}]},
            r"transforms \(1st\)\.part: Input should be a valid string, not 3",
        ),
    ],
)
def test_a_file_that_is_wrong_says_where(values: Any, found: str) -> None:
    with pytest.raises(DataError, match=f"^config.json: expected a valid Config; found {found}"):
        read(json.dumps(values))


def test_all_that_is_wrong_in_a_part_is_listed_with_its_place() -> None:
    record = to_json_values(Config(last=Scale()))["last"]
    record["fields"] = {"factr": 1.0, "dims": "x", "bins": {"num_bins": 0}}
    with pytest.raises(DataError) as caught:
        read(json.dumps({"last": record, "head": {"horizon": "4"}}))
    assert caught.value.found == (
        "head.horizon: Input should be a valid integer, not '4'; "
        "last.fields.dims: Input should be a valid array, not 'x'; "
        "last.fields.bins.num_bins: expected at least 1, not 0; "
        "last.fields: unknown field factr (factor?)"
    )


def test_a_part_that_is_missing_is_one_line_with_its_flag() -> None:
    record = {"part": "Wrench", "module": "my_parts", "file": "my_parts.py", "checksum": "00"}
    with pytest.raises(DataError) as caught:
        read(json.dumps({"transforms": [{**record, "fields": {}}]}))
    assert str(caught.value) == (
        "config.json: expected a valid Config; found transforms (1st, Wrench): no class Wrench "
        "of my_parts.py. Give the file: --parts my_parts.py; in Python, "
        "octograin.load_parts('my_parts.py')."
    )


def test_parts_that_are_missing_have_a_line_each() -> None:
    records = [
        {"part": name, "module": file[:-3], "file": file, "checksum": "00", "fields": {}}
        for name, file in (("Wrench", "my_parts.py"), ("Drop", "my_parts.py"), ("Saw", "b.py"))
    ]
    with pytest.raises(DataError) as caught:
        read(json.dumps({"transforms": records}))
    assert str(caught.value).splitlines() == [
        "config.json: expected a valid Config; found 3 problems. These are:",
        "  transforms (1st, Wrench): no class Wrench of my_parts.py",
        "  transforms (2nd, Drop): no class Drop of my_parts.py",
        "  transforms (3rd, Saw): no class Saw of b.py",
        "Give the file: --parts my_parts.py; in Python, octograin.load_parts('my_parts.py').",
        "Give the file: --parts b.py; in Python, octograin.load_parts('b.py').",
    ]


def test_an_unknown_part_of_the_library_is_named() -> None:
    with pytest.raises(DataError, match=r"octograin has no part Scal \(Scale\?\)\. Read it with"):
        read(json.dumps({"transforms": [{"part": "Scal", "fields": {}}]}), OwnConfig)


def test_a_class_that_a_module_imports_is_no_part_of_it() -> None:
    with pytest.raises(DataError, match=r"octograin has no part Problem\."):
        read(json.dumps({"transforms": [{"part": "Problem", "fields": {}}]}), OwnConfig)


@pytest.mark.parametrize(
    ("config", "field", "folder"),
    [
        (DataConfig, "transforms", transforms),
        (DataConfig, "gripper_rules", transforms),
        (OctoConfig, "head", octo),
    ],
)
def test_parts_of_the_library_are_recorded_by_their_names(config, field, folder) -> None:
    ((kind, mark),) = marks_of(get_type_hints(config, include_extras=True)[field])
    modules = [
        importlib.import_module(f"{folder.__name__}.{path.stem}")
        for path in pathlib.Path(folder.__file__).parent.glob("*.py")
        if path.stem not in ("__init__", "batch_transforms", "normalize_transforms")
    ]
    found = {
        part.__name__: part
        for module in modules
        for part in vars(module).values()
        if isinstance(part, type) and dataclasses.is_dataclass(part) and not lacked(kind, part)
    }
    assert len(found) > 1
    listed = {name for name, part in found.items() if part.__module__ in mark.modules}
    assert listed | {part.__name__ for part in mark.plain} == found.keys()


def test_a_class_of_another_kind_is_not_made() -> None:
    record = to_json_values(Config(last=Scale()))["last"] | {"part": "Bins", "fields": {}}
    with pytest.raises(DataError, match="last: Bins lacks apply"):
        read(json.dumps({"last": record}))


def function(x: float) -> float:
    return x


@dataclasses.dataclass
class Thawed:
    def apply(self, x: float) -> float:
        return x


class Plain:
    def apply(self, x: float) -> float:
        return x

    @dataclasses.dataclass(frozen=True)
    class Inner:
        def apply(self, x: float) -> float:
            return x


@dataclasses.dataclass(frozen=True)
class Holding:
    array: Any = dataclasses.field(default_factory=object)

    def apply(self, x: float) -> float:
        return x


def changed(**fields: Any) -> Scale:
    """A part with values that its constructor, whose types the tests check, would refuse."""
    part = Scale()
    for name, value in fields.items():
        object.__setattr__(part, name, value)
    return part


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            Scale,
            "expected an instance of a frozen dataclass; found the class Scale. Write Scale(...).",
        ),
        (
            function,
            "expected a dataclass with apply; found the function function. Write a frozen "
            "dataclass at the top of a file, and give an instance of it.",
        ),
        (3, "expected a dataclass with apply; found 3. Write a frozen dataclass"),
        (Thawed(), "expected a frozen dataclass; found Thawed, which is not frozen. Write @"),
        (Bins(), "expected a dataclass with apply; found Bins, which lacks apply. Add it to the"),
        (Plain.Inner(), "expected a class at the top of a file; found Plain.Inner. Move the"),
        (Holding(), "expected fields that JSON holds: numbers, texts, tuples and dataclasses of"),
        (changed(dims=("x", 3)), "dims.1: expected a text; found 3. Give it in quotes"),
        (changed(factor="2"), "factor: expected a number; found '2'. Give one"),
    ],
    ids=("class", "function", "number", "thawed", "incomplete", "inner", "array", "dims", "text"),
)
def test_what_is_no_part_says_what_to_write(value: Any, message: str) -> None:
    # Written past the constructors, whose types the tests check.
    with deferred():
        config = Config()
        object.__setattr__(config, "transforms", (Scale(), value))
    (problem, *_) = all_problems(config)
    assert str(problem).startswith(("transforms.1: " + message, "transforms.1." + message))


def test_a_part_with_a_field_out_of_range_has_that_problem_alone() -> None:
    with deferred():
        config = Config(transforms=(Scale(bins=Bins(0)), Scale(2)))
    assert [str(problem) for problem in all_problems(config)] == [
        "transforms.0.bins.num_bins: expected at least 1; found 0. Give a whole number from 1."
    ]
