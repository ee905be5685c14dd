"""Makes the paths in JSON values relative, so that they name nothing of the machine they are from.

/home/alice/data/mini           mini
/a/mini and /b/mini             a/mini and b/mini
collect.py --out /tmp/mini      collect.py --out mini
data/mini, hf://alice/mini      unchanged
"""

import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# A text that is a path, or a word of one that is.
_PATH = re.compile(r"""^/.+|(?<=[\s='",])/[^\s'",]+""", re.DOTALL)


def absolute_paths(values: Any) -> list[str]:
    """Returns the absolute paths in the texts and keys of JSON values, each once, sorted."""
    return sorted({found for text in _texts(values) for found in _PATH.findall(text)})


def shortest_names(paths: Iterable[str]) -> dict[str, str]:
    """Returns for each path its last parts, as many as no other path ends in."""
    parts = {path: pathlib.PurePosixPath(path).parts[1:] for path in paths}
    names = {}
    for path, own in parts.items():
        tails = (
            (own[-n:], {other[-n:] for p, other in parts.items() if other != own})
            for n in range(1, len(own) + 1)
        )
        names[path] = "/".join(next((tail for tail, others in tails if tail not in others), own))
    return names


def with_relative_paths(values: Any, names: dict[str, str]) -> Any:
    """Returns JSON values with other names of their absolute paths, also in keys."""
    return _mapped(values, lambda text: _PATH.sub(lambda match: names[match[0]], text))


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
        return {change(key): _mapped(value, change) for key, value in values.items()}
    if isinstance(values, list):
        return [_mapped(value, change) for value in values]
    return change(values) if isinstance(values, str) else values
