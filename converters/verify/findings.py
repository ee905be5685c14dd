"""What a check finds: every mismatch counted, the first of them kept as lines."""

import dataclasses
from collections import Counter

from pipeline.errors import UserError

_MAX_LINES = 20
_MAX_LINES_A_FILE = 5


@dataclasses.dataclass
class Findings:
    """Mismatches between what is there and what has to be."""

    count: int = 0
    """All of them."""
    lines: list[str] = dataclasses.field(default_factory=list)
    """The first ones in words; of one file only a few, so that it does not hide the others."""
    _files: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, where: str, expected: str, found: str) -> None:
        """Takes one mismatch.

        Args:
          where: File, record or episode, feature and step; up to the first comma it is the file.
          expected: What had to be there.
          found: What was there instead.
        """
        self.count += 1
        file = where.partition(",")[0]
        # A few of each file, so that one corrupt file does not hide the others.
        if len(self.lines) < _MAX_LINES and self._files[file] < _MAX_LINES_A_FILE:
            self._files[file] += 1
            self.lines.append(f"{where}: expected {expected}; found {found}")

    def add_error(self, error: UserError) -> None:
        """Takes the mismatch that an error tells."""
        self.add(error.where, error.expected, error.found)

    def text(self) -> str:
        """The lines, and how many mismatches have none."""
        more = self.count - len(self.lines)
        rest = [f"... and {more:,} more {_mismatches(more)}"] if more else []
        return "\n".join([*self.lines, *rest])

    def counted(self) -> str:
        """Their number in words, such as `1 mismatch`."""
        return f"{self.count:,} {_mismatches(self.count)}"


def _mismatches(count: int) -> str:
    return "mismatch" if count == 1 else "mismatches"
