"""What a policy reads and what its actions mean, from its checkpoint."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.data.images import resize_image
from pipeline.data.schema import ACTION
from pipeline.data.statistics import FeatureStatistics
from pipeline.errors import UserError
from pipeline.files import from_json_text
from pipeline.loading.batch import BatchSpec, LeafSpec
from pipeline.loading.data_config import DataConfig, DatasetConfig, Normalization
from pipeline.loading.normalize import Normalizer, normalized_arrays, normalized_dims
from pipeline.loading.transforms.batch_transforms import Normalize, with_normalizers
from pipeline.loading.transforms.transform_chain import TransformChain
from pipeline.loading.window_reader import read_spec, step_spec
from train.checkpoints.checkpoint_store import Checkpoint
from train.octo.octo_config import OctoConfig

_RGB = ("uint8", (3,))
"""Dtype and last axis of an image."""
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
        values = checkpoint.datasets[path]
        # Checkpoints of the first releases have no features.
        if "features" not in values:
            raise UserError(
                where=f"checkpoint of step {checkpoint.step}, dataset {path}",
                expected="the shape of every feature, beside its statistics",
                found="none: it is from an earlier release",
                remedy=_OLD,
            )
        # Through JSON, for its checks of types and unknown fields.
        conventions = from_json_text(
            Conventions,
            json.dumps(values["conventions"]),
            where=f"checkpoint of step {checkpoint.step}, conventions of {path}",
            remedy=_OLD,
        )
        statistics = {
            key: FeatureStatistics.from_json(of_feature)
            for key, of_feature in values["statistics"].items()
        }
        features = {
            key: _step(key, feature, conventions) for key, feature in values["features"].items()
        }
        return cls(
            dataset=path,
            model=checkpoint.config.model,
            data=checkpoint.config.data,
            conventions=conventions,
            normalization=values["normalization"],
            statistics=statistics,
            features=features,
            action_dims=tuple(values["features"][ACTION]["dims"]),
            missing=_missing(checkpoint, path),
            resized={
                key.removeprefix("observation/"): tuple(shape)
                for key, shape in values.get("resized", {}).items()
            },
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Returns the keys of the features that training read from the dataset."""
        return self.data.keys_of(DatasetConfig(self.dataset, missing=tuple(self.missing)))

    @functools.cached_property
    def cameras(self) -> tuple[str, ...]:
        """Returns the cameras that the model reads, in the order of its tokens."""
        return tuple(self.model.image_shapes)

    @functools.cached_property
    def read(self) -> tuple[str, ...]:
        """Returns the observations that a batch of the policy holds before the transforms."""
        if not self.data.transforms:
            return self.model.input_keys
        # Any of them may be the input of a transform; tokens are only for the model.
        tokens = set(self.model.token_keys) - set(self.model.input_token_keys)
        return tuple(name for name in self.data.observations if name not in tokens)

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """Returns the observations that an encoder computes: read by the model, in the dataset."""
        return tuple(name for name in self.model.input_token_keys if name not in self.missing)

    @functools.cached_property
    def observed(self) -> dict[str, LeafSpec]:
        """Returns one step of every observation that an environment must provide, by name."""
        return {
            name: self.features[f"observation/{name}"]
            for name in self.read
            if name not in self.tokens and name not in self.missing
        }

    @functools.cached_property
    def leaves(self) -> dict[str, LeafSpec]:
        """Returns every array that the model reads, by sorted path, without the batch axis."""
        keys = ["observation/timestep_pad_mask"]
        for name in self.model.input_keys:
            keys.append(f"observation/{name}")
            mask = f"observation/pad_mask_dict/{name}"
            # What a transform adds without a mask is never missing.
            keys += [mask] * (mask in self.chain.spec)
        if self.data.has_goals:
            keys += [f"task/{camera}" for camera in self.cameras]
        spec = self.chain.spec
        unknown = [key for key in keys if key not in spec]
        if unknown:
            raise UserError(
                where="observations of the model",
                expected="some that data.observations or a transform gives",
                found=", ".join(unknown),
                remedy="Add them to data.observations, or remove their tokenizers.",
            )
        leaves = {key: LeafSpec(spec[key].dtype, spec[key].shape[1:]) for key in keys}
        if self.model.language is not None:
            for name in ("input_ids", "attention_mask"):
                leaf = LeafSpec("int32", (self.model.language.max_length,))
                leaves[f"task/language_instruction/{name}"] = leaf
            leaves["task/pad_mask_dict/language_instruction"] = LeafSpec("bool", ())
        # Sorted, as jax flattens dictionaries.
        return dict(sorted(leaves.items()))

    @functools.cached_property
    def before(self) -> BatchSpec:
        """Returns the types of a batch of one environment, before the transforms."""
        steps = {
            key: dataclasses.replace(leaf, shape=self.resized.get(_name(key), leaf.shape))
            for key, leaf in self.features.items()
        }
        return read_spec(self.data, steps, self._images, batch_size=1)

    @functools.cached_property
    def chain(self) -> TransformChain:
        """Returns the transforms of training, bound to this dataset's statistics."""
        chain = TransformChain.bind(self.data.transforms, self.before, seed=None)
        normalizers = {}
        for key, leaf in normalized_arrays(self.data, chain.spec, self._vectors).items():
            if _name(key) not in self.missing:
                mask = normalized_dims(leaf)
                statistics = [self.statistics[key]]
                normalizers[key] = Normalizer.create(statistics, [mask], self.normalization)
        return with_normalizers(chain, normalizers, seed=None)

    @functools.cached_property
    def normalized(self) -> tuple[str, ...]:
        """Returns the names of the observations that are normalised."""
        transforms = (stage.transform for stage in self.chain.stages)
        keys = [one.key for one in transforms if isinstance(one, Normalize)]
        return tuple(_name(key) for key in keys if key != ACTION)

    def resize(self, name: str, image: np.ndarray) -> np.ndarray:
        """Returns a camera's image, uint8 (y x 3), at the size that the loader reads it at."""
        if name not in self.resized:
            return image
        resized = np.empty(self.resized[name], np.uint8)
        resize_image(image, resized)
        return resized

    @property
    def _images(self) -> tuple[str, ...]:
        """Names of the observations that are images."""
        leaves = {_name(key): leaf for key, leaf in self.features.items() if key != ACTION}
        return tuple(n for n, leaf in leaves.items() if (leaf.dtype, leaf.shape[2:]) == _RGB)

    @property
    def _vectors(self) -> tuple[str, ...]:
        """Names of the stored observations that are read and have statistics."""
        return tuple(name for name in self.read if f"observation/{name}" in self.statistics)


def _step(key: str, feature: Mapping[str, Any], conventions: Conventions) -> LeafSpec:
    """Returns the type of one step of a described feature."""
    is_depth = feature.get("kind") == "depth"
    leaf = LeafSpec(feature["dtype"], tuple(feature["shape"]), is_depth=is_depth)
    return step_spec(key, leaf, tuple(feature["dims"]), [conventions])


def _name(key: str) -> str:
    return key.removeprefix("observation/")


def _select(checkpoint: Checkpoint, wanted: str | None) -> str:
    """Returns the path of a dataset given by path or name, or of any if it makes no difference."""
    datasets = checkpoint.datasets
    # A path decides, even if a name is equal to it.
    if wanted in datasets:
        return wanted
    if wanted is None:
        meanings = [_meaning(checkpoint, path) for path in datasets]
        # With the same meaning everywhere, any of them will do.
        if all(meaning == meanings[0] for meaning in meanings):
            return next(iter(datasets))
        found = "none named, and they differ in statistics or conventions"
    else:
        named = [path for path, values in datasets.items() if values["name"] == wanted]
        if len(named) == 1:
            return named[0]
        found = wanted
    raise UserError(
        where=f"checkpoint of step {checkpoint.step}, dataset",
        expected="one of " + ", ".join(f"{p} ({v['name']})" for p, v in datasets.items()),
        found=found,
        remedy="Choose the one with the robot, units and statistics that the policy acts with.",
    )


def _meaning(checkpoint: Checkpoint, path: str) -> dict[str, Any]:
    """Returns everything about a dataset that a policy's interface depends on."""
    values = checkpoint.datasets[path]
    names = checkpoint.config.model.input_keys
    # Statistics of what is not normalised make no difference.
    keys = [ACTION, *(f"observation/{n}" for n in names if checkpoint.config.data.normalizes(n))]
    return {
        "statistics": {key: values["statistics"].get(key) for key in keys},
        "conventions": values["conventions"],
        "normalization": values["normalization"],
        "missing": _missing(checkpoint, path) & set(names),
        "resized": values.get("resized", {}),
    }


def _missing(checkpoint: Checkpoint, path: str) -> frozenset[str]:
    parts = checkpoint.config.data.datasets
    return frozenset(next((part.missing for part in parts if part.path == path), ()))
