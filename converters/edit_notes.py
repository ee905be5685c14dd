"""The notes of `octograin edit` in the provenance of a dataset: what was changed, and when."""

import bisect
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.data.manifest import Manifest
from pipeline.files import UNPARSABLE
from pipeline.terminal import ranges

INSTRUCTION = "instruction"
"""The field of an `Edit` of a text wherever it occurs."""
_DAY_AND_FIELD = re.compile(r"(\d{4}-\d\d-\d\d) (\S+): ")
_ARROW = " -> "
_OF_EPISODES = re.compile(rf"{INSTRUCTION}\[([\d,-]+)\]")


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of a dataset after its conversion, as its provenance notes it."""

    day: str
    """Such as 2026-11-29."""
    field: str
    """Such as `conventions.gripper_open`; `instruction` for a text, `instruction[3,7-9]` for that
    of these episodes alone."""
    before: Any
    """JSON value."""
    after: Any
    """JSON value."""

    def __str__(self) -> str:
        """Such as `2026-11-29 conventions.gripper_open: 1.0 -> 0.0`; the inverse of `edits`."""
        values = f"{json.dumps(self.before)}{_ARROW}{json.dumps(self.after)}"
        return f"{self.day} {self.field}: {values}"


def edits(manifest: Manifest) -> Iterator[Edit]:
    """Yields the changes that a manifest notes, the oldest first."""
    number = 1
    # Numbered from 1 without a gap.
    while (text := manifest.provenance.get(f"edit_{number}")) is not None:
        # A note that somebody wrote by hand is left alone.
        if (edit := _edit(text)) is not None:
            yield edit
        number += 1


def _edit(note: str) -> Edit | None:
    """Returns the edit that `Edit.__str__` wrote; None for any other text."""
    head = _DAY_AND_FIELD.match(note)
    if head is None:
        return None
    decode = json.JSONDecoder().raw_decode
    try:
        before, end = decode(note, head.end())
        if not note.startswith(_ARROW, end):
            return None
        after, end = decode(note, end + len(_ARROW))
    except UNPARSABLE:
        return None
    return Edit(head[1], head[2], before, after) if end == len(note) else None


def noted(manifest: Manifest, made: Sequence[Edit]) -> Manifest:
    """Returns the manifest with further changes in its provenance."""
    first = 1 + len([key for key in manifest.provenance if key.startswith("edit_")])
    notes = {f"edit_{number}": str(change) for number, change in enumerate(made, first)}
    return dataclasses.replace(manifest, provenance={**manifest.provenance, **notes})


def instruction_of(episodes: Sequence[int]) -> str:
    """Returns the field of an `Edit` of the instruction of some episodes."""
    return f"{INSTRUCTION}[{ranges(episodes, None)}]"


def edited_text(made: Sequence[Edit], text: str, episode: int | None) -> str:
    """Returns what an instruction of the source became.

    Args:
      made: The changes, the oldest first.
      text: The instruction in the source.
      episode: The episode that has it; None: changes of single episodes are left out.
    """
    for edit in made:
        if edit.before == text and _is_of(edit.field, episode):
            text = edit.after
    return text


def _is_of(field: str, episode: int | None) -> bool:
    """Whether the field of an edit is the instruction of an episode."""
    if field == INSTRUCTION or episode is None:
        return field == INSTRUCTION
    firsts, lasts = _runs(field)
    place = bisect.bisect_right(firsts, episode) - 1
    return place >= 0 and episode <= lasts[place]


@functools.cache
def _runs(field: str) -> tuple[list[int], list[int]]:
    """Returns the first and the last episode of each run in a field such as `instruction[3,7-9]`.

    Cached, as it is asked for each episode, and may list half a million.
    """
    match = _OF_EPISODES.fullmatch(field)
    if match is None:
        return [], []
    ends = (part.partition("-") for part in match[1].split(","))
    runs = sorted((int(first), int(last or first)) for first, _, last in ends)
    firsts, lasts = zip(*runs, strict=True)
    # A note may list them in any order: the greatest end so far counts.
    return [*firsts], [*itertools.accumulate(lasts, max)]
