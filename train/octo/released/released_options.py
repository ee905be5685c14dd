"""The options in an Octo checkpoint's config that are supported here.

Source: the modules of octo-small-1.5 and octo-base-1.5, and their defaults.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

Kind = Literal["diffusion", "l1", "mse"]
"""Kind of an action head."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one module of the original Octo."""

    free: frozenset[str]
    """Options that are translated, or that change nothing."""
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """All other options, each with the one supported value."""


MODEL = Options(
    frozenset(
        {
            "observation_tokenizers",
            "task_tokenizers",
            "heads",
            "readouts",
            "transformer_kwargs",
            "token_embedding_size",
            "max_horizon",
            "repeat_task_tokens",
            "use_correct_attention",
        }
    )
)
BLOCKS = Options(
    frozenset({"num_layers", "mlp_dim", "num_attention_heads"}),
    {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "add_position_embedding": False},
)
IMAGE = Options(
    # `num_tokens` belongs to the token learner, which is not supported.
    frozenset({"encoder", "obs_stack_keys", "task_stack_keys", "num_tokens"}),
    {
        "use_token_learner": False,
        "conditioning_type": "none",
        "task_film_keys": (),
        "proper_pad_mask": True,
    },
)
LOWDIM = Options(
    frozenset({"obs_keys", "discretize", "n_bins", "bin_type", "low", "high"}),
    {"proper_pad_mask": True},
)
LANGUAGE = Options(frozenset({"encoder", "finetune_encoder"}), {"proper_pad_mask": True})

SCORE = frozenset(
    {"diffusion_steps", "time_dim", "hidden_dim", "num_blocks", "n_diffusion_samples"}
)
"""Options of the diffusion head that have the names of `DiffusionConfig`'s fields."""

_CHUNK = frozenset({"action_horizon", "pred_horizon", "action_dim", "use_map", "max_action"})
_READOUT = {"readout_key": "readout_action"}
_DIFFUSION = {"loss_type": "mse", "dropout_rate": 0.0, "use_layer_norm": True}

HEADS: Mapping[str, tuple[Kind, Options]] = {
    "DiffusionActionHead": ("diffusion", Options(_CHUNK | SCORE, _READOUT | _DIFFUSION)),
    "L1ActionHead": ("l1", Options(_CHUNK, _READOUT | {"loss_type": "l1"})),
    "MSEActionHead": ("mse", Options(_CHUNK, _READOUT | {"loss_type": "mse"})),
}
"""Supported action heads, by the original's class name."""


def stem_options(num_layers: int) -> Options:
    """Returns the options of an image tokenizer's encoder.

    Args:
      num_layers: Number of convolutions; each has its own entry in the lists.
    """
    return Options(
        frozenset({"features", "num_features"}),
        {
            "use_film": False,
            "patch_size": 16,
            "kernel_sizes": (3,) * num_layers,
            "strides": (2,) * num_layers,
            "padding": (1,) * num_layers,
            "img_norm_type": "default",
        },
    )


def find_problems(place: str, values: Mapping[str, Any], options: Options) -> Iterator[str]:
    """Yields a message for each unsupported option.

    Args:
      place: The module's path in the config.
      values: The options in the config.
      options: The supported options.
    """
    for option, value in values.items():
        if option in options.free:
            continue
        if option not in options.known:
            yield f"{place}.{option} {value!r}: this option is not supported"
        elif not _is_same(value, options.known[option]):
            yield f"{place}.{option} {value!r}: only {options.known[option]!r} is supported"


def _is_same(value: Any, known: Any) -> bool:
    """Returns whether two values mean the same: JSON has no tuples, and None may mean empty."""
    if isinstance(value, list):
        value = tuple(value)
    return value == known or not (value or known)
