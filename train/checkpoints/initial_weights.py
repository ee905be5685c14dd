"""Finds the source of pretrained weights: a directory, the hub, or a run of this project."""

import dataclasses
import pathlib

from pipeline.errors import UserError
from pipeline.hub.hub_address import SCHEME
from train.checkpoints.checkpoint_store import DIRECTORY as CHECKPOINTS, is_run, read_checkpoint
from train.checkpoints.fetched_run import find_run, holds_run
from train.octo.protocols import WeightSource
from train.octo.released.octo_checkpoint import OctoCheckpoint, check_tensors
from train.octo.released.weight_loading import Pretrained


@dataclasses.dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a run of this project, as a source of weights."""

    directory: pathlib.Path
    """Directory of the run."""
    step: int | None = None
    """Training step; None: the last one."""

    def load(self) -> Pretrained:
        """Returns the parameters, averaged if the run averages them, and their model's config.

        Raises:
          UserError: The checkpoint does not exist or cannot be read.
          DataError: It is corrupt, or has values that are not finite.
        """
        checkpoint = read_checkpoint(self.directory, self.step)
        check_tensors(checkpoint.params, f"{self.directory}, step {checkpoint.step}")
        return Pretrained(checkpoint.config.model, checkpoint.params)


def load_pretrained(path: str, step: int | None = None) -> Pretrained:
    """Loads a checkpoint's parameters and its model's config; nothing is placed or compiled.

    Args:
      path: The directory of an Octo checkpoint or of a run, or `hf://owner/name[@revision]` for
        either on the hub. What is in the hub's cache is used without a network.
      step: The training step; None: the last one in the directory.

    Raises:
      UserError: The checkpoint or step does not exist, one of Octo on the hub is given without its
        step, or its model is not supported here.
      DataError: It is corrupt, has values that are not finite, or cannot be fetched.
    """
    return find_source(path, step).load()


def load_checked(source: WeightSource, name: str) -> Pretrained:
    """Loads the weights of a user's source, and checks them as ours check theirs.

    Args:
      source: The source.
      name: What errors call it.

    Raises:
      UserError: It returned something else than a `Pretrained`.
      DataError: A tensor is no array of finite floats.
    """
    loaded = source.load()
    if not isinstance(loaded, Pretrained):
        raise UserError(
            where=f"{name}, load",
            expected="a Pretrained, with the config and the parameters of a model",
            found=type(loaded).__name__,
            remedy="Return train.octo.released.weight_loading.Pretrained(config, params)",
        )
    check_tensors(loaded.params, name)
    return loaded


def find_source(path: str, step: int | None) -> WeightSource:
    """Returns what `path` names; arguments are those of `load_pretrained`.

    A run on the hub is fetched here.

    Raises:
      UserError: It is another object store, or a folder inside the directory of a run; or a run on
        the hub has no such checkpoint.
      DataError: It cannot be fetched.
    """
    directory = pathlib.Path(path)
    # Otherwise an object store would be read as a local folder "gs:".
    if "://" in path and not path.startswith(SCHEME):
        raise UserError(
            where=path,
            expected=f"a local directory or {SCHEME}owner/name",
            found=f"{path.partition('://')[0]}://",
            remedy="Copy the checkpoint to a local directory, and give its path.",
        )
    # `RUN/checkpoints` and `RUN/checkpoints/1000` look right, and would fail much later.
    absolute = directory.absolute()
    for folder, inner in ((absolute, ""), (absolute.parent, absolute.name)):
        if folder.name == CHECKPOINTS and is_run(folder.parent):
            named = f", with pretrained_step {inner}" if inner.isdecimal() else ""
            raise UserError(
                where=path,
                expected="the directory of a run",
                found="a folder inside one",
                remedy=f"Give {folder.parent}{named}.",
            )
    if path.startswith(SCHEME) and holds_run(path):
        found = find_run(path, step)
        return RunCheckpoint(found.directory, found.step)
    return RunCheckpoint(directory, step) if is_run(directory) else OctoCheckpoint(path, step)
