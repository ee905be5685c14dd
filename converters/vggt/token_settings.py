"""What is computed of a dataset's images, as flags say it."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from pipeline.data.manifest import Manifest
from pipeline.data.token_provenance import Keep, Store, TokenOrigin
from pipeline.errors import UserError
from pipeline.terminal import program
from pipeline.vggt.aggregator_config import VggtConfig
from pipeline.vggt.encoder_spec import ComputeDtype, EncoderSpec, Precision, Views

IMAGE = "image_"
"""Before a camera's name, in its observation's."""
_OBSERVATION = "observation/"
ALL = Keep("all")


@dataclasses.dataclass(frozen=True)
class TokenSettings:
    """A column of tokens."""

    name: str
    """Name of the column, and of its feature below observation/ if there is one."""
    cameras: tuple[str, ...] = ("image_primary",)
    """Observations, in the order in which a joint sequence has them."""
    views: Views = "single"
    """Whether cameras see each other."""
    layers: tuple[int, ...] = ()
    """Pairs of blocks whose tokens are kept; empty: the last."""
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels that images are brought to."""
    keep: Keep = ALL
    """The tokens that are stored."""
    store: Store = "f16"
    """How."""
    compute_dtype: ComputeDtype = "float32"
    """Dtype of the weights and the matrix products."""
    precision: Precision = "highest"
    """Precision of float32 matrix products."""

    def layers_of(self, model: VggtConfig) -> tuple[int, ...]:
        """The layers, of a model."""
        return self.layers or (model.num_layers - 1,)

    def keys(self, model: VggtConfig) -> Iterator[tuple[str, int, str]]:
        """Yields (feature key, layer, camera): a layer or a camera is named where there are more.

        Layers 11 and 23 of two cameras are `NAME_11_primary`, `NAME_11_wrist`, `NAME_23_primary`
        and `NAME_23_wrist`.
        """
        layers = self.layers_of(model)
        for layer, camera in itertools.product(layers, self.cameras):
            of_layer = f"_{layer}" if len(layers) > 1 else ""
            of_camera = f"_{camera.removeprefix(IMAGE)}" if len(self.cameras) > 1 else ""
            yield f"{_OBSERVATION}{self.name}{of_layer}{of_camera}", layer, camera

    def spec(self, model: VggtConfig, weights: tuple[str, str, str]) -> EncoderSpec:
        """The encoder of all features.

        Args:
          model: Model of the weights.
          weights: Their source, digest and licence.

        Raises:
          UserError: Where the model has no such layers, or the images no such size.
        """
        source, digest, licence = weights
        try:
            spec = EncoderSpec(
                source,
                digest,
                licence,
                cameras=self.cameras,
                model=model,
                layers=self.layers_of(model),
                views=self.views,
                image_size=self.image_size,
                kept=self.keep.kept,
                compute_dtype=self.compute_dtype,
                precision=self.precision,
            )
            self.keep.shape(spec)
        except ValueError as error:
            raise misused("settings that fit each other and the model", str(error)) from error
        return spec

    def origins(self, spec: EncoderSpec, projection: str) -> dict[str, TokenOrigin]:
        """What is known of each feature, by key, before anything is measured.

        Args:
          spec: A spec that `spec` returned.
          projection: File of a feature's projection, with `{}` for the feature's name.
        """
        origins = {}
        for key, layer, camera in self.keys(spec.model):
            # In a single sequence other cameras change no token.
            cameras = self.cameras if self.views == "joint" else (camera,)
            file = projection.format(key.removeprefix(_OBSERVATION))
            origins[key] = TokenOrigin(
                dataclasses.replace(spec, layers=(layer,), cameras=cameras),
                camera,
                str(self.keep),
                self.store,
                storage_error=0.0,
                projection=file if self.keep.what == "project" else "",
            )
        return origins


def parse_cameras(text: str, manifest: Manifest, where: str) -> tuple[str, ...]:
    """Observations of a dataset that are images, from names such as `primary,wrist`.

    Raises:
      UserError: Where it has none of a name, or a name is there twice.
    """
    held = [
        feature.key.removeprefix(_OBSERVATION)
        for column, feature in manifest.schema.features()
        if column.is_camera(feature)
    ]
    # "primary" means "image_primary", unless a camera has that very name.
    names = [name if name in held else IMAGE + name for name in text.split(",")]
    unknown = [name for name in names if name not in held]
    if unknown or len(set(names)) < len(names):
        known = [name.removeprefix(IMAGE) for name in held]
        raise UserError(
            where=f"{where}, --cameras {text}",
            expected=f"cameras among {', '.join(known)}, each once",
            found=", ".join(name.removeprefix(IMAGE) for name in unknown or names),
            remedy=f"Write them with commas between, such as {','.join(known[:2])}.",
        )
    return tuple(names)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers from `11,23`, rising.

    Raises:
      UserError: Where it is no such list.
    """
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise misused("whole numbers with commas between with --layers, such as 11,23", text)
    return tuple(map(int, text.split(",")))


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from `224` or `224x336`.

    Raises:
      UserError: Where it is neither.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise misused("pixels with --size, such as 224, or height x width as 224x336", text)
    return int(match[1]), int(match[2] or match[1])


def parse_keep(text: str) -> Keep:
    """Parses a text as `Keep.parse` does.

    Raises:
      UserError: Where it says nothing.
    """
    try:
        return Keep.parse(text)
    except ValueError as error:
        raise misused("tokens that are kept with --keep", str(error)) from error


def misused(expected: str, found: str) -> UserError:
    """The error of a flag."""
    remedy = f"See `{program('converters.vggt')} --help`."
    return UserError(where="command line", expected=expected, found=found, remedy=remedy)


def licence_of(spec: EncoderSpec, manifest: Manifest, columns: Sequence[str]) -> str:
    """What binds the tokens: the licence of the weights, and those of the images."""
    of_images = dict.fromkeys(manifest.licences[name] for name in columns)
    return f"{spec.licence} (weights); {', '.join(of_images)} (images)"
