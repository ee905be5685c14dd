"""Logs metrics to Weights & Biases, if the run asks for it."""

import logging
import pathlib
from typing import Any

from pipeline.errors import UserError, install_extra
from pipeline.files import to_json_values, write_text_atomically
from train.train_config import TrainConfig

_ID_NAME = "wandb_id.txt"
_log = logging.getLogger(__name__)


class Tracking:
    """A run at Weights & Biases; a resumed run continues it.

    Args:
      config: The config of the run, with `wandb.project` set.
      run_directory: Keeps the W&B run's id and, in the mode `offline`, everything to be sent.

    Raises:
      UserError: The package is missing, or the service refuses.
    """

    def __init__(self, config: TrainConfig, run_directory: pathlib.Path) -> None:
        wandb = import_wandb()
        id_path = run_directory / _ID_NAME
        # The id in the run directory makes a resumed run continue its own page.
        known = id_path.read_text().strip() if id_path.exists() else None
        try:
            self._run = wandb.init(
                project=config.wandb.project,
                entity=config.wandb.entity,
                group=config.wandb.group,
                name=config.title,
                mode=config.wandb.mode,
                id=known,
                # A first run has no id yet; "allow" covers both.
                resume="allow",
                dir=str(run_directory),
                config=to_json_values(config),
            )
        except (wandb.Error, OSError, ValueError) as error:
            raise UserError(
                where=f"wandb.project {config.wandb.project}",
                expected="a run at Weights & Biases",
                found=" ".join(str(error).split()),
                remedy="Run `wandb login`, or set --config.wandb.mode=offline.",
            ) from error
        # After `init`, which makes the id of a new run.
        write_text_atomically(id_path, self._run.id)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the metrics of a training step."""
        # The step as a value too, to plot against.
        self._run.log({**values, "step": step}, step=step)

    def close(self) -> None:
        """Waits until everything is sent; an error there is only logged, as the run is saved."""
        try:
            self._run.finish()
        except Exception as error:  # noqa: BLE001  (the service's; a complete run must not fail)
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            _log.warning("Weights & Biases may lack the last steps: %s", found)


def import_wandb() -> Any:
    """Imports the package `wandb`.

    Raises:
      UserError: It is not installed.
    """
    try:
        import wandb  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise UserError(
            where="config.wandb.project",
            expected="the package wandb",
            found="it is not installed",
            remedy=f"{install_extra('wandb')}, or leave wandb.project out.",
        ) from error
    return wandb
