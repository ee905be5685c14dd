"""What a check finds: every mismatch counted, the first of them kept as lines."""

import dataclasses
from collections import Counter

from pipeline.errors import DataError, UserError

_MAX_LINES, _MAX_LINES_PER_FILE = 20, 5


def mismatch(where: str, expected: str, found: str) -> DataError:
    """What is there and what had to be; its place is a file up to the first comma."""
    return DataError(where=where, expected=expected, found=found, remedy="")


@dataclasses.dataclass
class Findings:
    """Mismatches between what is there and what has to be."""

    count: int = 0
    lines: list[str] = dataclasses.field(default_factory=list)
    """The first ones; only a few per file, so that a corrupt file does not hide the others."""
    _files: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, where: str, expected: str, found: str) -> None:
        """Takes one mismatch."""
        self.add_error(mismatch(where, expected, found))

    def add_error(self, error: UserError) -> None:
        """Takes the mismatch that an error reports."""
        self.count += 1
        file = error.where.partition(",")[0]
        if len(self.lines) < _MAX_LINES and self._files[file] < _MAX_LINES_PER_FILE:
            self._files[file] += 1
            self.lines.append(f"{error.where}: expected {error.expected}; found {error.found}")

    def text(self) -> str:
        """The lines, and how many mismatches have none."""
        more = self.count - len(self.lines)
        return "\n".join(self.lines + ([f"... and {mismatches(more, 'more ')}"] if more else []))


def mismatches(number: int, adjective: str = "") -> str:
    """Such as `1 mismatch` or `1,234 more mismatches`."""
    return f"{number:,} {adjective}mismatch{'' if number == 1 else 'es'}"
