import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.vggt.token_job import TokenSettings
from examples.geometry_encoder import render, train
from examples.geometry_encoder.batches import WRIST, choose, draw_batch
from examples.geometry_encoder.cameras import Cameras
from examples.geometry_encoder.geometry_model import (
    FAR_M,
    GeometryModel,
    depth_loss,
    nearer_sign,
    to_images,
)
from examples.geometry_encoder.held_out import (
    Constants,
    depth_error,
    evaluate,
    mean_pose,
    pose_error,
)
from examples.geometry_encoder.view_sets import ViewSets, nearest, to_mm
from pipeline.vggt.aggregator import Aggregator, to_patches
from pipeline.vggt.aggregator_weights import load_weights, save_weights
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.encoder_spec import tiny

SIDE = 56
NUM_VIEWS = 4


def sets(num_sets: int, seed: int = 0) -> ViewSets:
    """Random views with plausible depth and cameras; the first number of an image says which."""
    rng = np.random.default_rng(seed)
    shape = (num_sets, NUM_VIEWS)
    images = rng.integers(0, 256, (*shape, SIDE, SIDE, 3), np.uint8)
    images[:, :, 0, 0, 0] = np.arange(num_sets)[:, None] * 10 + np.arange(NUM_VIEWS)
    rotation, _ = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))
    rotation[..., 0] *= np.linalg.det(rotation)[..., None]
    cameras = Cameras(rotation, rng.normal(size=(*shape, 3)), np.full(shape, 0.8))
    depth_mm = rng.integers(500, 3000, (*shape, SIDE, SIDE)).astype(np.uint16)
    return ViewSets(images, depth_mm, cameras)


# --- files and batches


def test_views_survive_a_file(tmp_path: pathlib.Path) -> None:
    written = [sets(2), sets(1, seed=1)]
    paths = [tmp_path / f"libero_spatial-0-{n:02d}.npz" for n in range(2)]
    for one, path in zip(written, paths, strict=True):
        one.write(path)
    read = ViewSets.read(paths)
    assert np.array_equal(read.images, np.concatenate([one.images for one in written]))
    assert np.array_equal(read.depth_mm[2], written[1].depth_mm[0])
    np.testing.assert_allclose(read.cameras.rotation[2], written[1].cameras.rotation[0], atol=1e-7)
    assert sorted(tmp_path.iterdir()) == paths


def test_depth_is_taken_at_pixels_and_rounded_to_the_millimetre() -> None:
    depth = np.arange(16.0).reshape(4, 4)
    assert np.array_equal(nearest(depth, 2), [[5, 7], [13, 15]])
    assert to_mm(np.array([0.0416, 1.23449, 65.5, 70.0])).tolist() == [42, 1234, 65500, 0]


def test_a_batch_has_third_person_views_and_then_the_hands() -> None:
    held = sets(5)
    seen = set()
    for step in range(12):
        batch = draw_batch(held, np.random.default_rng((0, step)), num_images=6)
        num_views = batch.images.shape[1]
        assert len(batch.images) == 6 // num_views
        number, view = np.divmod(batch.images[:, :, 0, 0, 0].astype(int), 10)
        assert np.array_equal(number, np.repeat(number[:, :1], num_views, axis=1))
        assert (view[:, -1] == NUM_VIEWS - 1).all() == (num_views > 1)
        assert all(len(set(row)) == num_views for row in view.tolist())
        seen.add(num_views)
    assert seen == {1, 2, 3}


def test_poses_are_relative_to_the_first_view() -> None:
    held = sets(3)
    batch = choose(held, np.array([2]), np.array([1, WRIST]))
    np.testing.assert_allclose(batch.pose[0, 0], [0, 0, 0, 0, 0, 0, 1, 0.8], atol=1e-6)
    first, wrist = (
        Cameras(c.rotation[2, v], c.translation[2, v], c.fov_y[2, v])
        for c in (held.cameras,)
        for v in (1, WRIST)
    )
    np.testing.assert_allclose(
        batch.pose[0, 1], wrist.relative_to(first).encoded(), rtol=1e-5, atol=1e-6
    )


# --- the model


def test_patches_are_laid_where_they_were_cut() -> None:
    pixels = np.arange(2 * 28 * 42, dtype=np.float32).reshape(1, 2, 28, 42)
    channels = np.stack([pixels, -pixels, pixels], axis=-1)[0]
    patches = to_patches(jnp.asarray(channels)).reshape(1, 2, 6, -1, 3)[..., :2]
    first, second = to_images(patches.reshape(1, 2, 6, -1), rows=2)
    assert np.array_equal(first, pixels)
    assert np.array_equal(second, -pixels)


def test_the_depth_loss_counts_errors_slopes_and_confidence_of_real_pixels() -> None:
    true = jnp.asarray([[[[1.0, 2.0], [0.0, FAR_M + 1]]]])
    predicted = true * jnp.exp(jnp.asarray([[[[0.5, 0.1], [9.0, 9.0]]]]))
    once = jnp.ones_like(true)
    # Errors 0.5 and 0.1 and, between these two alone, a slope that errs by 0.4.
    predicted = jnp.where(true > 0, predicted, 9.0)
    assert float(depth_loss(predicted, once, true)) == pytest.approx((0.5 + 0.1 + 0.4) / 2)
    twice = float(depth_loss(predicted, 2 * once, true))
    assert twice == pytest.approx(2 * 0.5 - 0.2 * np.log(2))


def test_a_quaternion_and_its_negative_are_one_target() -> None:
    pose = jnp.asarray([[[1.0, 2.0, 3.0, 0.8, 0.0, 0.0, 0.6, 0.5]]])
    negative = pose.at[..., 3:7].multiply(-1)
    assert np.array_equal(nearer_sign(pose + 0.1, negative), pose)
    assert np.array_equal(nearer_sign(negative + 0.1, negative), negative)


def test_a_file_of_weights_makes_the_tokens_that_were_trained(tmp_path: pathlib.Path) -> None:
    images = sets(2).images[:, [0, WRIST]]
    values = jnp.asarray(images, jnp.float32) / 255
    shapes: Any = jax.eval_shape(GeometryModel(tiny()).init, jax.random.key(0), values)
    # Numbers at which no layer vanishes, in the places of the trained ones.
    params = load_weights("random:tiny").params
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, shapes["params"]["aggregator"]
    )
    trained: Any = jax.jit(Aggregator(tiny(), (1,)).apply)({"params": params}, values)
    path = tmp_path / "model.safetensors"
    save_weights(path, params, tiny(), licence="CC-BY-4.0", provenance={})
    settings = TokenSettings(
        "geometry", ("image_primary", "image_wrist"), "joint", image_size=(SIDE, SIDE)
    )
    weights = load_weights(str(path))
    spec = settings.spec(weights.config, (str(path), weights.digest, weights.licence))
    tokens = VggtEncoder(spec, weights).encode(images)[1]
    assert tokens.shape == (2, 2, 21, 64)
    np.testing.assert_allclose(tokens, trained[1], rtol=1e-5, atol=1e-5)
    assert weights.licence == "CC-BY-4.0"


# --- held-out errors


def test_errors_are_relative_in_depth_and_absolute_in_pose() -> None:
    assert depth_error(np.array([1.1, 1.0, 9.0]), np.array([1000, 2000, 0])) == pytest.approx(0.3)
    still, turned = np.zeros((1, 8)), np.zeros((1, 8))
    still[:, 6], turned[:, 5:7] = 1, [np.sin(0.05), np.cos(0.05)]
    turned[:, :3] = [0.3, 0.0, 0.4]
    rotation_deg, translation_m = pose_error(turned, still)
    assert rotation_deg == pytest.approx(np.degrees(0.1))
    assert translation_m == pytest.approx(0.5)


def test_the_mean_of_poses_does_not_depend_on_the_signs_of_quaternions() -> None:
    angles = np.array([-0.2, 0.0, 0.2])[:, None] + np.pi / 2  # half angles around half a turn
    poses = np.zeros((3, 1, 8))
    poses[..., 5], poses[..., 6], poses[..., 0] = np.sin(angles), np.cos(angles), [[1], [2], [6]]
    poses[..., 3:7] *= np.where(poses[..., 6:7] < 0, -1, 1)
    mean = mean_pose(poses)
    np.testing.assert_allclose(np.abs(mean[0, 3:7]), [0, 0, 1, 0], atol=1e-9)
    assert mean[0, 0] == pytest.approx(3)


def test_a_perfect_prediction_has_no_error_and_constants_have_some() -> None:
    trained, held = sets(6), sets(3, seed=1)

    def perfect(images: np.ndarray) -> Any:
        number, view = np.divmod(images[:, :, 0, 0, 0].astype(int), 10)
        batch = choose(held, number[:, 0], view)
        return type("P", (), {"depth_m": batch.depth_mm / 1000, "pose": batch.pose})

    errors = evaluate(perfect, held, Constants.fit(trained))
    assert max(abs(value) for value in errors["encoder"].values()) < 0.05  # arc cosine near 1
    assert errors["encoder"].keys() == errors["constant"].keys()
    assert errors["constant"]["depth_alone"] > 0.2
    assert errors["constant"]["rotation_deg_wrist"] > 10


# --- the command


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_has_the_same_weights(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    views = tmp_path / "views"
    views.mkdir()
    for init in (0, 36):
        sets(3, seed=init).write(views / f"libero_spatial-0-{init:02d}.npz")
    sizes = ["--dim", "32", "--layers", "1", "--dino_layers", "1", "--num_images", "6"]

    def run(folder: str, interval: int) -> str:
        arguments = [str(views), str(tmp_path / folder), *sizes, "--steps", "4"]
        monkeypatch.setattr("sys.argv", ["train", *arguments, "--interval", str(interval)])
        train.main()
        return load_weights(str(tmp_path / folder / "model.safetensors")).digest

    whole = run("whole", 4)
    with monkeypatch.context() as stopped:
        stopped.setattr(train.EncoderRun, "_note", _interrupt_at_4)
        with pytest.raises(SystemExit):
            run("resumed", 2)
    assert run("resumed", 2) == whole
    output = capsys.readouterr().out
    assert "3 moments to train on, 3 held out" in output
    assert "resumes after training step 2" in output
    sizes[1] = "64"
    with pytest.raises(SystemExit, match="2"):
        run("whole", 4)


def _interrupt_at_4(_: train.EncoderRun, step: int, errors: Any) -> None:
    if step == 4:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (train, ["--steps", "0"], "--steps: expected at least 1; found 0"),
        (train, ["--dim", "40"], "--dim: expected a multiple of 32; found 40"),
        (train, ["--learning_rate", "nan"], "--learning_rate: expected a positive number"),
        (train, [], "views, --held_out 36: expected episodes from initial states below it"),
        (render, ["--moved", "1"], "--moved: expected at least 2; found 1"),
        (render, ["--image_size", "100"], "--image_size: expected a multiple of 14; found 100"),
        (render, ["--azimuth", "nan"], "--azimuth: expected from 0.0 to 60.0; found nan"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: Any,
    arguments: list[str],
    message: str,
) -> None:
    folders = ["views", "run"] if command is train else ["views"]
    monkeypatch.setattr("sys.argv", ["command", *folders, *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
