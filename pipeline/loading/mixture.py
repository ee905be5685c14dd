"""Checks that the datasets of a mixture agree in the types and meaning of what is read."""

import dataclasses
from collections.abc import Collection
from typing import Any, get_args

from pipeline.data.conventions import Conventions
from pipeline.data.dataset import Dataset
from pipeline.data.schema import ACTION, EPISODES, Column, Feature
from pipeline.data.token_provenance import check_same_encoder
from pipeline.errors import SchemaError, UserError
from pipeline.loading.data_config import Convention
from pipeline.loading.normalize import normalized_arrays
from pipeline.loading.transforms.gripper_rules import rules_by_index
from pipeline.loading.transforms.transform_chain import TransformChain
from pipeline.loading.window_reader import WindowReader


def check_datasets(window_reader: WindowReader) -> None:
    """Checks every dataset against the config and the other datasets.

    Args:
      window_reader: The `WindowReader` of the mixture.

    Raises:
      SchemaError: A feature is missing or has another type than in the other datasets, the action
        is no float32 vector, tokens come from another encoder, conventions differ, or an
        observation cannot be normalised.
      UserError: Goal images are wanted, but no camera is read; or a rule is for a gripper that a
        dataset lacks.
    """
    first = window_reader.datasets[0]
    for place, dataset in enumerate(window_reader.datasets):
        for wanted in window_reader.features:
            if (
                wanted.key.removeprefix("observation/")
                in window_reader.config.datasets[place].missing
            ):
                continue
            column, found = dataset.manifest.schema.find(wanted.key, dataset.path)
            if wanted.key == ACTION:
                _check_action(column, found, dataset.path)
                rules = window_reader.config.gripper_rules
                rules_by_index(rules, dataset.manifest.conventions, found.dims, dataset.path)
            _check_type(column, found, wanted, window_reader, dataset.path)
            _check_encoder(dataset, wanted.key, window_reader)
        _check_meaning(dataset, first, window_reader.config.may_differ)
    _check_rotations(window_reader)
    if window_reader.config.transforms:
        _check_dims(window_reader)
    _check_normalized(window_reader)
    _check_goals(window_reader)


def _check_action(column: Column, found: Feature, path: str) -> None:
    """Checks that the action is one vector per step; the loader makes the chunks of steps."""
    if column.name != EPISODES:
        raise SchemaError(
            where=f"{path}, {ACTION}",
            expected=f"a trajectory in the column {EPISODES}",
            found=f"the column {column.name}",
            remedy="Convert the dataset again, without a `column` for the action.",
        )
    if not column.is_lowdim(found):
        raise SchemaError(
            where=f"{path}, {ACTION}",
            expected="one float32 vector per step, or one float32 number",
            found=f"{found.dtype}{list(found.shape)}",
            remedy="Write the source with floats, the action of each step alone (training makes "
            "the chunks, of data.action_horizon steps), or map another key to it.",
        )


def _check_type(
    column: Column, found: Feature, wanted: Feature, window_reader: WindowReader, path: str
) -> None:
    """Checks that a dataset's feature fits the batch's array; a camera may be resized."""
    name = wanted.key.removeprefix("observation/")
    is_camera = name in window_reader.cameras
    # Camera on one side and vector on the other is no difference of size.
    is_alike = column.is_camera(found) == is_camera
    has_shape = column.in_batch(found).shape == wanted.shape
    # Cameras that the model reads may differ in size: the loader resizes them.
    fits = has_shape or (is_camera and name in window_reader.image_sizes)
    if is_alike and fits and found.batch_dtype == wanted.batch_dtype:
        return
    first = window_reader.datasets[window_reader.having(wanted.key)[0]]
    column_of = "" if is_alike else " in the column {}, with one record per {}"
    theirs, _ = first.manifest.schema.find(wanted.key, first.path)
    raise SchemaError(
        where=f"{path}, {wanted.key}",
        expected=f"{wanted.batch_dtype}{list(wanted.shape)}, as {first.path}"
        + column_of.format(theirs.name, theirs.per),
        found=f"{found.batch_dtype}{list(found.shape)}" + column_of.format(column.name, column.per),
        remedy=_how_to_differ(name, resizable=is_camera and is_alike),
    )


def _how_to_differ(name: str, *, resizable: bool) -> str:
    """Says what to do about a feature whose shape differs between datasets."""
    if name == ACTION:
        return "A model has one size of action: train on these datasets in runs of their own."
    why = "Only cameras that the model reads are resized to one size. " if resizable else ""
    return f"{why}Leave {name} out of data.observations, or name it in this dataset's `missing`."


def _check_normalized(window_reader: WindowReader) -> None:
    """Checks that normalised observations are float32 vectors: only these have statistics."""
    config = window_reader.config
    if config.normalized is None:
        return
    chain = TransformChain.bind(config.transforms, window_reader.spec(1), seed=None)
    every = dataclasses.replace(config, normalized=None)
    found = normalized_arrays(every, chain.spec, window_reader.lowdims)
    names = (key.removeprefix("observation/") for key in found if key != ACTION)
    # Stored ones that a transform takes out may be named, too.
    fit = dict.fromkeys((*window_reader.lowdims, *names))
    unfit = sorted(set(config.normalized) - fit.keys())
    if unfit:
        raise SchemaError(
            where="data.normalized",
            expected="float32 vectors of the trajectories or of transforms, of these: "
            + (", ".join(fit) or "none"),
            found=", ".join(unfit),
            remedy="Leave the others out of data.normalized.",
        )


def _check_encoder(dataset: Dataset, key: str, window_reader: WindowReader) -> None:
    """Checks that all datasets' tokens of one observation come from the same encoder."""
    pairs = zip(window_reader.datasets, window_reader.config.datasets, strict=True)
    first = next(d for d, part in pairs if key.removeprefix("observation/") not in part.missing)
    ours, theirs = (d.manifest.encoders.get(key) for d in (first, dataset))
    where = f"{dataset.path}, {key}, beside {first.path}"
    if ours is not None and theirs is not None:
        check_same_encoder(ours, theirs, where)
    elif ours is not theirs:
        # Both None is fine: all tokens are of the source, and nothing is known to differ.
        raise SchemaError(
            where=where,
            expected="tokens of one encoder in all datasets",
            found="computed ones beside some of the source, whose encoder is not known",
            remedy="Compute them for every dataset with `octograin tokens`.",
        )


def _check_goals(window_reader: WindowReader) -> None:
    """Checks that goal images have cameras; in `image_conditioned` every dataset needs one."""
    if not window_reader.config.has_goals:
        return
    for dataset, part in zip(window_reader.datasets, window_reader.config.datasets, strict=True):
        cameras = set(window_reader.cameras) - set(part.missing)
        # In "multimodal" a dataset without a camera still has its instructions.
        if not cameras and (
            not window_reader.cameras or window_reader.config.conditioning != "multimodal"
        ):
            raise UserError(
                where=f"{dataset.path}, conditioning {window_reader.config.conditioning}",
                expected="a camera, whose later images give the task",
                found=f"observations {', '.join(window_reader.config.observations)}"
                + (f", of which it lacks {', '.join(part.missing)}" if part.missing else ""),
                remedy="Read a camera, or take conditioning language_conditioned.",
            )


def _check_meaning(dataset: Dataset, first: Dataset, may_differ: Collection[str]) -> None:
    """Checks that the conventions which the loader does not convert agree in all datasets."""
    ours, theirs = (_meaning(d.manifest.conventions) for d in (first, dataset))
    differing = [n for n in ours if ours[n] != theirs[n] and n not in may_differ]
    if differing:
        remedy = (
            "Train on datasets with the same conventions; correct wrong ones with `octograin edit`."
        )
        if set(differing) <= set(get_args(Convention)):
            remedy += f" To mix them as they are: DataConfig(may_differ={tuple(differing)})."
        raise SchemaError(
            where=f"{dataset.path}, conventions",
            expected=", ".join(f"{name} {ours[name]}" for name in differing) + f", as {first.path}",
            found=", ".join(f"{name} {theirs[name]}" for name in differing),
            remedy=remedy,
        )


def _meaning(conventions: Conventions) -> dict[str, Any]:
    names = ("image_orientation", "rotation", "control_frequency_hz", "target_poses")
    # Signs and kinds of grippers are not compared: `StandardizeGripper` maps all to 0..1.
    dims = sorted(gripper.dim for gripper in conventions.all_grippers)
    shown = dims if len(dims) > 1 else next(iter(dims), None)
    return {name: getattr(conventions, name) for name in names} | {"gripper_dim": shown}


def _check_dims(window_reader: WindowReader) -> None:
    """Checks that datasets which name the dimensions of a vector agree: transforms go by them."""
    for feature in window_reader.features:
        named = {
            window_reader.datasets[place].path: found.dims
            for place in window_reader.having(feature.key)
            if (found := window_reader.stored(place, feature.key)).dims
        }
        path, *others = named or [""]
        for other in others:
            if named[other] != named[path]:
                raise SchemaError(
                    where=f"{other}, names of {feature.key}",
                    expected=f"{', '.join(named[path])}, as {path}",
                    found=", ".join(named[other]),
                    remedy="Give them the same names in their mappings: transforms go by names.",
                )


def _check_rotations(window_reader: WindowReader) -> None:
    """Checks that all datasets that state where a feature has its rotations state the same."""
    stated: dict[str, tuple[str, list[str]]] = {}
    for dataset, part in zip(window_reader.datasets, window_reader.config.datasets, strict=True):
        for feature in window_reader.features:
            if feature.key.removeprefix("observation/") in part.missing:
                continue
            poses = dataset.manifest.conventions.rotations
            found = sorted(str(pose) for pose in poses if pose.feature == feature.key)
            # A dataset without them is of before there were any; it contradicts no other.
            path, expected = stated.setdefault(feature.key, (dataset.path, found))
            if not expected:
                stated[feature.key] = (dataset.path, found)
            elif found and found != expected:
                raise SchemaError(
                    where=f"{dataset.path}, conventions.rotations",
                    expected=f"{', '.join(expected)}, as {path}",
                    found=", ".join(found),
                    remedy="Convert them to one representation in the mappings, or leave the "
                    "feature out of data.observations.",
                )
