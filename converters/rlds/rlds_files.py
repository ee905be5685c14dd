"""The files of an RLDS directory: finding it, and whether those that it declares are there."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from converters.sources.source import Source
from pipeline.errors import DataError
from pipeline.files import matching

OWN_FILE = "octograin.json"
"""What an export of this project adds where anything is known of the recording."""
_MAX_NAMES = 5
"""Files that an error lists."""
_MAX_RANGES = 3
_OTHER_FORMATS = {
    "dataset.json": "a dataset that has been converted already",
    "*.hdf5": "HDF5 files",
    "*.h5": "HDF5 files",
    "*/*.hdf5": "HDF5 files",
    "*/*.h5": "HDF5 files",
    "*.zarr": "Zarr arrays",
    "*.zarr.zip": "Zarr arrays",
    "*.parquet": "Parquet files",
    "*.mcap": "robot logs in MCAP",
    "*.bag": "robot logs in ROS bags",
    "*.tfrecord*": "TFRecord files, but no features.json that declares what they hold",
}
"""What else a directory may hold, by glob, and in words; the first that fits is reported."""
_REMEDIES = {
    "dataset.json": "Look at it: octograin inspect {path}",
    "*.tfrecord*": "Fetch features.json and dataset_info.json into the folder of these files.",
}
_WRITE_IT = (
    "For data of another format, write one of these, or read it with a Source of your own "
    "(docs/sources/your_own.md)."
)


def find_version(path: epath.Path) -> epath.Path:
    """The folder with `features.json`: the path itself, or its only folder that has one.

    Raises:
      DataError: Where there is none, or more than one, or data in another format.
    """
    if (path / "features.json").exists():
        return path
    try:
        folders = sorted(path.iterdir()) if path.is_dir() else []
        versions = [folder for folder in folders if (folder / "features.json").exists()]
        found = ", ".join(folder.name for folder in versions) or "none"
    except OSError as error:
        versions, found = [], error.strerror or str(error)
    # Several versions are not guessed between.
    if len(versions) == 1:
        return versions[0]
    remedy = "Name the version's folder, such as libero_spatial_no_noops/1.0.0."
    if not path.exists():
        found, remedy = "no such directory", "Correct the path."
    elif found == "none" and (other := _other_format(path)):
        # What else lies there is the likelier mistake.
        found, remedy = other
    elif found == "none":
        remedy = f"Name the folder that holds one of these. {_WRITE_IT}"
    raise DataError(
        where=str(path),
        expected="RLDS (features.json, or one version folder that has it), LeRobot "
        "(meta/info.json) or HDF5 files",
        found=found,
        remedy=remedy,
    )


def _other_format(path: epath.Path) -> tuple[str, str] | None:
    """(what lies there, what to do) where it is data of another format."""
    # A file that was named instead of its folder is described too.
    folder, names = (path.parent, path.name) if not path.is_dir() else (path, None)
    for glob, words in _OTHER_FORMATS.items():
        if names is None:
            # Sorted, so that the example is the same on every disk.
            example = next(iter(matching(folder, glob)), None)
        else:
            example = path if path.match(glob) else None
        if example is not None:
            remedy = _REMEDIES.get(glob, _WRITE_IT).format(path=path)
            return f"{words} (such as {example.name})", remedy
    return ("a file", "Name the folder that it lies in.") if names else None


def check_files(source: Source) -> None:
    """Checks that the files of all episodes that are read are there, before any of them is.

    Raises:
      DataError: Where some or all are missing; with what is there, and how to convert that.
    """
    # One listing per folder, instead of a request for each of up to 99,999 files.
    present = _present({path.parent for shard in source.shards for path in shard.paths})
    is_there = [shard.name in present for shard in source.shards]
    missing = [s.name for s, there in zip(source.shards, is_there, strict=True) if not there]
    if not missing:
        return
    remedy = "Fetch the missing files."
    if any(is_there):
        names = [s.name for s, there in zip(source.shards, is_there, strict=True) if there]
        found = f"{len(names):,} of them: {_listed(names)}; missing: {_listed(missing)}"
        if not source.selection:
            remedy += f" Or convert what is there, with {_ranges(source, is_there)}."
    else:
        # Files of another split or version are named alike.
        others = sorted(name for name in present if re.search(r"-\d{5,}-of-\d{5,}$", name))
        found = f"none of them, but {_listed(others)}" if others else "none of them"
        if others:
            remedy = "dataset_info.json is of another version than these files: fetch both again."
    names = _listed([shard.name for shard in source.shards], 1)
    raise DataError(
        where=f"{source.directory}, split {source.split}",
        expected=f"{len(source.shards):,} files of episodes, as dataset_info.json says: {names}",
        found=found,
        remedy=remedy,
    )


def _listed(names: Sequence[str], num_names: int = _MAX_NAMES) -> str:
    more = len(names) - num_names
    return ", ".join(names[:num_names]) + (f" and {more:,} more" if more > 0 else "")


def _present(folders: Iterable[epath.Path]) -> set[str]:
    """Names of what lies in folders."""
    return {path.name for folder in folders if folder.exists() for path in folder.iterdir()}


def _ranges(source: Source, is_there: Sequence[bool]) -> str:
    """The ranges of episodes whose files are there, as flags."""
    flags = [f"--episodes {first}:{stop}" for first, stop in _runs(source, is_there)]
    more = f" (or {len(flags) - _MAX_RANGES} other ranges)" if len(flags) > _MAX_RANGES else ""
    return " or ".join(flags[:_MAX_RANGES]) + more


def _runs(source: Source, is_there: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yields (first episode, the one behind the last) of files that follow each other."""
    first = 0
    pairs = zip(source.shards, is_there, strict=True)
    # Files that follow each other make one range.
    for there, run in itertools.groupby(pairs, lambda pair: pair[1]):
        stop = first + sum(shard.num_episodes for shard, _ in run)
        if there and stop > first:
            yield first, stop
        first = stop
