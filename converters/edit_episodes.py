"""Changes of single episodes in a manifest: exclusion, success, and instructions."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable

import numpy as np

from converters.edit_notes import INSTRUCTION, Edit, instruction_of
from pipeline.data.action_hashes import UNKNOWN, has_actions, hash_actions, stored_hashes, to_texts
from pipeline.data.dataset import Dataset, statistics_sizes
from pipeline.data.manifest import Manifest
from pipeline.data.schema import ACTION, EPISODES
from pipeline.data.statistics import Accumulator, FeatureStatistics
from pipeline.errors import DataError, RecordError, UserError
from pipeline.terminal import ranges

OnProgress = Callable[[int, int], None]
"""Called with the episodes and bytes done since the last call."""


def parse_episodes(text: str, flag: str, num_episodes: int) -> frozenset[int]:
    """Returns the episodes of a list such as `3,7-9`, both ends included.

    Raises:
      UserError: It is no such list, or the dataset lacks one of them.
    """
    found: set[int] = set()
    problem = ""
    for part in text.split(","):
        # At most 18 digits, which fit in 64 bits.
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not 0 <= first <= last < num_episodes:
            problem = problem or part.strip() or "nothing"
        else:
            found.update(range(first, last + 1))
    if problem:
        raise UserError(
            where=f"{flag} {text}",
            expected=f"episodes from 0 to {num_episodes - 1}, such as 3,7-9",
            found=problem,
            remedy="Separate numbers and ranges by commas; a range has both of its ends.",
        )
    return frozenset(found)


def with_excluded(
    manifest: Manifest, exclude: str | None, include: str | None, day: str, where: str
) -> tuple[Manifest, list[Edit]]:
    """Returns the manifest with other excluded episodes, and the changes.

    Raises:
      UserError: A list names what is not there, both name an episode, or none would be left.
    """
    count = len(manifest.episode_lengths)
    empty = frozenset[int]()
    out = empty if exclude is None else parse_episodes(exclude, "--exclude", count)
    back = empty if include is None else parse_episodes(include, "--include", count)
    if out & back:
        raise UserError(
            where=f"{where}, --exclude and --include",
            expected="different episodes",
            found=ranges(sorted(out & back)),
            remedy="Name each in one of them.",
        )
    excluded = tuple(sorted({*manifest.excluded_episodes} - back | out))
    if len(excluded) == count:
        raise UserError(
            where=f"{where}, --exclude",
            expected="at least one episode that is left",
            found=f"all {count} excluded",
            remedy="Leave the dataset out of the mixture instead.",
        )
    lists = (manifest.excluded_episodes, excluded)
    before, after = (ranges(numbers, None) or "none" for numbers in lists)
    edited = dataclasses.replace(manifest, excluded_episodes=excluded)
    return edited, [Edit(day, "excluded_episodes", before, after)]


def with_failed(manifest: Manifest, failed: str, day: str) -> tuple[Manifest, list[Edit]]:
    """Returns the manifest with other episodes declared as failed, and the change.

    Args:
      manifest: The manifest.
      failed: Such as `3,7-9`; `none` where all succeeded; `unknown` to declare nothing.
      day: The day of the change.
    """
    count = len(manifest.episode_lengths)
    declared: tuple[int, ...] | None = ()
    if failed == "unknown":
        declared = None
    elif failed != "none":
        declared = tuple(sorted(parse_episodes(failed, "--failed", count)))
    before, after = map(_declared, (manifest.failed_episodes, declared))
    edited = dataclasses.replace(manifest, failed_episodes=declared)
    return edited, [Edit(day, "failed_episodes", before, after)]


def _declared(failed: tuple[int, ...] | None) -> str:
    return "unknown" if failed is None else ranges(failed, None) or "none"


def _check_text(new: str, where: str) -> None:
    """Refuses an instruction of spaces, which a mask would count as one; an empty one is none."""
    if new and not new.strip():
        raise UserError(
            where=where,
            expected="an instruction, or an empty text for none",
            found=repr(new),
            remedy="Write what the episode shows.",
        )


def with_instruction(
    manifest: Manifest, old: str, new: str, day: str, where: str
) -> tuple[Manifest, list[Edit]]:
    """Returns the manifest with another text in the place of an instruction, and the change.

    Raises:
      UserError: There is no such instruction, or another task has the new text.
    """
    if old not in manifest.tasks:
        similar = difflib.get_close_matches(old, manifest.tasks, n=1)
        raise UserError(
            where=f"{where}, --instruction",
            expected=f"one of its {len(manifest.tasks)} instructions",
            found=repr(old),
            remedy="".join(f"Did you mean {text!r}? " for text in similar)
            + "`octograin inspect` lists them.",
        )
    _check_text(new, f"{where}, --instruction")
    if new != old and new in manifest.tasks:
        raise UserError(
            where=f"{where}, --instruction",
            expected="a text that no other task of the dataset has",
            found=repr(new),
            remedy="To make two tasks one, give it to the episodes: --instruction_of 3,7-9 TEXT.",
        )
    tasks = tuple(new if text == old else text for text in manifest.tasks)
    return dataclasses.replace(manifest, tasks=tasks), [Edit(day, INSTRUCTION, old, new)]


def with_instruction_of(
    manifest: Manifest, listed: str, new: str, day: str, where: str
) -> tuple[Manifest, list[Edit]]:
    """Returns the manifest with another instruction of some episodes, and the changes.

    A task that no episode has any more is gone, unless steps without motion were removed of it.

    Raises:
      UserError: The list names what is not there, or an episode with several instructions.
    """
    episodes = parse_episodes(listed, "--instruction_of", len(manifest.episode_lengths))
    _check_text(new, f"--instruction_of {listed}")
    several = sorted(episodes & {change.episode for change in manifest.task_changes})
    if several:
        raise UserError(
            where=f"{where}, --instruction_of {listed}",
            expected="episodes with one instruction each",
            found=f"several in {ranges(several)}",
            remedy="Correct a text wherever it occurs with --instruction OLD NEW, or correct these "
            "at the source and convert it again.",
        )
    texts = (*manifest.tasks, new) if new not in manifest.tasks else manifest.tasks
    row, rows = texts.index(new), list(manifest.episode_tasks)
    by_text: dict[str, list[int]] = {}
    for episode in sorted(episodes):
        by_text.setdefault(texts[rows[episode]], []).append(episode)
        rows[episode] = row
    removed = (*manifest.removed_steps, *([0] * (len(texts) - len(manifest.tasks))))
    edited = dataclasses.replace(
        manifest, tasks=texts, episode_tasks=tuple(rows), removed_steps=removed
    )
    made = [Edit(day, instruction_of(which), old, new) for old, which in by_text.items()]
    return _without_unused_tasks(edited), made


def _without_unused_tasks(manifest: Manifest) -> Manifest:
    """Returns the manifest with its tasks numbered again, without those that nothing counts."""
    used = {*manifest.episode_tasks, *(change.task for change in manifest.task_changes)}
    used |= {task for task, count in enumerate(manifest.removed_steps) if count}
    rows = {task: row for row, task in enumerate(sorted(used))}
    changes = manifest.task_changes
    return dataclasses.replace(
        manifest,
        tasks=tuple(manifest.tasks[task] for task in rows),
        removed_steps=tuple(manifest.removed_steps[task] for task in rows),
        episode_tasks=tuple(rows[task] for task in manifest.episode_tasks),
        task_changes=tuple(dataclasses.replace(c, task=rows[c.task]) for c in changes),
    )


def statistics_over(
    dataset: Dataset, episodes: Iterable[int], on_progress: OnProgress
) -> dict[str, FeatureStatistics]:
    """Computes the statistics of some episodes from their records, as a conversion does of all.

    Args:
      dataset: The dataset; only the trajectories of these episodes are read.
      episodes: Their numbers, ascending.
      on_progress: Called after each episode.

    Raises:
      DataError: The trajectory of one of them is corrupt.
    """
    sums = {key: Accumulator() for key in statistics_sizes(dataset.manifest.schema)}
    for episode in episodes:
        try:
            values = dataset.columns[EPISODES].read(episode)
        except RecordError as error:
            raise DataError(
                where=error.where,
                expected=error.expected,
                found=error.found,
                remedy=f"Nothing was changed: episode {episode} has to be excluded.",
            ) from error
        for key, accumulator in sums.items():
            accumulator.add(np.asarray(values[key]))
        on_progress(1, sum(np.asarray(values[key]).nbytes for key in sums))
    return {key: accumulator.finish() for key, accumulator in sums.items()}


def unhashed_episodes(manifest: Manifest) -> list[int]:
    """Returns the episodes whose actions have no hash in the manifest; none if there are none."""
    if not has_actions(manifest.schema):
        return []
    hashes = stored_hashes(manifest)
    if hashes is None:
        return [*range(len(manifest.episode_lengths))]
    # Those that an earlier edit could not read may have been repaired.
    return np.flatnonzero(hashes == UNKNOWN).tolist()


def with_action_hashes(dataset: Dataset, on_progress: OnProgress) -> tuple[Manifest, list[int]]:
    """Returns the manifest with the hashes of the actions that it lacks, and what has none still.

    Args:
      dataset: The dataset; only the trajectories of `unhashed_episodes` are read.
      on_progress: Called after each of them.

    Returns:
      The manifest, and the episodes whose trajectories are corrupt: they have the hash `UNKNOWN`,
      which leaves them in the training split, as runs that exclude such a record have them.
    """
    manifest = dataset.manifest
    stored = stored_hashes(manifest)
    hashes = [UNKNOWN] * dataset.num_episodes if stored is None else stored.tolist()
    corrupt = []
    for episode in unhashed_episodes(manifest):
        try:
            actions = np.asarray(dataset.columns[EPISODES].read(episode)[ACTION])
        except RecordError:
            # Reported by the command: a corrupt episode must not keep all others without a hash.
            corrupt.append(episode)
            continue
        hashes[episode] = hash_actions(actions)
        on_progress(1, actions.nbytes)
    texts = to_texts(hashes, manifest.shards[EPISODES])
    return dataclasses.replace(manifest, action_hashes=texts), corrupt
