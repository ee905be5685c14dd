"""Tokenizes instructions into T5's token ids, once for every task of a run."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import sentencepiece

from pipeline.errors import DataError
from pipeline.hub.hub_files import fetch

Encode = Callable[[str], Sequence[int]]
"""The token ids of a text, without an end token; a SentencePiece model's `EncodeAsIds`."""

_MAX_SHOWN = 3
"""Number of instructions that a message lists of each kind."""

# T5's ids, which the encoder was trained with.
END_ID = 1
PAD_ID = 0


@dataclasses.dataclass(frozen=True)
class TaskTable:
    """The instructions of a run, one row each."""

    texts: tuple[str, ...]
    """The distinct instructions, as the datasets store them."""
    input_ids: np.ndarray
    """int32 (tasks, length): ids, the end token, padding."""
    attention_mask: np.ndarray
    """int32 (tasks, length): 1 for ids and the end token."""
    has_text: np.ndarray
    """bool (tasks): False for an empty instruction."""
    truncated: tuple[str, ...]
    """The instructions that were truncated to the length."""


def load_vocabulary(path: str) -> sentencepiece.SentencePieceProcessor:
    """Opens a SentencePiece model: a path, or `hf://owner/name/file`.

    Raises:
      DataError: The file is missing, cannot be downloaded, or has other special ids than T5.
    """
    local = fetch(path)
    vocabulary = sentencepiece.SentencePieceProcessor()
    try:
        vocabulary.Load(str(local))
    except (OSError, RuntimeError) as error:
        raise _unusable(path, str(error)) from error
    # Another vocabulary would give valid ids of other words.
    if (vocabulary.pad_id(), vocabulary.eos_id()) != (PAD_ID, END_ID):
        found = f"padding {vocabulary.pad_id()} and end {vocabulary.eos_id()}"
        raise _unusable(path, found)
    return vocabulary


def tokenize(texts: Sequence[str], encode: Encode, max_length: int) -> TaskTable:
    """Tokenizes each text, truncates it to `max_length` with the end token kept, and pads it.

    Source: the ids equal those of Hugging Face's T5 tokenizer with truncation and padding.
    """
    ids = [encode(text) for text in texts]
    input_ids = np.full((len(texts), max_length), PAD_ID, np.int32)
    attention_mask = np.zeros((len(texts), max_length), np.int32)
    for row, text_ids in enumerate(ids):
        # The end token is kept: T5 always saw one.
        kept = [*text_ids[: max_length - 1], END_ID]
        input_ids[row, : len(kept)] = kept
        attention_mask[row, : len(kept)] = 1
    # As long as `max_length` is too long already, because the end token needs a place.
    truncated = tuple(text for text, i in zip(texts, ids, strict=True) if len(i) >= max_length)
    has_text = np.array([bool(text) for text in texts])
    return TaskTable(tuple(texts), input_ids, attention_mask, has_text, truncated)


def describe_texts(table: TaskTable, unknown_id: int) -> list[str]:
    """Returns what a policy could not learn from the instructions, one sentence per kind.

    Args:
      table: The instructions of the run.
      unknown_id: The id of pieces that the vocabulary does not contain.
    """
    length = table.input_ids.shape[1]
    same = [_first([*map(repr, texts)], " and ") for texts in indistinguishable(table)]
    unknown = unknown_pieces(table, unknown_id)
    partly = [f"{text!r} ({count} of {of_all} pieces)" for text, (count, of_all) in unknown.items()]
    kinds = {
        f"cut to {length} tokens (data.max_text_length): ": list(table.truncated),
        "different ones have the same token ids, so that the policy cannot tell them apart: ": same,
        "the vocabulary does not know all of it: write it in the language of the vocabulary, or "
        "name another one in data.vocabulary: ": partly,
    }
    return [kind + _first(found) for kind, found in kinds.items() if found]


def _first(texts: Sequence[str], separator: str = "; ") -> str:
    """Joins the first texts, and says how many more there are."""
    more = [f"{len(texts) - _MAX_SHOWN:,} more"] if len(texts) > _MAX_SHOWN else []
    return separator.join([*texts[:_MAX_SHOWN], *more])


def indistinguishable(table: TaskTable) -> list[tuple[str, ...]]:
    """Returns groups of instructions that differ but have the same ids, in the table's order."""
    groups: dict[bytes, list[str]] = {}
    for text, ids in zip(table.texts, table.input_ids, strict=True):
        # Empty texts are alike, and mean that there is no instruction.
        if text:
            groups.setdefault(ids.tobytes(), []).append(text)
    return [tuple(texts) for texts in groups.values() if len(texts) > 1]


def unknown_pieces(table: TaskTable, unknown_id: int) -> dict[str, tuple[int, int]]:
    """Returns (unknown pieces, all pieces) of each instruction that has an unknown one.

    Args:
      table: The instructions of the run.
      unknown_id: The id of pieces that the vocabulary does not contain.
    """
    unknown = (table.input_ids == unknown_id).sum(axis=1)
    pieces = table.attention_mask.sum(axis=1) - 1  # without the end token
    rows = np.flatnonzero(unknown).tolist()
    return {table.texts[row]: (int(unknown[row]), int(pieces[row])) for row in rows}


def blank(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids, mask) of an empty text, int32 (length) each: the end token, padding."""
    is_end = np.arange(length) == 0
    return np.where(is_end, END_ID, PAD_ID).astype(np.int32), is_end.astype(np.int32)


def _unusable(path: str, found: str) -> DataError:
    return DataError(
        where=f"vocabulary {path}",
        expected="T5's SentencePiece model (padding 0, end 1)",
        found=found,
        remedy="Fetch it again: hf download google-t5/t5-base spiece.model",
    )
