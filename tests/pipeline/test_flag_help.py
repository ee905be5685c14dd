import dataclasses
from typing import Annotated

import pytest
import tyro

from pipeline.flag_help import joined_help


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
