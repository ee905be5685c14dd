"""Translates the `config.json` of an Octo checkpoint to a config of this project.

Source: the configs of octo-small-1.5 and octo-base-1.5, and the code that reads them. A missing
  entry gets that code's default; sizes that the config lacks are read from the parameters' shapes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pipeline.config_checks import ConfigError, listed
from pipeline.errors import UserError
from train.octo.octo_config import (
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
    # None, false, 0 and empty all mean "not used".
    return value == known or not (value or known)


Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the parameters by path, joined by `/`."""

_Read = TypeVar("_Read")

_TRANSFORMER = "octo_transformer"
_T5 = f"{_TRANSFORMER}/task_tokenizers_language/hf_model"


def translate(model: Mapping[str, Any], shapes: Shapes, where: str) -> OctoConfig:
    """Returns the config of a checkpoint's model.

    Args:
      model: The part `model` of its `config.json`.
      shapes: The shapes of its parameters.
      where: Name of the file, for the error message.

    Raises:
      UserError: Parts are not supported here; all of them are listed.
    """
    translator = _Translator(model, shapes)
    config = translator.config()
    if config is None:
        raise UserError(
            where=where,
            expected="a model of Octo 1.0 or 1.5 with image, low-dimensional and T5 tokenizers, "
            "and a diffusion, L1 or MSE head",
            found="; ".join(translator.problems),
            remedy="Use another checkpoint; this code cannot represent this one's model.",
        )
    return config


class _Translator:
    """One translation; `problems` collects what is not supported."""

    def __init__(self, model: Mapping[str, Any], shapes: Shapes) -> None:
        self.problems: list[str] = []
        self._model = model
        self._shapes = shapes

    def config(self) -> OctoConfig | None:
        """Returns the whole config; None if there are problems."""
        self._check_options("model", self._model, MODEL)
        # Listed now, because reading them collects problems.
        tokenizers = list(self._observations())
        fields: dict[str, Any] = {
            "embedding_dim": self._part("model", lambda: self._model["token_embedding_size"]),
            "max_horizon": self._part("model", lambda: self._model["max_horizon"]),
            "transformer": self._part("transformer_kwargs", self._transformer),
            "language": self._part("task_tokenizers.language", self._language),
            "head": self._part("heads.action", self._head),
            "num_readouts": self._part("readouts", self._num_readouts),
        }
        # A config of missing parts would raise for another reason.
        if self.problems:
            return None
        return self._part(
            "model",
            lambda: OctoConfig(
                images=tuple(t for t in tokenizers if isinstance(t, ImageTokenizerConfig)),
                lowdims=tuple(t for t in tokenizers if isinstance(t, LowdimTokenizerConfig)),
                # The original's defaults for what old configs lack.
                repeat_task_tokens=self._model.get("repeat_task_tokens", False),
                legacy_attention=not self._model.get("use_correct_attention", False),
                **fields,
            ),
        )

    def _part(self, place: str, read: Callable[[], _Read]) -> _Read | None:
        """Returns what `read` returns; if it fails, records a problem and returns None."""
        try:
            return read()
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

    def _check_options(self, place: str, options: Mapping[str, Any], known: Options) -> None:
        self.problems += find_problems(place, options, known)

    def _options(self, place: str, spec: Any) -> dict[str, Any]:
        """Returns the options of a module, which the original builds from its name and keywords."""
        if not isinstance(spec, Mapping) or not isinstance(spec.get("kwargs"), Mapping):
            raise ValueError(f"a module with name and kwargs is expected, not {spec!r}")
        if spec.get("args"):
            self.problems.append(f"{place}.args {spec['args']!r}: only named options are supported")
        return dict(spec["kwargs"])

    def _transformer(self) -> TransformerConfig:
        kwargs = self._model["transformer_kwargs"]
        self._check_options("transformer_kwargs", kwargs, BLOCKS)
        return TransformerConfig(
            num_layers=kwargs["num_layers"],
            mlp_dim=kwargs["mlp_dim"],
            num_heads=kwargs["num_attention_heads"],
        )

    def _num_readouts(self) -> int:
        readouts = dict(self._model["readouts"])
        if list(readouts) != ["action"]:
            raise ValueError(f"{readouts}: only one called action is supported")
        return readouts["action"]

    def _observations(self) -> Iterator[ImageTokenizerConfig | LowdimTokenizerConfig | None]:
        place = "observation_tokenizers"
        specs = self._part("model", lambda: dict(self._model[place]))
        for name, spec in (specs or {}).items():
            # Default arguments bind the name of this round.
            yield self._part(f"{place}.{name}", lambda n=name, s=spec: self._observation(n, s))

    def _observation(
        self, name: str, spec: Mapping[str, Any]
    ) -> ImageTokenizerConfig | LowdimTokenizerConfig:
        place = f"observation_tokenizers.{name}"
        kwargs = self._options(place, spec)
        match spec["name"]:
            case "ImageTokenizer":
                return self._image(place, name, kwargs)
            case "LowdimObsTokenizer":
                return self._lowdim(place, name, kwargs)
            case other:
                supported = "only ImageTokenizer and LowdimObsTokenizer are supported"
                raise ValueError(f"{other}: {supported}")

    def _image(self, place: str, name: str, kwargs: Mapping[str, Any]) -> ImageTokenizerConfig:
        self._check_options(place, kwargs, IMAGE)
        key = self._plain_key(f"{place}.obs_stack_keys", kwargs["obs_stack_keys"])
        goals = _keys(kwargs.get("task_stack_keys"))
        if goals != [key]:
            self.problems.append(f"{place}.task_stack_keys {goals}: only {[key]} is supported")
        stem = self._options(f"{place}.encoder", kwargs["encoder"])
        features = tuple(stem.get("features", (32, 96, 192, 384)))
        if kwargs["encoder"]["name"] == "SmallStem16":
            self._check_options(f"{place}.encoder", stem, stem_options(len(features)))
        else:
            found = kwargs["encoder"]["name"]
            self.problems.append(f"{place}.encoder {found}: only SmallStem16 is supported")
        # The config has no image size; the position embeddings have one place per token.
        num_tokens = self._shape(f"{_TRANSFORMER}/obs_{name}_pos_embedding")[2]
        side = math.isqrt(num_tokens)
        if side**2 != num_tokens:
            raise ValueError(f"{num_tokens} tokens: only square images are supported")
        return ImageTokenizerConfig(
            name=name,
            observation_key=key,
            # A token of the stem covers 2 ** layers pixels.
            image_size=side * 2 ** len(features),
            stem_features=features,
            stem_dim=stem.get("num_features", 512),
        )

    def _lowdim(self, place: str, name: str, kwargs: Mapping[str, Any]) -> LowdimTokenizerConfig:
        self._check_options(place, kwargs, LOWDIM)
        key = self._plain_key(f"{place}.obs_keys", kwargs["obs_keys"])
        num_dims = self._shape(f"{_TRANSFORMER}/obs_{name}_pos_embedding")[2]
        bins = _bins(kwargs) if kwargs.get("discretize", False) else None
        return LowdimTokenizerConfig(name, key, num_dims, bins)

    def _language(self) -> LanguageConfig | None:
        specs = dict(self._model.get("task_tokenizers", {}))
        spec = specs.pop("language", None)
        self.problems += [f"task_tokenizers.{name}: only language is supported" for name in specs]
        if spec is None:
            return None
        place = "task_tokenizers.language"
        kwargs = self._options(place, spec)
        if spec["name"] != "LanguageTokenizer" or "t5" not in str(kwargs.get("encoder")):
            found = f"{spec['name']} of {kwargs.get('encoder')}"
            raise ValueError(f"{found}: only LanguageTokenizer of a T5 is supported")
        self._check_options(place, kwargs, LANGUAGE)
        return LanguageConfig(
            t5=self._t5(),
            max_length=self._shape(f"{_TRANSFORMER}/task_language_pos_embedding")[1],
            finetune=kwargs.get("finetune_encoder", False),
        )

    def _t5(self) -> T5Config:
        vocab_size, d_model = self._shape(f"{_T5}/shared/embedding")
        layer = f"{_T5}/encoder/block/0/layer"
        buckets, heads = self._shape(f"{layer}/0/SelfAttention/relative_attention_bias/embedding")
        return T5Config(
            vocab_size=vocab_size,
            d_model=d_model,
            # The matrix is (d_model, heads * d_kv).
            d_kv=self._shape(f"{layer}/0/SelfAttention/q/kernel")[1] // heads,
            d_ff=self._shape(f"{layer}/1/DenseReluDense/wi/kernel")[1],
            # Distinct numbers of blocks, from the paths.
            num_layers=len({p.split("/")[5] for p in self._shapes if f"{_T5}/encoder/block" in p}),
            num_heads=heads,
            num_buckets=buckets,
        )

    def _head(self) -> HeadConfig:
        specs = self._model["heads"]
        if list(specs) != ["action"]:
            raise ValueError(f"{list(specs)}: only one called action is supported")
        spec = specs["action"]
        kwargs = self._options("heads.action", spec)
        if spec["name"] not in HEADS:
            raise ValueError(f"{spec['name']}: only {', '.join(HEADS)} are supported")
        kind, options = HEADS[spec["name"]]
        self._check_options("heads.action", kwargs, options)
        return _head_config(kind, kwargs)

    def _plain_key(self, place: str, patterns: str | Sequence[str]) -> str:
        """Returns the single key; Octo's are patterns, of which only plain names are supported."""
        keys = _keys(patterns)
        if len(keys) != 1 or not keys[0].replace("_", "").isalnum():
            self.problems.append(f"{place} {keys}: only one plain name is supported")
        return "".join(keys)

    def _shape(self, path: str) -> tuple[int, ...]:
        if path not in self._shapes:
            raise ValueError(f"the checkpoint has no tensor {path}")
        return self._shapes[path]


def _head_config(kind: Kind, kwargs: Mapping[str, Any]) -> HeadConfig:
    # Octo 1.0 calls it pred_horizon.
    horizon = kwargs.get("action_horizon", kwargs.get("pred_horizon", 1))
    # As in the original, L1 and MSE heads pool by attention by default.
    uses_map = kwargs.get("use_map", kind != "diffusion")
    chunk: dict[str, Any] = {
        "action_horizon": horizon,
        "action_dim": kwargs.get("action_dim", 7),
        "pooling": "map" if uses_map else "mean",
        "max_action": float(kwargs.get("max_action", 5.0)),
    }
    if kind == "diffusion":
        return DiffusionConfig(**chunk, **{name: kwargs[name] for name in SCORE & kwargs.keys()})
    return RegressionConfig(error=kind, **chunk)


def _bins(kwargs: Mapping[str, Any]) -> BinsConfig:
    spacing = kwargs.get("bin_type", "uniform")
    if spacing not in ("uniform", "normal"):
        raise ValueError(f"bin_type {spacing!r}: only 'uniform' and 'normal' are supported")
    # Without bounds the defaults of `BinsConfig` hold, which are the original's.
    bounds = {name: float(kwargs[name]) for name in ("low", "high") if kwargs.get(name) is not None}
    return BinsConfig(kwargs.get("n_bins", 256), spacing, **bounds)


def _keys(patterns: str | Sequence[str] | None) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns or ())
