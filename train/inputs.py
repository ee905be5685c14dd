"""All that a run needs from the disk or the hub, found before anything is computed."""

import dataclasses
import pathlib

import sentencepiece

from pipeline.config import DatasetConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.errors import UserError
from pipeline.hub import SCHEME, fetch
from pipeline.text import load_vocabulary
from train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The opened inputs of a run."""

    datasets: tuple[Dataset, ...]
    """In the config's order."""
    vocabulary: sentencepiece.SentencePieceProcessor
    """T5's."""
    checkpoint: pathlib.Path | None
    """Directory of the pretrained weights; None: the run starts from random ones."""


def open_inputs(config: TrainConfig) -> Inputs:
    """Opens datasets, vocabulary and pretrained weights.

    Raises:
      UserError: Naming everything that is missing at once, each with the commands that get it.
    """
    problems: list[UserError] = []
    datasets: list[Dataset] = []
    vocabulary = checkpoint = None
    for dataset in config.data.datasets:
        try:
            datasets.append(_open_dataset(dataset, config))
        except UserError as error:
            problems.append(error)
    try:
        vocabulary = load_vocabulary(config.data.vocabulary)
    except UserError as error:
        problems.append(error)
    try:
        checkpoint = _find_checkpoint(config)
    except UserError as error:
        problems.append(error)
    if problems or vocabulary is None:
        raise _combined(problems)
    return Inputs(tuple(datasets), vocabulary, checkpoint)


def _open_dataset(dataset: DatasetConfig, config: TrainConfig) -> Dataset:
    if dataset.commands and not pathlib.Path(dataset.path).exists():
        raise UserError(
            where=dataset.path,
            expected="a dataset directory",
            found="none",
            remedy="Get it with:" + "".join(f"\n      {line}" for line in dataset.commands),
        )
    opened = open_dataset(dataset.path)
    for name in config.data.observations:
        opened.manifest.schema.find(f"observation/{name}", dataset.path)
    return opened


def _find_checkpoint(config: TrainConfig) -> pathlib.Path | None:
    """The local directory of the pretrained checkpoint, with the files that are read of it."""
    path = config.pretrained_path
    if path is None or not path.startswith(SCHEME):
        return None if path is None else pathlib.Path(path)
    fetch(f"{path}/{config.pretrained_step}/default/checkpoint")
    return fetch(f"{path}/config.json").parent


def _combined(problems: list[UserError]) -> UserError:
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return UserError(
        where="inputs of the run",
        expected="all of them",
        found=f"{len(problems)} that cannot be used:{lines}\n",
        remedy="Run the commands above, or name other paths in the config.",
    )
