"""Makes vocabulary.model: a small SentencePiece model with T5's special ids.

python tests/data/make_vocabulary.py
"""

import io
import itertools
import pathlib

import sentencepiece

_OBJECTS = ["black bowl", "alphabet soup", "tomato sauce", "cream cheese", "butter", "milk"]
_PLACES = ["between the plate and the ramekin", "next to the cookie box", "on the stove", "on top"]
_GOALS = ["on the plate", "in the basket", "in the drawer", "on the table"]


def main() -> None:
    texts = [
        f"pick up the {thing} {place} and place it {goal}"
        for thing, place, goal in itertools.product(_OBJECTS, _PLACES, _GOALS)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        model_type="word",
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    pathlib.Path(__file__).with_name("vocabulary.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
