"""Finding an RLDS directory, and naming what lies there instead."""

from etils import epath

from pipeline.errors import DataError

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
            example = next(iter(sorted(folder.glob(glob))), None)
        else:
            example = path if path.match(glob) else None
        if example is not None:
            remedy = _REMEDIES.get(glob, _WRITE_IT).format(path=path)
            return f"{words} (such as {example.name})", remedy
    return ("a file", "Name the folder that it lies in.") if names else None
