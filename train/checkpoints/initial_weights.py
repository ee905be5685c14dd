"""Loads pretrained weights from a directory, the hub, or a run of this project."""

import pathlib

from pipeline.errors import UserError
from pipeline.hub import SCHEME, fetch_directory
from train.checkpoints.checkpoint_store import DIRECTORY as CHECKPOINTS, is_run, read_checkpoint
from train.octo.released.released_files import check_tensors
from train.octo.released.weight_loading import Pretrained, read_octo


def load_pretrained(path: str, step: int | None = None) -> Pretrained:
    """Loads a checkpoint's parameters and its model's config; nothing is placed or compiled.

    Args:
      path: The directory of an Octo checkpoint, `hf://owner/name` for one on the hub, or the
        directory of a run. What is in the hub's cache is used without a network.
      step: The training step; None: the last one in the directory.

    Raises:
      UserError: The checkpoint or step does not exist, a checkpoint on the hub is given without its
        step, or its model is not supported here.
      DataError: It is corrupt, has values that are not finite, or cannot be fetched.
    """
    if path.startswith(SCHEME):
        return _load_from_hub(path, step)
    # Object stores other than the hub are refused, instead of read as a local folder "gs:".
    if "://" in path:
        raise UserError(
            where=path,
            expected=f"a local directory or {SCHEME}owner/name",
            found=f"{path.partition('://')[0]}://",
            remedy="Copy the checkpoint to a local directory, and give its path.",
        )
    directory = pathlib.Path(path)
    # `RUN/checkpoints` and `RUN/checkpoints/1000` look right, and would fail much later.
    _check_outermost(directory)
    if not is_run(directory):
        return read_octo(directory, step)
    checkpoint = read_checkpoint(directory, step)
    check_tensors(checkpoint.params, f"{path}, step {checkpoint.step}")
    return Pretrained(checkpoint.config.model, checkpoint.params)


def _load_from_hub(path: str, step: int | None) -> Pretrained:
    if step is None:
        raise UserError(
            where=path,
            expected="the training step of a checkpoint on the hub",
            found="none",
            remedy="Give it, such as pretrained_step 300000 for octo-small-1.5.",
        )
    directory = fetch_directory(path, ["config.json", f"{step}/default/checkpoint"])
    return read_octo(directory, step)


def _check_outermost(directory: pathlib.Path) -> None:
    """Raises an error for a folder inside a run directory, such as `checkpoints`."""
    absolute = directory.absolute()
    for folder, step in ((absolute, ""), (absolute.parent, absolute.name)):
        if folder.name == CHECKPOINTS and is_run(folder.parent):
            named = f", with pretrained_step {step}" if step.isdecimal() else ""
            raise UserError(
                where=str(directory),
                expected="the directory of a run",
                found="a folder inside one",
                remedy=f"Give {folder.parent}{named}.",
            )
