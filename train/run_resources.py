"""Opens everything that a run reads from disk or the hub, before anything is computed."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import sentencepiece

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import RecordError, UserError
from pipeline.loading.loader_opening import check_all_there, missing_parts
from pipeline.loading.text import load_vocabulary
from train.checkpoints.initial_weights import load_pretrained
from train.octo.released.weight_loading import check_config
from train.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The opened data, vocabulary and weights of a run."""

    datasets: tuple[Dataset, ...]
    """Datasets, in the config's order."""
    vocabulary: sentencepiece.SentencePieceProcessor
    """Tokenizer of T5."""
    weights: dict[str, Any] | None
    """Pretrained parameters as nested numpy arrays; None: random weights, or a resumed run's
    own."""


def open_inputs(config: TrainConfig, *, resume: bool = False) -> Inputs:
    """Opens datasets, vocabulary and, unless the run is resumed, pretrained weights.

    Raises:
      UserError: Something is missing; it lists everything at once, with the commands to get it.
    """
    # All problems are collected, so that one run lists every missing file.
    problems: list[UserError] = []
    datasets: list[Dataset] = []
    vocabulary = weights = None
    parts = config.data.datasets
    missing = missing_parts(parts)
    try:
        check_all_there(parts)
    except UserError as error:
        problems.append(error)
    for part in parts:
        if part in missing:
            continue
        try:
            datasets.append(open_dataset(part.path, config.data.keys_of(part)))
        except UserError as error:
            problems.append(error)
    try:
        vocabulary = _open_vocabulary(config)
    except UserError as error:
        problems.append(error)
    try:
        weights = None if resume else _read_weights(config)
    except UserError as error:
        problems.append(error)
    # Without a problem there is a vocabulary; the second test is for the type checker.
    if problems or vocabulary is None:
        raise _combined(problems)
    return Inputs(tuple(datasets), vocabulary, weights)


@contextlib.contextmanager
def exclusion_named(config: TrainConfig) -> Iterator[None]:
    """Adds to the error of a corrupt record the flags that exclude the record.

    Raises:
      UserError: The error that `excludable` returns.
    """
    try:
        yield
    except RecordError as error:
        raise excludable(error, config) from error


def excludable(error: RecordError, config: TrainConfig) -> UserError:
    """Returns the error of a corrupt record with the flags that exclude the record."""
    flags = [
        f"--config.data.datasets.{number}.excluded "
        # A dict keeps the order and drops a record that was excluded before.
        + " ".join(dict.fromkeys((*part.excluded, error.record)))
        for number, part in enumerate(config.data.datasets)
        if part.path == error.dataset
    ]
    return UserError(
        where=error.where,
        expected=error.expected,
        found=error.found,
        remedy=f"{error.remedy} To continue without that record, add {' '.join(flags)}",
    )


def _open_vocabulary(config: TrainConfig) -> sentencepiece.SentencePieceProcessor:
    """Opens T5's vocabulary; an id beyond the encoder's table would give NaN, so it is an error."""
    if not config.data.vocabulary:
        raise UserError(
            where="data.vocabulary",
            expected="T5's SentencePiece model, whose ids Octo reads",
            found="an empty name",
            remedy="Name it, such as hf://google-t5/t5-base/spiece.model.",
        )
    vocabulary = load_vocabulary(config.data.vocabulary)
    language = config.model.language
    # T5 has more rows than pieces, so only "more pieces than rows" is an error.
    rows = math.inf if language is None else language.t5.vocab_size
    if vocabulary.GetPieceSize() > rows:
        raise UserError(
            where=f"vocabulary {config.data.vocabulary}",
            expected=f"at most {rows} pieces, the rows of model.language.t5.vocab_size",
            found=str(vocabulary.GetPieceSize()),
            remedy="Give the vocabulary that the encoder was trained with.",
        )
    return vocabulary


def _read_weights(config: TrainConfig) -> dict[str, Any] | None:
    """Returns the pretrained parameters; their model's config must mean the same as this config."""
    if config.pretrained_path is None:
        return None
    pretrained = load_pretrained(config.pretrained_path, config.pretrained_step)
    # Before anything is compiled: other settings would load weights of the same shapes silently.
    check_config(pretrained.config, config.model, f"config of {config.pretrained_path}")
    return pretrained.params


def _combined(problems: list[UserError]) -> UserError:
    if len(problems) == 1:
        return problems[0]
    return UserError(
        where="inputs of the run",
        expected="all of them",
        found=f"{len(problems)} that cannot be used",
        remedy="Fix each:" + "".join(f"\n  - {problem}" for problem in problems),
    )
