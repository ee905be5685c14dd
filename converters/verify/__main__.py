"""`octograin verify SRC DST`: compares a dataset directory with its source.

With DST alone everything in the dataset directory is read again and checked against its manifest.
"""

import dataclasses
import json
import re
import sys
import time
from collections import Counter
from typing import Annotated, Any

import tyro

from converters.edit_notes import edits
from converters.job import job_progress
from converters.mapping import mapping_registry
from converters.mapping.computed_source import compute_source
from converters.mapping.standardize import SourceMapping
from converters.sources.image_encoding import QUALITY_NOTE, encode_source
from converters.sources.open_source import open_source
from converters.sources.source import Source
from converters.verify.findings import mismatches
from converters.verify.verifier import Verifier
from pipeline.data.dataset import locate, warn_without_checksums
from pipeline.data.manifest import FILE_NAME, Manifest, load_manifest
from pipeline.errors import DataError, user_errors_exit
from pipeline.files import from_json_text, to_json_values
from pipeline.flag_help import joined_help
from pipeline.memory import keep_freed_memory
from pipeline.terminal import count, escaped_lines, program, ranges, shortened, show

_MAX_NOTE = 300
"""Maximum number of characters of an edit, which lists all of its episodes."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Checks every value of a dataset directory, against its source if given."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """What was converted; alone, the dataset directory to check by itself, or
    hf://datasets/owner/name[@revision], which is fetched."""
    dst: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DST]", help_behavior_hint="")
    ] = None
    """Dataset directory to compare with SRC."""
    mapping: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML file of the conversion, or a name that `octograin convert --list` prints, whose
    conventions are compared; by default the one that has the dataset's name."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the checks.

    Raises:
      SystemExit: With code 2 where anything is wrong.
    """
    keep_freed_memory()
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("converters.verify"))
        _, directory = locate(args.dst or args.src)
        manifest = load_manifest(directory)
        # Once, here: the checks below open no dataset.
        warn_without_checksums(str(directory), manifest.statistics_checksum)
        source = open_converted(args.src, manifest) if args.dst else None
        conventions = _conventions(source, args.mapping, manifest) if source else {}
        started = time.perf_counter()
        verifier = Verifier(directory, manifest, source, conventions)
        with job_progress.shown(manifest.name, len(manifest.episode_lengths)) as on_progress:
            findings = verifier.run(on_progress)
        if findings.count:
            sys.stderr.write(escaped_lines(findings.text()) + "\n")
            raise DataError(
                where=str(directory),
                expected="a dataset that is what its files and its source say",
                found=mismatches(findings.count),
                remedy="Fix or download again what is corrupt, or convert the source again.",
            )
        show(summary(verifier, time.perf_counter() - started))


def open_converted(path: str, manifest: Manifest) -> Source:
    """The source of a dataset: the split and the range of episodes that it was converted from.

    Raises:
      UserError: Where there is none, or it has another number of episodes than it had.
    """
    quality = manifest.provenance.get(QUALITY_NOTE)
    source = open_source(path, manifest.provenance.get("split"), int(quality) if quality else None)
    if manifest.mapping:
        source = compute_source(source, _own_mapping(manifest))[0]
    source = encode_source(source)
    selection = manifest.provenance.get("episodes")
    if selection is None:
        return source
    # A range is of all episodes, so their number has to be the same.
    total = sum(shard.num_episodes for shard in source.shards)
    match = re.fullmatch(rf"(\d+):(\d+) of {total}", selection)
    if match is None:
        raise DataError(
            where=str(source.directory),
            expected=f"the episodes {selection}, as the dataset's provenance says",
            found=f"{total} episodes",
            remedy="Name the source that was converted, or convert this one.",
        )
    return source.select(int(match[1]), int(match[2]))


def _own_mapping(manifest: Manifest) -> SourceMapping:
    """The mapping that a dataset was computed with."""
    return from_json_text(
        SourceMapping,
        json.dumps(manifest.mapping),
        where=f"{FILE_NAME}, mapping",
        remedy="Verify with the release that converted the dataset, or convert it again.",
    )


def _conventions(source: Source, mapping: str | None, manifest: Manifest) -> dict[str, Any]:
    """Those of the mapping of a dataset, by name; none where no mapping is known."""
    if mapping is not None:
        return to_json_values(mapping_registry.read_mapping(mapping).conventions)
    if manifest.mapping:
        return to_json_values(_own_mapping(manifest).conventions)
    found = mapping_registry.own_mapping(source) or mapping_registry.find_registered(
        source.name, source.format
    )
    if found is None:
        return {}
    # Collected sets have LIBERO's mapping, and their own rule for steps without motion.
    own = to_json_values(manifest.conventions)
    rules = {name: own[name] for name in ("no_ops", "no_op_threshold")}
    return to_json_values(found.conventions) | rules


def summary(verifier: Verifier, seconds: float) -> str:
    """What was checked, in a few lines."""
    manifest, source = verifier.manifest, verifier.expected
    num_steps, num_episodes = sum(manifest.episode_lengths), len(manifest.episode_lengths)
    kinds = Counter(feature.kind for _, feature in manifest.schema.features())
    sizes = zip(
        (num_episodes, num_steps, len(manifest.tasks)), ("episode", "step", "task"), strict=True
    )
    how = "as in the source" if source else "whole and of their declared types"
    lines = [
        f"{', '.join(count(*size) for size in sizes)}: {how}",
        f"{(kinds['tensor'] + kinds['quantized']) * num_steps:,} tensors, "
        f"{(kinds['image'] + kinds['depth']) * num_steps:,} images, "
        f"{num_steps + kinds['text'] * num_episodes:,} texts, {len(verifier.measured)} statistics",
    ]
    if source and source.not_converted:
        lines.append(f"not converted: {', '.join(source.not_converted)}")
    if manifest.skipped_episodes:
        lines.append(f"skipped at conversion: {len(manifest.skipped_episodes):,} episodes")
    if excluded := manifest.excluded_episodes:
        what = "read too" if source is None else "compared too"
        lines.append(f"excluded, and not in the statistics: {ranges(excluded)}; {what}")
    if source and not verifier.conventions:
        lines.append("conventions: not compared; name the mapping with --mapping FILE")
    lines += [f"edited: {shortened(str(edit), _MAX_NOTE)}" for edit in edits(manifest)]
    if source and manifest.encoders:
        lines.append(f"computed, not in the source: {', '.join(manifest.encoders)}")
    megabytes = verifier.num_bytes / 1e6
    lines.append(f"{megabytes:,.1f} MB read in {seconds:,.1f} s, {megabytes / seconds:,.1f} MB/s")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
