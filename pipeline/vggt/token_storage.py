"""Converts an encoder's tokens to what is stored and read, for datasets and for rollouts."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Float32

from pipeline.data.int8_codec import LARGEST
from pipeline.data.token_provenance import Keep, Store, TokenOrigin
from pipeline.errors import DataError, UserError
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import PATCH_SIZE, EncoderSpec

Packed = dict[str, dict[str, jax.Array]]
"""Parts of the stored tokens of a batch, by feature key."""

_LARGEST_PART = "largest"
"""Greatest magnitude of each sample's tokens; not finite where one of them is not."""


class TokenEncoder:
    """Images of a step to the tokens of stored features.

    Args:
      encoder: Makes at least the layers and cameras of `merged_spec(origins)`.
      origins: What the tokens are, by feature key: of one job, so that they share an encoder.

    Raises:
      UserError: Features that no one encoder makes, or that were projected.
    """

    def __init__(self, encoder: VggtEncoder, origins: Mapping[str, TokenOrigin]) -> None:
        # For its check: the features must come from one encoder.
        merged_spec(origins)
        self.encoder = encoder
        self.origins = dict(origins)
        self.features = {key: origin.feature(key) for key, origin in origins.items()}
        """The features as a dataset declares them, by key."""
        self._reduce = jax.jit(self._reduced)
        self._pack = jax.jit(self._packed)

    def storing(self, store: Store) -> "TokenEncoder":
        """The same, whose tokens are stored otherwise."""
        origins = {k: dataclasses.replace(o, store=store) for k, o in self.origins.items()}
        return TokenEncoder(self.encoder, origins)

    def tokens(self, images: Sequence[np.ndarray]) -> dict[str, Float32[Array, "b n d"]]:
        """Returns each feature's tokens as the encoder makes them, not yet pooled.

        Args:
          images: Images of each camera, as in `VggtEncoder.encode`.
        """
        encoded = self.encoder.encode(images)
        cameras = self.encoder.spec.cameras
        return {
            # (b, v, n, d) of the layer, then the one camera.
            key: encoded[origin.layer][:, cameras.index(origin.camera)]
            for key, origin in self.origins.items()
        }

    def reduce(
        self, tokens: Mapping[str, Float32[Array, "b n d"]]
    ) -> dict[str, Float32[Array, "b m k"]]:
        """Pooled, where a feature is."""
        return self._reduce(dict(tokens))

    def pack(self, reduced: Mapping[str, Float32[Array, "b m k"]]) -> Packed:
        """Returns the tokens in their stored form, still on the devices."""
        return self._pack(dict(reduced))

    def records(self, packed: Packed, places: Sequence[str]) -> list[dict[str, np.ndarray | bytes]]:
        """The values of each sample's record, by feature key.

        Args:
          packed: Stored parts of a batch, from `pack`.
          places: What each of the first samples is, for errors; the others are left out.

        Raises:
          DataError: Tokens that are not finite, or too large for how they are to be stored.
        """
        # One transfer for all features.
        host = jax.device_get(packed)
        for key, parts in host.items():
            _check_range(parts[_LARGEST_PART], self.origins[key], key, places)
        return [self._record(host, sample) for sample in range(len(places))]

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, Float[np.ndarray, "b m k"]]:
        """The tokens of each feature as a batch would hold them, read back from a dataset.

        Args:
          images: Images of each camera, as in `VggtEncoder.encode`.

        Raises:
          DataError: The tokens cannot be stored.
        """
        # Stored and read back: a policy gets the rounding that training read.
        packed = self.pack(self.reduce(self.tokens(images)))
        places = [f"image {n}" for n in range(len(images[0]))]
        return self.read(self.records(packed, places))

    def read(
        self, records: Sequence[Mapping[str, np.ndarray | bytes]]
    ) -> dict[str, Float[np.ndarray, "b m k"]]:
        """The tokens of each feature in records, in the dtype that they have in a batch."""
        read = {}
        for key, feature in self.features.items():
            out = np.empty((len(records), *feature.shape), feature.batch_dtype)
            for sample, record in enumerate(records):
                value = record[key]
                # float16 and bfloat16 are arrays, int8 is packed.
                if isinstance(value, np.ndarray):
                    out[sample] = value
                else:
                    feature.code.decode(value, out[sample], key)
            read[key] = out
        return read

    def _record(
        self, host: dict[str, dict[str, np.ndarray]], sample: int
    ) -> dict[str, np.ndarray | bytes]:
        values: dict[str, np.ndarray | bytes] = {}
        for key, parts in host.items():
            of_sample = {name: np.asarray(part[sample]) for name, part in parts.items()}
            if "values" in of_sample:
                values[key] = of_sample["values"]
            else:
                code = self.features[key].code
                names = ("exact", "scales", "numbers")
                values[key] = code.pack(*(of_sample[name] for name in names))
        return values

    def _reduced(self, tokens: dict[str, jax.Array]) -> dict[str, jax.Array]:
        reduced = dict(tokens)
        for key, origin in self.origins.items():
            keep = Keep.parse(origin.keep)
            if keep.what == "pool":
                weights = pooling(origin.encoder, keep.side)
                # On some devices the default precision would change the tokens.
                reduced[key] = jnp.einsum(
                    "mn,bnd->bmd", weights, tokens[key], precision=Precision.HIGHEST
                )
        return reduced

    def _packed(self, reduced: dict[str, jax.Array]) -> Packed:
        packed: Packed = {}
        for key, origin in self.origins.items():
            tokens = reduced[key]
            # Checked on the host: NaN and values out of range are errors with their place.
            largest = {_LARGEST_PART: jnp.max(jnp.abs(tokens), axis=(1, 2))}
            match origin.store:
                case "f16":
                    packed[key] = largest | {"values": tokens.astype(jnp.float16)}
                case "bf16":
                    packed[key] = largest | {"values": tokens.astype(jnp.bfloat16)}
                case "int8":
                    code = self.features[key].code
                    packed[key] = largest | quantize(tokens, code.group, code.num_exact)
        return packed


def merged_spec(origins: Mapping[str, TokenOrigin]) -> EncoderSpec:
    """The one encoder that makes all these features: it has all their layers and cameras.

    Raises:
      UserError: There is none, or a feature was projected.
    """
    for key, origin in origins.items():
        if origin.projection:
            raise UserError(
                where=key,
                expected="tokens as the encoder makes them, or pooled",
                found=f"{origin.keep}, which only early releases computed",
                remedy="Compute the column again with `octograin tokens --keep pool:N`, and train "
                "on it.",
            )
    specs = [origin.encoder for origin in origins.values()]
    layers = tuple(sorted({layer for spec in specs for layer in spec.layers}))
    cameras = tuple(dict.fromkeys(itertools.chain.from_iterable(s.cameras for s in specs)))
    alike = {dataclasses.replace(spec, layers=layers, cameras=cameras) for spec in specs}
    is_joint = any(spec.views == "joint" for spec in specs)
    # Joint views see each other, so other cameras make other tokens.
    if len(alike) != 1 or (is_joint and len({spec.cameras for spec in specs}) > 1):
        raise UserError(
            where=f"the features {', '.join(origins)}",
            expected="one encoder for all of them",
            found="others",
            remedy="Make a TokenEncoder of those that were computed together.",
        )
    return alike.pop()


@functools.cache
def pooling(encoder: EncoderSpec, side: int) -> Float32[np.ndarray, "m n"]:
    """What each patch gives to each cell of a grid of `side` by `side`; rows sum to 1.

    A cell is the mean of the patches that it covers, in part or whole: where the grid does not
    divide the patches', neighbours share some.
    """
    rows, columns = (_means(length // PATCH_SIZE, side) for length in encoder.image_size)
    # Rows and columns are independent: the weights of the grid are their product.
    return np.kron(rows, columns).astype(np.float32)


def _means(length: int, cells: int) -> np.ndarray:
    """float64 (cells, length): the share of each place in each cell."""
    means = np.zeros((cells, length))
    for cell in range(cells):
        # Rounded down and up: a patch on a border belongs to both cells.
        first, end = cell * length // cells, -(-(cell + 1) * length // cells)
        means[cell, first:end] = 1 / (end - first)
    return means


def quantize(tokens: Float32[Array, "b n d"], group: int, num_exact: int) -> dict[str, jax.Array]:
    """The parts of tokens that `GroupedInt8` codes."""
    # The first tokens, such as the camera's, are kept as float16.
    exact, coded = tokens[:, :num_exact], tokens[:, num_exact:]
    grouped = coded.reshape(*coded.shape[:2], -1, group)
    # One scale per group of features.
    scales = jnp.max(jnp.abs(grouped), axis=-1, keepdims=True) / LARGEST
    # A group of zeros has a scale of 0.
    numbers = jnp.round(grouped / jnp.where(scales > 0, scales, 1.0))
    return {
        "exact": exact.astype(jnp.float16),
        "scales": scales[..., 0],
        # A scale so small that it is rounded coarsely would give numbers beyond.
        "numbers": jnp.clip(numbers, -LARGEST, LARGEST).reshape(coded.shape).astype(jnp.int8),
    }


def _check_range(largest: np.ndarray, origin: TokenOrigin, key: str, places: Sequence[str]) -> None:
    """Refuses tokens that cannot be stored."""
    # A batch that was filled up has more rows than places.
    for place, value in zip(places, largest, strict=False):
        if not np.isfinite(value):
            raise DataError(
                where=f"{place}, {key}",
                expected="finite tokens",
                found=f"tokens of which one is {value}",
                remedy="Check the weights and the image; --compute_dtype float32 has more range.",
            )
        if value > origin.largest:
            raise DataError(
                where=f"{place}, {key}",
                expected=f"tokens up to {origin.largest:g}, the largest that {origin.store} holds",
                found=f"one of {value:g}",
                remedy="Store them with --store bf16.",
            )
