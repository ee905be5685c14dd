"""What a dataset has to hold by its source: read from scratch, mapped as `dataset.json` says.

The reader of the source and the mapping are those of the conversion; nothing that writes is.
"""

import dataclasses
from collections import Counter
from collections.abc import Container, Iterator, Mapping

import numpy as np

from converters.edit_notes import INSTRUCTION, edited_text, edits
from converters.mapping.mapped_features import FeatureMapping
from converters.mapping.standardize import SourceMapping, Standardized, standardize
from converters.sources.reading import check_boundaries
from converters.sources.source import Source, SourceEpisode
from converters.verify.findings import Findings, mismatch
from pipeline.data.images import check_pixels, read_millimetres
from pipeline.data.manifest import FILE_NAME, Manifest
from pipeline.data.schema import ACTION, Blob, Feature, Schema, SourcePart
from pipeline.errors import UserError
from pipeline.terminal import first_few

_SHOWN_BYTES = 60


@dataclasses.dataclass(frozen=True)
class Expected:
    """An episode of the source as the dataset has to hold it."""

    where: str
    """File and episode of the source."""
    values: Mapping[str, np.ndarray | list[Blob]]
    """By feature key: (t, *shape) at rest, t encoded images, or one text."""
    tasks: tuple[str, ...]
    """The instruction of each of the t steps, in the source."""
    rounded: Container[str]
    """Keys of depth that the source has as numbers."""

    def compare(
        self, stored: np.ndarray | bytes, feature: Feature, step: int | None, where: str
    ) -> None:
        """Compares the stored value of a step, or of the episode if `step` is None, bit by bit.

        Of rounded depth the millimetres are compared: releases of zlib differ in the bytes of PNG.

        Raises:
          DataError: They differ.
        """
        origin = self.where if step is None else f"{self.where}, step {step}"
        values, unit = self.values[feature.key], ""
        if isinstance(values, np.ndarray) and isinstance(stored, np.ndarray):
            wanted = values if step is None else values[step, ...]
        else:
            blob, found = bytes(values[step or 0]), bytes(stored)
            if found == blob:
                return
            if feature.key not in self.rounded:
                raise mismatch(where, f"{_shown(blob)}, as {origin}", _shown(found))
            wanted, unit = read_millimetres(blob, feature.shape, where)[..., 0], " mm"
            stored = read_millimetres(found, feature.shape, where)[..., 0]
        # Bits, so that NaN equals NaN, and -0.0 is not 0.0.
        bits = f"u{stored.itemsize}"
        differ = np.argwhere(stored.view(bits) != wanted.view(bits))
        if len(differ):
            first = differ[0].tolist()
            place = where if step is not None else f"{where}, step {first[0]}"
            raise mismatch(
                place,
                f"{wanted[*first]}{unit} at {first[step is None :]}, as {origin}",
                f"{stored[*first]}{unit}, and {len(differ) - 1} more values that differ",
            )


def _shown(blob: bytes) -> str:
    return f"{len(blob)} bytes {blob[:12]!r}" if len(blob) > _SHOWN_BYTES else repr(blob)


class SourceEpisodes:
    """The episodes that a dataset has to hold, shard by shard.

    Keys of the source whose declared type is not the one that the dataset was made from are
    findings, and their values are not compared.
    """

    def __init__(self, source: Source, manifest: Manifest, findings: Findings) -> None:
        self.source = source
        self.num_bytes = 0
        """Bytes of the source read so far."""
        self.broken: set[int] = set()
        """Shards of the source with episodes that cannot be used and are not listed as skipped."""
        self._manifest = manifest
        self._edits = list(edits(manifest))
        self._findings = findings
        self._removed: Counter[str] = Counter()
        self._skipped = {(skipped.file, skipped.episode) for skipped in manifest.skipped_episodes}
        self._schema = Schema(
            tuple(
                dataclasses.replace(c, features=tuple(filter(self._is_declared, c.features)))
                for c in manifest.schema.columns
            )
        )
        """The features that are compared; computed ones are not in the source."""
        compared = {feature.key: feature for _, feature in self._schema.features()}
        kinds = {name: key.kind for name, key in source.keys.items()}
        self._rounded = {k for k, f in compared.items() if kinds[f.origins[0].source] == "tensor"}
        # Without a key the mapping gave one instruction to all episodes, or none.
        task = manifest.task_source
        has_task = bool(task) and self._has_part("text", SourcePart(task, "utf8", ()))
        self.knows_tasks = has_task or not task
        """Whether the instructions can be compared: their key is not one that the source lost."""
        conventions = manifest.conventions
        if ACTION not in compared:  # by which steps without motion are found
            conventions = dataclasses.replace(conventions, no_ops="kept", no_op_threshold=None)
        # Without a key all episodes had one instruction, the one that the first edit replaced.
        texts = [edit.before for edit in self._edits if edit.field.startswith(INSTRUCTION)]
        # The features of a mapping are in the schema; `standardize` takes the rest of it.
        self._mapping = SourceMapping(
            (FeatureMapping(ACTION, ACTION),),
            conventions,
            task=task if has_task else "",
            instruction="" if has_task else next(iter([*texts, *manifest.tasks]), ""),
        )
        parts = {part.source for _, f in manifest.schema.features() for part in f.origins}
        held = parts | ({task} - {""})
        # The others may be anything, as in the conversion.
        self._wanted = {key for key in held & kinds.keys() if kinds[key] != "other"}
        self.not_converted = sorted(kinds.keys() - held)
        """Keys of the source that the dataset does not hold."""

    def _is_declared(self, feature: Feature) -> bool:
        """Whether a feature is of the source, which declares it as it did at the conversion."""
        has_parts = [self._has_part(feature.kind, part) for part in feature.origins]
        return bool(has_parts) and all(has_parts)

    def _has_part(self, kind: str, part: SourcePart) -> bool:
        key = self.source.keys.get(part.source)
        # Depth is an image or a tensor in the source.
        if kind == "depth":
            kind = "image" if key and key.kind == "image" else "tensor"
        expected = f"{kind} of {part.dtype}{list(part.shape)}"
        found = f"{key.kind} of {key.dtype}{list(key.shape)}" if key else "no such key"
        if found != expected:
            self._findings.add(f"{self.source.declaration}, {part.source}", expected, found)
        return found == expected

    def shard(self, number: int) -> Iterator[Expected | None]:
        """Yields the episodes of one shard with steps left; None for one that is unusable."""
        # More shards than the source has are a finding of the verifier.
        if number >= len(self.source.shards):
            return
        shard = self.source.shards[number]
        try:
            for read in self.source.episodes(shard, self._wanted):
                self.num_bytes += read.num_bytes
                is_skipped = (shard.name, read.number) in self._skipped
                self._skipped.discard((shard.name, read.number))
                episode = self._standardized(read, is_thorough=is_skipped)
                if isinstance(episode, UserError):
                    # What cannot be used has to be listed as skipped.
                    if not is_skipped:
                        self._break(number, episode)
                        yield None
                elif is_skipped:
                    listed = f"an episode that cannot be used, as {FILE_NAME} lists it as skipped"
                    self._findings.add(read.where, listed, "one without a fault")
                else:
                    self._removed.update(map(self._edited, episode.removed))
                    if episode.num_steps:
                        tasks = tuple(episode.tasks)
                        yield Expected(read.where, episode.values, tasks, self._rounded)
                del read, episode  # before the next one is read
        except UserError as error:  # the rest of the file cannot be read
            self._break(number, error)

    def _break(self, number: int, error: UserError) -> None:
        self._findings.add_error(error)
        self.broken.add(number)

    def _standardized(self, read: SourceEpisode, *, is_thorough: bool) -> Standardized | UserError:
        """An episode at rest, or why it cannot be used; by all that a conversion may look for."""
        if isinstance(read.values, UserError):
            return read.values
        try:
            episode = standardize(read.values, self._schema, self._mapping, read.where)
            if is_thorough:
                check_boundaries(read.values, read.where)
                for _, feature in self._schema.features():
                    if feature.kind in ("image", "depth"):
                        for encoded in episode.values[feature.key]:
                            check_pixels(bytes(encoded), read.where)
        except UserError as error:
            return error
        return episode

    def _edited(self, task: str) -> str:
        # Removed steps stay with their task where single episodes get another.
        return edited_text(self._edits, task, None)

    def finish(self, where: str) -> None:
        """Compares the steps left out of each task, and the skipped episodes, of all shards."""
        # They are not known of a source that was not read to its end.
        if self.broken:
            return
        found = dict(zip(self._manifest.tasks, self._manifest.removed_steps, strict=False))
        for task in dict.fromkeys([*found, *self._removed]) if self.knows_tasks else ():
            if found.get(task, 0) != self._removed[task]:
                place = f"{where}, removed_steps of {task!r}"
                self._findings.add(place, str(self._removed[task]), str(found.get(task, 0)))
        if self._skipped:
            names = [f"{file}, episode {number}" for file, number in sorted(self._skipped)]
            place, absent = f"{where}, skipped_episodes", first_few(names)
            self._findings.add(place, "episodes of the source", absent)
