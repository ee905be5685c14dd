"""Errors of a column of tokens, measured on a sample of steps before it is written."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from converters.vggt.step_images import FrameReader
from pipeline.data.token_provenance import Keep, Store
from pipeline.errors import DataError
from pipeline.vggt.encoder_spec import EncoderSpec
from pipeline.vggt.token_storage import TokenEncoder, pooling

_NUM_MEASURED = 32
_SEED = 0


@dataclasses.dataclass
class _Squares:
    """Sums of squares over a sample."""

    of_error: float = 0.0
    of_values: float = 0.0

    def add(self, changed: np.ndarray, values: np.ndarray) -> None:
        # float64: the error may be a millionth of the values.
        difference = changed.astype(np.float64) - values
        self.of_error += float(np.vdot(difference, difference))
        # `vdot` makes no array of the products.
        self.of_values += float(np.vdot(values.astype(np.float64), values.astype(np.float64)))

    @property
    def error(self) -> float:
        """Root mean square of the error over that of the values."""
        return float(np.sqrt(self.of_error / self.of_values)) if self.of_values else 0.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements on a sample of steps, by feature key."""

    storage: dict[Store, dict[str, float]]
    """Error of each way to store; one that cannot hold the tokens is left out."""
    reduction: dict[str, float]
    """Error of pooling; 0 where there is none."""


def sample_steps(num_steps: int) -> list[int]:
    """The steps that are measured: at least one, and at most half of a short dataset."""
    # A fixed seed: the same steps at every run.
    order = np.random.default_rng(_SEED).permutation(num_steps).tolist()
    return sorted(order[: min(_NUM_MEASURED, max(1, num_steps // 2))])


def measure(
    encoder: TokenEncoder, frames: FrameReader, steps: Sequence[int], stores: Sequence[Store]
) -> Measured:
    """The errors of storing tokens, and of reducing them before.

    Raises:
      DataError: Where none of `stores` can hold the tokens.
    """
    ways: dict[Store, TokenEncoder] = {store: encoder.storing(store) for store in stores}
    storage = {s: {key: _Squares() for key in encoder.origins} for s in stores}
    reduction = {key: _Squares() for key in encoder.origins}
    failures: dict[Store, DataError] = {}
    # Read back from stored bytes, as training reads them.
    for part, (tokens, reduced) in frames.batches(steps, lambda images: _reduced(encoder, images)):
        whole, kept = jax.device_get((tokens, reduced))
        places = [frames.describe(step) for step in part]
        _add_reduction(encoder, whole, kept, len(part), reduction)
        for store, way in ways.items():
            try:
                read = way.read(way.records(way.pack(reduced), places))
            except DataError as error:
                failures.setdefault(store, error)
                continue
            for key, squares in storage[store].items():
                # Without what fills the last batch up.
                squares.add(read[key], kept[key][: len(part)])
    # A way that cannot hold the tokens is an error only if it is the only one.
    if len(failures) == len(stores):
        raise failures[stores[0]]
    return Measured(
        {s: {k: q.error for k, q in storage[s].items()} for s in stores if s not in failures},
        {key: squares.error for key, squares in reduction.items()},
    )


def _reduced(
    encoder: TokenEncoder, images: Sequence[np.ndarray]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Tokens before and after they are pooled."""
    tokens = encoder.tokens(images)
    return tokens, encoder.reduce(tokens)


def _add_reduction(
    encoder: TokenEncoder,
    whole: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    count: int,
    reduction: Mapping[str, _Squares],
) -> None:
    """Compares the patches with what pooled ones say of them."""
    for key, origin in encoder.origins.items():
        keep = Keep.parse(origin.keep)
        if keep.what == "pool":
            restored = _spread(origin.encoder, keep.side) @ kept[key][:count]
            reduction[key].add(restored, whole[key][:count])


def _spread(encoder: EncoderSpec, side: int) -> np.ndarray:
    """(n, m): each patch has the value of its cell, or the mean of its cells."""
    shares = pooling(encoder, side).T
    return shares / shares.sum(axis=1, keepdims=True)
