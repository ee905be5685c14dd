import dataclasses
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SchemaError, UserError
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.transforms.transform import Draws, dims_at
from pipeline.loading.transforms.transform_chain import TransformChain

SPEC = {
    "action": LeafSpec("float32", (2, 1, 3, 2), ("x_m", "gripper"), frozenset({"gripper"})),
    "action_pad_mask": LeafSpec("bool", (2, 1, 3, 2)),
    "observation/proprio": LeafSpec("float32", (2, 1, 2), ("x_m", "y_m")),
    "sample_index": LeafSpec("int32", (2,)),
}
BATCH = {
    "action": np.arange(12, dtype=np.float32).reshape(2, 1, 3, 2),
    "action_pad_mask": np.ones((2, 1, 3, 2), bool),
    "observation/proprio": np.array([[[1, 2]], [[3, 4]]], np.float32),
    "sample_index": np.array([5, 6], np.int32),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Changes inputs as `change` says."""

    change: Any
    after: Any = None

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        return spec | (self.after or {})

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        return self.change(batch, draws)


@dataclasses.dataclass(frozen=True)
class Actions(Inputs):
    """Multiplies actions, and notes the state at which they return."""

    factor: float = 1.0
    seen: list[np.ndarray] = dataclasses.field(default_factory=list)
    dtype: str = "float32"

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        self.seen.append(batch["observation/proprio"])
        return (action / self.factor).astype(self.dtype)


def times(factor: float, **fields: Any) -> Actions:
    def change(batch: FlatBatch, draws: Draws | None) -> FlatBatch:
        return batch | {"action": batch["action"] * np.float32(factor)}

    return Actions(change, factor=factor, **fields)


def shift(batch: FlatBatch, draws: Draws | None) -> FlatBatch:
    return batch | {"observation/proprio": batch["observation/proprio"] + np.float32(1)}


def test_actions_return_through_the_inverses_in_the_reverse_order() -> None:
    first, last = times(2.0), times(3.0)
    chain = TransformChain.bind([first, Inputs(shift), last], SPEC, seed=None)
    done = chain.trace(BATCH)[-1]
    np.testing.assert_array_equal(done["action"], 6 * BATCH["action"])
    # At rollout there is no action, and each inverse sees the inputs where it is in the chain.
    traced = chain.trace({key: BATCH[key] for key in BATCH if "action" not in key})
    back = chain.invert(done["action"][:, 0], traced)
    np.testing.assert_array_equal(back, BATCH["action"][:, 0])
    assert [seen[0, 0, 0] for seen in (*last.seen, *first.seen)] == [2.0, 1.0]


def test_draws_depend_on_seed_place_and_sample_alone() -> None:
    found: list[np.ndarray] = []

    def draw(batch: FlatBatch, draws: Draws | None) -> FlatBatch:
        assert draws is not None
        found.append(draws.uniform(3))
        return batch

    chain = TransformChain.bind([Inputs(draw), Inputs(draw)], SPEC, seed=7)
    chain.trace(BATCH)
    chain.trace({key: value[1:] for key, value in BATCH.items()})
    both, other_place, second, _ = found
    assert both.shape == (2, 3)
    assert (both >= 0).all()
    assert (both < 1).all()
    np.testing.assert_array_equal(both[1:], second)
    assert len(np.unique([*both.ravel(), *other_place.ravel()])) == 12
    # The numbers themselves: another release draws the same ones.
    assert Draws(7, 0, np.array([5])).uniform(2).tolist() == [
        [0.4460889564336221, 0.9078773680255806]
    ]


def test_normal_draws_are_standard() -> None:
    values = Draws(0, 1, np.arange(2000)).normal(5)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            Inputs(
                lambda batch, _: batch,
                {"observation/proprio": LeafSpec("float32", (2, 1, 3), ("x", "y", "z"))},
            ),
            r"observation/proprio: float32\[b,1,2\], declared as float32\[b,1,3\]",
        ),
        (Inputs(lambda batch, _: [batch]), "found a list instead of a dictionary"),
        (Inputs(lambda batch, _: {}), "action: dropped; action_pad_mask: dropped"),
        (
            Inputs(lambda batch, _: batch | {"observation/new": np.zeros((2, 1))}),
            "observation/new: float64, which is not declared",
        ),
        (
            Inputs(lambda batch, _: batch | {"observation/proprio": np.zeros((2, 1, 2))}),
            r"proprio: float64\[b,1,2\], declared as float32\[b,1,2\]",
        ),
        (
            Inputs(lambda batch, _: batch | {"action": batch["action"] * 2}),
            "action: changed, by a transform without `invert`",
        ),
        (Actions(shift), "observation/proprio: changed, by a transform with `invert`"),
    ],
)
def test_another_effect_than_the_declared_one_is_reported(transform: Any, message: str) -> None:
    chain = TransformChain.bind([transform], SPEC, seed=None)
    with pytest.raises(SchemaError, match=f"transform {type(transform).__name__}: .*{message}"):
        chain.trace(BATCH)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            Actions(None, after={"observation/new": SPEC["sample_index"]}),
            "expected actions alone, as it has `invert`; found another observation/new",
        ),
        (
            Inputs(None, after={"action": SPEC["action_pad_mask"]}),
            "expected inputs alone, as it has no `invert`; found another action",
        ),
    ],
)
def test_a_transform_of_both_inputs_and_actions_is_refused(transform: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformChain.bind([transform], SPEC, seed=None)


def add_in_place(batch: FlatBatch, draws: Draws | None) -> FlatBatch:
    batch["observation/proprio"] += 1
    return batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            add_in_place,
            "expected arrays that are left as they are; found one that is changed in place. Change",
        ),
        (
            lambda batch, _: batch["observation/joint"],
            r"expected a result; found KeyError at test_transform_chain.py:\d+: 'observation",
        ),
    ],
)
def test_what_a_transform_raises_names_it(change: Any, message: str) -> None:
    chain = TransformChain.bind([Inputs(change)], SPEC, seed=None)
    with pytest.raises(UserError, match=f"transform Inputs, apply: {message}"):
        chain.trace(BATCH)
    # Writing is allowed again, also after an error.
    BATCH["observation/proprio"][0, 0, 0] = 1


def test_an_array_and_a_view_of_it_pass_in_any_order() -> None:
    state = SPEC["observation/proprio"]
    half = dataclasses.replace(state, shape=(*state.shape[:-1], 1), dims=state.dims[:1])

    def split(batch: FlatBatch, draws: Draws | None) -> FlatBatch:
        whole = batch["observation/proprio"] * np.float32(2)
        return batch | {"observation/proprio": whole[..., :1], "observation/whole": whole}

    after = {"observation/proprio": half, "observation/whole": state}
    transforms = [Inputs(split, after), Inputs(lambda batch, _: batch)]
    split_batch, kept = TransformChain.bind(transforms, SPEC, seed=None).trace(BATCH)[1:]
    # What is passed on is the array itself.
    assert all(kept[key] is array for key, array in split_batch.items())
    assert kept["action"] is BATCH["action"]
    assert kept["observation/whole"].flags.writeable


def test_a_transform_may_change_the_dictionary_alone() -> None:
    def put(batch: FlatBatch, draws: Draws | None) -> FlatBatch:
        batch["observation/proprio"] = batch["observation/proprio"] + np.float32(1)
        return batch

    before, after = TransformChain.bind([Inputs(put)], SPEC, seed=None).trace(BATCH)
    np.testing.assert_array_equal(
        after["observation/proprio"], before["observation/proprio"] + np.float32(1)
    )


def test_an_inverse_of_another_type_is_reported() -> None:
    chain = TransformChain.bind([times(2.0, dtype="float64")], SPEC, seed=None)
    with pytest.raises(SchemaError, match=r"invert: expected actions, float32 \(b h 2\)"):
        chain.invert(BATCH["action"][:, 0], chain.trace(BATCH))


def test_dimensions_are_found_by_name() -> None:
    assert dims_at(SPEC, "observation/proprio", ("y_m", "x_m"), "T") == [1, 0]
    message = "T: expected dimensions of action, which are x_m, gripper; found griper. Did you mean"
    with pytest.raises(UserError, match=message):
        dims_at(SPEC, "action", ("griper",), "T")
    with pytest.raises(UserError, match=r"found observation/propio\. Did you mean observation/pro"):
        dims_at(SPEC, "observation/propio", (), "T")


@pytest.mark.parametrize(
    ("returned", "found"),
    [(None, "a NoneType"), ({"action": (1, 7)}, "another type for action")],
)
def test_a_declaration_of_another_type_is_one_line(returned: Any, found: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Wrong:
        def spec_after(self, spec: Any) -> Any:
            return returned

        def apply(self, batch: Any, spec: Any, draws: Any) -> Any:
            return batch

    spec = {"action": LeafSpec("float32", (1, 1, 1, 7))}
    with pytest.raises(UserError, match=f"Wrong, spec_after: expected.* LeafSpec.*found {found}"):
        TransformChain.bind((Wrong(),), spec, seed=None)
