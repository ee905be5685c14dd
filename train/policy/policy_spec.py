"""What a policy reads and what its actions mean, from its checkpoint."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import sentencepiece

from pipeline.data.conventions import Conventions
from pipeline.data.images import resize_image
from pipeline.data.schema import ACTION
from pipeline.data.statistics import FeatureStatistics
from pipeline.errors import UserError
from pipeline.files import from_json_text
from pipeline.loading.batch import BatchSpec, LeafSpec
from pipeline.loading.data_config import DataConfig, Normalization
from pipeline.loading.normalize import make_normalizer, normalized_arrays, normalized_dims
from pipeline.loading.text import Encode
from pipeline.loading.transforms.batch_transforms import instruction_spec
from pipeline.loading.transforms.normalize_transforms import Normalize, with_normalizers
from pipeline.loading.transforms.transform_chain import TransformChain
from pipeline.loading.window_reader import read_spec, step_spec
from train.checkpoints.checkpoint_store import Checkpoint
from train.octo.octo_config import OctoConfig

_OLD = "Read it with the release that wrote it, or train again."


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """The interface of a model to the world, for one of the datasets that it was trained on."""

    dataset: str
    """Path in the run of the dataset whose statistics and conventions are used."""
    model: OctoConfig
    """Config of the model."""
    data: DataConfig
    """Data config in training; its window, conditioning and text length also hold for the
    policy."""
    conventions: Conventions
    """Meaning of the dataset's values."""
    normalization: Normalization
    """Normalisation of actions and observations."""
    statistics: Mapping[str, FeatureStatistics]
    """Statistics for the normalisation, by feature."""
    features: Mapping[str, LeafSpec]
    """Type of one step of every feature read in training, by key: its stored shape, a batch's
    dtype."""
    action_dims: tuple[str, ...]
    """Name of each action dimension; empty if the dataset has none."""
    vocabulary: bytes = dataclasses.field(repr=False)
    """SentencePiece model of the instructions."""
    missing: frozenset[str] = frozenset()
    """Observations that the dataset lacks: the model reads masked zeros, as in training."""
    resized: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Shape in a batch, by name, of the cameras that the loader resized in training. They are
    stored, and given to the policy, in another shape."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, dataset: str | None = None) -> "PolicySpec":
        """Makes the spec from a checkpoint.

        Args:
          checkpoint: Checkpoint of a run.
          dataset: Path or name of the dataset whose statistics and conventions are used. None: any,
            if they are the same for all.

        Raises:
          UserError: There is no such dataset, or none is given and they differ; it lists them.
        """
        path = _select(checkpoint, dataset)
        where = f"checkpoint of step {checkpoint.step}, dataset {path}"
        values, data = checkpoint.datasets[path], checkpoint.config.data
        # Checkpoints of the first releases have no features.
        if "features" not in values:
            raise UserError(
                where=where,
                expected="the shape of every feature, beside its statistics",
                found="none: it is from an earlier release",
                remedy=_OLD,
            )
        # Through JSON, for its checks of types and unknown fields.
        text = json.dumps(values["conventions"])
        conventions = from_json_text(Conventions, text, where=f"{where}, conventions", remedy=_OLD)
        features, statistics = values["features"], values["statistics"]
        return cls(
            dataset=path,
            model=checkpoint.config.model,
            data=data,
            conventions=conventions,
            normalization=values["normalization"],
            statistics={k: FeatureStatistics.from_json(one) for k, one in statistics.items()},
            features={key: _step(key, one, conventions) for key, one in features.items()},
            action_dims=tuple(features[ACTION]["dims"]),
            vocabulary=checkpoint.vocabulary,
            missing=_missing(data, path),
            resized={_name(k): tuple(shape) for k, shape in values.get("resized", {}).items()},
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Returns the keys of the features that training read from the dataset."""
        return tuple(key for key in self.data.keys if _name(key) not in self.missing)

    @functools.cached_property
    def encode(self) -> Encode:
        """Returns the function that turns an instruction into token ids."""
        vocabulary = sentencepiece.SentencePieceProcessor()
        vocabulary.LoadFromSerializedProto(self.vocabulary)
        return vocabulary.EncodeAsIds

    @functools.cached_property
    def cameras(self) -> tuple[str, ...]:
        """Returns the cameras that the model reads, in the order of its tokens."""
        return tuple(self.model.image_shapes)

    @functools.cached_property
    def tokens(self) -> dict[str, LeafSpec]:
        """Returns one step of every observation that an encoder computes, by name."""
        return self._steps(self.model.input_token_keys)

    @functools.cached_property
    def observed(self) -> dict[str, LeafSpec]:
        """Returns one step of every observation that an environment must provide, by name."""
        # Any of them may be the input of a transform; tokens are only for the model.
        names = self.data.observations if self.data.transforms else self.model.input_keys
        return self._steps(name for name in names if name not in self.model.token_keys)

    def _steps(self, names: Iterable[str]) -> dict[str, LeafSpec]:
        """Returns one step of each of these observations that the dataset has."""
        return {n: self.features[f"observation/{n}"] for n in names if n not in self.missing}

    @functools.cached_property
    def read(self) -> tuple[str, ...]:
        """Returns the paths of the arrays of observations, their masks and goals, as read."""
        parts = ("observation", "observation/pad_mask_dict")
        keys = [f"{part}/{name}" for part in parts for name in self.data.observations]
        return (*keys, *(f"task/{camera}" for camera in self.cameras if self.data.has_goals))

    @functools.cached_property
    def leaves(self) -> dict[str, LeafSpec]:
        """Returns every array that the model reads, by sorted path, without the batch axis."""
        spec, names, language = self.chain.spec, self.model.input_keys, self.model.language
        inputs = [f"observation/{name}" for name in names]
        # What a transform adds without a mask is never missing.
        masks = {f"observation/pad_mask_dict/{name}" for name in names} & spec.keys()
        goals = [f"task/{camera}" for camera in self.cameras if self.data.has_goals]
        keys = ["observation/timestep_pad_mask", *inputs, *masks, *goals]
        unknown = [key for key in keys if key not in spec]
        if unknown:
            raise UserError(
                where="observations of the model",
                expected="some that data.observations or a transform gives",
                found=", ".join(unknown),
                remedy="Add them to data.observations, or remove their tokenizers.",
            )
        leaves = {key: spec[key] for key in keys}
        if language is not None:
            leaves |= instruction_spec(1, language.max_length)
        # Sorted, as jax flattens dictionaries.
        return {k: LeafSpec(leaf.dtype, leaf.shape[1:]) for k, leaf in sorted(leaves.items())}

    @functools.cached_property
    def before(self) -> BatchSpec:
        """Returns the types of a batch of one environment, before the transforms."""
        steps = {
            key: dataclasses.replace(leaf, shape=self.resized.get(_name(key), leaf.shape))
            for key, leaf in self.features.items()
        }
        images = [_name(key) for key, leaf in steps.items() if leaf.is_image]
        return read_spec(self.data, steps, images, batch_size=1)

    @functools.cached_property
    def chain(self) -> TransformChain:
        """Returns the transforms of training, bound to this dataset's statistics."""
        chain = TransformChain.bind(self.data.transforms, self.before, seed=None)
        # Also what is not read, which stays zero.
        vectors = {_name(key) for key in self.statistics if key != ACTION}
        normalizers = {}
        for key, leaf in normalized_arrays(self.data, chain.spec, vectors).items():
            statistics, dims = [self.statistics[key]], [normalized_dims(leaf)]
            normalizers[key] = make_normalizer(statistics, dims, self.normalization)
        return with_normalizers(chain, normalizers, seed=None)

    @property
    def normalized(self) -> tuple[str, ...]:
        """Returns the names of the observations that are normalised."""
        transforms = (stage.transform for stage in self.chain.stages)
        # Not of its subclass for actions.
        return tuple(_name(one.key) for one in transforms if type(one) is Normalize)

    def resize(self, step: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns a step whose images, uint8 (y x 3), have the size at which the loader reads."""
        resized = {**step}
        for name in self.resized.keys() & step.keys():
            resized[name] = np.empty(self.resized[name], np.uint8)
            resize_image(step[name], resized[name])
        return resized


def _step(key: str, feature: Mapping[str, Any], conventions: Conventions) -> LeafSpec:
    """Returns the type of one step of a described feature."""
    is_depth = feature.get("kind") == "depth"
    leaf = LeafSpec(feature["dtype"], tuple(feature["shape"]), is_depth=is_depth)
    return step_spec(key, leaf, tuple(feature["dims"]), [conventions])


def _name(key: str) -> str:
    return key.removeprefix("observation/")


def _missing(data: DataConfig, path: str) -> frozenset[str]:
    """Returns the observations that a dataset lacks."""
    return frozenset(next((part.missing for part in data.datasets if part.path == path), ()))


def datasets_to_choose(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Returns the paths of which a policy must be given one; empty where all mean the same."""
    config, datasets = checkpoint.config, checkpoint.datasets
    names = config.model.input_keys
    # Statistics of what is not normalised make no difference.
    keys = [ACTION, *(f"observation/{name}" for name in names if config.data.normalizes(name))]
    first, *others = [
        (
            values["conventions"],
            [values["statistics"].get(key) for key in keys],
            values.get("resized", {}),
            _missing(config.data, path) & {*names},
        )
        for path, values in datasets.items()
    ]
    return tuple(datasets) if any(meaning != first for meaning in others) else ()


def _select(checkpoint: Checkpoint, wanted: str | None) -> str:
    """Returns the path of a dataset given by path or name, or of any if it makes no difference."""
    datasets = checkpoint.datasets
    if wanted is None:
        found = [] if datasets_to_choose(checkpoint) else [*datasets][:1]
    else:
        # A path decides, even if a name is equal to it.
        named = [path for path, values in datasets.items() if values["name"] == wanted]
        found = [wanted] if wanted in datasets else named
    if len(found) == 1:
        return found[0]
    raise UserError(
        where=f"checkpoint of step {checkpoint.step}, dataset",
        expected="one of " + ", ".join(f"{p} ({v['name']})" for p, v in datasets.items()),
        found="none named, and they differ in statistics or conventions"
        if wanted is None
        else wanted,
        remedy="Choose the one with the robot, units and statistics that the policy acts with.",
    )
