"""The Containerfile copies what the package needs, and names extras that exist."""

import pathlib
import tomllib

from benchmarks.containerfile import CONTAINERFILE, read_lines

ROOT = pathlib.Path(__file__).parents[1]
LINES = read_lines(CONTAINERFILE.read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def rests(instruction: str) -> list[str]:
    return [rest for word, rest in LINES if word == instruction]


def test_continued_lines_are_joined_and_comments_left_out() -> None:
    text = "# why\nRUN one \\\n    && two\n\nUSER me\n"
    assert read_lines(text) == [("RUN", "one && two"), ("USER", "me")]


def test_what_the_wheel_packs_is_copied() -> None:
    copied = {path for rest in rests("COPY") for path in rest.split()[:-1]}
    assert copied >= {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]}
    assert {path for path in copied if not (ROOT / path).exists()} == set()


def test_its_extras_exist() -> None:
    extras = dict(rest.split("=") for rest in rests("ARG"))["EXTRAS"]
    assert {*extras.split(",")} <= {*PROJECT["project"]["optional-dependencies"]}


def test_the_command_is_run_by_another_user_than_root() -> None:
    assert rests("USER") == ["octograin"]
    assert LINES.index(("USER", "octograin")) < LINES.index(("ENTRYPOINT", '["octograin"]'))
