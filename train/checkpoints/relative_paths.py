"""Makes the paths in JSON values relative, so that they name nothing of the machine they are from.

/home/alice/data/mini           mini
/a/mini and /b/mini             a/mini and b/mini
mini and /b/mini as keys        mini and b/mini
collect.py --out /tmp/mini      collect.py --out mini
data/mini, hf://alice/mini      unchanged
"""

import itertools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.errors import UserError

# A text that is a path, or a word of one that is.
_PATH = re.compile(r"""^/.+|(?<=[\s='",])/[^\s'",]+""", re.DOTALL)


def absolute_paths(values: Any) -> list[str]:
    """Returns the absolute paths in the texts and keys of JSON values, each once, sorted."""
    return sorted({found for text in _texts(values) for found in _PATH.findall(text)})


def shortest_names(values: Any) -> dict[str, str]:
    """Returns for each absolute path in JSON values its last parts: as many as no other ends in.

    Nor are they a key in the values: two datasets, by path, would become one. Where all parts are
    still ambiguous, a number follows.
    """
    taken = {*_keys(values)}
    parts = {path: pathlib.PurePosixPath(path).parts[1:] for path in absolute_paths(values)}
    tails = {own: ["/".join(own[-n:]) for n in range(1, len(own) + 1)] for own in parts.values()}
    names = {}
    for own, candidates in tails.items():
        others = {tail for other in tails if other != own for tail in tails[other]}
        short = (tail for tail in candidates if tail not in others)
        whole = "/".join(own)
        numbered = (f"{whole}_{n}" for n in itertools.count(2))
        every = itertools.chain(short, [whole], numbered)
        names[own] = next(name for name in every if name not in taken)
        taken.add(names[own])
    return {path: names[own] for path, own in parts.items()}


def with_relative_paths(values: Any, names: dict[str, str]) -> Any:
    """Returns JSON values with other names of their absolute paths, also in keys.

    Raises:
      UserError: Several keys of an object would become one.
    """
    return _mapped(values, lambda text: _PATH.sub(lambda match: names[match[0]], text))


def _keys(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        yield from values
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _keys(value)


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        yield from values
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)


def _mapped(values: Any, change: Callable[[str], str]) -> Any:
    if isinstance(values, dict):
        changed = {change(key): _mapped(value, change) for key, value in values.items()}
        if len(changed) < len(values):
            raise UserError(
                where="paths of the run",
                expected="distinct ones where they are keys, as of datasets",
                found=f"several for one of {', '.join(map(str, changed))}",
                remedy="Push the run to a hub instead, which keeps its paths.",
            )
        return changed
    if isinstance(values, list):
        return [_mapped(value, change) for value in values]
    return change(values) if isinstance(values, str) else values
