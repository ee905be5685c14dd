"""One walk over a dataset, beside its source: every record is read, checked and compared once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath

from converters.edit_notes import edited_text, edits
from converters.sources.source import Source
from converters.verify.findings import Findings
from converters.verify.source_episodes import Expected, SourceEpisodes
from converters.verify.stored_records import check_files, check_value, read_shard
from pipeline.data import statistics as stats
from pipeline.data.action_hashes import hash_actions, stored_hashes
from pipeline.data.manifest import FILE_NAME, Manifest
from pipeline.data.record import Values
from pipeline.data.schema import ACTION, EPISODES, Column
from pipeline.errors import DataError, UserError
from pipeline.files import to_json_values
from pipeline.terminal import first_few

Records = Iterator[tuple[str, int, Values | None]]
OnProgress = Callable[[int, int], None]
"""Called with the episodes and bytes done since the last call."""


class Verifier:
    """Reads a dataset once, beside its source where there is one, an episode at a time.

    Args:
      directory: The dataset directory.
      manifest: Manifest of the dataset.
      source: What it was converted from; None: it is checked by itself.
      conventions: Those of the mapping that it was converted with; empty: not known.
    """

    def __init__(
        self,
        directory: epath.Path,
        manifest: Manifest,
        source: Source | None = None,
        conventions: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.findings = Findings()
        """What is wrong."""
        self.manifest = manifest
        self.conventions = conventions
        self.expected = SourceEpisodes(source, manifest, self.findings) if source else None
        """What the source says; None where there is none."""
        self.measured = sorted(
            feature.key
            for column, feature in manifest.schema.features()
            if column.name == EPISODES and feature.dtype == "float32"
        )
        """Features that have statistics."""
        self._statistics = {key: stats.Accumulator() for key in self.measured}
        """Without those that an unusable episode leaves unknown."""
        self._directory = directory
        self._edits = list(edits(manifest))
        self._excluded = frozenset(manifest.excluded_episodes)
        self._hashes = stored_hashes(manifest)
        self._changes: dict[int, dict[int, int]] = {}
        """By episode, the task that begins at a step."""
        for change in manifest.task_changes:
            self._changes.setdefault(change.episode, {})[change.step] = change.task
        self._where = str(directory / FILE_NAME)
        self._num_stored_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes read so far, of the dataset and of the source."""
        return self._num_stored_bytes + (self.expected.num_bytes if self.expected else 0)

    def run(self, on_progress: OnProgress = lambda num_episodes, num_bytes: None) -> Findings:
        """Checks everything and returns what is wrong."""
        check_files(self._directory, self.manifest, self.findings)
        self._check_manifest()
        first = 0
        # Source and dataset have the same shards, and are walked side by side.
        for number, shard in enumerate(self.manifest.shards[EPISODES]):
            self._check_shard(number, range(first, first + shard.records), on_progress)
            first += shard.records
        if self.expected is not None:
            self.expected.finish(self._where)
        self._check_statistics(self._directory / self.manifest.statistics_name)
        return self.findings

    def _check_manifest(self) -> None:
        """Checks tasks, origin and conventions; `load_manifest` has checked the rest."""
        manifest = self.manifest
        used = {*manifest.episode_tasks, *(change.task for change in manifest.task_changes)}
        # A task whose episodes were given to another still counts the steps removed of it.
        used |= {task for task, steps in enumerate(manifest.removed_steps) if steps}
        unused = [repr(task) for i, task in enumerate(manifest.tasks) if i not in used]
        if unused:
            found = f"others: {first_few(unused, '; ')}"
            self.findings.add(f"{self._where}, tasks", "tasks that an episode has", found)
        if self.expected is None:
            return
        source = self.expected.source
        version = manifest.provenance.get("version", source.version)
        num_shards = len(manifest.shards[EPISODES])
        self._compare("name", source.name, manifest.name, "as the source")
        self._compare("version", source.version, version, "as the source")
        self._compare("shards", len(source.shards), num_shards, "as the source")
        edited = {edit.field: edit.after for edit in self._edits}
        found = to_json_values(manifest.conventions)
        # Fields of either, as one that says nothing is in no file.
        for name in {**self.conventions, **found} if self.conventions else ():
            field = f"conventions.{name}"
            origin = "as it was edited to" if field in edited else "as the mapping says"
            expected = edited.get(field, self.conventions.get(name))
            self._compare(field, expected, found.get(name), origin)

    def _compare(self, field: str, expected: object, found: object, origin: str) -> None:
        if expected != found:
            self.findings.add(f"{self._where}, {field}", f"{expected}, {origin}", str(found))

    def _check_shard(self, number: int, episodes: range, on_progress: OnProgress) -> None:
        """Checks the episodes of one shard, beside those of the source's shard of that number."""
        manifest, findings = self.manifest, self.findings
        columns = [
            (column, read_shard(self._directory, manifest, column, number, findings))
            for column in manifest.schema.columns
        ]
        sources = self.expected.shard(number) if self.expected else iter(())
        num_sources = 0
        for index in episodes:
            before = self.num_bytes
            expected = next(sources, None)
            num_sources += expected is not None
            self._check_episode(index, columns, expected)
            del expected  # before the next one is read
            on_progress(1, self.num_bytes - before)
        for _, records in columns:
            # Behind the last record the checksum is compared.
            next(records, None)
        # The rest of the source's episodes, which the dataset lacks.
        num_sources += sum(1 for _ in sources)
        is_known = self.expected is not None and number not in self.expected.broken
        if is_known and num_sources != len(episodes):
            file = self._directory / manifest.shards[EPISODES][number].file
            of_source = f"{num_sources} episodes, as shard {number} of the source has"
            findings.add(str(file), of_source, f"{len(episodes)}")

    def _check_episode(
        self, index: int, columns: Sequence[tuple[Column, Records]], expected: Expected | None
    ) -> None:
        """Reads the records of an episode in every column."""
        num_steps = self.manifest.episode_lengths[index]
        if expected is not None and len(expected.tasks) != num_steps:
            of_source = f"{len(expected.tasks)} steps, as {expected.where}"
            self.findings.add(f"{self._where}, episode {index}", of_source, f"{num_steps} steps")
            # Steps that do not pair up cannot be compared.
            expected = None
        if self.expected and expected and self.expected.knows_tasks:
            self._compare_tasks(index, expected)
        # Statistics of the source's values, so that a wrong file shows.
        if self.expected is not None and index not in self._excluded:
            self._measure(expected.values if expected else {})
        for column, records in columns:
            for step in range(num_steps) if column.per == "step" else (None,):
                where, num_bytes, values = next(records)
                self._num_stored_bytes += num_bytes
                values = values or {}
                for feature in column.features if values else ():
                    value, place = values[feature.key], f"{where}, {feature.key}"
                    try:
                        check_value(value, feature, num_steps if step is None else None, place)
                        if expected is not None and feature.key in expected.values:
                            expected.compare(value, feature, step, place)
                    except UserError as error:
                        self.findings.add_error(error)
                self._check_hash(index, values, where)
                if self.expected is None and step is None and index not in self._excluded:
                    self._measure(values)

    def _check_hash(self, index: int, values: Values, where: str) -> None:
        """Compares the stored hash of an episode's actions with them; other records have none."""
        if self._hashes is None or ACTION not in values:
            return
        stored, found = int(self._hashes[index]), hash_actions(np.asarray(values[ACTION]))
        if stored != found:
            place = f"{self._where}, action_hashes, episode {index}"
            self.findings.add(place, f"{found:016x}, as {where}", f"{stored:016x}")

    def _compare_tasks(self, index: int, expected: Expected) -> None:
        """Compares the instruction of every step; reports the first that differs."""
        changes = self._changes.get(index, {})
        task = self.manifest.episode_tasks[index]
        for step, original in enumerate(expected.tasks):
            task = changes.get(step, task)
            text = edited_text(self._edits, original, index)
            if text != (found := self.manifest.tasks[task]):
                place = f"{self._where}, task of episode {index}, step {step}"
                self.findings.add(place, f"{text!r}, as {expected.where}", repr(found))
                return

    def _measure(self, values: Mapping[str, Any]) -> None:
        """Takes the next episode for the statistics; features that it lacks become unknown."""
        self._statistics = {k: v for k, v in self._statistics.items() if k in values}
        for key, accumulator in self._statistics.items():
            accumulator.add(values[key])

    def _check_statistics(self, path: epath.Path) -> None:
        """Compares a `statistics.json`, exactly; one finding per statistic of a feature."""
        stored = {}
        try:
            # Read twice: values with a wrong checksum are still worth comparing.
            stored = stats.load(path)
            stats.load(path, self.manifest.statistics_checksum)
        except DataError as error:
            self.findings.add_error(error)
        if stored and sorted(stored) != self.measured:
            self.findings.add(str(path), f"{self.measured}", f"{sorted(stored)}")
        for key in [key for key in self.measured if key in self._statistics and key in stored]:
            computed = self._statistics[key].finish().to_json()
            for name, found in stored[key].to_json().items():
                # Exactly: the same code in the same order gives the same digits.
                if found != computed[name]:
                    self.findings.add(f"{path}, {key}, {name}", str(computed[name]), str(found))
