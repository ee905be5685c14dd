"""Estimates the device memory of a training step, before it is compiled."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from pipeline.loading import device
from train.octo.octo_config import OctoConfig
from train.octo.token_groups import group_spans
from train.train_config import TrainConfig
from train.update.optimizer import split_frozen
from train.update.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What XLA keeps for the backward pass; measured on octo-small and octo-base."""

    maps: Mapping[str, float]
    """Attention maps per block and head, in float32 maps, by `attention`; less in bfloat16."""
    rounded_maps: float
    """The same for `full` in bfloat16."""
    tokens: int
    """Copies of a block's tokens, besides its hidden layer."""
    hidden: int
    """Copies of a block's hidden layer."""
    recomputed: float
    """With remat: memory of a block's backward pass, in what a block keeps without."""
    pixels: int
    """Numbers per pixel of the stems' activations and of the images."""
    has_bfloat16: bool
    """Whether bfloat16 is computed as such, and not in float32."""


_CPU = _Kept(
    maps={"full": 2.75, "by_head": 0.05, "fused": 2.75},
    rounded_maps=2.75,
    tokens=16,
    hidden=3,
    recomputed=1.0,
    pixels=86,
    has_bfloat16=False,
)
_ACCELERATOR = _Kept(
    maps={"full": 2.0, "by_head": 0.15, "fused": 0.0},
    rounded_maps=1.5,
    tokens=7,
    hidden=3,
    recomputed=1.3,
    pixels=61,
    has_bfloat16=True,
)
"""From programs that XLA compiled for an H200; none was run on one."""
_GEOMETRY_COPIES = 2
"""Float32 copies of the geometry tokens: normalised ones and those that are projected."""


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
    """Estimates a training step's memory; the formula for activations was fitted to Octo's sizes.

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
        activations=samples
        * activation_bytes(config.model, config.data.window_size, jax.default_backend()),
        # The current batch and the one that is being transferred.
        batches=2 * batch_bytes // num_devices,
        instructions=0 if table is None else table.size * table.dtype.itemsize,
    )


def activation_bytes(model: OctoConfig, window: int, backend: str) -> int:
    """Estimates the bytes of activations per sample that are kept for the backward pass.

    Args:
      model: The config of the model.
      window: Environment steps in the window.
      backend: `cpu`, `gpu` or `tpu`; a CPU computes bfloat16 in float32, and keeps more.
    """
    kept = _CPU if backend == "cpu" else _ACCELERATOR
    prefix, steps = group_spans(model)
    tokens = sum(s.num_tokens for s in prefix) + window * sum(s.num_tokens for s in steps)
    rounds = model.compute_dtype == "bfloat16" and kept.has_bfloat16
    width = 2 if rounds else 4
    copies = kept.tokens * model.embedding_dim + kept.hidden * model.transformer.mlp_dim
    is_rounded = rounds and model.attention == "full"
    maps = kept.rounded_maps if is_rounded else kept.maps[model.attention]
    block = tokens * copies * width + maps * model.transformer.num_heads * tokens**2 * 4
    layers = model.transformer.num_layers
    blocks = layers * block
    if model.remat:
        # Only the input of each block is kept, and one block's activations at a time.
        blocks = kept.recomputed * block + layers * tokens * model.embedding_dim * width
    # Images of any kind: RGB, depth.
    images = [leaf.shape for leaf in model.inputs.values() if len(leaf.shape) == 3]
    pixels = window * sum(height * width for height, width, _ in images)
    geometry = window * sum(vggt.num_tokens * vggt.token_dim for vggt in model.geometry)
    return int(blocks + pixels * kept.pixels * width + geometry * _GEOMETRY_COPIES * 4)


def _local_bytes(structs: object) -> int:
    """Returns the bytes that one device holds."""
    return sum(leaf.dtype.itemsize * device.local_size(leaf) for leaf in jax.tree.leaves(structs))
