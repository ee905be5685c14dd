"""What is published of a run: one checkpoint, the figures up to it, and evaluations of it."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from pipeline.files import to_json_values
from train.checkpoints.checkpoint_copy import Precision
from train.checkpoints.checkpoint_store import Checkpoint
from train.evaluate.results import RESULTS_NAME, Results, checkpoint_digest, read_results
from train.policy.policy import read_run
from train.report.report_inputs import RunFiles, read_files

_EVALUATIONS = "evaluation"


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """A checkpoint of a run, and what is known of how well it does."""

    address: str
    """Address on the hub, `hf://owner/name`."""
    checkpoint: Checkpoint
    """The checkpoint that is published."""
    files: RunFiles
    """Figures of the run up to this checkpoint."""
    evaluations: Sequence[Results]
    """Results of this checkpoint in the simulator."""
    licence: str | None
    """Licence of the policy as the hub names it, such as `apache-2.0`; None: not given."""
    dtype: Precision = "float32"
    """Type of the published parameters; evaluations and figures are of those of the run."""

    @classmethod
    def of(
        cls,
        directory: pathlib.Path,
        step: int | None,
        address: str,
        licence: str | None,
        dtype: Precision = "float32",
    ) -> "PublishedRun":
        """Reads a run.

        Args:
          directory: The run directory.
          step: The checkpoint's training step; None: the last checkpoint.
          address: Address on the hub, `hf://owner/name`.
          licence: Licence of the policy.
          dtype: Type of the published parameters.

        Raises:
          UserError: The checkpoint does not exist or cannot be read.
          DataError: The checkpoint, or another file of the run, is corrupt.
        """
        checkpoint = read_run(directory, step)
        files = read_files(directory)
        validation = tuple(one for one in files.validation if one.step <= checkpoint.step)
        is_last = len(validation) == len(files.validation)
        files = dataclasses.replace(
            files,
            config=to_json_values(checkpoint.config),
            datasets=checkpoint.datasets,
            metrics=tuple(one for one in files.metrics if one.step <= checkpoint.step),
            validation=validation,
            # Chunks of the run's last checkpoint.
            episode=files.episode if is_last else None,
        )
        evaluations = _evaluations(directory, checkpoint)
        return cls(address, checkpoint, files, evaluations, licence, dtype)

    @property
    def config(self) -> dict[str, Any]:
        """Returns the config of the run as JSON values."""
        return self.files.config


def _evaluations(directory: pathlib.Path, checkpoint: Checkpoint) -> list[Results]:
    """Returns the results in a run directory that are of a checkpoint and have trials."""
    folders = sorted(path.parent for path in directory.glob(f"{_EVALUATIONS}/*/{RESULTS_NAME}"))
    found = [read_results(folder) for folder in folders]
    digest = checkpoint_digest(checkpoint) if found else ""
    return [one for one in found if one.settings.checkpoint == digest and one.trials]
