"""Estimates the device memory of a training step, before it is compiled."""

import dataclasses
from typing import Any

import jax

from pipeline.loading import device
from train.octo.octo_config import OctoConfig
from train.octo.token_groups import group_spans
from train.train_config import TrainConfig
from train.update.optimizer import split_frozen
from train.update.train_state import TrainState

_MAPS = {"full": 2.75, "by_head": 0.05, "fused": 0.0}
"""Float32 attention maps kept per block and head, as a multiple; measured on octo-small."""
_TOKEN_COPIES = 16
"""Copies of a block's tokens kept for the backward pass, besides its hidden layer."""
_MLP_COPIES = 3
"""Copies of a block's hidden layer kept for the backward pass."""
_STEM_BYTES = 4 * 86
"""Bytes per pixel of the stems' activations and of the images, in float32; measured on
octo-small."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Estimated memory in bytes, on one device."""

    state: int
    """Parameters, their average and the optimizer state; exact."""
    gradients: int
    """Gradients of the trained parameters; exact."""
    activations: int
    """Activations kept for the backward pass; approximate."""
    batches: int
    """Two batches: the current and the next one."""
    instructions: int = 0
    """Outputs of a frozen language encoder for all instructions of the run; exact."""

    @property
    def total(self) -> int:
        """Returns the sum of all parts."""
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        """Returns e.g. `about 4.8 GB (state 0.80, gradients 0.10, activations 3.80, batches 0.10)`.

        Instructions are listed where there are so many that they count.
        """
        sizes = {name: f"{size / 1e9:.2f}" for name, size in dataclasses.asdict(self).items()}
        parts = ", ".join(
            f"{name} {size}"
            for name, size in sizes.items()
            if (name, size) != ("instructions", "0.00")
        )
        return f"about {self.total / 1e9:.1f} GB ({parts})"


def estimate_memory(
    config: TrainConfig,
    state: TrainState,
    batch: Any,
    num_devices: int,
    table: jax.ShapeDtypeStruct | None = None,
) -> MemoryEstimate:
    """Estimates a training step's memory; the formula for activations was fitted to octo-small.

    Args:
      config: The config of the run.
      state: The state's shapes, with shardings.
      batch: The shapes of a batch.
      num_devices: Number of devices that the batch is sharded across.
      table: The shape of the language table, which every device holds whole; None: there is none.
    """
    trained, _ = split_frozen(state.params, config.frozen)
    parts = num_devices * config.optimizer.accumulation_steps
    samples = config.batch_size // parts
    batch_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch))
    return MemoryEstimate(
        state=_local_bytes(state),
        # Accumulation holds a sum besides the gradients of one micro-batch.
        gradients=_local_bytes(trained) * (2 if config.optimizer.accumulation_steps > 1 else 1),
        activations=samples * activation_bytes(config.model, config.data.window_size),
        # The current batch and the one that is being transferred.
        batches=2 * batch_bytes // num_devices,
        instructions=0 if table is None else table.size * table.dtype.itemsize,
    )


def activation_bytes(model: OctoConfig, window: int) -> int:
    """Estimates the bytes of activations per sample that are kept for the backward pass.

    Args:
      model: The config of the model.
      window: Environment steps in the window.
    """
    prefix, steps = group_spans(model)
    tokens = sum(s.num_tokens for s in prefix) + window * sum(s.num_tokens for s in steps)
    width = 2 if model.compute_dtype == "bfloat16" else 4
    copies = _TOKEN_COPIES * model.embedding_dim + _MLP_COPIES * model.transformer.mlp_dim
    # Attention maps are float32 whatever the tokens are.
    attention = _MAPS[model.attention] * model.transformer.num_heads * tokens**2 * 4
    block = tokens * copies * width + attention
    layers = model.transformer.num_layers
    if model.remat:
        # With remat only the input of each block is kept, and one block's activations at a time.
        block = (block + layers * tokens * model.embedding_dim * width) / layers
    # Images of any kind: RGB, depth.
    images = [leaf.shape for leaf in model.inputs.values() if len(leaf.shape) == 3]
    pixels = window * sum(height * width for height, width, _ in images)
    return int(layers * block + pixels * _STEM_BYTES)


def _local_bytes(structs: object) -> int:
    """Returns the bytes that one device holds."""
    return sum(leaf.dtype.itemsize * device.local_size(leaf) for leaf in jax.tree.leaves(structs))
