"""Depth of a source as the images that a dataset stores."""

from collections.abc import Sequence

import numpy as np

from converters.sources.image_encoding import encode_png
from pipeline.data.depth import MM_PER_M, check_depth
from pipeline.data.schema import Blob, Feature
from pipeline.errors import SchemaError

_MOST_MM = np.iinfo(np.uint16).max


def depth_images(values: np.ndarray | Sequence[Blob], feature: Feature, where: str) -> list[Blob]:
    """Returns depth images at rest, one per step: PNG of 16 bits in millimetres.

    Args:
      values: Encoded ones, which stay as they are, or numbers (t, h, w) or (t, h, w, 1) in the
        feature's `source_unit`.
      feature: The feature, of kind `depth`.
      where: File and episode, for errors.

    Raises:
      DataError: An encoded image is not readable.
      SchemaError: An image has another size or type than declared, or a value that millimetres of
        16 bits do not hold.
    """
    images: list[Blob] = []
    for t, value in enumerate(values):
        place = f"{where}, {feature.source}, step {t}"
        if isinstance(value, np.ndarray):
            images.append(encode_png(_millimetres(value, feature, place)))
        else:
            check_depth(value, feature.shape, place)
            images.append(value)
    return images


def _millimetres(values: np.ndarray, feature: Feature, where: str) -> np.ndarray:
    """Returns the depth of one step as uint16 (h, w, 1); metres are rounded to the millimetre."""
    (declared,) = feature.origins
    if values.shape != declared.shape or values.dtype != declared.dtype:
        raise SchemaError(
            where=where,
            expected=f"{declared.dtype}{list(declared.shape)}, as the source declares",
            found=f"{values.dtype}{list(values.shape)}",
            remedy="Every image of a feature has one size and dtype: correct it at the source.",
        )
    scale = MM_PER_M if feature.source_unit == "m" else 1
    # float64, so that 0.0015 m as a float32 is not rounded twice.
    millimetres = np.rint(values.astype(np.float64) * scale)
    # NaN is on neither side, so both are asked for.
    wrong = ~((millimetres >= 0) & (millimetres <= _MOST_MM))
    if wrong.any():
        found = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:3].tolist())
        raise SchemaError(
            where=where,
            expected=f"depth from 0 to {_MOST_MM / scale:g} {feature.source_unit}, 0 where there "
            "is no reading",
            found=f"{int(wrong.sum())} other values, such as {found}",
            remedy="Write 0 for them at the source, or correct depth_unit in the mapping.",
        )
    return millimetres.astype(np.uint16).reshape(feature.shape)
