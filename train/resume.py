"""Where a resumed run goes on, if it can."""

import pathlib

from pipeline.errors import UserError
from pipeline.loader import Loader
from pipeline.tokens import check_same_encoders
from train.checkpoints import read_datasets, read_loader_state
from train.config import TrainConfig
from train.report import REPORT_NAME


def resume_position(config: TrainConfig, loader: Loader, *, new_mixture: bool) -> int:
    """Batches used by the last checkpoint of the run, if it is of this config and data.

    Args:
      config: The run.
      loader: Of its batches; later states of it keep the mixtures before.
      new_mixture: Whether the mixture may be another one from here on.

    Raises:
      UserError: Where there is no checkpoint, it cannot be read, or the run is complete: it has
        taken all its steps and has its report; or where tokens are of another encoder.
      DataError: Where the checkpoint is damaged, or of another config or other data.
    """
    run_directory = pathlib.Path(config.save_dir)
    check_same_encoders(read_datasets(run_directory), loader.describe_datasets())
    position = loader.restore(read_loader_state(run_directory), new_mixture=new_mixture)
    is_reported = (run_directory / REPORT_NAME).exists()
    if position > config.num_steps or (position == config.num_steps and is_reported):
        raise UserError(
            where=f"save_dir {config.save_dir}",
            expected=f"a run of fewer than {config.num_steps} steps",
            found=f"one of {position}",
            remedy="It is complete; to go on, raise --config.num_steps.",
        )
    return position
