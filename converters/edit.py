"""`octograin edit DST`: corrects conventions and instructions of a dataset directory.

The shards stay as they are. `dataset.json` is replaced as a whole, with its checksum, and its
provenance says what was changed. A directory of before checksums gets them.
"""

import dataclasses
import datetime as dt
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro
from etils import epath

from converters.job.columns import claimed
from converters.job.file_ownership import NOTE_SUFFIX, children
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import load_statistics, on_disk
from pipeline.data.manifest import FILE_NAME, STATISTICS_NAME, WORK, Manifest, check_consistency
from pipeline.errors import DataError, UserError, user_errors_exit
from pipeline.files import (
    from_json_text,
    json_checksum,
    to_json_values,
    write_text_atomically,
    writing,
)
from pipeline.flag_help import joined_help
from pipeline.terminal import program, show

INSTRUCTION = "instruction"
"""The field of an `Edit` of a text."""
_JSON = r'("(?:[^"\\]|\\.)*"|-?[\d.]+(?:e-?\d+)?|null|\[.*?\])'
_NOTE = re.compile(rf"(\d{{4}}-\d\d-\d\d) (\S+): {_JSON} -> {_JSON}")
_OF_CONVERSION = ("no_ops", "no_op_threshold")
_ONE_GRIPPER = ("gripper_dim", "gripper_open", "gripper_close")


@dataclasses.dataclass(frozen=True)
class Args:
    """Corrects conventions and instructions of a dataset, and adds checksums where there are none.

    The change is checked, noted in the dataset's provenance and covered by its checksum. Shards are
    not touched. Without a change only missing checksums are added.
    """

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")
    ] = ()
    """A field and its new value, such as conventions.gripper_open=0, or licences.steps=MIT; may be
    given several times."""
    instruction: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]], tyro.conf.arg(metavar="OLD NEW")
    ] = ()
    """An instruction and the text that replaces it; may be given several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of a dataset after its conversion, as its provenance notes it."""

    day: str
    """Such as 2026-11-29."""
    field: str
    """Such as `conventions.gripper_open`; `instruction` for a text."""
    before: Any
    """JSON value."""
    after: Any
    """JSON value."""

    def __str__(self) -> str:
        """Such as `2026-11-29 conventions.gripper_open: 1.0 -> 0.0`; the inverse of `edits`."""
        return f"{self.day} {self.field}: {json.dumps(self.before)} -> {json.dumps(self.after)}"


def main() -> None:
    """Parses the command line and makes the changes."""
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("converters.edit"), use_underscores=True)
        show(edit(on_disk(args.dst), args.set, args.instruction))


def edit(
    directory: epath.Path, fields: Sequence[str] = (), instructions: Sequence[tuple[str, str]] = ()
) -> str:
    """Changes a dataset and adds its checksums where it has none; all of it or nothing.

    Args:
      directory: The dataset directory.
      fields: Fields and values of `--set`.
      instructions: Pairs of an instruction and its new text.

    Returns:
      What was done, in words, a line each.

    Raises:
      UserError: Where a change is none, is not allowed, or another job is at work in the dataset.
      DataError: Where the files are not what was written.
    """
    with claimed(directory) as before:
        # A corrupt file must not get a checksum that says it is whole.
        load_statistics(directory, before)
        _check_unfinished(directory, instructions)
        day = dt.datetime.now(dt.UTC).date().isoformat()
        edited, made = _with_fields(before, fields, day)
        for old, new in instructions:
            edited = _with_instruction(edited, old, new, str(directory))
            made.append(Edit(day, INSTRUCTION, old, new))
        # A change to the same value is none.
        made = [change for change in made if change.before != change.after]
        _check(edited, directory)
        lines = [f"{directory}: {change}" for change in made]
        if not before.statistics_checksum:
            lines.append(f"{directory}: checksums of {FILE_NAME} and {STATISTICS_NAME} added")
        if lines:
            with writing(directory):
                # The statistics' checksum first: it is covered by the manifest's own.
                text = _sealed(directory, _noted(edited, made)).dumps()
                write_text_atomically(directory / FILE_NAME, text)
    return "\n".join(lines or [f"{directory}: unchanged; it has checksums"]) + "\n"


def _check(edited: Manifest, directory: epath.Path) -> None:
    """Raises `UserError` where a manifest would contradict itself."""
    try:
        check_consistency(edited, str(directory))
    except DataError as error:
        remedy = "Nothing was changed: name a value that fits the data."
        raise UserError(
            where=error.where, expected=error.expected, found=error.found, remedy=remedy
        ) from error


def edits(manifest: Manifest) -> Iterator[Edit]:
    """Yields the changes that a manifest notes, the oldest first."""
    number = 1
    # Numbered from 1 without a gap.
    while (text := manifest.provenance.get(f"edit_{number}")) is not None:
        # A note that somebody wrote by hand is left alone.
        match = _NOTE.fullmatch(text)
        if match:
            yield Edit(match[1], match[2], json.loads(match[3]), json.loads(match[4]))
        number += 1


def _noted(manifest: Manifest, made: Sequence[Edit]) -> Manifest:
    first = 1 + len([key for key in manifest.provenance if key.startswith("edit_")])
    notes = {f"edit_{number}": str(change) for number, change in enumerate(made, first)}
    return dataclasses.replace(manifest, provenance={**manifest.provenance, **notes})


def _sealed(directory: epath.Path, manifest: Manifest) -> Manifest:
    """The manifest with the checksum of the statistics that lie beside it."""
    statistics = json.loads((directory / STATISTICS_NAME).read_text())
    return dataclasses.replace(manifest, statistics_checksum=json_checksum(statistics))


def _with_fields(
    manifest: Manifest, fields: Sequence[str], day: str
) -> tuple[Manifest, list[Edit]]:
    """The manifest with what each `FIELD=VALUE` sets, all together, and the changes."""
    held = to_json_values(manifest.conventions)
    # Fields that say nothing are in no file, and can be set all the same.
    names = [field.name for field in dataclasses.fields(Conventions)]
    # Those describe what the conversion did, and cannot be changed afterwards.
    allowed = [f"conventions.{name}" for name in names if name not in _OF_CONVERSION]
    allowed += [f"licences.{column}" for column in manifest.licences]
    wanted: dict[str, Any] = {}
    for text in fields:
        field, equals, value = text.partition("=")
        if not equals or field not in allowed:
            raise _no_field(text, allowed)
        wanted[field] = _value(value) if field.startswith("conventions.") else value
    # All fields together, since the checks compare several.
    asked = {
        name: wanted[f"conventions.{name}"] for name in names if f"conventions.{name}" in wanted
    }
    if asked.get("grippers"):
        # The list replaces the one gripper.
        held = {name: value for name, value in held.items() if name not in _ONE_GRIPPER}
    conventions = from_json_text(
        Conventions, json.dumps(held | asked), where="--set", remedy="See docs/format.md."
    )
    licences = {c: wanted.get(f"licences.{c}", text) for c, text in manifest.licences.items()}
    edited = dataclasses.replace(manifest, licences=licences, conventions=conventions)
    before, after = _settings(manifest), _settings(edited)
    # First what was asked for, then what follows from it. As they were parsed: "1" becomes 1.0.
    touched = dict.fromkeys([*wanted, *before, *after])
    return edited, [Edit(day, f, before.get(f), after.get(f)) for f in touched]


def _settings(manifest: Manifest) -> dict[str, Any]:
    """The values that may be edited, by field; without those that say nothing."""
    return {f"conventions.{k}": v for k, v in to_json_values(manifest.conventions).items()} | {
        f"licences.{column}": text for column, text in manifest.licences.items()
    }


def _no_field(text: str, allowed: Sequence[str]) -> UserError:
    field = text.partition("=")[0]
    similar = difflib.get_close_matches(field, allowed, n=1)
    return UserError(
        where=f"--set {text}",
        expected=f"FIELD=VALUE, with a field among {', '.join(allowed)}",
        found=field or "none",
        remedy="".join(f"Did you mean {name}? " for name in similar)
        + "Change anything else at the source, and convert it again.",
    )


def _value(text: str) -> Any:
    """A value as JSON where it is JSON, else as a text: `0`, `null` or `upright`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _with_instruction(manifest: Manifest, old: str, new: str, where: str) -> Manifest:
    """The manifest with another text in the place of an instruction."""
    if old not in manifest.tasks:
        similar = difflib.get_close_matches(old, manifest.tasks, n=1)
        raise UserError(
            where=f"{where}, --instruction",
            expected=f"one of its {len(manifest.tasks)} instructions",
            found=repr(old),
            remedy="".join(f"Did you mean {text!r}? " for text in similar)
            + "`octograin inspect` lists them.",
        )
    if new != old and new in manifest.tasks:
        raise UserError(
            where=f"{where}, --instruction",
            expected="a text that no other task of the dataset has",
            found=repr(new),
            remedy="Two tasks are made one at the source: correct it there and convert it again.",
        )
    tasks = tuple(new if text == old else text for text in manifest.tasks)
    return dataclasses.replace(manifest, tasks=tasks)


def _check_unfinished(directory: epath.Path, instructions: Sequence[tuple[str, str]]) -> None:
    """Refuses other instructions while a column is unfinished, whose plan holds them."""
    notes = [path.name for path in children(directory / WORK) if path.name.endswith(NOTE_SUFFIX)]
    if notes and instructions:
        raise UserError(
            where=f"{directory}, --instruction",
            expected="no unfinished column, which could not be resumed afterwards",
            found=", ".join(name.removesuffix(NOTE_SUFFIX) for name in notes),
            remedy="Finish it, or remove it: octograin tokens DST --remove NAME",
        )


if __name__ == "__main__":
    main()
