"""Weights to start from, wherever they are: a directory, the hub, or a run of this project."""

import pathlib

from pipeline.errors import UserError
from pipeline.hub import SCHEME, fetch_directory
from train.checkpoints import is_run, read_checkpoint
from train.directory import read_config
from train.octo.pretrained import Pretrained, read_octo


def load_pretrained(path: str, step: int | None = None) -> Pretrained:
    """The parameters of a checkpoint and the config of its model; nothing is placed or compiled.

    Args:
      path: The directory of an Octo checkpoint, `hf://owner/name` for one on the hub, or the
        directory of a run. What is in the hub's cache is used without a network.
      step: The training step; None: the last one that is there.

    Raises:
      UserError: There is no such checkpoint or step, a hub's checkpoint is named without its step,
        or its model has no counterpart here.
      DataError: It is damaged, or cannot be fetched.
    """
    if is_run(pathlib.Path(path)):
        run = pathlib.Path(path)
        return Pretrained(read_config(run).model, read_checkpoint(run, step).params)
    if not path.startswith(SCHEME):
        return read_octo(pathlib.Path(path), step)
    if step is None:
        raise UserError(
            where=path,
            expected="the training step of a checkpoint on the hub",
            found="none",
            remedy="Name it, such as pretrained_step 300000 for octo-small-1.5.",
        )
    directory = fetch_directory(path, ["config.json", f"{step}/default/checkpoint"])
    return read_octo(directory, step)
