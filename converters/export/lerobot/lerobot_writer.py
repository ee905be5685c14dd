"""A dataset directory as a LeRobot 3.0 dataset, which LeRobot's own loader reads.

    data/chunk-000/file-000.parquet              numbers of each step, and images that are no video
    videos/CAMERA/chunk-000/file-000.mp4         frames of the episodes one after another
    meta/info.json, stats.json, tasks.parquet    declaration, statistics, instructions
    meta/episodes/chunk-000/file-000.parquet     where each episode lies, and its statistics
    meta/octograin.toml                          the mapping for the way back
    meta/octograin.json                          provenance, and which files belong to the export

Source: the layout of `LeRobotDataset` of LeRobot 0.6.
"""

import json
import pathlib
from collections.abc import Callable, Sequence

from converters.export.export_folder import export_folder, in_use, replacing
from converters.export.lerobot.lerobot_columns import ExportedFeature, Storage, exported_schema
from converters.export.lerobot.lerobot_episodes import EpisodeWriter
from converters.export.lerobot.lerobot_meta import checksum_of, write_meta
from converters.export.lerobot.video_writer import Codec, check_encoder, check_taken
from converters.lerobot.lerobot_info import OWN_FILE
from pipeline.data.dataset import Dataset
from pipeline.errors import SchemaError
from pipeline.files import sync

_EVEN = 2

OnProgress = Callable[[int, int], None]
"""Called with the episodes and bytes done since the last call."""


def export_lerobot(
    dataset: Dataset,
    out: str | None = None,
    *,
    storage: Storage = "video",
    codec: Codec = "av1",
    overwrite: bool = False,
    on_progress: OnProgress = lambda num_episodes, num_bytes: None,
) -> pathlib.Path:
    """Writes a dataset as LeRobot 3.0; nothing stands at `out` until all of it does.

    Excluded episodes are left out, and the others numbered again.

    Args:
      dataset: What is written, an episode at a time.
      out: Folder to write; None: the dataset's with `_lerobot` added.
      storage: How cameras are stored: `video` compresses them with loss, `image` keeps each JPEG
        and PNG.
      codec: Codec of the videos.
      overwrite: Whether an export that stands there is replaced.
      on_progress: Called with episodes, and bytes written, as they are done.

    Returns:
      The folder, which `LeRobotDataset(NAME, root=FOLDER)` reads.

    Raises:
      UserError: Where `out` is in use, inside the dataset, remote or may not be written, PyAV lacks
        the codec, a video cannot have the size or rate of a camera, or the dataset is corrupt.
    """
    folder = export_folder(dataset, out, "_lerobot")
    schema = exported_schema(dataset.manifest, storage)
    videos = [one for one in schema.features if one.storage == "video"]
    if videos:
        _check_videos(dataset, videos, codec)
    with replacing(folder, _check_own, overwrite=overwrite) as temporary:
        with EpisodeWriter(dataset, schema, codec, temporary) as writer:
            for index in dataset.kept_episodes.tolist():
                on_progress(1, writer.write(index))
        write_meta(temporary, dataset, schema, writer)
        # The files, then their names.
        for path in sorted(temporary.rglob("*"), reverse=True):
            sync(path)
    return folder


def _check_videos(dataset: Dataset, cameras: Sequence[ExportedFeature], codec: Codec) -> None:
    """Refuses cameras that a video cannot hold; those of odd sizes all at once."""
    check_encoder(codec)
    odd = [
        f"{one.feature.key} of {one.feature.shape[0]}x{one.feature.shape[1]}"
        for one in cameras
        if any(size % _EVEN for size in one.feature.shape[:2])
    ]
    if odd:
        raise SchemaError(
            where=dataset.path,
            expected="images of an even height and width, as videos store colours at half of them",
            found=", ".join(odd),
            remedy="Export images instead: --image.",
        )
    rate = dataset.manifest.conventions.control_frequency_hz
    for one in cameras:
        check_taken(codec, one.feature.shape, rate, f"{dataset.path}, {one.feature.key}")


def _check_own(folder: pathlib.Path) -> None:
    """Refuses a folder with any file that an export did not write, or that was changed since."""
    try:
        own = json.loads((folder / OWN_FILE).read_text())
        sizes = {str(name): int(size) for name, size in own["files"].items()}
        # Exports of earlier versions list none.
        checksums = {str(name): str(digest) for name, digest in own.get("checksums", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = f"a folder without {OWN_FILE}, which lists what this command wrote"
        remedy = "Remove it yourself, or name another destination."
        raise in_use(folder, found, remedy) from error
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if (path.is_dir() and not path.is_symlink()) or inside == OWN_FILE:
            continue
        if inside not in sizes:
            raise in_use(folder, f"other files: {inside}", "Name another destination.")
        if path.lstat().st_size != sizes[inside] or (
            inside in checksums and checksum_of(path) != checksums[inside]
        ):
            found = f"{inside}, which was changed after the export"
            raise in_use(folder, found, "Remove it yourself, or name another destination.")
