"""Counts the floating-point operations of a training step's matrix products, from the config.

A product of `rows x inner` and `inner x columns` has 2 * rows * inner * columns. In training each
counts three times: forward, for the gradient of the weights, and for that of its input. The last is
left out where nothing that is trained comes before: images, embedded texts, the number of the
diffusion step. Attention counts for all pairs of tokens, masked or not, and a convolution for its
padding. Recomputation (`remat`), the frozen T5 and the augmentation do not count.

octo-small with a window of 2 has 122.9 GFLOP per sample, octo-base 413.7; XLA counts 124 for
octo-small, with everything that is no matrix product.
"""

from collections.abc import Iterator
from typing import NamedTuple

from train.octo.octo_config import DiffusionConfig, ImageTokenizerConfig, OctoConfig
from train.octo.token_groups import group_spans

_KERNEL = 3 * 3
_CAMERA_AND_GOAL = 6


class Product(NamedTuple):
    """Matrix products of one sample."""

    flops: int
    """Floating-point operations forward."""
    times: int
    """3, or 2 where no gradient goes further."""


def training_flops(config: OctoConfig, window: int) -> int:
    """Returns the floating-point operations of one sample in a training step.

    Args:
      config: Model with a diffusion head that pools by `mean`; geometry tokens, if any, are tokens
        of their own that nothing reduces.
      window: Environment steps in the window.
    """
    return sum(product.flops * product.times for product in products_of(config, window))


def products_of(config: OctoConfig, window: int) -> list[Product]:
    """Returns the matrix products of one sample; the arguments are those of `training_flops`."""
    return [*_inputs(config, window), *_blocks(config, window), *_head(config, window)]


def _product(rows: int, inner: int, columns: int, times: int = 3) -> Product:
    return Product(2 * rows * inner * columns, times)


def _inputs(config: OctoConfig, window: int) -> Iterator[Product]:
    dim = config.embedding_dim
    for image in config.images:
        yield from _stem(image, window)
        yield _product(window * image.tokens_per_step, image.stem_dim, dim)
    if config.language is not None:
        yield _product(config.language.max_length, config.language.t5.d_model, dim, times=2)
    for vggt in config.geometry:
        # Three times: the scale of the norm before it is trained.
        yield _product(window * vggt.num_tokens, vggt.token_dim, dim)


def _stem(image: ImageTokenizerConfig, window: int) -> Iterator[Product]:
    side, channels = image.image_size, _CAMERA_AND_GOAL
    for features in image.stem_features:
        side //= 2
        first = channels == _CAMERA_AND_GOAL
        yield _product(window * side**2, _KERNEL * channels, features, times=2 if first else 3)
        channels = features
    yield _product(window * side**2, channels, image.stem_dim)


def _blocks(config: OctoConfig, window: int) -> Iterator[Product]:
    prefix, steps = group_spans(config)
    tokens = sum(s.num_tokens for s in prefix) + window * sum(s.num_tokens for s in steps)
    dim, hidden = config.embedding_dim, config.transformer.mlp_dim
    for _ in range(config.transformer.num_layers):
        yield _product(tokens, dim, 4 * dim)  # queries, keys, values, output
        yield _product(tokens, dim, 2 * tokens)  # logits, and weighted values
        yield _product(tokens, dim, 2 * hidden)


def _head(config: OctoConfig, window: int) -> Iterator[Product]:
    head = config.head
    if not isinstance(head, DiffusionConfig) or head.pooling != "mean":
        raise ValueError(f"FLOPs are counted for a diffusion head that pools by mean, not {head}")
    rows, time, hidden = window * head.n_diffusion_samples, head.time_dim, head.hidden_dim
    yield _product(rows, 1, time // 2, times=2)
    yield _product(rows, time, 4 * time)
    yield _product(rows, config.embedding_dim + time + head.flat_dim, hidden)
    for _ in range(head.num_blocks):
        yield _product(rows, hidden, 8 * hidden)
    yield _product(rows, hidden, head.flat_dim)
