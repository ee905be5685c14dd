"""Runs the command `octograin` in this process."""

import sys

import pytest

from octograin import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """Returns the exit code of `octograin` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["octograin", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0
