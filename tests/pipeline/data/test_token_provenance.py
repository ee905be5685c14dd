import dataclasses
import json
import re
from typing import Any

import pytest

from pipeline.data.token_provenance import (
    Keep,
    TokenOrigin,
    check_same_encoder,
    check_same_encoders,
)
from pipeline.errors import DataError, UserError
from pipeline.files import to_json_values
from pipeline.vggt.encoder_spec import EncoderSpec, tiny

SPEC = EncoderSpec("hf://a/b", "d1", "MIT")
ORIGIN = TokenOrigin(SPEC, "image_primary", "all", "f16", 2e-4)


def changed(**fields: Any) -> TokenOrigin:
    """Changes fields of the encoder, or else of what is stored."""
    names = {field.name for field in dataclasses.fields(EncoderSpec)}
    encoder = {name: value for name, value in fields.items() if name in names}
    others = {name: value for name, value in fields.items() if name not in names}
    spec = dataclasses.replace(SPEC, **encoder)
    return dataclasses.replace(ORIGIN, encoder=spec, **others)


@pytest.mark.parametrize(
    ("text", "shape", "num_special"),
    [
        ("all", (261, 2048), 5),
        ("patches", (256, 2048), 0),
        ("registers", (5, 2048), 5),
        ("pool:64", (64, 2048), 0),
        ("project:512", (256, 512), 0),
    ],
)
def test_what_is_kept_has_a_shape(text: str, shape: tuple[int, int], num_special: int) -> None:
    keep = Keep.parse(text)
    assert str(keep) == text
    assert keep.shape(dataclasses.replace(SPEC, kept=keep.kept)) == shape
    assert keep.num_special == num_special


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("everything", "keep must be all, patches, registers or pool:N, not everything"),
        ("pool", "keep must be all"),
        ("all:5", "keep must be all"),
        ("pool:0", "keep must be all"),
        ("pool:60", "keep must be pool: of a square number, such as pool:64, not pool:60"),
    ],
)
def test_what_cannot_be_kept_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keep.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool:289", "pool:289 is a grid of 17 by 17, but the patches are 16 by 16"),
        ("project:2049", "project:2049 is more than the 2048 numbers of a token"),
    ],
)
def test_more_than_there_is_cannot_be_kept(text: str, message: str) -> None:
    keep = Keep.parse(text)
    with pytest.raises(ValueError, match=message):
        keep.shape(dataclasses.replace(SPEC, kept=keep.kept))


@pytest.mark.parametrize(
    ("store", "kind", "dtype", "batch_dtype", "nbytes", "largest"),
    [
        ("f16", "tensor", "float16", "float16", 1_069_056, 65504),
        ("bf16", "tensor", "bfloat16", "float32", 1_069_056, 3e38),
        ("int8", "quantized", "int8x128+5", "float32", 561_152, 65504),
    ],
)
def test_a_feature_is_declared_as_it_is_stored(
    store, kind: str, dtype: str, batch_dtype: str, nbytes: int, largest: float
) -> None:
    origin = changed(store=store)
    feature = origin.feature("observation/x")
    feature.check("here")
    assert (feature.kind, feature.dtype, feature.batch_dtype) == (kind, dtype, batch_dtype)
    assert (feature.shape, feature.nbytes, feature.source) == ((261, 2048), nbytes, "")
    assert origin.largest == largest


def test_int8_without_special_tokens_holds_more() -> None:
    assert changed(store="int8", keep="patches", kept="patches").largest == 3e38


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (11, 23)}, r"layers must be one, not \(11, 23\)"),
        ({"camera": "image_wrist"}, r"camera must be of \('image_primary',\), not image_wrist"),
        ({"keep": "patches"}, "the encoder keeps all, but keep is patches"),
        ({"keep": "project:8", "kept": "patches"}, "projection is '', but keep is project:8"),
    ],
)
def test_an_origin_that_contradicts_itself_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**fields)


@pytest.mark.parametrize(
    "same",
    [
        {"weights": "elsewhere.safetensors"},
        {"licence": "another"},
        {"precision": "high"},
        {"store": "int8"},
        {"storage_error": 0.1},
    ],
)
def test_storage_and_the_place_of_the_weights_make_no_other_tokens(same: dict) -> None:
    check_same_encoder(ORIGIN, changed(**same), "here")


@pytest.mark.parametrize(
    ("fields", "expected", "found"),
    [
        ({"weights_digest": "d2"}, "weights_digest d1", "weights_digest d2"),
        ({"layers": (11,)}, "layers [23]", "layers [11]"),
        ({"views": "joint"}, "views single", "views joint"),
        ({"image_size": (518, 518)}, "image_size [224, 224]", "image_size [518, 518]"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype float32", "compute_dtype bfloat16"),
        (
            {"cameras": ("image_wrist",), "camera": "image_wrist"},
            "cameras [image_primary], camera image_primary",
            "cameras [image_wrist], camera image_wrist",
        ),
        ({"keep": "patches", "kept": "patches"}, "kept all, keep all", "kept patches, keep patch"),
        ({"model": tiny(), "layers": (1,)}, "model VggtConfig(dim=1024", "model VggtConfig(dim=32"),
    ],
)
def test_another_encoder_is_refused_field_by_field(fields: dict, expected: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        check_same_encoder(ORIGIN, changed(**fields), "data/x, observation/t")
    assert caught.value.where == "data/x, observation/t"
    assert caught.value.expected.startswith(expected)
    assert caught.value.found.startswith(found)
    assert "octograin tokens" in caught.value.remedy


def test_another_order_of_a_joint_sequence_is_another_encoder() -> None:
    cameras = ("image_primary", "image_wrist")
    ours = changed(views="joint", cameras=cameras)
    theirs = changed(views="joint", cameras=cameras[::-1])
    with pytest.raises(UserError, match=r"cameras \[image_wrist, image_primary\]\."):
        check_same_encoder(ours, theirs, "here")


def test_another_projection_is_another_encoder() -> None:
    fields = {"keep": "project:8", "kept": "patches", "projection": "t/t.npy"}
    ours, theirs = (changed(**fields, projection_digest=digest) for digest in ("a", "b"))
    check_same_encoder(ours, dataclasses.replace(ours, projection="other/t.npy"), "here")
    with pytest.raises(UserError, match=r"projection_digest a; found projection_digest b\."):
        check_same_encoder(ours, theirs, "here")


def described(**origins: TokenOrigin) -> dict[str, Any]:
    values = {f"observation/{key}": to_json_values(origin) for key, origin in origins.items()}
    return {"data/x": {"encoders": values}}


def test_datasets_are_compared_with_those_of_a_checkpoint() -> None:
    other = changed(layers=(11,))
    kept = described(a=ORIGIN, b=other)
    check_same_encoders(kept, described(a=ORIGIN, b=other, c=other))
    check_same_encoders({"data/x": {"name": "of before encoders were kept"}}, described(a=ORIGIN))
    message = "data/x, observation/a: expected layers [23]; found layers [11]. "
    with pytest.raises(UserError, match=re.escape(message)):
        check_same_encoders(kept, described(a=other))


def test_a_corrupt_origin_is_reported() -> None:
    kept: dict = json.loads(json.dumps(described(a=ORIGIN)))
    kept["data/x"]["encoders"]["observation/a"]["encoder"]["layers"] = [30]
    with pytest.raises(DataError, match=r"observation/a: .*layers must be from 0 to 23"):
        check_same_encoders(kept, described(a=ORIGIN))
