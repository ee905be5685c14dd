"""The prose of the project keeps to the field's words, and its docstrings stand alone."""

import ast
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
WORDS = (
    "told",
    "anew",
    "mend",
    "mends",
    "mended",
    "mending",
    "goes on",
    "went on",
    "bit for bit",
    "equal to the bit",
    "doctor",
    "damaged",
    "a row a",
    "a task a",
    "a shard a",
)
"""What no other project of this field writes. Instead: reported, from scratch, fixed, continues,
bitwise identical, dry run, corrupt, one row per."""

EXCEPT = ("LICENSE", "tests/data/", "tests/test_words.py")
_BETWEEN = r"[\s#*]+"
_BANNED = re.compile(rf"\b({'|'.join(WORDS)})\b".replace(" ", _BETWEEN), re.IGNORECASE)
_HALF_A_SENTENCE = re.compile(r"\s*(Of|As)\s")


def tracked(*endings: str) -> list[pathlib.Path]:
    """Files under version control with one of these endings, but for the exceptions."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *(f"*.{ending}" for ending in endings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    paths = [name for name in listed if name and not name.startswith(EXCEPT)]
    return [ROOT / name for name in paths if (ROOT / name).exists()]


def banned(text: str) -> list[str]:
    """Each banned word of a text with its line, counted from 1; a phrase may span two lines."""
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {re.sub(_BETWEEN, ' ', match[0])}"
        for match in _BANNED.finditer(text)
    ]


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each string that documents a module, class, function or assignment."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(ast.Constant(str(text))):
                yield node.lineno, text


def halves(source: str) -> list[str]:
    """The docstrings that are no sentence of their own, with their lines."""
    return [
        f"{line}: {text.strip().splitlines()[0]}"
        for line, text in docstrings(source)
        if _HALF_A_SENTENCE.match(text)
    ]


def test_prose_is_free_of_private_words() -> None:
    found = {
        str(path.relative_to(ROOT)): words
        for path in tracked("py", "md", "toml", "ipynb")
        if (words := banned(path.read_text()))
    }
    assert not found


def test_docstrings_stand_alone() -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in tracked("py")
        if (lines := halves(path.read_text()))
    }
    assert not found


def test_files_of_every_kind_are_read() -> None:
    assert {path.suffix for path in tracked("py", "md", "toml", "ipynb")} >= {".py", ".md", ".toml"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The user is told.\nStart Anew.", ["1: told", "2: Anew"]),
        ("It goes\n    on, bit\n# for bit.", ["1: goes on", "2: bit for bit"]),
        ("one row per tensor: a row apart, recommend, foretold", []),
    ],
)
def test_banned_words_are_found(text: str, words: list[str]) -> None:
    assert banned(text) == words


def test_half_sentences_are_found() -> None:
    source = '"""Of a chart."""\nX = 1\n"""As in X."""\n\n\ndef f():\n    """Offers one."""\n'
    assert halves(source) == ["1: Of a chart.", "3: As in X."]
