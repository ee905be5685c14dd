"""Runs transforms in their order: forwards on batches, and backwards on predicted actions."""

import contextlib
import dataclasses
import functools
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.data.schema import ACTION
from pipeline.errors import SchemaError, UserError
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.transforms.action_dims import ACTION_MASK
from pipeline.loading.transforms.transform import ActionTransform, Draws, Transform

_ACTION_KEYS = {ACTION, ACTION_MASK}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A transform at its place in a chain, as a function from batch to batch."""

    transform: Transform
    """The transform."""
    before: BatchSpec
    """Types of the arrays that it is given."""
    after: BatchSpec
    """Types of those that it returns."""
    seed: int | None
    """Seed of the loader; None: random transforms leave a batch as it is."""
    place: int
    """Place in the chain, which decides its random numbers."""

    @property
    def name(self) -> str:
        """Name of the transform's class."""
        return type(self.transform).__name__

    @functools.cached_property
    def retyped(self) -> frozenset[str]:
        """Paths of the arrays whose type the transform declares to change."""
        keys = self.before.keys() | self.after
        return frozenset(key for key in keys if self.before.get(key) != self.after.get(key))

    @functools.cached_property
    def changes_actions(self) -> bool:
        """Whether the transform changes actions; else it changes inputs."""
        # Once: a check against a protocol takes longer than many a transform.
        return isinstance(self.transform, ActionTransform)

    def __call__(self, batch: FlatBatch) -> FlatBatch:
        """Transforms a batch; actions only where it has any.

        Raises:
          SchemaError: The result does not have the types that the transform declares.
          UserError: The transform raised something, or changed an array in place.
        """
        if self.changes_actions and ACTION not in batch:
            return batch
        draws = None
        if self.seed is not None:
            draws = Draws(self.seed, self.place, batch["sample_index"])
        given = _read_only(batch)
        with _named(self.transform, "apply"):
            # A copy, as a transform may put a new array into the dictionary itself.
            changed = self.transform.apply({**given}, self.before, draws)
        problems = list(self._problems(given, changed))
        if problems:
            raise SchemaError(
                where=f"transform {self.name}",
                expected="a batch as its spec_after declares it",
                found="; ".join(problems),
                remedy="Correct apply or spec_after.",
            )
        passed = {id(view): batch[key] for key, view in given.items()}
        return {key: passed.get(id(array), array) for key, array in changed.items()}

    def _problems(self, batch: FlatBatch, changed: Any) -> Iterator[str]:
        """Yields what does not fit the declared types, in the arrays that are new."""
        if not isinstance(changed, dict):
            yield f"a {type(changed).__name__} instead of a dictionary of arrays"
            return
        yield from (f"{k}: dropped" for k in sorted((batch.keys() - changed) & self.after.keys()))
        for key, array in changed.items():
            # Arrays that were passed through were checked before.
            if batch.get(key) is array and key not in self.retyped:
                continue
            leaf = self.after.get(key)
            found = f"{key}: {getattr(array, 'dtype', type(array).__name__)}"
            if leaf is None:
                yield f"{found}, which is not declared"
            elif not isinstance(array, np.ndarray) or not _fits(array, leaf):
                shapes = (np.shape(array)[1:], leaf.shape[1:])
                ours, theirs = (f"[{','.join(map(str, ('b', *shape)))}]" for shape in shapes)
                yield f"{found}{ours}, declared as {leaf.dtype}{theirs}"
            elif self.changes_actions and key not in _ACTION_KEYS:
                yield f"{key}: changed, by a transform with `invert`, which is for actions alone"
            elif not self.changes_actions and key in _ACTION_KEYS:
                yield f"{key}: changed, by a transform without `invert`"


@contextlib.contextmanager
def _named(transform: Transform, method: str) -> Iterator[None]:
    """Names the transform in whatever its code raises inside the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = f"transform {type(transform).__name__}, {method}"
        if isinstance(error, ValueError) and "read-only" in str(error):
            raise UserError(
                where=where,
                expected="arrays that are left as they are",
                found="one that is changed in place",
                remedy="Change a copy: array.copy().",
            ) from error
        # The innermost line, which is mostly the transform's own.
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{pathlib.Path(last.filename).name}:{last.lineno}"
        raise UserError(
            where=where,
            expected="a result",
            found=f"{type(error).__name__} at {place}: {error}",
            remedy="Correct it; --debug shows the whole traceback.",
        ) from error


def _read_only(batch: FlatBatch) -> FlatBatch:
    """Returns views of the arrays of a batch into which nothing can be written."""
    # Otherwise a change in place would be in no statistics, and in no inverse. Views, because an
    # array may be a view of another one, and its flag then depends on that of the other.
    views = {key: array.view() for key, array in batch.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


def _declared(spec: Any, transform: Transform) -> BatchSpec:
    """Returns what `spec_after` returned, which a user's method may have forgotten to return."""
    is_dict = isinstance(spec, dict)
    others = [k for k, v in spec.items() if not isinstance(v, LeafSpec)] if is_dict else []
    if is_dict and not others:
        return spec
    raise UserError(
        where=f"transform {type(transform).__name__}, spec_after",
        expected="a dictionary with a LeafSpec for each array",
        found=f"another type for {', '.join(others)}" if others else f"a {type(spec).__name__}",
        remedy="Return the spec that it is given, with its changes.",
    )


def _fits(array: np.ndarray, leaf: LeafSpec) -> bool:
    """Whether an array has a declared type; batches have any size."""
    return array.dtype == np.dtype(leaf.dtype) and array.shape[1:] == leaf.shape[1:]


@dataclasses.dataclass(frozen=True)
class TransformChain:
    """Transforms that are bound to the types of a batch."""

    stages: tuple[Stage, ...]
    """The transforms, in order."""
    spec: BatchSpec
    """Types of the arrays after all of them."""

    @classmethod
    def bind(
        cls, transforms: Sequence[Transform], spec: BatchSpec, seed: int | None
    ) -> "TransformChain":
        """Binds transforms to the types of the batch that the first one is given.

        Raises:
          UserError: A transform does not fit the arrays, or declares an effect on both inputs and
            actions.
        """
        return cls((), spec).then(transforms, seed)

    def then(self, transforms: Sequence[Transform], seed: int | None) -> "TransformChain":
        """Returns this chain with more transforms at its end; errors are those of `bind`."""
        stages, spec = list(self.stages), self.spec
        for transform in transforms:
            # Sorted, as jax flattens dictionaries: all sides agree on the order of arrays.
            with _named(transform, "spec_after"):
                after = dict(sorted(_declared(transform.spec_after(spec), transform).items()))
            stages.append(Stage(transform, spec, after, seed, len(stages)))
            _check_effect(stages[-1])
            spec = after
        return TransformChain(tuple(stages), spec)

    def trace(self, batch: FlatBatch) -> list[FlatBatch]:
        """Runs a batch through the chain; returns it before each stage and at the end.

        Raises:
          SchemaError: A transform returns other types than it declares.
        """
        batches = [batch]
        for stage in self.stages:
            batches.append(stage(batches[-1]))
        return batches

    def invert(self, action: np.ndarray, traced: Sequence[FlatBatch]) -> np.ndarray:
        """Returns predicted actions as they were before the chain, float32 (b h a).

        Args:
          action: Actions after the chain, float32 (b h a), for the last step of the window.
          traced: What `trace` returned for the batch that they were predicted from.

        Raises:
          SchemaError: A transform returns other types than it declares.
        """
        for stage, batch in zip(reversed(self.stages), reversed(traced[:-1]), strict=True):
            if isinstance(stage.transform, ActionTransform):
                given = _read_only({**batch, "": action})
                predicted = given.pop("")
                with _named(stage.transform, "invert"):
                    inverted = stage.transform.invert(predicted, given, stage.before)
                action = action if inverted is predicted else inverted
                size = stage.before[ACTION].shape[-1]
                if action.dtype != np.float32 or action.shape[-1] != size:
                    raise SchemaError(
                        where=f"transform {stage.name}, invert",
                        expected=f"actions, float32 (b h {size})",
                        found=f"{action.dtype}{list(action.shape)}",
                        remedy="Return what `apply` was given.",
                    )
        return action


def _check_effect(stage: Stage) -> None:
    """Checks that a transform declares a change of inputs or of actions, and not of both."""
    is_of_actions = stage.changes_actions
    wrong = stage.retyped - _ACTION_KEYS if is_of_actions else stage.retyped & _ACTION_KEYS
    if wrong:
        raise UserError(
            where=f"transform {stage.name}, spec_after",
            expected="actions alone, as it has `invert`"
            if is_of_actions
            else "inputs alone, as it has no `invert`",
            found=f"another {', '.join(sorted(wrong))}",
            remedy="Make two transforms of it: one of inputs, and one of actions with `invert`.",
        )
