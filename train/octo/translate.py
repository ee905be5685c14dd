"""From the `config.json` of an Octo checkpoint to the config of the model that takes its weights.

Source: the configs of octo-small-1.5 and octo-base-1.5, and the code that reads them. What a config
leaves out has the default of that code; sizes that it does not tell are read off the parameters.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pipeline.errors import UserError
from train.octo.config import (
    BinsConfig,
    DiffusionConfig,
    HeadConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
)

Shapes = Mapping[str, tuple[int, ...]]
"""Of the parameters, by `/`-joined path."""

_TRANSFORMER = "octo_transformer"
_T5 = f"{_TRANSFORMER}/task_tokenizers_language/hf_model"
_HEADS: Mapping[str, Literal["diffusion", "l1", "mse"]] = {
    "DiffusionActionHead": "diffusion",
    "L1ActionHead": "l1",
    "MSEActionHead": "mse",
}


def translate(model: Mapping[str, Any], shapes: Shapes, where: str) -> OctoConfig:
    """Returns the config of a checkpoint's model.

    Args:
      model: The part `model` of its `config.json`.
      shapes: Of its parameters.
      where: The file, for errors.

    Raises:
      UserError: Naming all that this code has no counterpart for.
    """
    problems: list[str] = []
    try:
        config = _Translator(model, shapes, problems.append).config()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"{type(error).__name__}: {error}")
        config = None
    if problems or config is None:
        raise UserError(
            where=where,
            expected="a model of Octo 1.0 or 1.5 with image, low-dimensional and T5 tokenizers, "
            "and a diffusion, L1 or MSE head",
            found="; ".join(problems),
            remedy="Take another checkpoint, or write the model config by hand and say in "
            "pretrained_differs which tensors may differ.",
        )
    return config


class _Translator:
    """One translation; `problem` takes what has no counterpart."""

    def __init__(
        self, model: Mapping[str, Any], shapes: Shapes, problem: Callable[[str], None]
    ) -> None:
        self._model = model
        self._shapes = shapes
        self._problem = problem

    def config(self) -> OctoConfig:
        """The whole model."""
        kwargs = self._model["transformer_kwargs"]
        for name in ("dropout_rate", "attention_dropout_rate", "add_position_embedding"):
            self._refuse(f"transformer_kwargs.{name}", kwargs.get(name, 0))
        tokenizers = list(self._observations())
        readouts = dict(self._model.get("readouts", {}))
        if list(readouts) != ["action"]:
            self._problem(f"readouts {readouts}: one called action is known")
        return OctoConfig(
            embedding_dim=self._model["token_embedding_size"],
            max_horizon=self._model["max_horizon"],
            transformer=TransformerConfig(
                num_layers=kwargs["num_layers"],
                mlp_dim=kwargs["mlp_dim"],
                num_heads=kwargs["num_attention_heads"],
            ),
            images=tuple(t for t in tokenizers if isinstance(t, ImageTokenizerConfig)),
            lowdims=tuple(t for t in tokenizers if isinstance(t, LowdimTokenizerConfig)),
            language=self._language(),
            head=self._head(),
            num_readouts=readouts.get("action", 1),
            repeat_task_tokens=self._model.get("repeat_task_tokens", False),
            legacy_attention=not self._model.get("use_correct_attention", False),
        )

    def _observations(self) -> Iterator[ImageTokenizerConfig | LowdimTokenizerConfig]:
        for name, spec in self._model["observation_tokenizers"].items():
            kwargs = dict(spec["kwargs"])
            match spec["name"]:
                case "ImageTokenizer":
                    yield self._image(name, kwargs)
                case "LowdimObsTokenizer":
                    yield self._lowdim(name, kwargs)
                case other:
                    self._problem(f"observation_tokenizers.{name}: {other}")

    def _image(self, name: str, kwargs: dict[str, Any]) -> ImageTokenizerConfig:
        place = f"observation_tokenizers.{name}"
        encoder = kwargs.pop("encoder")
        (key,) = self._keys(kwargs.pop("obs_stack_keys"))
        goals = self._keys(kwargs.pop("task_stack_keys", ()))
        if goals != [key]:
            self._problem(f"{place}.task_stack_keys {goals}: {[key]} is known")
        for option, value in kwargs.items():
            self._refuse(f"{place}.{option}", value, harmless=option in {"num_tokens"})
        stem = dict(encoder["kwargs"])
        if encoder["name"] != "SmallStem16":
            self._problem(f"{place}.encoder {encoder['name']}: SmallStem16 is known")
        num_tokens = self._shapes[f"{_TRANSFORMER}/obs_{name}_pos_embedding"][2]
        features = tuple(stem.get("features", (32, 96, 192, 384)))
        return ImageTokenizerConfig(
            name=name,
            observation_key=key,
            image_size=math.isqrt(num_tokens) * 2 ** len(features),
            stem_features=features,
            stem_dim=stem.get("num_features", 512),
        )

    def _lowdim(self, name: str, kwargs: dict[str, Any]) -> LowdimTokenizerConfig:
        (key,) = self._keys(kwargs["obs_keys"])
        bins = None
        if kwargs.get("discretize", False):
            bins = BinsConfig(
                num_bins=kwargs.get("n_bins", 256),
                spacing=kwargs.get("bin_type", "uniform"),
                low=kwargs.get("low", 0),
                high=kwargs.get("high", 1),
            )
        num_dims = self._shapes[f"{_TRANSFORMER}/obs_{name}_pos_embedding"][2]
        return LowdimTokenizerConfig(name, key, num_dims, bins)

    def _language(self) -> LanguageConfig | None:
        specs = dict(self._model.get("task_tokenizers", {}))
        spec = specs.pop("language", None)
        for name, other in specs.items():
            self._problem(f"task_tokenizers.{name}: {other['name']}")
        if spec is None:
            return None
        kwargs = spec["kwargs"]
        if spec["name"] != "LanguageTokenizer" or "t5" not in str(kwargs.get("encoder")):
            self._problem(f"task_tokenizers.language: {spec['name']} of {kwargs.get('encoder')}")
        vocab_size, d_model = self._shapes[f"{_T5}/shared/embedding"]
        layer = f"{_T5}/encoder/block/0/layer"
        buckets, heads = self._shapes[f"{layer}/0/SelfAttention/relative_attention_bias/embedding"]
        t5 = T5Config(
            vocab_size=vocab_size,
            d_model=d_model,
            d_kv=self._shapes[f"{layer}/0/SelfAttention/q/kernel"][1] // heads,
            d_ff=self._shapes[f"{layer}/1/DenseReluDense/wi/kernel"][1],
            num_layers=len({p.split("/")[5] for p in self._shapes if f"{_T5}/encoder/block" in p}),
            num_heads=heads,
            num_buckets=buckets,
        )
        max_length = self._shapes[f"{_TRANSFORMER}/task_language_pos_embedding"][1]
        return LanguageConfig(t5, max_length, finetune=kwargs.get("finetune_encoder", False))

    def _head(self) -> HeadConfig:
        specs = self._model["heads"]
        if list(specs) != ["action"]:
            self._problem(f"heads {list(specs)}: one called action is known")
        spec = specs["action"]
        kwargs = dict(spec["kwargs"])
        kind = _HEADS.get(spec["name"])
        if kind is None:
            self._problem(f"heads.action: {spec['name']}")
        for name in ("dropout_rate", "loss_weight_by_step"):
            self._refuse(f"heads.action.{name}", kwargs.get(name, 0))
        horizon = kwargs.get("action_horizon", kwargs.get("pred_horizon", 1))
        uses_map = kwargs.get("use_map", kind != "diffusion")
        shared = {
            "action_horizon": horizon,
            "action_dim": kwargs.get("action_dim", 7),
            "pooling": "map" if uses_map else "mean",
            "max_action": float(kwargs.get("max_action", 5.0)),
        }
        if kind in ("l1", "mse"):
            return RegressionConfig(error=kind, **shared)
        return DiffusionConfig(
            diffusion_steps=kwargs.get("diffusion_steps", 20),
            time_dim=kwargs.get("time_dim", 32),
            hidden_dim=kwargs.get("hidden_dim", 256),
            num_blocks=kwargs.get("num_blocks", 3),
            n_diffusion_samples=kwargs.get("n_diffusion_samples", 1),
            **shared,
        )

    def _keys(self, patterns: Any) -> list[str]:
        """Octo's stack keys are patterns; only plain names have a counterpart."""
        keys: list[str] = [patterns] if isinstance(patterns, str) else list(patterns or ())
        for key in keys:
            if not key.replace("_", "").isalnum():
                self._problem(f"stack key {key!r}: plain names are known")
        return keys

    def _refuse(self, place: str, value: Any, *, harmless: bool = False) -> None:
        if value and not harmless:
            self._problem(f"{place} {value}")
