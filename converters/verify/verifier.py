"""One walk over a dataset, beside its source: every record is read, checked and compared once."""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath

from converters.edit import edits
from converters.sources.source import Source
from converters.verify.comparison import StatisticsCheck, compare_record
from converters.verify.expected_records import Expected, ExpectedEpisodes
from converters.verify.findings import Findings
from converters.verify.stored_records import ColumnWalk, ValueCheck, check_files, check_tasks
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import FILE_NAME, STATISTICS_NAME, Manifest
from pipeline.data.record import Values
from pipeline.data.schema import EPISODES, Column
from pipeline.files import to_json_values

OnProgress = Callable[[int, int], None]
"""Called with the episodes and bytes done since the last call."""


class Verifier:
    """Reads a dataset once, beside its source where there is one, an episode at a time.

    Args:
      directory: The dataset directory.
      manifest: Manifest of the dataset.
      source: What it was converted from; None: it is checked by itself.
      conventions: Name of the mapping that it was converted with; empty: not known.
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
        """That the mapping names; empty: they are not compared."""
        self._directory = directory
        self._where = str(directory / FILE_NAME)
        # Without statistics: it serves to find episodes and tasks.
        self._dataset = Dataset(str(directory), manifest, {})
        self._walks = {
            column.name: ColumnWalk(
                directory, column, manifest.shards.get(column.name, ()), self.findings
            )
            for column in manifest.schema.columns
        }
        self._check = ValueCheck(self.findings)
        self.statistics = StatisticsCheck(manifest)
        """Statistics of the source, or of the dataset if there is none."""
        self.expected = (
            None if source is None else ExpectedEpisodes(source, manifest, self.findings)
        )
        """What the source says; None where there is none."""

    @property
    def num_bytes(self) -> int:
        """Bytes read so far, of the dataset and of the source."""
        of_source = self.expected.num_bytes if self.expected else 0
        return of_source + sum(walk.num_bytes for walk in self._walks.values())

    def run(self, on_progress: OnProgress = lambda num_episodes, num_bytes: None) -> Findings:
        """Checks everything and returns what is wrong.

        Args:
          on_progress: Called with episodes and bytes as they are done.
        """
        check_files(self._directory, self.manifest, self.findings)
        check_tasks(self._directory, self.manifest, self.findings)
        if self.expected is not None:
            self._check_origin(self.expected.source)
            self._check_conventions()
        # Borders of the shards in episodes: source and dataset are walked side by side.
        stops = np.cumsum([0, *(s.records for s in self.manifest.shards[EPISODES])]).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(stops)):
            self._check_shard(number, range(start, stop), on_progress)
        # The last shards' checksums are compared at their end.
        for walk in self._walks.values():
            walk.finish()
        if self.expected is not None:
            self.expected.check_removed(self._where)
            # A source that was not read to its end may still have them.
            if not self.expected.broken:
                self.expected.skipped.finish(self._where)
        self.statistics.compare(self._directory / STATISTICS_NAME, self.findings)
        return self.findings

    def _check_origin(self, source: Source) -> None:
        provenance = self.manifest.provenance
        pairs = {
            "name": (source.name, self.manifest.name),
            "version": (source.version, provenance.get("version", source.version)),
            "shards": (str(len(source.shards)), str(len(self.manifest.shards[EPISODES]))),
        }
        for name, (expected, found) in pairs.items():
            if expected != found:
                self.findings.add(f"{self._where}, {name}", f"{expected}, as the source", found)

    def _check_conventions(self) -> None:
        """Compares the conventions with the mapping's, as they were edited since."""
        edited = {edit.field: edit.after for edit in edits(self.manifest)}
        found = to_json_values(self.manifest.conventions)
        if not self.conventions:
            return
        # Fields of either, as one that says nothing is in no file.
        for name in {**self.conventions, **found}:
            field = f"conventions.{name}"
            origin = "as the mapping says" if field not in edited else "as it was edited to"
            expected = edited.get(field, self.conventions.get(name))
            if expected != found.get(name):
                place = f"{self._where}, {field}"
                self.findings.add(place, f"{expected}, {origin}", str(found.get(name)))

    def _check_shard(self, number: int, episodes: range, on_progress: OnProgress) -> None:
        """Checks the episodes of one shard, beside those of the source's shard of that number."""
        sources = self.expected.shard(number) if self.expected else iter(())
        num_sources = 0
        for index in episodes:
            before = self.num_bytes
            where, expected = next(sources, (None, None))
            num_sources += where is not None
            self._check_episode(index, expected)
            # Otherwise two episodes are in memory at once.
            del expected  # before the next one is read
            on_progress(1, self.num_bytes - before)
        # The rest of the source's episodes, which the dataset lacks.
        num_sources += sum(1 for _ in sources)
        is_known = self.expected is not None and number not in self.expected.broken
        if is_known and num_sources != len(episodes):
            file = self._directory / self.manifest.shards[EPISODES][number].file
            of_source = f"{num_sources} episodes, as shard {number} of the source has"
            self.findings.add(str(file), of_source, f"{len(episodes)}")

    def _check_episode(self, index: int, expected: Expected | None) -> None:
        """Reads the records of an episode in every column."""
        num_steps = self.manifest.episode_lengths[index]
        first = int(self._dataset.episode_starts[index])
        if expected is not None and len(expected.steps) != num_steps:
            of_source = f"{len(expected.steps)} steps, as {expected.where}"
            self.findings.add(f"{self._where}, episode {index}", of_source, f"{num_steps} steps")
            # Steps that do not pair up cannot be compared.
            expected = None
        if expected is not None:
            self._compare_tasks(index, expected)
        # Statistics of the source's values, so that a wrong file shows.
        if self.expected is not None:
            self.statistics.add(None if expected is None else self._source_values(expected))
        for column in self.manifest.schema.columns:
            walk = self._walks[column.name]
            if column.per == "step":
                for t in range(num_steps):
                    self._check_record(walk.read(first + t), column, expected, t)
                continue
            record = walk.read(index)
            self._check_record(record, column, expected, None, num_steps)
            if self.expected is None:
                self.statistics.add(record[1])

    def _check_record(
        self,
        record: tuple[str, Values | None],
        column: Column,
        expected: Expected | None,
        step: int | None,
        num_steps: int = 1,
    ) -> None:
        where, values = record
        if values is None:
            return
        self._check.check(values, column, num_steps, where)
        if expected is not None and self.expected is not None:
            features = tuple(f for f in column.features if f.key in self.expected.compared)
            compare_record(values, features, expected, step, where, self.findings)

    def _source_values(self, expected: Expected) -> Values:
        """The trajectories of an episode by the source, as they are at rest."""
        compared = self.expected.compared if self.expected else ()
        # Overflow is a finding of the comparison.
        with np.errstate(over="ignore"):
            return {
                feature.key: expected.tensors(feature).astype(np.float32)
                for feature in self.statistics.features
                if feature.key in compared
            }

    def _compare_tasks(self, index: int, expected: Expected) -> None:
        """Compares the instruction of every step; reports the first that differs."""
        if self.expected is None or not self.expected.has_tasks:
            return
        for t in range(len(expected.steps)):
            text = self.expected.instruction(expected, t)
            task = self.manifest.tasks[self._dataset.task_index(index, t)]
            if text != task.encode():
                place = f"{self._where}, task of episode {index}, step {t}"
                self.findings.add(place, f"{text!r}, as {expected.where}", repr(task.encode()))
                return
