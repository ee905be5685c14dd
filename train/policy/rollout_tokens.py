"""Computes the tokens of a dataset's column at rollout, the same way as for the dataset."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from pipeline.vggt import token_storage
from pipeline.vggt.aggregator_weights import load_for
from pipeline.vggt.encoder import VggtEncoder, resize_bicubic
from train.checkpoints.checkpoint_store import Checkpoint
from train.policy.policy_spec import PolicySpec


@runtime_checkable
class TokenEncoder(Protocol):
    """Computes at rollout the tokens that a dataset's column held in training."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Returns the names of the observations whose images it reads."""
        ...

    def __call__(self, images: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Encodes images to tokens (b n d) by feature key, such as `observation/vggt_tokens`.

        Args:
          images: Images of each camera, uint8 (b y x 3), in the order of `cameras`; b is the same
            in every call.
        """
        ...


class ColumnEncoder:
    """Encodes images to the tokens of a dataset's features, for a policy at rollout.

    Args:
      origins: How each feature's tokens were made, by key, such as `observation/vggt_tokens`.
      source: Where the weights are now; None: where they were for the dataset.

    Raises:
      UserError: The weights cannot be read, or differ; or no single encoder makes all features.
      DataError: The weights are corrupt.
    """

    def __init__(self, origins: Mapping[str, TokenOrigin], source: str | None) -> None:
        # One encoder for all features: the images pass through VGGT once.
        spec = token_storage.merged_spec(origins)
        encoder = VggtEncoder(spec, load_for(spec, source=source))
        self._encoder = token_storage.TokenEncoder(encoder, origins)
        self._cameras = spec.cameras
        self._size = spec.image_size

    @property
    def cameras(self) -> tuple[str, ...]:
        """Returns the names of the observations whose images it reads."""
        return self._cameras

    def __call__(self, images: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Encodes images to tokens (b n d) by feature key, in a batch's dtype.

        Args:
          images: Images of each camera, uint8 (b y x 3), in the order of `cameras`.
        """
        # Resizing is a separate program, so that other image sizes do not recompile the encoder.
        # Images of the encoder's own size stay unchanged.
        return self._encoder([_resizer(view.shape, self._size)(view) for view in images])


@functools.lru_cache(maxsize=16)
def _resizer(found: tuple[int, ...], size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a compiled resize for images of one shape (b y x 3); the last few are cached."""
    images = jax.ShapeDtypeStruct(found, np.uint8)
    compiled = jax.jit(lambda images: resize_bicubic(images, *size)).lower(images).compile()
    return lambda images: np.asarray(compiled(images))


def needed_encoder(spec: PolicySpec, encoder: TokenEncoder | None) -> TokenEncoder | None:
    """Returns the encoder if the model reads tokens, else None.

    Raises:
      UserError: The model reads tokens, and there is no encoder.
    """
    if spec.tokens and encoder is None:
        leaves = ", ".join(map(str, spec.tokens.values()))
        raise UserError(
            where="policy, " + ", ".join(f"observation/{name}" for name in spec.tokens),
            expected=f"an encoder, because the model reads tokens {leaves} of every step",
            found="none",
            remedy="Give as `encoder` the one that the dataset's column was made with.",
        )
    return encoder if spec.tokens else None


def with_tokens(
    steps: Sequence[dict[str, np.ndarray]],
    encoder: TokenEncoder,
    expected: Mapping[str, LeafSpec],
    batch_size: int,
) -> list[dict[str, np.ndarray]]:
    """Returns steps with their tokens, which are computed in batches of one size.

    Args:
      steps: One step of each environment, by the names of observations.
      encoder: Computes the tokens.
      expected: Type of the tokens of one step, by name.
      batch_size: Number of steps that the encoder processes at once.

    Raises:
      UserError: The encoder returns tokens of another shape or dtype.
    """
    tokened = []
    for begin in range(0, len(steps), batch_size):
        part = steps[begin : begin + batch_size]
        # One size for all calls, because each size is compiled.
        filled = [*part, *[part[-1]] * (batch_size - len(part))]
        images = [np.stack([step[camera] for step in filled]) for camera in encoder.cameras]
        found = encoder(images)
        _check_tokens(found, expected, batch_size)
        tokens = {name: np.asarray(found[f"observation/{name}"]) for name in expected}
        for row, step in enumerate(part):
            tokened.append(step | {name: of_name[row] for name, of_name in tokens.items()})
    return tokened


def _check_tokens(
    found: Mapping[str, np.ndarray], expected: Mapping[str, LeafSpec], batch_size: int
) -> None:
    # Exactly: tokens of another size would be read without an error, up to the model.
    for name, step in expected.items():
        tokens = found.get(f"observation/{name}")
        leaf = None if tokens is None else LeafSpec(str(tokens.dtype), tokens.shape)
        wanted = LeafSpec(step.dtype, (batch_size, *step.shape))
        if leaf != wanted:
            raise UserError(
                where=f"tokens of the encoder, observation/{name}",
                expected=str(wanted),
                found=str(leaf or "none"),
                remedy="Use the encoder that the dataset's column was made with.",
            )


def encoder_of(
    checkpoint: Checkpoint, dataset: str | None = None, *, source: str | None = None
) -> ColumnEncoder | None:
    """Returns the encoder of the tokens that a policy reads; None if it reads none.

    Args:
      checkpoint: Checkpoint of the policy.
      dataset: Path or name of the dataset whose tokens the policy reads; None: any, if all agree.
      source: Where the weights are now; None: where they were for the dataset.

    Raises:
      UserError: There is no such dataset, the weights cannot be read or differ, or the checkpoint
        does not record how the tokens were made.
      DataError: The weights are corrupt.
    """
    origins = _origins(checkpoint, PolicySpec.of(checkpoint, dataset))
    return ColumnEncoder(origins, source) if origins else None


def shown_observations(checkpoint: Checkpoint, dataset: str | None = None) -> tuple[str, ...]:
    """Returns the names of the observations that a policy with `encoder_of` expects.

    It reads no weights, so mistakes can be reported before they are loaded.

    Raises:
      UserError: As of `encoder_of`, except for the weights.
    """
    spec = PolicySpec.of(checkpoint, dataset)
    origins = _origins(checkpoint, spec)
    cameras = token_storage.merged_spec(origins).cameras if origins else ()
    return tuple(dict.fromkeys((*spec.observed, *cameras)))


def _origins(checkpoint: Checkpoint, spec: PolicySpec) -> dict[str, TokenOrigin]:
    """Returns how the tokens that a policy reads were made, by feature key."""
    keys = [f"observation/{name}" for name in spec.tokens]
    return {key: _origin(checkpoint, spec.dataset, key) for key in keys}


def _origin(checkpoint: Checkpoint, path: str, key: str) -> TokenOrigin:
    where = f"checkpoint of step {checkpoint.step}, {path}, {key}"
    encoders: Mapping[str, Any] = checkpoint.datasets[path].get("encoders", {})
    if key not in encoders:
        raise UserError(
            where=where,
            expected="how its tokens were made, so that they can be made at rollout",
            found="nothing: they were not stored by `octograin tokens`",
            remedy="Train on tokens that it computed, or give `Policy` an encoder from Python.",
        )
    return TokenOrigin.from_json(json.dumps(encoders[key]), where)
