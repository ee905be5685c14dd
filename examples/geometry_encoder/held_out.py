"""How well the encoder predicts depth and poses of episodes it has not seen, against constants.

The constants know which camera a view is of, and nothing of the image: the mean depth of each pixel
and the mean pose, over the training episodes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from examples.geometry_encoder.batches import WRIST, Batch, choose
from examples.geometry_encoder.cameras import QUATERNION, TRANSLATION
from examples.geometry_encoder.geometry_model import FAR_M
from examples.geometry_encoder.view_sets import ViewSets
from pipeline.data.rotations import rotation_angle

Predict = Callable[[np.ndarray], Any]
"""From images uint8 (b, v, y, x, 3) to a `Prediction`."""

ALONE = np.array([1])
"""One view from a moved camera."""
TOGETHER = np.array([1, 2, WRIST])
"""Two moved cameras and the hand's."""
_BATCH = 4
_MM = 1000


@dataclasses.dataclass(frozen=True)
class Constants:
    """The prediction that reads no image."""

    depth_m: np.ndarray
    """float32 (3, y, x), by view of `TOGETHER`."""
    pose: np.ndarray
    """float32 (3, 8), by view of `TOGETHER`, relative to the first."""

    @classmethod
    def fit(cls, sets: ViewSets) -> "Constants":
        """The means over sets, whose moved cameras are drawn alike."""
        batch = _all(sets, TOGETHER)
        # Summed image by image: all of them as floats would take a gigabyte.
        total, count = np.zeros(batch.depth_mm.shape[1:]), np.zeros(batch.depth_mm.shape[1:])
        for of_set in batch.depth_mm:
            depth_m = of_set / _MM
            real = _is_real(depth_m)
            total += np.where(real, depth_m, 0.0)
            count += real
        depth = total / np.maximum(count, 1)
        # A pixel that never had depth gets the mean of its view.
        means = total.sum(axis=(1, 2), keepdims=True) / count.sum(axis=(1, 2), keepdims=True)
        return cls(np.where(count > 0, depth, means), mean_pose(batch.pose))


def mean_pose(poses: np.ndarray) -> np.ndarray:
    """The mean (v, 8) of poses (n, v, 8), whatever the signs of their quaternions.

    Source: Markley et al. 2007, "Averaging Quaternions".
    """
    mean, quaternions = poses.mean(axis=0), poses[..., QUATERNION]
    _, vectors = np.linalg.eigh(np.einsum("nvi,nvj->vij", quaternions, quaternions))
    # The direction in which most of them lie: that of the largest eigenvalue, the last.
    mean[:, QUATERNION] = vectors[..., -1]
    return mean


def evaluate(predict: Predict, sets: ViewSets, constants: Constants) -> dict[str, dict[str, float]]:
    """Errors of the encoder and of the constants, by their name.

    `depth`: mean of |predicted - true| / true over pixels, a view alone (`alone`), or among three
    (`third`, `wrist`). `rotation_deg`, `translation_m`: mean error of the pose relative to the
    first of three views.
    """
    alone, together = _all(sets, ALONE), _all(sets, TOGETHER)
    seen_alone, seen = _predicted(predict, alone), _predicted(predict, together)
    num_sets = len(together.pose)
    constant = (
        np.broadcast_to(constants.depth_m, (num_sets, *constants.depth_m.shape)),
        np.broadcast_to(constants.pose, (num_sets, *constants.pose.shape)),
    )
    return {
        "encoder": {
            "depth_alone": depth_error(seen_alone[0], alone.depth_mm),
            **_errors(seen, together),
        },
        "constant": {
            "depth_alone": depth_error(constant[0][:, :1], alone.depth_mm),
            **_errors(constant, together),
        },
    }


def _errors(seen: tuple[np.ndarray, np.ndarray], true: Batch) -> dict[str, float]:
    depth_m, pose = seen
    errors = {}
    for name, view in (("third", 1), ("wrist", 2)):
        errors[f"depth_{name}"] = depth_error(depth_m[:, view], true.depth_mm[:, view])
        rotation, translation = pose_error(pose[:, view], true.pose[:, view])
        errors[f"rotation_deg_{name}"] = rotation
        errors[f"translation_m_{name}"] = translation
    return errors


def depth_error(predicted_m: np.ndarray, depth_mm: np.ndarray) -> float:
    """Mean of |predicted - true| / true over pixels that have depth."""
    true_m = depth_mm / _MM
    real = _is_real(true_m)
    return float(np.mean(np.abs(predicted_m[real] - true_m[real]) / true_m[real]))


def pose_error(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Mean angle in degrees between rotations, and mean distance in m between translations."""
    angle = rotation_angle(
        predicted[..., QUATERNION], true[..., QUATERNION], representation="quaternion_xyzw"
    )
    distance = np.linalg.norm(predicted[..., TRANSLATION] - true[..., TRANSLATION], axis=-1)
    return float(np.degrees(angle).mean()), float(distance.mean())


def _predicted(predict: Predict, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Depth and poses of a batch of any size, in parts."""
    num_sets = len(batch.images)
    # All parts have one size, for one compiled program; the last one is filled up.
    rows = np.arange(-(-num_sets // _BATCH) * _BATCH).reshape(-1, _BATCH) % num_sets
    parts = [predict(batch.images[part]) for part in rows]
    depth = np.concatenate([np.asarray(part.depth_m) for part in parts])[:num_sets]
    return depth, np.concatenate([np.asarray(part.pose) for part in parts])[:num_sets]


def _all(sets: ViewSets, views: np.ndarray) -> Batch:
    return choose(sets, np.arange(len(sets.images)), views)


def _is_real(depth_m: np.ndarray) -> np.ndarray:
    return (depth_m > 0) & (depth_m < FAR_M)


def table(errors: dict[str, dict[str, float]]) -> str:
    """The errors side by side, one row per kind."""
    rows = [
        f"{name:22} {errors['encoder'][name]:8.3f} {constant:9.3f}"
        for name, constant in errors["constant"].items()
    ]
    return "\n".join([f"{'':22} {'encoder':>8} {'constant':>9}", *rows]) + "\n"
