"""Collects the files of a run that are pushed to a hub: one checkpoint, its figures, its card."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

from pipeline.hub.hub_transfer import size
from pipeline.parts.part_copies import FOLDER as PARTS
from pipeline.terminal import count
from train.checkpoints.checkpoint_copy import copy_checkpoint
from train.checkpoints.hub_paths import FIGURE_NAME, RUN_NAMES
from train.checkpoints.run_directory import REPORT_NAME
from train.hub.card_figure import draw_card_figure
from train.hub.model_card import model_card
from train.hub.published_run import PublishedRun


@dataclasses.dataclass(frozen=True)
class PushedFiles:
    """The files of a push, which exist as long as the block of `pushed_files` lasts."""

    step: int
    """Training step of the checkpoint."""
    folder: pathlib.Path
    """Folder of the files that were made for it, with the checkpoint as in a run directory."""
    paths: dict[str, pathlib.Path]
    """Where files lie, by their path in the repository, without the card."""
    card: str
    """Content of README.md."""

    @property
    def num_bytes(self) -> int:
        """Returns the size of all files."""
        return sum(path.stat().st_size for path in self.paths.values()) + len(self.card.encode())

    def __str__(self) -> str:
        """Their number and size."""
        return f"{count(len(self.paths) + 1, 'file')}, {size(self.num_bytes)}"


@contextlib.contextmanager
def pushed_files(
    directory: pathlib.Path, run: PublishedRun, *, with_optimizer: bool
) -> Iterator[PushedFiles]:
    """Yields the files of a push; those that are made for it lie in a temporary folder.

    Args:
      directory: The run directory.
      run: What is published of it.
      with_optimizer: Whether the checkpoint keeps the optimizer state.

    Raises:
      UserError: The checkpoint cannot be read, has no optimizer state to push, or cannot be copied
        with this type of parameters.
      DataError: The checkpoint is corrupt.
    """
    step = run.checkpoint.step
    paths = {name: directory / name for name in RUN_NAMES if (directory / name).is_file()}
    copies = sorted((directory / PARTS).glob("*.py.txt"))
    paths |= {f"{PARTS}/{path.name}": path for path in copies}
    with tempfile.TemporaryDirectory(prefix="octograin-push-") as folder:
        made = pathlib.Path(folder)
        copy_checkpoint(directory, made, step, with_optimizer=with_optimizer, dtype=run.dtype)
        figure = draw_card_figure(run.files)
        if figure is not None:
            (made / FIGURE_NAME).write_bytes(figure)
        found = sorted(path for path in made.rglob("*") if path.is_file())
        paths |= {path.relative_to(made).as_posix(): path for path in found}
        card = model_card(
            run,
            figure=FIGURE_NAME if figure is not None else None,
            report=REPORT_NAME if REPORT_NAME in paths else None,
        )
        yield PushedFiles(step, made, paths, card)
