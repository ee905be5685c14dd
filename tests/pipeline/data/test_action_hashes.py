import numpy as np

from pipeline.data.action_hashes import has_actions, hash_actions, to_texts
from pipeline.data.manifest import Shard
from pipeline.data.schema import Column, Feature, Schema

ACTION = Feature("action", "tensor", (2,), "float32", "float32", "steps/action")


def test_hashes_are_pinned() -> None:
    # May never change: the split of every run depends on them.
    actions = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert f"{hash_actions(actions):016x}" == "dcd21c42ccaa9d2a"
    # Of the values in C order, whatever the memory holds.
    assert hash_actions(np.asfortranarray(actions)) == hash_actions(actions)


def test_texts_have_the_hashes_of_their_shards() -> None:
    shards = [Shard("episodes/0", 2, 0, ""), Shard("episodes/1", 0, 0, ""), Shard("x", 1, 0, "")]
    texts = ("0000000000000001ffffffffffffffff", "", "00000000000000ff")
    assert to_texts([1, 2**64 - 1, 255], shards) == texts


def test_actions_are_hashed_where_they_are_trajectories() -> None:
    assert has_actions(Schema((Column("episodes", "episode", (ACTION,)),)))
    assert not has_actions(Schema((Column("steps", "step", (ACTION,)),)))
    assert not has_actions(Schema((Column("episodes", "episode", ()),)))
