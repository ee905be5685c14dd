"""What a dataset has to hold by its source: read afresh, and mapped as the dataset itself says.

Nothing here goes through the conversion's own code but the reading of the source and the rule for
steps without motion, so a mistake in the conversion is not made twice.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np

from converters.edit import INSTRUCTION, edits
from converters.sources.source import IS_FIRST, STEPS, Episode, Source
from converters.verify.findings import Findings
from converters.verify.skipped_episodes import SkippedEpisodes
from pipeline.data.conventions import is_no_op
from pipeline.data.manifest import Manifest
from pipeline.data.schema import ACTION, Blob, Feature, SourcePart, rest_dtype
from pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Expected:
    """An episode of the source, without the steps that the conversion had to leave out."""

    where: str
    """File and episode of the source."""
    episode: Episode
    """Values of all its steps, by source key."""
    steps: np.ndarray
    """int64 (t): those that stay."""
    is_filtered: bool
    """Whether any does not."""

    def tensors(self, feature: Feature) -> np.ndarray:
        """(t, *shape) of a tensor feature, in the dtype of the source; a joined one as float32."""
        # The first step that stays has `is_first`, whether or not it had it.
        if self.is_filtered and feature.source == IS_FIRST:
            first = np.zeros((len(self.steps), *feature.shape), feature.numpy_dtype)
            first[:1] = 1
            return first
        if feature.parts:
            # Joined here by other code than the conversion's.
            every = [self._values(part.source).reshape(-1, part.size) for part in feature.parts]
            return np.concatenate([values.astype(np.float32) for values in every], axis=1)
        return self._values(feature.source)

    def _values(self, key: str) -> np.ndarray:
        """(t, *shape) of a source key, in its dtype."""
        values = np.asarray(self.episode[key])
        if not key.startswith(STEPS):
            return np.repeat(values, len(self.steps), axis=0)
        return values[self.steps] if self.is_filtered else values

    def tensor(self, feature: Feature, step: int) -> np.ndarray:
        """(*shape) of step `step` of those that stay."""
        if feature.parts:
            return self.tensors(feature)[step]
        if self.is_filtered and feature.source == IS_FIRST:
            return np.full(feature.shape, step == 0, feature.numpy_dtype)
        values = np.asarray(self.episode[feature.source])
        is_whole = not feature.source.startswith(STEPS)
        # `...` keeps a 0-d array.
        return values[0 if is_whole else self.steps[step], ...]

    def depth(self, feature: Feature, step: int) -> np.ndarray | Blob:
        """Depth at step `step` of those that stay: an encoded image, or (h, w) or (h, w, 1)."""
        values = self.episode[feature.source]
        return values[int(self.steps[step]) if feature.source.startswith(STEPS) else 0]

    def blob(self, key: str, step: int) -> Blob:
        """The encoded image or text that a source key has at step `step` of those that stay."""
        values = self.episode[key]
        value = values[int(self.steps[step]) if key.startswith(STEPS) else 0]
        assert not isinstance(value, np.ndarray)
        return value


class ExpectedEpisodes:
    """The episodes that a dataset has to hold, shard by shard.

    Keys of the source whose declared type is not the one that the dataset was made from are
    findings, and their values are not compared.
    """

    def __init__(self, source: Source, manifest: Manifest, findings: Findings) -> None:
        self.source = source
        self._manifest = manifest
        self._findings = findings
        self._removed: Counter[bytes] = Counter()
        self.skipped = SkippedEpisodes(manifest, findings)
        """Those that the dataset lists as skipped."""
        self.broken: set[int] = set()
        """Shards of the source that were not readable to their end."""
        self.num_bytes = 0
        """Bytes of the source read so far."""
        self._declared = source.declaration
        # Computed features are checked by their encoder's origin alone.
        of_source = [f for _, f in manifest.schema.features() if f.key not in manifest.encoders]
        self.compared = {feature.key for feature in of_source if self._is_declared(feature)}
        """Feature keys whose values can be compared; computed ones are not in the source."""
        task = source.keys.get(manifest.task_source)
        self.has_tasks = task is not None and task.kind == "text"
        """Whether the source has the instruction; else the mapping gave one, or none."""
        if manifest.task_source and not self.has_tasks:
            found = task.dtype if task else "no such key"
            findings.add(f"{self._declared}, {manifest.task_source}", "a text", found)

        self._renamed = [edit for edit in edits(manifest) if edit.field == INSTRUCTION]

        parts = {part.source for feature in of_source for part in feature.origins}
        self._held = parts | ({manifest.task_source} - {""})
        """Keys of the source that the dataset holds."""
        readable = {key for key, spec in source.keys.items() if spec.kind != "other"}
        self._wanted = self._held & readable
        """Those whose values are read; the others may be anything, as in the conversion."""

    def instruction(self, expected: "Expected", step: int) -> bytes:
        """The instruction of a step that stays, as it was edited since the conversion."""
        text = bytes(expected.blob(self._manifest.task_source, step))
        for edit in self._renamed:
            text = edit.after.encode() if text == edit.before.encode() else text
        return text

    def not_converted(self) -> list[str]:
        """Keys of the source that the dataset does not hold."""
        return sorted(set(self.source.keys) - self._held)

    def shard(self, number: int) -> Iterator[tuple[str, Expected | None]]:
        """Yields (place, episode) for those of one shard with steps left; None: unreadable."""
        # More shards than the source has are a finding of the verifier.
        if number >= len(self.source.shards):
            return
        try:
            shard = self.source.shards[number]
            for read in self.source.episodes(shard, self._wanted):
                where, episode = read.where, read.values
                is_skipped = self.skipped.take(shard.name, read.number)
                self.num_bytes += read.num_bytes
                if isinstance(episode, UserError):
                    # What cannot be read has to be listed as skipped.
                    if not is_skipped:
                        self._break(number, episode)
                        yield where, None
                    continue
                if is_skipped:
                    # The other way round: what is listed has to be unusable.
                    self._check_skipped(where, episode)
                    continue
                expected = self._filtered(where, episode)
                del read, episode  # `expected` alone keeps the memory of the episode
                if len(expected.steps):
                    yield where, expected
                del expected
        except UserError as error:  # the rest of the file cannot be read
            self._break(number, error)

    def _check_skipped(self, where: str, episode: Episode) -> None:
        num_steps = next(len(value) for key, value in episode.items() if key.startswith(STEPS))
        every = Expected(where, episode, np.arange(num_steps), is_filtered=False)
        task = self._manifest.task_source if self.has_tasks else None
        self.skipped.check(every, self.compared, task)

    def check_removed(self, where: str) -> None:
        """Compares how many steps of each task had to be left out, once all shards were read."""
        found = dict(zip(self._manifest.tasks, self._manifest.removed_steps, strict=False))
        # Tasks of both sides, each once.
        for task in dict.fromkeys([*self._manifest.tasks, *map(_text, self._removed)]):
            expected = self._removed.get(task.encode(), 0)
            # Of a source that was not read to its end the numbers are too low.
            if not self.broken and found.get(task, 0) != expected:
                place = f"{where}, removed_steps of {task!r}"
                self._findings.add(place, str(expected), str(found.get(task, 0)))

    def _break(self, number: int, error: UserError) -> None:
        self._findings.add_error(error)
        self.broken.add(number)

    def _filtered(self, where: str, episode: Episode) -> Expected:
        """An episode with the steps that stay; the others are counted by task."""
        num_steps = next(len(value) for key, value in episode.items() if key.startswith(STEPS))
        removed = self._no_ops(episode, num_steps)
        every = Expected(where, episode, np.arange(num_steps), is_filtered=False)
        if not removed.any():
            return every
        if self.has_tasks:
            left_out = np.flatnonzero(removed).tolist()
            self._removed.update(self.instruction(every, t) for t in left_out)
        elif not self._manifest.task_source:
            # Without a key the mapping gave one instruction to all.
            self._removed[self._manifest.tasks[0].encode()] += int(removed.sum())
        return Expected(where, episode, np.flatnonzero(~removed), is_filtered=True)

    def _no_ops(self, episode: Episode, num_steps: int) -> np.ndarray:
        """Bool (t): the steps that the conversion had to leave out."""
        conventions = self._manifest.conventions
        if conventions.no_ops != "removed_at_conversion" or ACTION not in self.compared:
            return np.zeros(num_steps, bool)
        _, feature = self._manifest.schema.find(ACTION, self._declared)
        every = Expected("", episode, np.arange(num_steps), is_filtered=False)
        return is_no_op(every.tensors(feature).astype(feature.numpy_dtype), conventions)

    def _is_declared(self, feature: Feature) -> bool:
        """Whether the source declares a feature as it did when it was converted."""
        matching = [self._has_part(feature.kind, part) for part in feature.origins]
        if not all(matching):
            return False
        dtype = feature.source_dtype or feature.dtype
        where = f"{self._declared}, {feature.source}"
        if feature.kind == "tensor" and rest_dtype(dtype, where) != feature.dtype:
            self._findings.add(where, f"a dtype stored as {feature.dtype}", dtype)
            return False
        return True

    def _has_part(self, kind: str, part: SourcePart) -> bool:
        key = self.source.keys.get(part.source)
        # Depth is an image or a tensor in the source.
        if kind == "depth":
            kind = "image" if key and key.kind == "image" else "tensor"
        expected = f"{kind} of {part.dtype}{list(part.shape)}"
        found = f"{key.kind} of {key.dtype}{list(key.shape)}" if key else "no such key"
        if found != expected:
            self._findings.add(f"{self._declared}, {part.source}", expected, found)
        return found == expected


def _text(text: bytes) -> str:
    return text.decode(errors="replace")
