"""Translates between the `config.json` of an Octo checkpoint and the config of a model.

Source: the configs of octo-small-1.5 and octo-base-1.5, and the code that reads them. A missing
  entry gets that code's default; sizes that the config lacks are read from the parameters' shapes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.config_checks import ConfigError, listed
from pipeline.errors import UserError
from train.octo.octo_config import (
    BinsConfig,
    DiffusionConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    LowdimTokenizerConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    TransformerConfig,
)
from train.octo.protocols import HeadConfig

Json = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the parameters by path, joined by `/`."""

_Part = TypeVar("_Part")

_TRANSFORMER = "octo_transformer"
_T5 = f"{_TRANSFORMER}/task_tokenizers_language/hf_model"
_DEFAULT_CONVOLUTIONS = 4
"""Convolutions in the original stem by default; further ones need a stride in its config."""

_ANY: Any = object()
"""Any value is supported: the option is translated, or changes nothing."""


def _options(translated: str, **fixed: Any) -> Json:
    """Returns the options of one module of the original, each with its one supported value."""
    return dict.fromkeys(translated.split(), _ANY) | fixed


_MODEL = _options(
    "observation_tokenizers task_tokenizers heads readouts transformer_kwargs token_embedding_size "
    "max_horizon repeat_task_tokens use_correct_attention"
)
_BLOCKS = _options(
    "num_layers mlp_dim num_attention_heads",
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    # Octo adds its own position embeddings, per group.
    add_position_embedding=False,
)
_TOKENIZERS = {
    "ImageTokenizer": _options(
        # `num_tokens` belongs to the token learner, which is not supported.
        "encoder obs_stack_keys task_stack_keys num_tokens",
        use_token_learner=False,
        conditioning_type="none",
        task_film_keys=(),
        proper_pad_mask=True,
    ),
    "LowdimObsTokenizer": _options(
        "obs_keys discretize n_bins bin_type low high", proper_pad_mask=True
    ),
}
_STEM = {
    "SmallStem16": _options(
        "features num_features kernel_sizes strides padding",
        use_film=False,
        patch_size=16,
        img_norm_type="default",
    )
}
_LANGUAGE = {"LanguageTokenizer": _options("encoder finetune_encoder", proper_pad_mask=True)}
_SCORE = "diffusion_steps time_dim hidden_dim num_blocks n_diffusion_samples"
"""Options of the diffusion head that have the names of `DiffusionConfig`'s fields."""
_CHUNK = "action_horizon pred_horizon action_dim use_map max_action"
_READOUT = {"readout_key": "readout_action"}
_HEADS = {
    "DiffusionActionHead": _options(
        f"{_CHUNK} {_SCORE}", loss_type="mse", dropout_rate=0.0, use_layer_norm=True, **_READOUT
    ),
    "L1ActionHead": _options(_CHUNK, loss_type="l1", **_READOUT),
    "MSEActionHead": _options(_CHUNK, loss_type="mse", **_READOUT),
}


def _per_convolution(num_layers: int) -> Json:
    """Returns the options of a stem that have an entry for each convolution."""
    values = {"kernel_sizes": 3, "strides": 2, "padding": 1}
    return {name: (value,) * num_layers for name, value in values.items()}


def translate(model: Mapping[str, Any], shapes: Shapes, where: str) -> OctoConfig:
    """Returns the config of a checkpoint's model.

    Args:
      model: The part `model` of its `config.json`.
      shapes: The shapes of its parameters.
      where: Name of the file, for the error message.

    Raises:
      UserError: Parts are not supported here; all of them are listed.
    """
    reader = _Reader(shapes)
    reader.check_options("model", model, _MODEL)
    specs = reader.part("model", lambda _: dict(model["observation_tokenizers"]))
    tokenizers = [
        reader.part(f"observation_tokenizers.{name}", reader.read_observation, name, spec)
        for name, spec in (specs or {}).items()
    ]
    fields: Json = {
        "embedding_dim": reader.part("model", lambda _: model["token_embedding_size"]),
        "max_horizon": reader.part("model", lambda _: model["max_horizon"]),
        "transformer": reader.part("transformer_kwargs", reader.read_transformer, model),
        "language": reader.part("task_tokenizers.language", reader.read_language, model),
        "head": reader.part("heads.action", reader.read_head, model),
        "num_readouts": reader.part("readouts", lambda _: _only_action(model["readouts"])),
        "images": tuple(t for t in tokenizers if isinstance(t, ImageTokenizerConfig)),
        "lowdims": tuple(t for t in tokenizers if isinstance(t, LowdimTokenizerConfig)),
        # The original's defaults for what old configs lack.
        "repeat_task_tokens": model.get("repeat_task_tokens", False),
        "legacy_attention": not model.get("use_correct_attention", False),
    }
    # A config of missing parts would raise for another reason.
    config = None if reader.problems else reader.part("model", lambda _: OctoConfig(**fields))
    if config is None:
        raise UserError(
            where=where,
            expected="a model of Octo 1.0 or 1.5 with image, low-dimensional and T5 tokenizers, "
            "and a diffusion, L1 or MSE head",
            found="; ".join(reader.problems),
            remedy="Use another checkpoint; this code cannot represent this one's model.",
        )
    return config


class _Reader:
    """Reads the parts of a model's config; `problems` collects what is not supported."""

    def __init__(self, shapes: Shapes) -> None:
        self.problems: list[str] = []
        self._shapes = shapes

    def part(self, place: str, read: Callable[..., _Part], *values: Any) -> _Part | None:
        """Returns `read(place, *values)`; if it fails, records a problem and returns None."""
        try:
            return read(place, *values)
        except KeyError as error:
            self.problems.append(f"{place}: {error} is missing")
        except ConfigError as error:
            self.problems.append(listed([problem.below(place) for problem in error.problems]))
        except ValueError as error:
            self.problems.append(f"{place}: {error}")
        except (TypeError, AttributeError, IndexError) as error:
            # Somebody else's JSON may hold anything at any place.
            self.problems.append(f"{place}: a value of another kind than expected ({error})")
        return None

    def check_options(self, place: str, values: Mapping[str, Any], options: Json) -> None:
        """Records a problem for each option that is not supported."""
        for option, value in values.items():
            # JSON has no tuples.
            found = tuple(value) if isinstance(value, list) else value
            if option not in options:
                self.problems.append(f"{place}.{option} {value!r}: this option is not supported")
                continue
            supported = options[option]
            # None, false, 0 and empty all mean "not used".
            if supported is not _ANY and found != supported and (found or supported):
                only = f"only {supported!r} is supported"
                self.problems.append(f"{place}.{option} {value!r}: {only}")

    def module(self, place: str, spec: Any, supported: Mapping[str, Json]) -> tuple[str, Json]:
        """Returns the name and the options of a module."""
        if not isinstance(spec, Mapping) or not isinstance(spec.get("kwargs"), Mapping):
            raise ValueError(f"a module with name and kwargs is expected, not {spec!r}")
        if spec.get("args"):
            self.problems.append(f"{place}.args {spec['args']!r}: only named options are supported")
        if spec["name"] not in supported:
            raise ValueError(f"{spec['name']}: only {' or '.join(supported)} is supported")
        kwargs = dict(spec["kwargs"])
        self.check_options(place, kwargs, supported[spec["name"]])
        return spec["name"], kwargs

    def shape(self, path: str) -> tuple[int, ...]:
        if path not in self._shapes:
            raise ValueError(f"the checkpoint has no tensor {path}")
        return self._shapes[path]

    def read_transformer(self, place: str, model: Mapping[str, Any]) -> TransformerConfig:
        kwargs = model["transformer_kwargs"]
        self.check_options(place, kwargs, _BLOCKS)
        return TransformerConfig(
            num_layers=kwargs["num_layers"],
            mlp_dim=kwargs["mlp_dim"],
            num_heads=kwargs["num_attention_heads"],
        )

    def read_observation(
        self, place: str, name: str, spec: Any
    ) -> ImageTokenizerConfig | LowdimTokenizerConfig | None:
        kind, kwargs = self.module(place, spec, _TOKENIZERS)
        if kind == "ImageTokenizer":
            return self._image(place, name, kwargs)
        key = self._plain_key(f"{place}.obs_keys", kwargs["obs_keys"])
        bins = _read_bins(kwargs) if kwargs.get("discretize", False) else None
        return LowdimTokenizerConfig(name, key, self._num_tokens(name), bins)

    def _image(self, place: str, name: str, kwargs: Json) -> ImageTokenizerConfig | None:
        key = self._plain_key(f"{place}.obs_stack_keys", kwargs["obs_stack_keys"])
        goals = _keys(kwargs.get("task_stack_keys"))
        if goals != [key]:
            self.problems.append(f"{place}.task_stack_keys {goals}: only {[key]} is supported")
        stem = self.part(f"{place}.encoder", self._stem, kwargs["encoder"])
        if stem is None:
            return None
        features, stem_dim = stem
        # The config has no image size; the position embeddings have one place per token.
        num_tokens = self._num_tokens(name)
        side = math.isqrt(num_tokens)
        if side**2 != num_tokens:
            raise ValueError(f"{num_tokens} tokens: only square images are supported")
        # A token of the stem covers 2 ** layers pixels.
        return ImageTokenizerConfig(name, key, side * 2 ** len(features), features, stem_dim)

    def _stem(self, place: str, spec: Any) -> tuple[tuple[int, ...], int]:
        _, kwargs = self.module(place, spec, _STEM)
        features = tuple(kwargs.get("features", (32, 96, 192, 384)))
        per_layer = _per_convolution(len(features))
        given = {name: kwargs[name] for name in per_layer if name in kwargs}
        self.check_options(place, given, per_layer)
        return features, kwargs.get("num_features", 512)

    def _plain_key(self, place: str, patterns: str | Sequence[str]) -> str:
        """Returns the single key; Octo's are patterns, of which only plain names are supported."""
        keys = _keys(patterns)
        if len(keys) != 1 or not keys[0].replace("_", "").isalnum():
            self.problems.append(f"{place} {keys}: only one plain name is supported")
        return "".join(keys)

    def _num_tokens(self, name: str) -> int:
        return self.shape(f"{_TRANSFORMER}/obs_{name}_pos_embedding")[2]

    def read_language(self, place: str, model: Mapping[str, Any]) -> LanguageConfig | None:
        specs = dict(model.get("task_tokenizers", {}))
        spec = specs.pop("language", None)
        self.problems += [f"task_tokenizers.{name}: only language is supported" for name in specs]
        if spec is None:
            return None
        _, kwargs = self.module(place, spec, _LANGUAGE)
        if "t5" not in str(kwargs.get("encoder")):
            raise ValueError(f"encoder {kwargs.get('encoder')}: only a T5 is supported")
        return LanguageConfig(
            t5=self._t5(),
            max_length=self.shape(f"{_TRANSFORMER}/task_language_pos_embedding")[1],
            finetune=kwargs.get("finetune_encoder", False),
        )

    def _t5(self) -> T5Config:
        vocab_size, d_model = self.shape(f"{_T5}/shared/embedding")
        layer = f"{_T5}/encoder/block/0/layer"
        buckets, heads = self.shape(f"{layer}/0/SelfAttention/relative_attention_bias/embedding")
        return T5Config(
            vocab_size=vocab_size,
            d_model=d_model,
            # The matrix is (d_model, heads * d_kv).
            d_kv=self.shape(f"{layer}/0/SelfAttention/q/kernel")[1] // heads,
            d_ff=self.shape(f"{layer}/1/DenseReluDense/wi/kernel")[1],
            # Distinct numbers of blocks, from the paths.
            num_layers=len({p.split("/")[5] for p in self._shapes if f"{_T5}/encoder/block" in p}),
            num_heads=heads,
            num_buckets=buckets,
        )

    def read_head(self, place: str, model: Mapping[str, Any]) -> DiffusionConfig | RegressionConfig:
        name, kwargs = self.module(place, _only_action(model["heads"]), _HEADS)
        is_diffusion = name == "DiffusionActionHead"
        # As in the original, L1 and MSE heads pool by attention by default.
        uses_map = kwargs.get("use_map", not is_diffusion)
        chunk: Json = {
            # Octo 1.0 calls it pred_horizon.
            "action_horizon": kwargs.get("action_horizon", kwargs.get("pred_horizon", 1)),
            "action_dim": kwargs.get("action_dim", 7),
            "pooling": "map" if uses_map else "mean",
            "max_action": float(kwargs.get("max_action", 5.0)),
        }
        if is_diffusion:
            return DiffusionConfig(**chunk, **{n: kwargs[n] for n in _SCORE.split() if n in kwargs})
        return RegressionConfig(error="l1" if name == "L1ActionHead" else "mse", **chunk)


def _only_action(specs: Mapping[str, Any]) -> Any:
    """Returns the value of the single key `action`."""
    if list(specs) != ["action"]:
        raise ValueError(f"{dict(specs)}: only one called action is supported")
    return specs["action"]


def _read_bins(kwargs: Json) -> BinsConfig:
    spacing = kwargs.get("bin_type", "uniform")
    if spacing not in ("uniform", "normal"):
        raise ValueError(f"bin_type {spacing!r}: only 'uniform' and 'normal' are supported")
    # Without bounds the defaults of `BinsConfig` hold, which are the original's.
    bounds = {name: float(kwargs[name]) for name in ("low", "high") if kwargs.get(name) is not None}
    return BinsConfig(kwargs.get("n_bins", 256), spacing, **bounds)


def _keys(patterns: str | Sequence[str] | None) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())


def original_config(config: OctoConfig, window_size: int, language_encoder: str) -> Json:
    """Returns the `config.json` of a model; `translate` is the inverse of its part `model`.

    Parts that the original has no module for are left out; see `parts_without_counterpart`.

    Args:
      config: Config of the model.
      window_size: Window size in steps during training.
      language_encoder: The Hugging Face name of a T5 with the model's sizes.
    """
    language, tasks, text_processor = config.language, {}, None
    if language is not None:
        kwargs = {"encoder": language_encoder, "finetune_encoder": language.finetune}
        tasks["language"] = _spec("model.components.tokenizers", "LanguageTokenizer", kwargs)
        text_processor = _text_processor(language_encoder, language.max_length)
    model = {
        "observation_tokenizers": {
            part.name: _WRITERS[type(part)](part)
            for part in config.observations
            if type(part) in _WRITERS
        },
        "task_tokenizers": tasks,
        "heads": {"action": _WRITERS[type(config.head)](config.head)},
        "readouts": {"action": config.num_readouts},
        "token_embedding_size": config.embedding_dim,
        "transformer_kwargs": _BLOCKS
        | {
            "num_layers": config.transformer.num_layers,
            "mlp_dim": config.transformer.mlp_dim,
            "num_attention_heads": config.transformer.num_heads,
        },
        "max_horizon": config.max_horizon,
        "repeat_task_tokens": config.repeat_task_tokens,
        # The original's name for the opposite.
        "use_correct_attention": not config.legacy_attention,
    }
    is_trained = language is not None and language.finetune
    return {
        "model": model,
        "window_size": window_size,
        "text_processor": text_processor,
        # What the original's finetuning freezes by default.
        "optimizer": {"frozen_keys": [] if is_trained else ["*hf_model*"]},
    }


def _spec(module: str, name: str, kwargs: Json) -> Json:
    return {"module": f"octo.{module}", "name": name, "args": [], "kwargs": kwargs}


def _write_image(config: ImageTokenizerConfig) -> Json:
    stem: Json = {"features": list(config.stem_features), "num_features": config.stem_dim}
    # Its defaults have four entries, which further convolutions would run out of.
    if len(config.stem_features) > _DEFAULT_CONVOLUTIONS:
        stem |= _per_convolution(len(config.stem_features))
    encoder = _spec("model.components.vit_encoders", "SmallStem16", stem)
    keys = [config.observation_key]
    kwargs = {"obs_stack_keys": keys, "task_stack_keys": keys, "encoder": encoder}
    return _spec("model.components.tokenizers", "ImageTokenizer", kwargs)


def _write_vector(config: LowdimTokenizerConfig) -> Json:
    kwargs: Json = {"obs_keys": [config.observation_key], "discretize": config.bins is not None}
    if config.bins is not None:
        bins = config.bins
        kwargs |= {"n_bins": bins.num_bins, "bin_type": bins.spacing}
        kwargs |= {"low": bins.low, "high": bins.high}
    return _spec("model.components.tokenizers", "LowdimObsTokenizer", kwargs)


def _write_diffusion(config: DiffusionConfig) -> Json:
    score = {n: getattr(config, n) for n in _SCORE.split()} | {"dropout_rate": 0.0}
    return _spec("model.components.action_heads", "DiffusionActionHead", _chunk(config) | score)


def _write_regression(config: RegressionConfig) -> Json:
    name = "L1ActionHead" if config.error == "l1" else "MSEActionHead"
    return _spec("model.components.action_heads", name, _chunk(config))


def _chunk(config: DiffusionConfig | RegressionConfig) -> Json:
    return _READOUT | {
        "use_map": config.pooling == "map",
        "action_horizon": config.action_horizon,
        "action_dim": config.action_dim,
        "max_action": config.max_action,
    }


_WRITERS: Mapping[type, Callable[[Any], Json]] = {
    ImageTokenizerConfig: _write_image,
    LowdimTokenizerConfig: _write_vector,
    DiffusionConfig: _write_diffusion,
    RegressionConfig: _write_regression,
}
"""Writes each part for which the original has a module."""


def parts_without_counterpart(config: OctoConfig) -> list[str]:
    """Returns the parts of a model that act and that the original has no module for."""
    tokenizers = [
        f"{type(part).__name__} {part.name!r}"
        for part in config.observations
        if type(part) not in _WRITERS
    ]
    return tokenizers + _head_without_counterpart(config.head)


def _head_without_counterpart(head: HeadConfig) -> list[str]:
    if isinstance(head, DiffusionConfig) and head.prediction != "noise":
        return [f"DiffusionConfig that predicts the {head.prediction}"]
    return [] if type(head) in _WRITERS else [type(head).__name__]


def _text_processor(language_encoder: str, max_length: int) -> Json:
    tokenizer = {
        "max_length": max_length,
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
