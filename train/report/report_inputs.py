"""Reads the files of a run directory that its page shows; each may be missing."""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

from pipeline.checksums import read_json
from pipeline.errors import DataError, UserError
from pipeline.files import from_json_text
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

LOAD_REPORT_NAME = "load_report.json"
DATASETS_NAME = "datasets.json"
VIEWS_NAME = "views.png"
_NAMES = (
    CONFIG_NAME,
    METRICS_NAME,
    VALIDATION_NAME,
    EPISODE_NAME,
    VIEWS_NAME,
    LOAD_REPORT_NAME,
    DATASETS_NAME,
    ENVIRONMENT_NAME,
)
_REMEDY = "Delete that file: the page then reports it as missing."


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The content of a run's files."""

    name: str
    """Name of the run, which is its directory's."""
    config: dict[str, Any]
    """Content of `config.json`: the fields of `TrainConfig`, nested; empty if it is missing."""
    metrics: tuple[StepMetrics, ...]
    """Metrics by training step; empty if none were logged."""
    validation: tuple[ValidationMetrics, ...]
    """Validations by training step; empty if there were none."""
    episode: EpisodePrediction | None
    """Content of `episode.npz`; None if it is missing."""
    views: bytes | None
    """Content of `views.png`; None if it is missing."""
    load_report: LoadReport | None
    """Content of the load report; None if it is missing."""
    datasets: dict[str, Any]
    """Content of `datasets.json`, by path; empty if it is missing."""
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Content of `environment.json`; empty if it is missing."""

    def setting(self, path: str) -> Any:
        """Returns the config's value at a dotted path; None if there is none."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    @property
    def untrained(self) -> list[str]:
        """Returns the observations whose tokens come from untrained weights."""
        encoders = {
            key.removeprefix("observation/"): str(origin.get("encoder", {}).get("weights", ""))
            for values in self.datasets.values()
            for key, origin in values.get("encoders", {}).items()
        }
        return [name for name, weights in encoders.items() if weights.startswith("random:")]

    @property
    def holds_out(self) -> bool:
        """Returns whether validation uses episodes that the model was not trained on."""
        return bool(self.setting("data.validation_fraction"))


def read_run(directory: pathlib.Path) -> RunFiles:
    """Reads all files of a run directory that its page shows.

    Raises:
      UserError: The directory does not exist, or has none of these files.
      DataError: A file is corrupt.
    """
    # A directory with none of these files is no run.
    if not any((directory / name).is_file() for name in _NAMES):
        raise UserError(
            where=str(directory),
            expected=f"a run directory with a {CONFIG_NAME}",
            found="none of a run's files in it" if directory.is_dir() else "no such directory",
            remedy="Give the save_dir of a run.",
        )
    load_report = _read(directory / LOAD_REPORT_NAME, _to_load_report)
    return RunFiles(
        name=directory.resolve().name,
        config=_read(directory / CONFIG_NAME, _to_config) or {},
        metrics=tuple(read_metrics(directory)),
        validation=tuple(read_validation(directory)),
        episode=_read_episode(directory),
        views=_read(directory / VIEWS_NAME, lambda path: path.read_bytes()),
        load_report=load_report,
        datasets=_read(directory / DATASETS_NAME, _to_object) or {},
        environment=_read(directory / ENVIRONMENT_NAME, _to_object) or {},
    )


def _read(path: pathlib.Path, parse: Callable[[pathlib.Path], Any]) -> Any:
    """Returns what `parse` makes of a file; None if it is missing."""
    return parse(path) if path.is_file() else None


def _to_load_report(path: pathlib.Path) -> LoadReport:
    text = json.dumps(_to_object(path))
    return from_json_text(LoadReport, text, where=str(path), remedy=_REMEDY)


def _to_config(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, remedy=f"{ONLY_A_RECORD} {_REMEDY}")


def _to_object(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, remedy=_REMEDY)


def _read_episode(directory: pathlib.Path) -> EpisodePrediction | None:
    try:
        return read_episode(directory)
    except (OSError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
        path = directory / EPISODE_NAME
        raise _corrupt(path, "the arrays of an EpisodePrediction", str(error)) from error


def _corrupt(path: pathlib.Path, expected: str, found: str) -> DataError:
    return DataError(where=str(path), expected=expected, found=found, remedy=_REMEDY)
