"""`octograin export DST [OUT] --to rlds`: a dataset directory becomes RLDS again.

tensorflow-datasets reads what is written; every feature has its key and dtype of the source, and
images are the bytes that the source held. A converted export is the same dataset.
"""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from converters.export.export_folder import export_folder, in_use, replacing
from converters.export.lerobot.return_mapping import failed_lines
from converters.export.rlds_restoration import (
    Formats,
    check_keys,
    declared_features,
    read_episode,
)
from converters.job import job_progress
from converters.rlds.example_writing import serialize_episode
from converters.rlds.rlds_files import OWN_FILE
from converters.rlds.tfrecord import frame
from converters.sources.recording_notes import PROVENANCE, recording_notes
from pipeline.data.dataset import Dataset, excluded_note, open_dataset
from pipeline.data.manifest import Manifest
from pipeline.data.schema import EPISODES
from pipeline.errors import user_errors_exit
from pipeline.files import dump_json, sync
from pipeline.flag_help import joined_help
from pipeline.memory import keep_freed_memory
from pipeline.terminal import count, program, show

_MB = 1e6
_DEFAULT_VERSION = "1.0.0"
_VERSION = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}")
_INFO = "dataset_info.json"
_MARK = "Exported by python -m converters.export"
"""The description of what is written, by which --overwrite knows it."""
_OWN_FILES = ("features.json", _INFO, OWN_FILE, "*.tfrecord-[0-9]*-of-[0-9]*")
_DEPTH = 2
"""Depth of these files: in the folder of a version."""

OnProgress = Callable[[int, int], None]
"""Called with the episodes and bytes done since the last call."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a dataset directory as RLDS that tensorflow-datasets reads."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory, or hf://datasets/owner/name[@revision], which is fetched."""
    out: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OUT]", help_behavior_hint="")
    ] = None
    """Folder to write, which gets one of the version inside; by default DST with `_rlds` added."""
    to: Literal["rlds"] = "rlds"
    """Format."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an export that stands at OUT."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the export."""
    keep_freed_memory()
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("converters.export"))
        dataset = open_dataset(args.dst)
        started = time.perf_counter()
        num_episodes = len(dataset.kept_episodes)
        with job_progress.shown(dataset.manifest.name, num_episodes) as on_progress:
            version = export_rlds(
                dataset, args.out, overwrite=args.overwrite, on_progress=on_progress
            )
        show(_summary(dataset, version, time.perf_counter() - started))


def export_rlds(
    dataset: Dataset,
    out: str | None = None,
    *,
    overwrite: bool = False,
    on_progress: OnProgress = lambda num_episodes, num_bytes: None,
) -> pathlib.Path:
    """Writes a dataset as RLDS; nothing stands at `out` until all of it does.

    Excluded episodes are left out.

    Args:
      dataset: What is written, an episode at a time; each of its shards becomes a file.
      out: Folder that gets one of the version inside; None: the dataset's with `_rlds` added.
      overwrite: Whether an export that stands there is replaced.
      on_progress: Called with episodes, and bytes written, as they are done.

    Returns:
      The folder of the version, which `tfds.builder_from_directory` reads.

    Raises:
      UserError: Where `out` is in use, inside the dataset, remote or may not be written, or the
        dataset is corrupt, or has keys that RLDS cannot hold together.
    """
    check_keys(dataset.manifest)
    folder = export_folder(dataset, out, "_rlds")
    with replacing(folder, _check_own, overwrite=overwrite) as temporary:
        _Export(dataset, temporary / _version(dataset.manifest)).write(on_progress)
    return folder / _version(dataset.manifest)


def _version(manifest: Manifest) -> str:
    version = manifest.provenance.get("version", "")
    # tensorflow-datasets reads no other form, such as v2 or 2024-05.
    return version if _VERSION.fullmatch(version) else _DEFAULT_VERSION


# --- the destination


def _check_own(folder: pathlib.Path) -> None:
    """Refuses a folder with any file that this command did not write."""
    # Every file is looked at before one is removed.
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        is_own = len(inside.parts) == _DEPTH and any(inside.match(name) for name in _OWN_FILES)
        if not path.is_dir() and not is_own:
            raise in_use(folder, f"other files: {inside}", "Name another destination.")
    for path in folder.iterdir():
        if not _is_export(path / _INFO):
            found = f"{path.name}, RLDS that does not say that this command wrote it"
            raise in_use(folder, found, "Remove it yourself, or name another destination.")


def _is_export(info: pathlib.Path) -> bool:
    """Whether the description of a version says that this command wrote it."""
    try:
        return json.loads(info.read_text())["description"] == _MARK
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


# --- the files


@dataclasses.dataclass
class _Export:
    """One dataset on its way into the folder of a version."""

    dataset: Dataset
    directory: pathlib.Path
    formats: Formats = dataclasses.field(default_factory=dict)
    num_bytes: int = 0

    def write(self, on_progress: OnProgress) -> None:
        """Writes the TFRecord files, then what describes them."""
        self.directory.mkdir()
        manifest = self.dataset.manifest
        split = manifest.provenance.get("split", "train")
        kept = self.dataset.kept_episodes
        borders = np.cumsum([0, *(shard.records for shard in manifest.shards[EPISODES])])
        lengths = np.diff(np.searchsorted(kept, borders)).tolist()
        first = 0
        for number, length in enumerate(lengths):
            file = f"{manifest.name}-{split}.tfrecord-{number:05d}-of-{len(lengths):05d}"
            self._write_shard(file, kept[first : first + length].tolist(), on_progress)
            first += length
        # After all shards: only then the formats of all images are known.
        declared_features(manifest, self.formats).save_config(str(self.directory))
        info = _info(manifest, split, lengths, self.num_bytes)
        if noted := recording_notes(manifest.provenance):
            text = dump_json({PROVENANCE: noted})
            (self.directory / OWN_FILE).write_text(text, encoding="utf-8")
        # Last: a folder without it is no version.
        (self.directory / _INFO).write_text(json.dumps(info, indent=2) + "\n")
        # The files, then their names.
        for path in (*self.directory.iterdir(), self.directory):
            sync(path)

    def _write_shard(self, file: str, episodes: Sequence[int], on_progress: OnProgress) -> None:
        with (self.directory / file).open("wb") as target:
            for index in episodes:
                record = serialize_episode(read_episode(self.dataset, index, self.formats))
                target.write(frame(record))
                self.num_bytes += len(record)
                on_progress(1, len(record))


def _info(manifest: Manifest, split: str, lengths: list[int], num_bytes: int) -> dict[str, Any]:
    """The content of `dataset_info.json`."""
    licences = [f"{column}: {licence}" for column, licence in manifest.licences.items()]
    return {
        "name": manifest.name,
        "description": _MARK,
        "version": _version(manifest),
        "fileFormat": "tfrecord",
        "redistributionInfo": {"license": "; ".join(licences)},
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(length) for length in lengths],
                "numBytes": str(num_bytes),
            }
        ],
    }


def _summary(dataset: Dataset, version: pathlib.Path, seconds: float) -> str:
    """What was written, and how it is read."""
    num_bytes = sum(path.stat().st_size for path in version.iterdir())
    split = dataset.manifest.provenance.get("split", "train")
    return (
        f"{len(dataset.kept_episodes):,} episodes, {dataset.num_kept_steps:,} steps, "
        f"{num_bytes / _MB:,.1f} MB in {seconds:,.1f} s, {num_bytes / _MB / seconds:,.1f} MB/s"
        f"{excluded_note(dataset.manifest)}\n"
        f"RLDS: {version}\n"
        f'with TensorFlow: tfds.builder_from_directory("{version}").as_dataset(split="{split}")\n'
        "without it: see Back to RLDS in docs/your_data.md\n"
        + "".join(f"{line}\n" for line in _not_exported(dataset.manifest))
    )


def _not_exported(manifest: Manifest) -> list[str]:
    """A line for each thing that RLDS has no place for, with the way to have it again."""
    lines = []
    if not manifest.task_source and (texts := [text for text in manifest.tasks if text]):
        lines.append(
            f"not exported: {count(len(texts), 'instruction')}, for which the source has no key; "
            "--instruction gives one to all episodes, and --to lerobot keeps them"
        )
    if tokens := [feature.key for _, feature in manifest.schema.features() if not feature.origins]:
        lines.append(f"not exported: {', '.join(tokens)}; `octograin tokens` computes tokens again")
    return lines + [
        f"not exported: which episodes failed; once it is converted: {command}"
        for command in failed_lines(manifest)
    ]
