"""The keys that a `features.json` declares, as source keys."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from converters.rlds.example_parsing import mismatch
from converters.sources.source import STEPS, SourceKey
from pipeline.errors import SchemaError

UNKNOWN = -1
"""A size of an image that `features.json` does not declare."""
_MAX_VALUES = 2**31
"""Most values of one step's tensor: more do not fit in a record."""
_MAX_VIEWS = 64
"""Most images of a sequence: no robot has more cameras."""


def declared_keys(features: Any, where: str) -> dict[str, SourceKey]:
    """The keys of a feature dictionary of tensorflow-datasets, in alphabetical order.

    Args:
      features: The feature of an episode.
      where: The `features.json`, for errors.

    Raises:
      SchemaError: Where it has no steps, or they are not declared by their keys.
    """
    if not isinstance(features, tfds.features.FeaturesDict) or "steps" not in features:
        raise mismatch(where, "an RLDS feature dictionary with `steps`", one_line(features))
    leaves = dict(_leaves(features, ""))
    if not any(key.startswith(STEPS) for key in leaves):
        raise _steps_as_a_value(where, features["steps"])
    # In alphabetical order, which does not depend on how the features were declared.
    keys = [part for key in sorted(leaves) for part in _source_keys(key, leaves[key])]
    return {key.key: _bounded(key) for key in keys}


def _steps_as_a_value(where: str, steps: Any) -> SchemaError:
    """The error for `steps` that are not declared by their keys."""
    is_bytes = np.dtype(getattr(steps, "np_dtype", None) or "f4").kind in "OSU"
    return SchemaError(
        where=f"{where}, steps",
        expected="a dataset or sequence of a dictionary with the keys of a step",
        found=one_line(steps) + (", bytes such as serialized Examples" if is_bytes else ""),
        remedy="Parse the steps at the source, and write them as tfds.features.Dataset with the "
        "features of a step.",
    )


def _bounded(key: SourceKey) -> SourceKey:
    """A key that can be stored only where one step of it fits in a record."""
    if key.kind not in ("tensor", "image") or math.prod(key.shape) < _MAX_VALUES:
        return key
    words = f"{key.dtype}{list(key.shape)}, of more values than a record holds"
    return dataclasses.replace(key, kind="other", shape=(), dtype=words)


def _leaves(
    feature: tfds.features.FeatureConnector, path: str
) -> Iterator[tuple[str, tfds.features.FeatureConnector]]:
    """Every (path, feature) below a feature; `steps` is the one sequence that is entered.

    It is a Dataset or, with the same bytes, a Sequence, whose class the former derives from.
    """
    if isinstance(feature, tfds.features.Sequence) and path == "steps":
        feature = feature.feature
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, child in feature.items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    else:
        yield path, feature


def _source_keys(key: str, feature: Any) -> list[SourceKey]:
    """The declared type of a leaf of tensorflow-datasets; of a sequence of images, of each."""
    lengths, inner = _unwrapped(feature)
    found = _source_key(key, inner)
    if not lengths:
        return [found]
    num_values = math.prod(lengths)
    # -1 is a length that may be any.
    if min(lengths) < 1 or found.kind == "other":
        words = f"{one_line(feature)} of any length" if -1 in lengths else one_line(feature)
        has_images = found.has_images or found.kind == "image"
        return [SourceKey(key, "other", (), words, has_images=has_images)]
    if found.kind == "image" and num_values > _MAX_VIEWS:
        words = f"{one_line(feature)} of more than {_MAX_VIEWS} images"
        return [SourceKey(key, "other", (), words, has_images=True)]
    if found.kind == "image":
        views = [f"{key}[{view}]" for view in range(num_values)]
        return [
            dataclasses.replace(found, key=name, lengths=lengths, view=view)
            for view, name in enumerate(views)
        ]
    if found.kind == "tensor":
        return [dataclasses.replace(found, shape=(*lengths, *found.shape), lengths=lengths)]
    return [_texts(dataclasses.replace(found, lengths=lengths), num_values, feature)]


def _unwrapped(feature: Any) -> tuple[tuple[int, ...], Any]:
    """(lengths, feature) inside nested sequences; a length is -1 where it may be any."""
    # A Video derives from Sequence, and is no sequence of its own here.
    if type(feature) is not tfds.features.Sequence:  # not those that derive from it, as Video does
        return (), feature
    lengths, inner = _unwrapped(feature.feature)
    return (feature.to_json_content().length, *lengths), inner


def _source_key(key: str, feature: Any) -> SourceKey:
    """The declared type of a leaf that is no sequence."""
    shape: Any = feature.shape
    np_dtype: Any = feature.np_dtype  # of a nested feature a dict, which numpy refuses
    if isinstance(feature, tfds.features.Text):
        return SourceKey(key, "text", (), "utf8")
    if isinstance(feature, tfds.features.Image) and shape[-1] is not None:
        size = tuple(length or UNKNOWN for length in shape)
        return SourceKey(key, "image", size, np.dtype(np_dtype).name)
    encoding = _encoding(feature)
    dense = isinstance(feature, tfds.features.Tensor) and None not in shape
    if not dense or encoding != "none":
        words = one_line(feature)
        words += f" with the encoding {encoding}" if encoding != "none" else ""
        return SourceKey(key, "other", (), words, has_images=_has_images(feature))
    dtype = np.dtype(np_dtype)
    # "O", "S" and "U" are texts.
    if dtype.kind not in "OSU":
        return SourceKey(key, "tensor", tuple(shape), dtype.name)
    return _texts(SourceKey(key, "text", (), "utf8"), math.prod(shape), feature)


def _texts(key: SourceKey, num_values: int, feature: Any) -> SourceKey:
    """A text, also where it is a tensor or sequence of one; several cannot be read."""
    if num_values == 1:
        return key
    return SourceKey(key.key, "other", (), f"{one_line(feature)}, of texts")


def _has_images(feature: Any) -> bool:
    """Whether any part of a nested or encoded feature is a camera."""
    if isinstance(feature, tfds.features.Sequence):  # a Video is one
        return _has_images(feature.feature)
    if isinstance(feature, tfds.features.FeaturesDict):
        return any(map(_has_images, feature.values()))
    is_rgb = feature.shape[2:] == (3,) and np.dtype(feature.np_dtype) == np.uint8
    return isinstance(feature, tfds.features.Image) or is_rgb


def _encoding(feature: tfds.features.FeatureConnector) -> str:
    """How the values are packed; `none` is a plain list, as a class label's always are."""
    return getattr(feature.to_json_content(), "encoding", "") or "none"


def one_line(value: object) -> str:
    """A text of others without its line breaks."""
    return " ".join(str(value).split())
