"""What a policy reads and what its actions mean, as its checkpoint says."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.batch import LeafSpec
from pipeline.config import DataConfig, Normalization
from pipeline.conventions import Conventions, standardize_gripper
from pipeline.errors import UserError
from pipeline.files import from_json_text
from pipeline.normalize import Normalizer
from pipeline.schema import ACTION
from pipeline.statistics import FeatureStatistics
from train.checkpoints import Checkpoint
from train.octo.config import OctoConfig

PROPRIO = "proprio"
"""The one observation that is normalised."""
_OLD = "Read it with the release that wrote it, or train again."


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """The border between a model and the world, for one of the datasets that it was trained on."""

    dataset: str
    """Path of the dataset whose statistics and conventions are used, as the run named it."""
    model: OctoConfig
    """What reads the observations."""
    data: DataConfig
    """What was read in training; its window, conditioning and text length are the policy's."""
    conventions: Conventions
    """What the dataset's numbers mean."""
    normalization: Normalization
    """How its actions and proprioception were normalised."""
    statistics: Mapping[str, FeatureStatistics]
    """What they were normalised by, by feature."""
    features: Mapping[str, LeafSpec]
    """One step of every feature that was read in training, by key, in the dtype of a batch."""
    action_dims: tuple[str, ...]
    """Name of each number of an action; empty where the dataset names none."""
    missing: frozenset[str] = frozenset()
    """Observations that the dataset lacks: the model sees zeros, masked, as in training."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, dataset: str | None = None) -> "PolicySpec":
        """What a checkpoint says.

        Args:
          checkpoint: Of a run.
          dataset: Path or name of the dataset whose statistics and conventions are used. None: of
            any, where they are the same for all.

        Raises:
          UserError: No such dataset, or none is named and they differ; it lists them.
        """
        path = _select(checkpoint, dataset)
        values = checkpoint.datasets[path]
        if "features" not in values:
            raise UserError(
                where=f"checkpoint of step {checkpoint.step}, dataset {path}",
                expected="the shape of every feature, beside its statistics",
                found="none: it is of an earlier release",
                remedy=_OLD,
            )
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
            key: LeafSpec(feature["dtype"], tuple(feature["shape"]))
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
        )

    @functools.cached_property
    def cameras(self) -> tuple[str, ...]:
        """Images that the model reads, in the order of its tokens."""
        return tuple(image.observation_key for image in self.model.cameras)

    @functools.cached_property
    def tokens(self) -> tuple[str, ...]:
        """Observations that an encoder computes: those that the model reads and the dataset has."""
        return tuple(name for name in self.model.input_token_keys if name not in self.missing)

    @functools.cached_property
    def observed(self) -> dict[str, LeafSpec]:
        """One step of every observation that the model reads and the world has to show, by name."""
        return {
            name: self.features[f"observation/{name}"]
            for name in self.model.input_keys
            if name not in self.tokens and name not in self.missing
        }

    @functools.cached_property
    def leaves(self) -> dict[str, LeafSpec]:
        """Every array of a batch that the model reads, by path, sorted; without the batch axis."""
        window = self.data.window_size
        leaves = {"observation/timestep_pad_mask": LeafSpec("bool", (window,))}
        for name in self.model.input_keys:
            leaf = self.features[f"observation/{name}"]
            shape = (self.data.window_of(name), *leaf.shape)
            leaves[f"observation/{name}"] = LeafSpec(leaf.dtype, shape)
            leaves[f"observation/pad_mask_dict/{name}"] = LeafSpec("bool", (window,))
        if self.model.language is not None:
            for name in ("input_ids", "attention_mask"):
                leaf = LeafSpec("int32", (self.model.language.max_length,))
                leaves[f"task/language_instruction/{name}"] = leaf
            leaves["task/pad_mask_dict/language_instruction"] = LeafSpec("bool", ())
        if self.data.has_goals:
            for camera in self.cameras:
                leaves[f"task/{camera}"] = self.features[f"observation/{camera}"]
        return dict(sorted(leaves.items()))

    def normalize_proprio(self, proprio: np.ndarray) -> np.ndarray:
        """What the model reads of a raw vector, float32 (d)."""
        with np.errstate(over="ignore"):  # what is not finite is found in the actions
            return self._normalizers[PROPRIO].normalize(proprio[None], np.zeros(1, np.int64))[0]

    def normalize_actions(self, actions: np.ndarray) -> np.ndarray:
        """What a chunk of stored actions is in a batch: 1 = open, normalised; float32 (h a)."""
        standardized = standardize_gripper(actions, self.conventions)[None]
        return self._normalizers[ACTION].normalize(standardized, np.zeros(1, np.int64))[0]

    def unnormalize_actions(self, chunks: np.ndarray) -> np.ndarray:
        """Predicted chunks in the dataset's units, float32 (b h a); the gripper stays 1 = open.

        The inverse of `normalize_actions` but for the gripper, which `restore_gripper` brings back
        to the stored commands.
        """
        return self._normalizers[ACTION].unnormalize(chunks, np.zeros(len(chunks), np.int64))

    @functools.cached_property
    def _normalizers(self) -> dict[str, Normalizer]:
        """The loader's own, of this dataset alone."""
        (action_dim,) = self.features[ACTION].shape
        masks = {ACTION: self.conventions.normalized_dims(action_dim)}
        key = f"observation/{PROPRIO}"
        if key in self.features and PROPRIO not in self.missing:
            masks[PROPRIO] = np.ones(self.features[key].shape, bool)
        statistics = {ACTION: self.statistics[ACTION], PROPRIO: self.statistics.get(key)}
        return {
            name: Normalizer.create([statistics[name]], [mask], self.normalization)
            for name, mask in masks.items()
        }


def _select(checkpoint: Checkpoint, wanted: str | None) -> str:
    """The path of a dataset that is named by its path or name, or need not be named."""
    datasets = checkpoint.datasets
    if wanted in datasets:
        return wanted
    if wanted is None:
        meanings = [_meaning(checkpoint, path) for path in datasets]
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
        remedy="Name the one whose robot, units and statistics the policy is to act with.",
    )


def _meaning(checkpoint: Checkpoint, path: str) -> dict[str, Any]:
    """All of a dataset that a policy's border depends on."""
    values = checkpoint.datasets[path]
    names = checkpoint.config.model.input_keys
    keys = [ACTION, *(f"observation/{name}" for name in names if name == PROPRIO)]
    return {
        "statistics": {key: values["statistics"].get(key) for key in keys},
        "conventions": values["conventions"],
        "normalization": values["normalization"],
        "missing": _missing(checkpoint, path) & set(names),
    }


def _missing(checkpoint: Checkpoint, path: str) -> frozenset[str]:
    parts = checkpoint.config.data.datasets
    return frozenset(next((part.missing for part in parts if part.path == path), ()))
