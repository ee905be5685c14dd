"""What a step takes of a device's memory, before it is compiled."""

import dataclasses

import jax

from pipeline import device
from train.octo.config import OctoConfig
from train.octo.picture import group_spans
from train.optimizer import split_frozen
from train.setup import Setup

_MAPS = {"full": 2.75, "by_head": 0.05}
"""Attention maps that are kept a block and head, in float32: measured on octo-small."""
_TOKEN_COPIES = 16
"""Copies of a block's tokens, beside the hidden layer's, that are kept for the backward pass."""
_MLP_COPIES = 3
"""Of the hidden layer."""
_STEM_BYTES = 4 * 86
"""A pixel of the stems' activations and of the images, in float32: measured on octo-small."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """In bytes, on one device."""

    state: int
    """Parameters, their average and the optimizer's state: exact."""
    gradients: int
    """Of the trained parameters: exact."""
    activations: int
    """What is kept for the backward pass: about."""
    batches: int
    """Two of them."""

    @property
    def total(self) -> int:
        """All together."""
        return self.state + self.gradients + self.activations + self.batches

    def __str__(self) -> str:
        """Such as `about 4.8 GB: state 0.8, gradients 0.1, activations 3.8, batches 0.1`."""
        parts = ", ".join(
            f"{field.name} {getattr(self, field.name) / 1e9:.2f}"
            for field in dataclasses.fields(self)
        )
        return f"about {self.total / 1e9:.1f} GB ({parts})"


def estimate_memory(setup: Setup) -> MemoryEstimate:
    """What the step of a run takes; the activations by a formula that was fitted to octo-small.

    Args:
      setup: The run.
    """
    config = setup.config
    trained, _ = split_frozen(setup.state.params, config.frozen)
    parts = setup.mesh.size * config.optimizer.accumulation_steps
    samples = config.batch_size // parts
    batch_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.batch))
    return MemoryEstimate(
        state=_local_bytes(setup.state),
        gradients=_local_bytes(trained) * (2 if config.optimizer.accumulation_steps > 1 else 1),
        activations=samples * activation_bytes(config.model, config.data.window_size),
        batches=2 * batch_bytes // setup.mesh.size,
    )


def activation_bytes(model: OctoConfig, window: int) -> int:
    """What the step keeps of a sample for the backward pass, about.

    Args:
      model: The model.
      window: Steps of the window.
    """
    prefix, steps = group_spans(model)
    tokens = sum(s.num_tokens for s in prefix) + window * sum(s.num_tokens for s in steps)
    width = 2 if model.compute_dtype == "bfloat16" else 4
    copies = _TOKEN_COPIES * model.embedding_dim + _MLP_COPIES * model.transformer.mlp_dim
    attention = _MAPS[model.attention] * model.transformer.num_heads * tokens**2 * 4
    block = tokens * copies * width + attention
    layers = model.transformer.num_layers
    if model.remat:
        block = (block + layers * tokens * model.embedding_dim * width) / layers
    pixels = window * sum(image.image_size**2 for image in model.cameras)
    return int(layers * block + pixels * _STEM_BYTES)


def _local_bytes(structs: object) -> int:
    """Of what one device holds."""
    return sum(leaf.dtype.itemsize * device.local_size(leaf) for leaf in jax.tree.leaves(structs))
