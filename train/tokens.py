"""The tokens of a dataset's column, computed at rollout as they were for the dataset."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from etils import epath

from pipeline.errors import DataError, UserError
from pipeline.tokens import TokenOrigin
from pipeline.vggt import storage
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.weights import load_for
from train.checkpoints import Checkpoint
from train.policy.spec import PolicySpec


class ColumnEncoder:
    """Pictures to the tokens of one feature, stored and read again, as a policy takes them.

    Args:
      key: The feature, such as `observation/vggt_tokens`.
      origin: How its tokens were made.
      source: Where the weights are now; None: where they were then.
      directory: Of the dataset, for the projection of a feature that has one.

    Raises:
      UserError: The weights cannot be read, or are others.
      DataError: They, or the projection, are damaged or missing.
    """

    def __init__(self, key: str, origin: TokenOrigin, source: str | None, directory: str) -> None:
        projections = {}
        if origin.projection:
            projections[key] = _read_projection(epath.Path(directory) / origin.projection, origin)
        spec = storage.merged_spec({key: origin})
        encoder = VggtEncoder(spec, load_for(spec, source=source))
        self._encoder = storage.TokenEncoder(encoder, {key: origin}, projections)
        self._cameras = spec.cameras

    @property
    def cameras(self) -> tuple[str, ...]:
        """Observations whose images it reads."""
        return self._cameras

    def __call__(self, images: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Tokens (b n d) by feature key, in a batch's dtype.

        Args:
          images: uint8 (b y x 3) of each camera, in the order of `cameras`.
        """
        return self._encoder(images)


def encoder_of(
    checkpoint: Checkpoint,
    dataset: str | None = None,
    *,
    source: str | None = None,
    directory: str | None = None,
) -> ColumnEncoder | None:
    """The encoder of the tokens that a policy reads; None where it reads none.

    Args:
      checkpoint: Of the policy.
      dataset: As of `Policy`.
      source: Where the weights are now; None: where they were then.
      directory: Where the dataset is now, of which only a projection is read; None: as the run
        named it.

    Raises:
      UserError: No such dataset, the weights cannot be read or are others, or the checkpoint does
        not say how the tokens were made.
      DataError: As `ColumnEncoder`.
    """
    spec = PolicySpec.of(checkpoint, dataset)
    if spec.tokens is None or spec.tokens in spec.missing:
        return None
    key = f"observation/{spec.tokens}"
    origin = _origin(checkpoint, spec.dataset, key)
    return ColumnEncoder(key, origin, source, directory or spec.dataset)


def _origin(checkpoint: Checkpoint, path: str, key: str) -> TokenOrigin:
    where = f"checkpoint of step {checkpoint.step}, {path}, {key}"
    encoders: Mapping[str, Any] = checkpoint.datasets[path].get("encoders", {})
    if key not in encoders:
        raise UserError(
            where=where,
            expected="how its tokens were made, so that they can be made at rollout",
            found="nothing: they were stored by other means than `python -m converters.vggt`",
            remedy="Train on tokens that it computed, or give `Policy` an encoder from Python.",
        )
    return TokenOrigin.from_json(json.dumps(encoders[key]), where)


def _read_projection(path: epath.Path, origin: TokenOrigin) -> np.ndarray:
    """float32 (k + 1, d): axes and below them the mean."""
    remedy = "Name the folder of the dataset that the policy was trained on."
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            where=str(path), expected="a readable projection", found=str(error), remedy=remedy
        ) from error
    found = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).tobytes())
    if origin.projection_digest not in ("", found):
        raise DataError(
            where=str(path),
            expected=f"the digest {origin.projection_digest}",
            found=found,
            remedy=remedy,
        )
    return array
