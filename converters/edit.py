"""`octograin edit DST`: excludes episodes, and corrects instructions and conventions of a dataset.

The shards stay as they are. `dataset.json` is replaced as a whole, with its checksum, and its
provenance says what was changed. A directory of an earlier release gets what it lacks: checksums,
and hashes of the actions for the split.
"""

import contextlib
import dataclasses
import datetime as dt
import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from etils import epath

from converters.edit_episodes import (
    statistics_over,
    unhashed_episodes,
    with_action_hashes,
    with_excluded,
    with_failed,
    with_instruction,
    with_instruction_of,
)
from converters.edit_notes import INSTRUCTION, Edit, noted
from converters.job import job_progress
from converters.job.columns import claimed, replace_manifest, unfinished
from converters.job.file_ownership import delete_gone, note_gone
from pipeline.data import statistics as stats
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import load_statistics, on_disk, open_dataset
from pipeline.data.manifest import FILE_NAME, STATISTICS_NAME, Manifest, check_consistency
from pipeline.errors import DataError, RecordError, UserError, user_errors_exit
from pipeline.files import (
    dump_json,
    from_json_text,
    json_checksum,
    to_json_values,
    write_text_atomically,
    writing,
)
from pipeline.flag_help import joined_help
from pipeline.loading.samples.success import recorded_successes
from pipeline.terminal import count, program, ranges, shortened, show

_OF_CONVERSION = ("no_ops", "no_op_threshold")
_MAX_NOTE = 300
"""Maximum number of characters of a change that are printed; the provenance has all of them."""
_ONE_GRIPPER = ("gripper_dim", "gripper_open", "gripper_close")


@dataclasses.dataclass(frozen=True)
class Args:
    """Changes what a dataset says about its episodes; its shards are not touched.

    Excludes episodes, corrects instructions and conventions, and declares which episodes failed.
    The change is checked, noted in the dataset's provenance and covered by its checksum; a kill
    leaves the old or the new. Without a change, what a dataset of an earlier release lacks is
    added: checksums, and hashes of the actions, so that a run with a split reads no trajectory.
    """

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory."""
    exclude: Annotated[
        str | None, tyro.conf.arg(metavar="EPISODES", constructor=str, help_behavior_hint="")
    ] = None
    """Episodes that are no longer used, such as 3,7-9: not sampled, not exported, and not in the
    statistics, which are computed again. Their numbers and records stay."""
    include: Annotated[
        str | None, tyro.conf.arg(metavar="EPISODES", constructor=str, help_behavior_hint="")
    ] = None
    """Excluded episodes that are used again."""
    instruction: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]], tyro.conf.arg(metavar="OLD NEW")
    ] = ()
    """An instruction and the text that replaces it wherever it occurs; may be given several
    times."""
    instruction_of: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, str], ...]],
        tyro.conf.arg(metavar="EPISODES NEW"),
    ] = ()
    """Episodes and their instruction, such as 3,7-9 "open the drawer"; may be given several
    times."""
    failed: Annotated[
        str | None, tyro.conf.arg(metavar="EPISODES", constructor=str, help_behavior_hint="")
    ] = None
    """Episodes that failed, such as 3,7-9, while all others succeeded; none: all succeeded;
    recorded: those that failed by the feature success, so that no run reads it again; unknown:
    nothing is declared."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE")
    ] = ()
    """A field and its new value, such as conventions.gripper_open=0, or licences.steps=MIT; may be
    given several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and makes the changes."""
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("converters.edit"), use_underscores=True)
        show(edit(args))


def edit(args: Args) -> str:
    """Changes a dataset and adds its checksums where it has none; all of it or nothing.

    Without a change it adds the hashes of its actions too.

    Args:
      args: The dataset directory and its changes.

    Returns:
      What was done, in words, a line each.

    Raises:
      UserError: Where a change is none, is not allowed, or another job is at work in the dataset.
      DataError: Where the files are not what was written.
    """
    directory = on_disk(args.dst)
    with claimed(directory) as before:
        # A corrupt file must not get a checksum that says it is whole.
        load_statistics(directory, before)
        _check_unfinished(directory, args)
        edited, made = _changed(before, args, str(directory))
        lines = []
        if args == Args(args.dst, debug=args.debug):
            edited, lines = _hashed(directory, edited)
        # A change to the same value is none.
        made = [change for change in made if change.before != change.after]
        statistics = _statistics(directory, before, edited)
        sealed = _sealed(noted(edited, made), statistics)
        _check(sealed, directory)
        lines += [f"{directory}: {shortened(str(change), _MAX_NOTE)}" for change in made]
        if not before.statistics_checksum:
            lines.append(f"{directory}: checksums of {FILE_NAME} and {STATISTICS_NAME} added")
        if sealed.excluded_episodes != before.excluded_episodes:
            lines.append(f"{directory}: {_kept(sealed)}")
        if lines:
            with writing(directory):
                _replace(directory, before, sealed, statistics)
    has = "checksums" + (" and hashes of its actions" if sealed.action_hashes else "")
    return "\n".join(lines or [f"{directory}: unchanged; it has {has}"]) + "\n"


def _changed(before: Manifest, args: Args, where: str) -> tuple[Manifest, list[Edit]]:
    """The manifest with all that is asked for, and the changes."""
    day = dt.datetime.now(dt.UTC).date().isoformat()
    edited, made = _with_fields(before, args.set, day)
    found: list[Edit] = []
    for old, new in args.instruction:
        edited, found = with_instruction(edited, old, new, day, where)
        made += found
    for listed, new in args.instruction_of:
        edited, found = with_instruction_of(edited, listed, new, day, where)
        made += found
    if args.failed is not None:
        failed = _recorded_failures(where) if args.failed == "recorded" else args.failed
        edited, found = with_failed(edited, failed, day)
        made += found
    edited, found = with_excluded(edited, args.exclude, args.include, day, where)
    return edited, made + found


def _recorded_failures(directory: str) -> str:
    """The episodes that failed by the feature `success` of their trajectories, as for --failed."""
    opened = open_dataset(directory, keys=())
    undeclared = dataclasses.replace(opened.manifest, failed_episodes=None)
    dataset = dataclasses.replace(opened, manifest=undeclared)
    excluded = dataset.manifest.excluded_episodes
    failed = []
    with job_progress.shown("success", dataset.num_episodes) as on_progress:
        for episode, is_success in recorded_successes(dataset, dataset.kept_episodes.tolist()):
            failed += [] if is_success else [episode]
            on_progress(1, 1)
        # Excluded ones as well: they may be included again.
        for episode in excluded:
            # One that is corrupt stays undeclared; it may be what it was excluded for.
            with contextlib.suppress(RecordError):
                ((_, is_success),) = recorded_successes(dataset, [episode])
                failed += [] if is_success else [episode]
            on_progress(1, 1)
    return ranges(sorted(failed), None) or "none"


def _hashed(directory: epath.Path, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """The manifest with the hashes of all actions that can be read, and what was done, in words."""
    lacking = unhashed_episodes(manifest)
    if not lacking:
        return manifest, []
    dataset = open_dataset(directory, keys=())
    with job_progress.shown("hashes of the actions", len(lacking)) as on_progress:
        hashed, corrupt = with_action_hashes(dataset, on_progress)
    lines = []
    if added := len(lacking) - len(corrupt):
        lines.append(f"{directory}: hashes of the actions of {count(added, 'episode')} added")
    if corrupt:
        lines.append(
            f"{directory}: no hash of {ranges(corrupt)}, whose trajectories are corrupt "
            f"(octograin verify {directory}): a split does not hold them out"
        )
    return hashed, lines


def _statistics(directory: epath.Path, before: Manifest, edited: Manifest) -> Any:
    """The statistics of the episodes that are left, as the JSON values of their file."""
    if edited.excluded_episodes == before.excluded_episodes:
        return json.loads((directory / before.statistics_name).read_text())
    dataset = dataclasses.replace(open_dataset(directory, keys=()), manifest=edited)
    episodes = dataset.kept_episodes.tolist()
    with job_progress.shown("statistics", len(episodes)) as on_progress:
        return json.loads(stats.dumps(statistics_over(dataset, episodes, on_progress)))


def _sealed(manifest: Manifest, statistics: Any) -> Manifest:
    """The manifest with the checksum of its statistics, which its own checksum covers."""
    return dataclasses.replace(manifest, statistics_checksum=json_checksum(statistics))


def _replace(directory: epath.Path, before: Manifest, after: Manifest, statistics: Any) -> None:
    """Replaces the manifest; statistics of other episodes stand beside it before."""
    if after.excluded_episodes != before.excluded_episodes:
        # Noted first: after a kill a file that no manifest lists has an owner.
        note_gone(directory, [after.statistics_name])
        write_text_atomically(directory / after.statistics_name, dump_json(statistics))
    replace_manifest(directory, before, after)
    # The statistics that no manifest lists any more.
    delete_gone(directory)


def _kept(manifest: Manifest) -> str:
    """What is left, in words."""
    excluded = manifest.excluded_episodes
    total = len(manifest.episode_lengths)
    if not excluded:
        return f"all {count(total, 'episode')} are used; statistics computed again"
    steps = sum(manifest.episode_lengths) - sum(manifest.episode_lengths[e] for e in excluded)
    left = (
        f"{total - len(excluded):,} of {count(total, 'episode')}, {count(steps, 'step')}, are used"
    )
    return f"{left}, without {ranges(excluded)}; statistics computed again"


def _check(edited: Manifest, directory: epath.Path) -> None:
    """Raises `UserError` where a manifest would contradict itself."""
    try:
        check_consistency(edited, str(directory))
    except DataError as error:
        remedy = "Nothing was changed: name a value that fits the data."
        raise UserError(
            where=error.where, expected=error.expected, found=error.found, remedy=remedy
        ) from error


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
        is_licence = field.startswith("licences.")
        if not equals or field not in allowed or (is_licence and not value.strip()):
            raise _no_field(text, allowed)
        wanted[field] = value if is_licence else _value(value)
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
    field, _, value = text.partition("=")
    similar = difflib.get_close_matches(field, allowed, n=1)
    if field in allowed and not value.strip():
        return UserError(
            where=f"--set {text}",
            expected="FIELD=VALUE",
            found="no value",
            remedy=f"Give one: --set {field}=VALUE.",
        )
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


def _check_unfinished(directory: epath.Path, args: Args) -> None:
    """Refuses other instructions while a column is unfinished, whose plan holds them."""
    names = unfinished(directory)
    if names and (args.instruction or args.instruction_of):
        flag = INSTRUCTION if args.instruction else "instruction_of"
        raise UserError(
            where=f"{directory}, --{flag}",
            expected="no unfinished column, which could not be resumed afterwards",
            found=", ".join(names),
            remedy="Finish it, or remove it: octograin tokens DST --remove NAME",
        )


if __name__ == "__main__":
    main()
