"""Reads what a dataset on the hub holds, without its shards."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Collection

from etils import epath

from pipeline.data.manifest import FILE_NAME, Manifest, load_manifest
from pipeline.data.schema import EPISODES
from pipeline.errors import DataError, UserError, did_you_mean
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import Hub, open_hub
from pipeline.sharing.pulled_note import PulledNote


@dataclasses.dataclass(frozen=True)
class RemoteDataset:
    """A dataset on the hub at a commit, without its shards."""

    repository: Repository
    """The repository, at a commit."""
    manifest: Manifest
    """The content of `dataset.json`."""
    text: str
    """The text of it."""
    statistics: str
    """The text of its statistics."""

    @property
    def note(self) -> PulledNote:
        """What a directory that is pulled from it records."""
        columns = {c.name: tuple(f.key for f in c.features) for c in self.manifest.schema.columns}
        return PulledNote(str(self.repository), columns)

    def columns(self, names: Collection[str] | None) -> tuple[str, ...]:
        """Returns the columns for the names of columns or features, and the episodes.

        Args:
          names: Columns, or features such as `observation/proprio` or `proprio`; None: all.

        Raises:
          UserError: There is no column or feature of a name.
        """
        note = self.note
        if names is None:
            return tuple(note.columns)
        found = {name: note.column_of(name) for name in names}
        unknown = [name for name, column in found.items() if column is None]
        if unknown:
            features = [key for keys in note.columns.values() for key in keys]
            raise UserError(
                where=f"{self.repository}, columns",
                expected=f"columns among {', '.join(note.columns)}, or their features "
                + ", ".join(features),
                found=", ".join(unknown),
                remedy=did_you_mean(unknown[0], [*note.columns, *features]).strip()
                or "Name what the dataset has.",
            )
        return tuple(c for c in note.columns if c in {EPISODES, *found.values()})


def read_remote(repository: Repository) -> RemoteDataset:
    """Reads the manifest and the statistics of a dataset on the hub.

    Args:
      repository: Its repository, at a commit.

    Raises:
      DataError: There is none, it holds no dataset of this project, or it cannot be read.
    """
    hub = open_hub()
    try:
        text = hub.read(repository, FILE_NAME)
    except DataError as error:
        raise (_no_dataset(hub, repository, error) or error) from error
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, FILE_NAME).write_bytes(text)
        try:
            manifest = load_manifest(epath.Path(folder))
        except UserError as error:
            raise DataError(
                where=f"{repository}, {FILE_NAME}",
                expected=error.expected,
                found=error.found,
                remedy="Name another revision, or ask its owner to push the dataset again.",
            ) from error
    statistics = hub.read(repository, manifest.statistics_name)
    return RemoteDataset(repository, manifest, text.decode(), statistics.decode())


def _no_dataset(hub: Hub, repository: Repository, error: DataError) -> DataError | None:
    """The error of a repository that holds something else; None if it is not known what it is."""
    from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415  (an extra)

    if not isinstance(error.__cause__, EntryNotFoundError):
        return None
    remedy = "Name a repository that `octograin push` wrote."
    try:
        hub.read(repository, "meta/info.json")
        remedy = f"It is a LeRobot dataset: octograin convert {repository} DST"
    except DataError as other:
        if not isinstance(other.__cause__, EntryNotFoundError):
            raise
    return DataError(
        where=str(repository),
        expected=f"a dataset of this project, with a {FILE_NAME}",
        found="none",
        remedy=remedy,
    )
