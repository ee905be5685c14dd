"""What a policy reads and what its actions mean, from its checkpoint."""

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pipeline.data.conventions import Conventions, standardize_gripper
from pipeline.data.images import resize_image
from pipeline.data.schema import ACTION
from pipeline.data.statistics import FeatureStatistics
from pipeline.errors import UserError
from pipeline.files import from_json_text
from pipeline.loading.batch import LeafSpec
from pipeline.loading.data_config import DataConfig, DatasetConfig, Normalization
from pipeline.loading.normalize import Normalizer
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
    """Shape of one step of every feature read in training, by key, in a batch's dtype."""
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
            key: LeafSpec(
                feature["dtype"],
                tuple(feature["shape"]),
                is_depth=feature.get("kind") == "depth",
            )
            for key, feature in values["features"].items()
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
    def tokens(self) -> tuple[str, ...]:
        """Returns the observations that an encoder computes: read by the model, in the dataset."""
        return tuple(name for name in self.model.input_token_keys if name not in self.missing)

    @functools.cached_property
    def observed(self) -> dict[str, LeafSpec]:
        """Returns one step of every observation that an environment must provide, by name."""
        return {
            name: self.features[f"observation/{name}"]
            for name in self.model.input_keys
            if name not in self.tokens and name not in self.missing
        }

    @functools.cached_property
    def leaves(self) -> dict[str, LeafSpec]:
        """Returns every array that the model reads, by sorted path, without the batch axis."""
        window = self.data.window_size
        leaves = {"observation/timestep_pad_mask": LeafSpec("bool", (window,))}
        for name in self.model.input_keys:
            leaf = self.features[f"observation/{name}"]
            shape = (self.data.window_of(name), *self.resized.get(name, leaf.shape))
            leaves[f"observation/{name}"] = LeafSpec(leaf.dtype, shape)
            leaves[f"observation/pad_mask_dict/{name}"] = LeafSpec("bool", (window,))
        if self.model.language is not None:
            for name in ("input_ids", "attention_mask"):
                leaf = LeafSpec("int32", (self.model.language.max_length,))
                leaves[f"task/language_instruction/{name}"] = leaf
            leaves["task/pad_mask_dict/language_instruction"] = LeafSpec("bool", ())
        if self.data.has_goals:
            for camera in self.cameras:
                leaf = self.features[f"observation/{camera}"]
                shape = self.resized.get(camera, leaf.shape)
                leaves[f"task/{camera}"] = LeafSpec(leaf.dtype, shape)
        # Sorted, as jax flattens dictionaries.
        return dict(sorted(leaves.items()))

    @functools.cached_property
    def normalized(self) -> tuple[str, ...]:
        """Returns the names of the observations that training normalised."""
        return tuple(name for name in self._normalizers if name != ACTION)

    def as_read(self, name: str, value: np.ndarray) -> np.ndarray:
        """Returns an environment's observation of one step as it is in a batch.

        Args:
          name: Name of the observation.
          value: A vector, float32 (d) in the dataset's units, is normalised if training did so; an
            image, uint8 (y x 3), is resized if the loader did so.
        """
        if name in self.normalized:
            with np.errstate(over="ignore"):  # `Policy` reports actions that are not finite
                # Rows of one step, by the statistics of dataset 0, the only one here.
                return self._normalizers[name].normalize(value[None], np.zeros(1, np.int64))[0]
        if name not in self.resized:
            return value
        resized = np.empty(self.resized[name], np.uint8)
        resize_image(value, resized)
        return resized

    def normalize_actions(self, actions: np.ndarray) -> np.ndarray:
        """Converts stored actions to those in a batch: 1 = open, normalised; float32 (h a)."""
        # Standardised before it is normalised, in the loader's order.
        standardized = standardize_gripper(actions, self.conventions)[None]
        return self._normalizers[ACTION].normalize(standardized, np.zeros(1, np.int64))[0]

    def unnormalize_actions(self, chunks: np.ndarray) -> np.ndarray:
        """Converts predicted chunks to the dataset's units, float32 (b h a), with 1 = open.

        It is the inverse of `normalize_actions` except for the gripper, which `restore_gripper`
        converts back to the stored commands.
        """
        return self._normalizers[ACTION].unnormalize(chunks, np.zeros(len(chunks), np.int64))

    @functools.cached_property
    def _normalizers(self) -> dict[str, Normalizer]:
        """Returns the loader's normalizers, for this dataset alone."""
        # An action has one axis.
        (action_dim,) = self.features[ACTION].shape
        masks = {ACTION: self.conventions.normalized_dims(action_dim)}
        statistics = {ACTION: self.statistics[ACTION]}
        for name in _normalized(self.data, self.statistics, self.features):
            if name not in self.missing:
                key = f"observation/{name}"
                masks[name] = np.ones(self.features[key].shape, bool)
                statistics[name] = self.statistics[key]
        return {
            name: Normalizer.create([statistics[name]], [mask], self.normalization)
            for name, mask in masks.items()
        }


def _normalized(
    data: DataConfig, statistics: Collection[str], features: Mapping[str, LeafSpec]
) -> list[str]:
    """Returns the names of the observations that were normalised in training.

    Args:
      data: Data config of the run.
      statistics: Keys that have statistics: the float32 features of the trajectories.
      features: Shapes of one step of every feature, by key.
    """
    return [
        name
        for name in data.observations
        for key in [f"observation/{name}"]
        if data.normalizes(name) and key in statistics and len(features[key].shape) == 1
    ]


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
