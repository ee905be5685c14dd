import dataclasses
from collections.abc import Callable
from typing import Annotated, Protocol, runtime_checkable

import pytest
import tyro

from pipeline.flag_help import PartsFlag, joined_help, part_flags


@dataclasses.dataclass(frozen=True)
class Args:
    """Runs."""

    quality: Annotated[int, tyro.conf.arg(metavar="N")] = 95
    """Quality from 1 to 100; images that
    are encoded stay as they are."""
    plain: str = ""


def test_a_docstring_of_two_lines_is_one_paragraph(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        tyro.cli(joined_help(Args), args=["--help"])
    shown = capsys.readouterr().out
    assert "Quality from 1 to 100; images that are encoded stay as they are. (default: 95)" in shown
    assert "--quality N" in shown


def test_the_flags_are_parsed_as_before() -> None:
    flags = ["--quality", "7", "--plain", "a"]
    assert tyro.cli(joined_help(Args), args=flags) == Args(7, "a")


@runtime_checkable
class Head(Protocol):
    @property
    def horizon(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Mine:
    """A head of a user's own."""

    horizon: int = 4
    """Number of actions."""
    widths: tuple[int, ...] = (8,)
    odd: Callable[[], None] | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    head: Head = Mine()
    second: Head | None = Mine()
    third: Head | None = None
    tokenizers: tuple[Head, ...] = (Mine(),)
    none: tuple[Head, ...] = ()
    parts: PartsFlag = ()


def parsed(*flags: str) -> Model:
    return tyro.cli(
        Model,
        args=flags,
        default=Model(),
        config=(tyro.conf.AvoidSubcommands,),
        registry=part_flags(),
    )


def test_the_fields_of_parts_are_flags_whatever_class_they_are_of() -> None:
    found = parsed(
        "--head.horizon", "2", "--second.widths", "1", "2", "--tokenizers.0.horizon", "5",
        "--parts", "a.py", "--parts", "b",
    )  # fmt: skip
    assert found == Model(
        head=Mine(2), second=Mine(widths=(1, 2)), tokenizers=(Mine(5),), parts=("a.py", "b")
    )
    assert parsed() == Model()


def test_what_is_no_flag_of_a_part_is_shown_as_fixed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--third {fixed} (fixed to: None)" in shown
    assert "--head.horizon INT Number of actions. (default: 4)" in shown
    with pytest.raises(SystemExit):
        parsed("--third.horizon", "3")
    assert "Unrecognized options: --third.horizon" in " ".join(capsys.readouterr().err.split())
