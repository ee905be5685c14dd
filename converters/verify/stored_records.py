"""A dataset directory read from its first byte to its last, checked against its manifest."""

from collections.abc import Iterator

import numpy as np
import xxhash
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  (an extension)
)
from etils import epath

from converters.job.file_ownership import NOTE_SUFFIX
from converters.verify.findings import Findings, mismatch
from pipeline.data.column_reader import describe_unreadable
from pipeline.data.images import check_image, check_pixels, read_millimetres
from pipeline.data.manifest import FILE_NAME, WORK, Manifest
from pipeline.data.record import RecordLayout, Values
from pipeline.data.schema import Column, Feature, to_rest
from pipeline.errors import DataError

_BUFFER_BYTES = 32768


def read_shard(
    directory: epath.Path, manifest: Manifest, column: Column, number: int, findings: Findings
) -> Iterator[tuple[str, int, Values | None]]:
    """Yields the place, bytes and values of each record of a shard; None for an unreadable one.

    What is wrong with the file is a finding, such as its checksum behind the last record.
    """
    shard = manifest.shards[column.name][number]
    path = directory / shard.file
    reader = array_record_module.ArrayRecordReader(str(path), file_reader_buffer_size=_BUFFER_BYTES)
    found = reader.num_records() if reader.ok() else 0
    # A truncated file opens without an error, with 0 records.
    is_whole = is_open = reader.ok() and found == shard.records
    # A missing one is a finding of `check_files`.
    if not is_open and path.exists():
        findings.add(str(path), f"{shard.records} records", describe_unreadable(path, found))
    layout, digest = RecordLayout(column), xxhash.xxh3_128()
    # Once: an epath takes 10 us to become a text.
    name = str(path)
    for local in range(shard.records):
        where = f"{name}, record {local}"
        record, values = b"", None
        try:
            if is_open:
                (record,) = reader.read(local, local + 1)
                digest.update(record)
                values = layout.decode(record, (number, local), where)
        except DataError as error:
            findings.add_error(error)
        except (RuntimeError, ValueError, IndexError) as error:
            findings.add(where, "a readable record", " ".join(str(error).split()))
            is_whole = False
        yield where, len(record), values
    # With a record missing the checksum differs in any case.
    if is_whole and digest.hexdigest() != shard.digest:
        expected = f"records with the checksum {shard.digest}"
        findings.add(str(path), expected, digest.hexdigest())


def check_value(
    value: np.ndarray | bytes, feature: Feature, num_steps: int | None, where: str
) -> None:
    """Checks a stored value against its declared type; an image to its last byte.

    Args:
      value: (*shape) of a step, (t, *shape) of an episode; the bytes of what is no tensor.
      feature: The feature.
      num_steps: Steps of the episode; None for the value of a step.
      where: File, record and feature.

    Raises:
      UserError: It is another one, or not readable.
    """
    if isinstance(value, np.ndarray):
        _check_tensor(value, feature, num_steps, where)
    elif feature.kind == "image":
        check_image(value, feature.shape, where)
        check_pixels(value, where)
    elif feature.kind == "depth":
        read_millimetres(value, feature.shape, where)
    elif feature.kind == "quantized":
        feature.code.check(value, feature.shape, where)
    else:
        try:
            value.decode()
        except UnicodeDecodeError as error:
            raise mismatch(where, "a text in UTF-8", repr(value[:40])) from error


def _check_tensor(value: np.ndarray, feature: Feature, num_steps: int | None, where: str) -> None:
    # Values at rest must pass the law that let them in.
    to_rest(value if num_steps is not None else value[np.newaxis], feature, where)
    if num_steps is None:
        return
    if len(value) != num_steps:
        raise mismatch(where, f"{num_steps} steps, as {FILE_NAME} says", f"{len(value)}")
    if feature.dtype == "float32":
        finite = np.isfinite(value.reshape(num_steps, -1)).all(axis=1)
        if not finite.all():
            step = int(finite.argmin())
            found = f"{value[step].tolist()}, and {int((~finite).sum()) - 1} more such steps"
            raise mismatch(f"{where}, step {step}", "finite values", found)


def check_files(directory: epath.Path, manifest: Manifest, findings: Findings) -> None:
    """Compares the files of a dataset directory and their sizes with those of its manifest."""
    listed = {
        directory / shard.file: shard for shards in manifest.shards.values() for shard in shards
    }
    for path, shard in listed.items():
        found = f"{path.stat().length} bytes" if path.exists() else "no such file"
        if found != f"{shard.num_bytes} bytes":
            findings.add(str(path), f"{shard.num_bytes} bytes", found)
    for folder in (directory, *directory.iterdir()):
        # A column that is being added is not in the manifest yet.
        if not folder.is_dir() or (directory / WORK / f"{folder.name}{NOTE_SUFFIX}").exists():
            continue
        try:
            others = [p for p in folder.iterdir() if ".arrayrecord" in p.name and p not in listed]
        except OSError as error:
            findings.add(str(folder), "a folder that can be read", error.strerror or str(error))
            continue
        for path in sorted(others):
            findings.add(str(path), f"only the files that {FILE_NAME} lists", "one more")
