"""Puts a dataset directory on the hub in one commit, with a card."""

import pathlib
from collections.abc import Iterator

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.manifest import FILE_NAME, Manifest
from pipeline.errors import DataError, UserError
from pipeline.hub.hub_address import Repository
from pipeline.hub.hub_client import open_hub
from pipeline.hub.hub_push import CARD_NAME, Pushed, keeps_card
from pipeline.hub.hub_transfer import shown_transfer
from pipeline.inspection.dataset_figure import draw_figure
from pipeline.sharing.dataset_card import FIGURE_NAME, write_card
from pipeline.sharing.pull import check_records
from pipeline.sharing.remote_dataset import read_remote

_ALLOWED = (CARD_NAME, FIGURE_NAME, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md")
"""Files that a repository may hold beside a dataset, or without one."""


def push(
    path: str,
    repository: Repository,
    *,
    is_private: bool = False,
    replace_columns: bool = False,
    replace_card: bool = False,
) -> Pushed:
    """Uploads a dataset directory in one commit, after checking every record of it.

    Args:
      path: The directory.
      repository: The repository, which is made if it is missing; its revision is the branch.
      is_private: Whether a repository that is made is private.
      replace_columns: Whether columns that the repository has and the directory lacks may go.
      replace_card: Whether a README.md that was written or changed by hand is replaced.

    Raises:
      UserError: The directory is no dataset or corrupt, the repository holds something else, or the
        hub refuses or is not reached.
    """
    hub, dataset = open_hub(), open_dataset(path)
    figure = None
    if not hub.exists(repository, is_private=is_private):
        # Before the repository is made: a corrupt directory must not leave an empty one. One that
        # exists is looked at first, which takes less time than reading the dataset.
        figure = _draw_checked(dataset)
    is_new = hub.create(repository, is_private=is_private)
    before = hub.resolve(repository)
    there = {file.path for file in hub.list_files(before)}
    deleted: set[str] = set()
    if FILE_NAME in there:
        earlier = read_remote(before).manifest
        if not replace_columns:
            _check_columns(dataset, earlier, before)
        deleted = (set(_files(earlier)) & there) - set(_files(dataset.manifest))
    else:
        _check_empty(there, before)
    is_card_kept = not replace_card and keeps_card(hub, before, there)
    added: dict[str, pathlib.Path | bytes] = {
        file: pathlib.Path(path, file) for file in (FILE_NAME, *_files(dataset.manifest))
    }
    added[FIGURE_NAME] = figure or _draw_checked(dataset)
    if not is_card_kept:
        added[CARD_NAME] = write_card(dataset, repository).encode()
    message = f"Push {dataset.manifest.name}, {dataset.manifest.digest()}"
    after = hub.commit(repository, added, sorted(deleted), message, before.revision)
    return Pushed(after, is_new, is_card_kept, len(deleted))


def _files(manifest: Manifest) -> Iterator[str]:
    """Yields the files that a manifest lists: the statistics, and those in folders of columns."""
    yield manifest.statistics_name
    for shards in manifest.shards.values():
        yield from (shard.file for shard in shards)
    yield from {o.projection for o in manifest.encoders.values() if o.projection}


def _check_columns(dataset: Dataset, earlier: Manifest, repository: Repository) -> None:
    """Checks that no column of the repository would go."""
    lost = [name for name in earlier.shards if name not in dataset.manifest.shards]
    if lost:
        raise UserError(
            where=dataset.path,
            expected=f"every column of {repository}",
            found=f"none called {', '.join(lost)}",
            remedy="Pull and add them, push to another repository, or take them out of this one "
            "with --replace_columns.",
        )


def _check_empty(there: set[str], repository: Repository) -> None:
    """Checks that a repository without a dataset of this project holds no other data."""
    others = sorted(there - {*_ALLOWED})
    if others:
        raise DataError(
            where=str(repository),
            expected=f"an empty repository, or one with a {FILE_NAME}",
            found=f"{len(others):,} other files, such as {others[0]}",
            remedy="Push to a repository of another name; it is made if it is missing.",
        )


def _draw_checked(dataset: Dataset) -> bytes:
    """Compares every shard with its checksum, as what is corrupt must not spread; draws a figure.

    Returns:
      The figure, a PNG.
    """
    shards = [shard for shards in dataset.manifest.shards.values() for shard in shards]
    total = sum(shard.num_bytes for shard in shards)
    with shown_transfer(f"checking {dataset.manifest.name}", total) as advance:
        for shard in shards:
            problem = check_records(pathlib.Path(dataset.path, shard.file), shard)
            if problem is not None:
                raise DataError(
                    where=str(pathlib.Path(dataset.path, shard.file)),
                    expected=f"{problem[0]}, by {FILE_NAME}",
                    found=problem[1],
                    remedy="It is corrupt: copy it again, or convert the dataset again.",
                )
            advance(shard.num_bytes)
    return draw_figure(dataset, None)
