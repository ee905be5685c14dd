"""Finds where a resumed run continues, and checks that it can."""

import pathlib

from pipeline.data.token_provenance import check_same_encoders
from pipeline.errors import UserError
from pipeline.loading.loader import Loader
from train.checkpoints.checkpoint_store import read_datasets, read_kept_config, read_loader_state
from train.run_directory.run_directory import REPORT_NAME
from train.train_config import TrainConfig


def resume_position(config: TrainConfig, loader: Loader, *, new_mixture: bool) -> int:
    """Returns how many batches the last checkpoint has used, after checking config and data.

    Args:
      config: The config of the run.
      loader: The loader of the run's batches; its later states record the earlier mixtures.
      new_mixture: Whether the mixture may differ from now on.

    Raises:
      UserError: There is no checkpoint, it cannot be read, the run is complete, or the tokens come
        from another encoder.
      DataError: The checkpoint is corrupt, or belongs to another config or other data.
    """
    run_directory = pathlib.Path(config.save_dir)
    # Before the mixture is compared: this message names the flag that helps.
    _check_normalized(config, loader)
    check_same_encoders(read_datasets(run_directory), loader.describe_datasets())
    position = loader.restore(read_loader_state(run_directory), new_mixture=new_mixture)
    if position >= config.num_steps:
        raise UserError(
            where=f"save_dir {config.save_dir}",
            expected=f"a run of fewer than {config.num_steps} steps",
            found=f"one of {position}",
            remedy=f"It is complete. {_make_up(run_directory)}{how_to_train_on(config)}",
        )
    return position


def _make_up(run_directory: pathlib.Path) -> str:
    if (run_directory / REPORT_NAME).exists():
        return ""
    return f"It has no report: `octograin report {run_directory}` writes it. "


def how_to_train_on(config: TrainConfig) -> str:
    """Returns what to do to train a complete run further."""
    end = config.optimizer.decay_steps or config.num_steps
    if config.optimizer.schedule != "cosine":
        return "To train on, raise --config.num_steps."
    # The cosine reaches 0 at `decay_steps`, so more steps than that train nothing.
    if config.num_steps < end:
        return f"To train on, raise --config.num_steps, to {end} at most."
    return (
        "Its learning rate has decayed to 0; to train on from its weights, start a new run, with "
        f"--config.pretrained_path={config.save_dir} and another --config.save_dir."
    )


def _check_normalized(config: TrainConfig, loader: Loader) -> None:
    """Checks that a run of an earlier release, which normalised only `proprio`, still does so."""
    kept = read_kept_config(pathlib.Path(config.save_dir))
    if kept is None:
        return
    before = [name for name in loader.lowdims if kept.data.normalizes(name)]
    if before != list(loader.normalized):
        raise UserError(
            where=f"save_dir {config.save_dir}, data.normalized",
            expected=f"the observations that the run normalises: {', '.join(before) or 'none'}",
            found=", ".join(loader.normalized) or "none",
            remedy=f"Add --config.data.normalized {' '.join(before)}".rstrip() + ".",
        )
