import pathlib

import numpy as np
import pytest
import sentencepiece

from pipeline.errors import DataError
from pipeline.loading.text import blank, load_vocabulary, tokenize

LONG = "pick up the black bowl on the stove and place it on the plate"


def test_ids_end_with_one_and_are_padded_with_zero(
    vocabulary: sentencepiece.SentencePieceProcessor,
) -> None:
    # May change with tests/data/vocabulary.model only.
    table = tokenize(["pick up the milk", LONG, "", "fly"], vocabulary.EncodeAsIds, 8)
    np.testing.assert_array_equal(
        table.input_ids,
        [
            [7, 9, 3, 29, 1, 0, 0, 0],
            [7, 9, 3, 24, 25, 6, 3, 1],
            [1, 0, 0, 0, 0, 0, 0, 0],
            [2, 1, 0, 0, 0, 0, 0, 0],
        ],
    )
    np.testing.assert_array_equal(table.attention_mask.sum(1), [5, 8, 1, 2])
    assert (table.input_ids.dtype, table.attention_mask.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(("length", "cut"), [(4, ("pick up the milk",)), (5, ())])
def test_text_is_cut_only_where_the_end_token_would_not_fit(
    vocabulary: sentencepiece.SentencePieceProcessor, length: int, cut: tuple
) -> None:
    table = tokenize(["pick up the milk"], vocabulary.EncodeAsIds, length)
    assert table.truncated == cut
    assert table.input_ids[0, -1] == 1
    assert table.attention_mask.all()


def test_blank_is_the_row_of_an_empty_text(
    vocabulary: sentencepiece.SentencePieceProcessor,
) -> None:
    table = tokenize([""], vocabulary.EncodeAsIds, 6)
    ids, mask = blank(6)
    np.testing.assert_array_equal(ids, table.input_ids[0])
    np.testing.assert_array_equal(mask, table.attention_mask[0])
    assert (ids.dtype, mask.dtype) == (np.int32, np.int32)


def test_real_vocabulary_gives_the_ids_of_t5(shared: pathlib.Path) -> None:
    vocabulary = load_vocabulary(str(shared / "t5" / "spiece.model"))
    table = tokenize(["Hello world"], vocabulary.EncodeAsIds, 5)
    np.testing.assert_array_equal(table.input_ids, [[8774, 296, 1, 0, 0]])


def test_missing_vocabulary_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match=r"none.model: expected a file; found none. Name another"):
        load_vocabulary(str(tmp_path / "none.model"))


def test_file_that_is_no_vocabulary_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.model"
    path.write_bytes(b"no model")
    with pytest.raises(DataError, match=r"other.model: expected T5's SentencePiece.*hf download"):
        load_vocabulary(str(path))


def test_other_special_ids_are_refused(tmp_path: pathlib.Path) -> None:
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["pick up the milk", "pick up the butter"]),
        model_prefix=str(tmp_path / "other"),
        vocab_size=20,
        hard_vocab_limit=False,
        model_type="word",
        pad_id=3,
        eos_id=2,
        unk_id=0,
        bos_id=1,
        minloglevel=2,
    )
    with pytest.raises(DataError, match=r"\(padding 0, end 1\); found padding 3 and end 2"):
        load_vocabulary(str(tmp_path / "other.model"))
