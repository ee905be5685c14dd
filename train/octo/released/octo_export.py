"""Writes a model in the original Octo's format, so that Octo's code can load it.

Source: the layout of `OctoModel.save_pretrained` of Octo 1.5.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import serialization

from pipeline.errors import UserError
from pipeline.files import write_text_atomically
from train.octo.functional import input_spec
from train.octo.octo_config import (
    HeadConfig,
    ImageTokenizerConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
)

_T5 = "t5-base"
_DEFAULT_CONVOLUTIONS = 4
"""Convolutions in the original stem by default; further ones need a stride in its config."""


@dataclasses.dataclass(frozen=True)
class OctoExport:
    """The content of an original Octo checkpoint."""

    config: OctoConfig
    """Config of the model."""
    params: Mapping[str, Any]
    """Parameters of the model."""
    statistics: Mapping[str, Any]
    """Dataset statistics as JSON values: of the single dataset, or of each by name."""
    window_size: int
    """Window size in steps during training."""
    conventions: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Meaning of actions and images for each dataset, as JSON values."""


def export_octo(
    export: OctoExport, directory: pathlib.Path, step: int, language_encoder: str | None = None
) -> None:
    """Writes `config.json`, statistics, conventions, an example batch and one step's parameters.

    Args:
      export: The content to write.
      directory: The directory to create; it must be new or empty.
      step: Training step; it names the folder of the parameters.
      language_encoder: The Hugging Face name of a T5 with the model's sizes, which the original
        code looks up; None: t5-base, which the model's encoder must then be.

    Raises:
      UserError: The directory is in use or cannot be written, or the original does not support a
        part of the model; all problems are listed together.
    """
    encoder = language_encoder or _T5
    # Everything is checked before the first file is written.
    _check(export.config, directory, language_encoder)
    config = {
        "model": octo_model(export.config, encoder),
        "window_size": export.window_size,
        "text_processor": _text_processor(export.config, encoder),
        "optimizer": {"frozen_keys": _frozen_keys(export.config)},
    }
    try:
        _write(export, config, directory, step)
    except OSError as error:
        raise UserError(
            where=str(directory),
            expected="a directory that can be written",
            found=str(error),
            remedy="Choose another directory, or fix the disk.",
        ) from error


def _frozen_keys(config: OctoConfig) -> list[str]:
    """Returns the globs that the original's finetuning freezes by default."""
    is_trained = config.language is not None and config.language.finetune
    return [] if is_trained else ["*hf_model*"]


def _check(config: OctoConfig, directory: pathlib.Path, language_encoder: str | None) -> None:
    """Raises one error that lists all problems."""
    problems: list[UserError] = []
    for check in (
        lambda: _check_counterpart(config),
        lambda: _check_encoder(config, language_encoder),
        lambda: _check_unused(directory),
    ):
        try:
            check()
        except UserError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError(
            where=f"export to {directory}",
            expected="a model that the original Octo can load, and a place for it",
            found=f"{len(problems)} obstacles",
            remedy="Fix each:" + "".join(f"\n  - {problem}" for problem in problems),
        )


def _check_unused(directory: pathlib.Path) -> None:
    if directory.is_file() or (directory.exists() and any(directory.iterdir())):
        raise UserError(
            where=str(directory),
            expected="a new or empty directory",
            found="a file" if directory.is_file() else "files",
            remedy="Name another.",
        )


def _write(
    export: OctoExport, config: Mapping[str, Any], directory: pathlib.Path, step: int
) -> None:
    folder = directory / str(step) / "default"
    folder.mkdir(parents=True, exist_ok=True)
    # Without what the original has no module for.
    params = jax.tree.map(np.asarray, _without_alignments(export.params))
    # msgpack in one file, the layout of Orbax in 2023 that the original reads.
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(params))
    example = serialization.msgpack_serialize(_example_batch(export))
    (directory / "example_batch.msgpack").write_bytes(example)
    files = {
        "dataset_statistics": export.statistics,
        "conventions": export.conventions,
        # `config.json` last: without it this is no checkpoint.
        "config": config,
    }
    for name, values in files.items():
        write_text_atomically(directory / f"{name}.json", json.dumps(values, indent=1) + "\n")


def _check_encoder(config: OctoConfig, name: str | None) -> None:
    """Checks the encoder's name: the original builds the T5 by name, with that model's sizes.

    It treats every encoder with "t5" in its name as a T5, and no other.
    """
    if name is not None and "t5" not in name:
        raise UserError(
            where=f"language_encoder {name}",
            expected="a name with 't5' in it, by which the original recognises a T5",
            found=name,
            remedy="Give a T5 of the Hugging Face hub, or a directory with t5 in its name.",
        )
    # Without a name the original builds t5-base.
    if name is None and config.language is not None and config.language.t5 != T5Config():
        raise UserError(
            where="model.language.t5",
            expected=f"the sizes of {_T5}, which the original would build",
            found=str(config.language.t5),
            remedy="Give an encoder of these sizes: --language_encoder NAME.",
        )


def _check_counterpart(config: OctoConfig) -> None:
    if any(vggt.is_input for vggt in config.geometry):
        raise UserError(
            where="model.vggt",
            expected="a model that the original Octo can load",
            found="geometry tokens, for which it has no tokenizer",
            remedy="Load the run's own checkpoint here instead.",
        )


def octo_model(config: OctoConfig, language_encoder: str = _T5) -> dict[str, Any]:
    """Returns the part `model` of the original's config; `translate` is the inverse.

    Raises:
      UserError: The original does not support a part of the model.
    """
    _check_counterpart(config)
    observations = {
        o.name: _observation(o)
        for o in config.observations
        if isinstance(o, ImageTokenizerConfig | LowdimTokenizerConfig)
    }
    tasks = {}
    if config.language is not None:
        kwargs = {"encoder": language_encoder, "finetune_encoder": config.language.finetune}
        tasks["language"] = _spec("model.components.tokenizers", "LanguageTokenizer", kwargs)
    return {
        "observation_tokenizers": observations,
        "task_tokenizers": tasks,
        "heads": {"action": _head(config.head)},
        "readouts": {"action": config.num_readouts},
        "token_embedding_size": config.embedding_dim,
        "transformer_kwargs": {
            "num_layers": config.transformer.num_layers,
            "mlp_dim": config.transformer.mlp_dim,
            "num_attention_heads": config.transformer.num_heads,
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
            # Octo adds its own position embeddings, per group.
            "add_position_embedding": False,
        },
        "max_horizon": config.max_horizon,
        "repeat_task_tokens": config.repeat_task_tokens,
        # The original's name for the opposite.
        "use_correct_attention": not config.legacy_attention,
    }


def _spec(module: str, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"module": f"octo.{module}", "name": name, "args": [], "kwargs": kwargs}


def _observation(config: ImageTokenizerConfig | LowdimTokenizerConfig) -> dict[str, Any]:
    tokenizers = "model.components.tokenizers"
    if isinstance(config, ImageTokenizerConfig):
        stem: dict[str, Any] = {
            "features": list(config.stem_features),
            "num_features": config.stem_dim,
        }
        # Its defaults have four entries, which further convolutions would run out of.
        if len(config.stem_features) > _DEFAULT_CONVOLUTIONS:
            per_layer = {"kernel_sizes": 3, "strides": 2, "padding": 1}
            stem |= {name: [n] * len(config.stem_features) for name, n in per_layer.items()}
        keys = [config.observation_key]
        kwargs = {
            "obs_stack_keys": keys,
            "task_stack_keys": keys,
            "encoder": _spec("model.components.vit_encoders", "SmallStem16", stem),
        }
        return _spec(tokenizers, "ImageTokenizer", kwargs)
    kwargs = {"obs_keys": [config.observation_key], "discretize": config.bins is not None}
    if config.bins is not None:
        bins = config.bins
        kwargs |= {"n_bins": bins.num_bins, "bin_type": bins.spacing}
        kwargs |= {"low": bins.low, "high": bins.high}
    return _spec(tokenizers, "LowdimObsTokenizer", kwargs)


def _head(config: HeadConfig) -> dict[str, Any]:
    heads = "model.components.action_heads"
    kwargs: dict[str, Any] = {
        "readout_key": "readout_action",
        "use_map": config.pooling == "map",
        "action_horizon": config.action_horizon,
        "action_dim": config.action_dim,
        "max_action": config.max_action,
    }
    if isinstance(config, RegressionConfig):
        name = "L1ActionHead" if config.error == "l1" else "MSEActionHead"
        return _spec(heads, name, kwargs)
    kwargs |= {
        "diffusion_steps": config.diffusion_steps,
        "time_dim": config.time_dim,
        "hidden_dim": config.hidden_dim,
        "num_blocks": config.num_blocks,
        "n_diffusion_samples": config.n_diffusion_samples,
        "dropout_rate": 0.0,
    }
    return _spec(heads, "DiffusionActionHead", kwargs)


def _text_processor(config: OctoConfig, language_encoder: str) -> dict[str, Any] | None:
    if config.language is None:
        return None
    tokenizer = {
        "max_length": config.language.max_length,
        "padding": "max_length",
        "truncation": True,
        "return_tensors": "np",
    }
    kwargs = {
        "tokenizer_name": language_encoder,
        "encode_with_model": False,
        "tokenizer_kwargs": tokenizer,
    }
    return _spec("data.utils.text_processing", "HFTokenizer", kwargs)


def _without_alignments(params: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the alignment parameters, which are used only in training."""
    transformer = params["octo_transformer"]
    kept = {name: part for name, part in transformer.items() if not name.startswith("alignments_")}
    return {**params, "octo_transformer": kept}


def _example_batch(export: OctoExport) -> dict[str, Any]:
    """Returns an example batch of zeros, with the dtypes of the original's loader: int64 ids."""
    config = dataclasses.replace(export.config, vggt=None, more_vggt=())
    spec = input_spec(config, 1, export.window_size)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
    observation, task = batch["observation"], batch["task"]
    real = np.ones((1, export.window_size), bool)
    names = [o.observation_key for o in export.config.observations]
    observation["timestep"] = np.zeros(real.shape, np.int32)
    observation["timestep_pad_mask"] = real
    # Octo pads `timestep` like an observation.
    observation["pad_mask_dict"] = dict.fromkeys([*names, "timestep"], real)
    task["pad_mask_dict"] = {}
    if "language_instruction" in task:
        ids = task["language_instruction"]
        task["language_instruction"] = {k: v.astype(np.int64) for k, v in ids.items()}
        task["pad_mask_dict"]["language_instruction"] = np.ones(1, bool)
    for image in export.config.images:
        shape = (1, image.image_size, image.image_size, 3)
        task[image.observation_key] = np.zeros(shape, np.uint8)
        # False: the example has no goal image.
        task["pad_mask_dict"][image.observation_key] = np.zeros(1, bool)
    return batch
