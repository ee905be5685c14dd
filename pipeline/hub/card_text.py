"""Pieces of a card in Markdown: texts of strangers, tables, its header and its signature."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

_MARKS = re.compile(r"[\\`*\[\]<>|#~]|(?<!\w)_|_(?!\w)")
"""Characters with a meaning; an underscore has none inside a word."""
_BEFORE, _AFTER = "\n<!-- octograin: ", " -->\n"
"""Around the checksum of a card."""


def plain(text: str) -> str:
    r"""Returns a text in one line in which nothing is Markdown or HTML: `a|<i>` is `a\|\<i\>`."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """Returns a text in one line as code."""
    return f"`{' '.join(text.replace('`', '').split())}`" if text.strip() else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; columns without any value are left out."""
    kept = [n for n in range(len(header)) if any(row[n] for row in rows)]
    lines = [[_cell(row[n]) for n in kept] for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Escapes what would end a cell, even inside of code."""
    return re.sub(r"(?<!\\)\|", r"\|", text)


def header(fields: Mapping[str, Any]) -> str:
    """Returns the YAML block above a card, without the fields that are empty."""
    # JSON is YAML, and quotes what needs it.
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value]
    return "\n".join(["---", *lines, "---"])


def signed(card: str) -> str:
    """Returns a card with its checksum in a last line, which no reader of the page sees."""
    return f"{card}{_BEFORE}{_checksum(card)}{_AFTER}"


def is_signed(card: str) -> bool:
    """Returns whether a card is as `signed` returned it."""
    text, found, end = card.rpartition(_BEFORE)
    return bool(found) and end == _checksum(text) + _AFTER


def _checksum(card: str) -> str:
    return xxhash.xxh3_128_hexdigest(card.encode())
