"""Reads the files of a run directory that its page shows."""

import dataclasses
import json
import math
import pathlib
import zipfile
from typing import Any

from pipeline.checksums import read_json
from pipeline.errors import DataError, UserError
from pipeline.files import from_json_text
from train.checkpoints.checkpoint_store import DIRECTORY as CHECKPOINTS
from train.checkpoints.run_directory import CONFIG_NAME, ENVIRONMENT_NAME, ONLY_A_RECORD
from train.metrics.step_metrics import METRICS_NAME, StepMetrics, read_metrics
from train.metrics.validation_files import (
    EPISODE_NAME,
    VALIDATION_NAME,
    EpisodePrediction,
    ValidationMetrics,
    read_episode,
    read_validation,
)
from train.octo.released.weights_report import LoadReport

_VIEWS_NAME, _LOAD_REPORT_NAME, _DATASETS_NAME = "views.png", "load_report.json", "datasets.json"
_NAMES = (CONFIG_NAME, METRICS_NAME, VALIDATION_NAME, EPISODE_NAME, _VIEWS_NAME)
_NAMES += (_LOAD_REPORT_NAME, _DATASETS_NAME, ENVIRONMENT_NAME)
_REMEDY = "Delete that file: the page then reports it as missing."
UNTRAINED = ", untrained"
NUM_LAST_STEPS = 20
"""Number of last training steps whose mean loss is reported as the run's."""


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The content of a run's files; what is missing is empty or None."""

    name: str
    """Name of the run, which is its directory's."""
    config: dict[str, Any]
    """Fields of `TrainConfig`, nested."""
    metrics: tuple[StepMetrics, ...]
    """Metrics by training step."""
    validation: tuple[ValidationMetrics, ...]
    """Validations by training step."""
    episode: EpisodePrediction | None
    views: bytes | None
    """The PNG of the camera images of step 0."""
    load_report: LoadReport | None
    datasets: dict[str, Any]
    """Descriptions of the datasets, by path."""
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    def setting(self, path: str) -> Any:
        """Returns the config's value at a dotted path; None if there is none."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def steps(self) -> int:
        """Returns the number of training steps taken; 0 if none was logged."""
        return self.metrics[-1].step if self.metrics else 0

    @property
    def final_loss(self) -> float | None:
        """Returns the mean loss of the last 20 training steps; None if none is finite."""
        # A skipped update has no finite loss.
        losses = [one.loss for one in self.metrics[-NUM_LAST_STEPS:] if math.isfinite(one.loss)]
        return sum(losses) / len(losses) if losses else None

    @property
    def last_validation(self) -> ValidationMetrics | None:
        """Returns the last validation; None if there were none."""
        return self.validation[-1] if self.validation else None

    @property
    def holds_out(self) -> bool:
        """Returns whether validation uses episodes that the model was not trained on."""
        return bool(self.setting("data.validation_fraction"))

    @property
    def encoders(self) -> list[tuple[str, str, str, str]]:
        """Returns (dataset, tokens, weights, licence) of each observation that is tokens."""
        found = []
        for path, values in self.datasets.items():
            for key, origin in values.get("encoders", {}).items():
                encoder = origin.get("encoder", {})
                weights = str(encoder.get("weights", ""))
                weights += UNTRAINED if weights.startswith("random:") else ""
                name, tokens = values.get("name", path), key.removeprefix("observation/")
                found.append((str(name), tokens, weights, str(encoder.get("licence", ""))))
        return found


def read_run(directory: pathlib.Path) -> RunFiles:
    """Reads all files of a run directory that its page shows.

    Raises:
      UserError: The directory does not exist, or has none of these files.
      DataError: A file is corrupt.
    """
    check_is_run(directory)
    return read_files(directory)


def check_is_run(directory: pathlib.Path) -> None:
    """Raises a `UserError` if a directory does not exist, or has none of a run's files."""
    if not any((directory / name).is_file() for name in _NAMES):
        if (directory / CHECKPOINTS).is_dir():
            raise UserError(
                where=str(directory),
                expected=f"a run directory with a record of its training, such as {METRICS_NAME}",
                found="checkpoints alone, as in a policy that was handed on",
                remedy="Report on the run that it came from; octograin evaluate "
                f"{directory} measures a policy for LIBERO.",
            )
        raise UserError(
            where=str(directory),
            expected=f"a run directory with a {CONFIG_NAME}",
            found="none of a run's files in it" if directory.is_dir() else "no such directory",
            remedy="Give the save_dir of a run.",
        )


def read_files(directory: pathlib.Path) -> RunFiles:
    """Reads those of a run's files that there are; a directory without any is no error.

    Raises:
      DataError: A file is corrupt.
    """
    views = directory / _VIEWS_NAME
    return RunFiles(
        name=directory.resolve().name,
        config=_read_object(directory / CONFIG_NAME, f"{ONLY_A_RECORD} {_REMEDY}") or {},
        metrics=tuple(read_metrics(directory)),
        validation=tuple(read_validation(directory)),
        episode=_read_episode(directory),
        views=views.read_bytes() if views.is_file() else None,
        load_report=_read_load_report(directory / _LOAD_REPORT_NAME),
        datasets=_read_object(directory / _DATASETS_NAME) or {},
        environment=_read_object(directory / ENVIRONMENT_NAME) or {},
    )


def _read_object(path: pathlib.Path, remedy: str = _REMEDY) -> dict[str, Any] | None:
    return read_json(path, remedy=remedy) if path.is_file() else None


def _read_load_report(path: pathlib.Path) -> LoadReport | None:
    if (values := _read_object(path)) is None:
        return None
    return from_json_text(LoadReport, json.dumps(values), where=str(path), remedy=_REMEDY)


def _read_episode(directory: pathlib.Path) -> EpisodePrediction | None:
    try:
        return read_episode(directory)
    except (OSError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
        raise DataError(
            where=str(directory / EPISODE_NAME),
            expected="the arrays of an EpisodePrediction",
            found=str(error),
            remedy=_REMEDY,
        ) from error
