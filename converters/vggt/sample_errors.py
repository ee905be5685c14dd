"""What a sample of steps says of a column before it is written: errors and projections."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from converters.vggt.step_images import FrameReader
from pipeline.data.token_provenance import Keep, Store
from pipeline.errors import DataError
from pipeline.vggt.encoder_spec import EncoderSpec
from pipeline.vggt.token_storage import Projections, TokenEncoder, pooling

_NUM_MEASURED = 32
_NUM_FITTED = 128
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
    """Error of pooling or projecting; 0 where there is neither."""


def sample_steps(num_steps: int) -> tuple[list[int], list[int]]:
    """(steps that are measured, steps that a projection is fitted on): no step is of both.

    Of a short dataset at least one is in each.
    """
    # A fixed seed: the same steps at every run.
    order = np.random.default_rng(_SEED).permutation(num_steps).tolist()
    measured = order[: min(_NUM_MEASURED, max(1, num_steps // 2))]
    # No step is of both: an error on the fitted ones would be too low.
    fitted = order[len(measured) :][:_NUM_FITTED] or measured
    return sorted(measured), sorted(fitted)


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
        places = [describe(frames, step) for step in part]
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
    """Tokens before and after they are pooled or projected."""
    tokens = encoder.tokens(images)
    return tokens, encoder.reduce(tokens)


def describe(frames: FrameReader, step: int) -> str:
    """A step, for errors."""
    episode, local = frames.dataset.locate(np.array([step]))
    return f"{frames.dataset.path}, episode {int(episode[0])}, step {int(local[0])}"


def fit_projections(
    encoder: TokenEncoder, frames: FrameReader, steps: Sequence[int]
) -> Projections:
    """Principal axes of the tokens of a sample, and their mean: float32 (k + 1, d) a feature.

    The sums are float64 and take d^2 numbers, however many steps there are. The sign of an axis is
    that which makes its number of greatest magnitude positive.
    """
    sizes = {key: Keep.parse(origin.keep).size for key, origin in encoder.origins.items()}
    sums: dict[str, tuple[int, Any, Any]] = {}
    for part, tokens in frames.batches(steps, encoder.tokens):
        for key, values in jax.device_get(tokens).items():
            # float64, because the products of d^2 pairs are summed over many tokens.
            flat = values[: len(part)].reshape(-1, values.shape[-1]).astype(np.float64)
            count, total, products = sums.get(key, (0, 0, 0))
            sums[key] = (count + len(flat), total + flat.sum(axis=0), products + flat.T @ flat)
    return {key: _principal(*sums[key], sizes[key]) for key in sums}


def _principal(count: int, total: np.ndarray, products: np.ndarray, size: int) -> np.ndarray:
    mean = total / count
    # The covariance from sums: no token is kept.
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    # `eigh` sorts upwards; the axes of most variance are the last.
    axes = vectors[:, ::-1][:, :size].T
    # The sign of an eigenvector is free, so it is fixed: every run gives the same.
    signs = np.sign(axes[np.arange(size), np.abs(axes).argmax(axis=1)])
    return np.concatenate([axes * signs[:, np.newaxis], mean[np.newaxis]]).astype(np.float32)


def _add_reduction(
    encoder: TokenEncoder,
    whole: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    count: int,
    reduction: Mapping[str, _Squares],
) -> None:
    """Compares the patches with what pooled or projected ones say of them."""
    for key, origin in encoder.origins.items():
        keep = Keep.parse(origin.keep)
        if keep.what == "pool":
            restored = _spread(origin.encoder, keep.side) @ kept[key][:count]
        elif keep.what == "project":
            axes, mean = np.split(encoder.projections[key], [keep.size])
            # Back to the size of a token.
            restored = kept[key][:count] @ axes + mean
        else:
            continue
        reduction[key].add(restored, whole[key][:count])


def _spread(encoder: EncoderSpec, side: int) -> np.ndarray:
    """(n, m): each patch has the value of its cell, or the mean of its cells."""
    shares = pooling(encoder, side).T
    return shares / shares.sum(axis=1, keepdims=True)
