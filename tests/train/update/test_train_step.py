import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.device import batch_sharding, make_mesh
from pipeline.loading.loader import Loader
from pipeline.loading.text import load_vocabulary
from tests.parameters import random_params
from tests.rounding import EPSILON, TERMS, assert_equal_but_for_rounding
from train.flags import load_config
from train.update import train_step
from train.update.optimizer import learning_rate, make_optimizer, split_frozen
from train.update.train_state import TrainState, averaged_params, first_state, shard_structs
from train.update.train_step import (
    look_up_language,
    make_language_table,
    make_train_step,
    to_model_size,
)


@pytest.fixture(scope="module")
def seeing(tiny_config_path, mini_dataset):
    """A config with a camera."""
    config = load_config(str(tiny_config_path))
    data = dataclasses.replace(
        config.data,
        datasets=(DatasetConfig(str(mini_dataset)),),
        conditioning="multimodal",
        num_threads=0,
    )
    (primary,) = config.model.images
    stem = dataclasses.replace(primary, image_size=4, stem_features=(32,))  # 2 x 2 tokens as well
    model = dataclasses.replace(config.model, images=(stem,))
    config = dataclasses.replace(config, data=data, model=model, batch_size=8)
    return changed(config, weight_decay=0.0)


@pytest.fixture(scope="module")
def config(seeing):
    """The same without the camera, whose steps compile in half of the time; runs have one."""
    return dataclasses.replace(seeing, model=dataclasses.replace(seeing.model, images=()))


@pytest.fixture(scope="module")
def loader(config):
    datasets = [open_dataset(part.path) for part in config.data.datasets]
    encode = load_vocabulary(config.data.vocabulary).EncodeAsIds
    return Loader(config.data, config.batch_size, datasets, encode)


@pytest.fixture(scope="module")
def batch(loader):
    with contextlib.closing(loader.batches()) as batches:
        return next(batches).arrays


def changed(config, **optimizer):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **optimizer))


def state_of(config, optimizer) -> TrainState:
    """A state of random parameters."""
    init = jax.jit(lambda params: first_state(config, optimizer, params))
    return init(random_params(config.model))


def started(config) -> tuple[TrainState, object]:
    optimizer = make_optimizer(config.optimizer)
    step = make_train_step(config, optimizer, learning_rate(config.optimizer, config.num_steps))
    return state_of(config, optimizer), step


@pytest.fixture(scope="module")
def table(config, loader):
    make = jax.jit(lambda params: make_language_table(config.model, params, loader.tasks))
    return make(random_params(config.model))


def test_many_instructions_are_encoded_in_parts(config, loader, table, monkeypatch):
    tasks = loader.tasks
    five = np.arange(5) % len(tasks.texts)
    many = dataclasses.replace(
        tasks, input_ids=tasks.input_ids[five], attention_mask=tasks.attention_mask[five]
    )
    monkeypatch.setattr(train_step, "_TEXTS_AT_ONCE", 4)
    make = jax.jit(lambda params: make_language_table(config.model, params, many))
    found = make(random_params(config.model))
    # The last row is the empty text.
    np.testing.assert_allclose(found, table[np.append(five, -1)], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def averaging(config):
    """A state with an average of the parameters, and its compiled step."""
    state, step = started(changed(config, warmup_steps=2, ema_decay=0.75))
    return state, jax.jit(step)


@pytest.fixture(scope="module")
def three_steps(averaging, batch, table):
    """The states before and after training steps at learning rates of 0, half the peak and the
    peak."""
    state, run = averaging
    results = [(state, {})]
    for _ in range(3):
        results.append(run(results[-1][0], batch, table))
    return results


def test_depth_in_place_of_a_camera_is_refused(seeing, batch):
    metres = jnp.zeros((8, 2, 6, 8, 1), jnp.float32)
    wrong = batch | {"observation": batch["observation"] | {"image_primary": metres}}
    message = (
        r"observation/image_primary: expected images, uint8 \[..., h, w, 3\], for an image "
        r"tokenizer; found float32\[8, 2, 6, 8, 1\]\. Give the tokenizer a camera\. Depth needs"
    )
    with pytest.raises(UserError, match=message):
        to_model_size(wrong, seeing.model)


def test_table_has_one_row_per_instruction_and_one_for_none(table):
    assert table.shape == (3, 16, 32)
    assert table.dtype == jnp.float32
    assert len({np.asarray(row).tobytes() for row in table}) == 3


def test_sample_without_an_instruction_takes_the_row_of_the_empty_text(batch):
    table = jnp.arange(3.0)[:, None, None]
    found = look_up_language(batch, table)["task"]["language_embedding"][:, 0, 0]
    has_text = batch["task"]["pad_mask_dict"]["language_instruction"]
    assert 0 < has_text.sum() < 8
    expected = np.where(has_text, batch["task"]["task_index"], 2)
    np.testing.assert_array_equal(found, expected)


def test_looked_up_instructions_give_the_loss_of_an_encoder_inside_the_step(alone, three_steps):
    _, _, inside = alone
    _, with_table = three_steps[1]
    for name in ("loss", "grad_norm"):
        assert_equal_but_for_rounding(with_table[name], inside[name])


def test_language_encoder_is_trained_where_the_config_says_so(config, loader, batch):
    language = dataclasses.replace(config.model.language, finetune=True)
    model = dataclasses.replace(config.model, language=language)
    optimizer = dataclasses.replace(config.optimizer, frozen=())
    training = dataclasses.replace(config, model=model, optimizer=optimizer)
    state, step = descending(training)
    assert make_language_table(model, state.params, loader.tasks) is None
    after, _ = jax.jit(step)(state, batch, None)

    def encoder(params):
        return params["octo_transformer"]["task_tokenizers_language"]

    assert distance(encoder(after.params), encoder(state.params)) > 1e-4


def test_frozen_language_encoder_stays_bitwise_identical(three_steps):
    encoders = [
        state.params["octo_transformer"]["task_tokenizers_language"] for state, _ in three_steps
    ]
    jax.tree.map(np.testing.assert_array_equal, encoders[-1], encoders[0])


@pytest.mark.parametrize(
    ("finetune", "frozen", "message"),
    [
        (
            True,
            ("*hf_model*",),
            r"expected False, as \*hf_model\* .* freezes the encoder; found True",
        ),
        (False, (), r"optimizer.frozen: .* as model.language.finetune is False; found none"),
    ],
)
def test_encoder_is_either_frozen_or_trained(tiny_config, finetune, frozen, message):
    language = dataclasses.replace(tiny_config.model.language, finetune=finetune)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(
            tiny_config,
            model=dataclasses.replace(tiny_config.model, language=language),
            optimizer=dataclasses.replace(tiny_config.optimizer, frozen=frozen),
        )


def descending(config):
    """A state and a step that takes the clipped gradient from the parameters, without Adam.

    Adam gives a gradient that is zero but for rounding, as the attention's key bias has it, the
    size of any other.
    """
    optimizer = optax.clip_by_global_norm(config.optimizer.clip_norm)
    return state_of(config, optimizer), make_train_step(config, optimizer, lambda step: 1.0)


def distance(found, expected) -> float:
    """The norm of the difference of two trees."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return float(np.sqrt(sum(np.square(np.asarray(a) - np.asarray(b)).sum() for a, b in pairs)))


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


@pytest.fixture(scope="module")
def descent(config):
    """A state and a step, traced once for any number of devices."""
    return descending(config)


@pytest.fixture(scope="module")
def alone(descent, batch):
    """The state before, and the state and metrics after a step on one device."""
    state, step = descent
    return state, *jax.jit(step)(state, batch, None)


def test_micro_batches_give_the_training_step_of_the_whole_batch(config, batch, alone):
    real = batch["action_pad_mask"].sum(axis=(1, 2, 3)).reshape(2, 4).sum(axis=0)
    assert len(set(real.tolist())) > 1  # the micro-batches differ in their number of real actions
    before, whole, metrics = alone
    _, step = descending(changed(config, accumulation_steps=4))
    accumulated, accumulated_metrics = jax.jit(step)(before, batch, None)
    for name in ("loss", "grad_norm", "update_norm"):
        assert_equal_but_for_rounding(accumulated_metrics[name], metrics[name])
    assert 0.1 < float(metrics["update_norm"]) <= 1.001  # clipped once, as a whole
    assert_moved_alike(accumulated, whole, before)


def assert_moved_alike(found, expected, before):
    """Checks that updates are equal except for rounding, including that of the parameters."""
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(before.params))
    for path, leaf in flat(expected.params).items():
        np.testing.assert_allclose(
            flat(found.params)[path], leaf, atol=TERMS * EPSILON * scale, rtol=0, err_msg=path
        )


def test_what_is_not_finite_changes_nothing_but_the_training_step(
    averaging, three_steps, batch, table
):
    _, run = averaging
    state, _ = three_steps[1]
    spoiled = batch | {"action": batch["action"].copy()}
    spoiled["action"][0, -1, 0, 0] = np.nan
    spoiled["action_pad_mask"] = np.ones_like(batch["action_pad_mask"])
    after, metrics = run(state, spoiled, table)
    assert not np.isfinite(metrics["loss"])
    assert (int(metrics["applied"]), int(after.step)) == (0, 2)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    later, metrics = run(after, batch, table)
    assert int(metrics["applied"]) == 1
    assert float(metrics["param_norm"]) > 0
    assert distance(later.params, state.params) > 1e-3


def test_average_follows_the_trained_parameters(config, three_steps):
    (before, _), *_, (after, _) = three_steps
    assert not any("hf_model" in path for path in after.ema)
    params = [flat(state.params) for state, _ in three_steps[1:]]
    for path, mean in after.ema.items():
        # Without the initial parameters, and the weights of a decay of 0.75 add up to one.
        first, second, third = (np.asarray(one[path]) for one in params)
        expected = (0.5625 * first + 0.75 * second + third) / 2.3125
        assert_equal_but_for_rounding(mean, expected, terms=8)
        assert np.abs(mean - before.ema[path]).max() > 0, path
    averaged = flat(averaged_params(after.params, after.ema, config.frozen))
    assert averaged.keys() == flat(after.params).keys()
    np.testing.assert_array_equal(averaged[path], after.ema[path])


@pytest.mark.parametrize(
    ("mode", "frozen", "trained"),
    [
        ("full", ("*hf_model*", "*/obs_*"), {"octo_transformer", "heads_action"}),
        pytest.param("head_only", ("*hf_model*",), {"heads_action"}, marks=pytest.mark.slow),
        ("head_mlp_only", ("*hf_model*",), {"heads_action"}),
    ],
)
def test_frozen_parameters_stay_bitwise_identical_and_take_no_memory(
    config, batch, table, mode, frozen, trained
):
    head = dataclasses.replace(config.model.head, pooling="map")
    config = dataclasses.replace(
        changed(config, warmup_steps=0, frozen=frozen),
        finetuning_mode=mode,
        model=dataclasses.replace(config.model, head=head),
    )
    state, step = started(config)
    after, metrics = jax.jit(step)(state, batch, table)
    before, now = flat(state.params), flat(after.params)
    moved = {path for path in before if not np.array_equal(before[path], now[path])}
    held = set(split_frozen(state.params, config.frozen)[1])
    assert moved <= set(before) - held
    # With one readout token there is nothing to attend to, so these get no gradient.
    idle = {path for path in set(before) - held - moved if "/map_head/" not in path}
    assert not idle
    assert {path.split("/")[0] for path in moved} == trained
    attention = {path for path in before if "/map_head/Multi" in path or path.endswith("/probe")}
    assert (attention <= held) == (mode == "head_mlp_only")
    # Adam's moments, float32 and bfloat16 for each trained parameter, and two counts.
    size = sum(leaf.size for path, leaf in before.items() if path not in held)
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(after.opt_state))
    assert size * 6 <= taken <= size * 6 + 64
    assert float(metrics["grad_norm"]) > 0


def test_logged_rate_is_that_of_the_update(config, three_steps):
    for expected, (state, metrics) in zip((0.0, 5e-4, 1e-3), three_steps[1:], strict=True):
        np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-6)
        # Adam's update has the size of the rate in every trained parameter with a large gradient.
        trained = sum(leaf.size for leaf in split_frozen(state.params, config.frozen)[0].values())
        assert float(metrics["update_norm"]) <= 1.01 * expected * np.sqrt(trained)
        assert float(metrics["update_norm"]) >= 0.2 * expected * np.sqrt(trained)


@pytest.mark.parametrize("fsdp_devices", [1, 2])
def test_two_devices_give_the_step_of_one(config, batch, descent, alone, fsdp_devices):
    _, step = descent
    state, expected, metrics_alone = alone
    mesh = make_mesh(fsdp_devices)
    structs = shard_structs(jax.eval_shape(lambda: state), mesh, smallest_bytes=1024)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, structs)
    sharded = jax.device_put(state, shardings)
    arrays = jax.device_put(batch, batch_sharding(mesh, config.batch_size))
    together, metrics = jax.jit(step, out_shardings=(shardings, None))(sharded, arrays, None)
    kernel = flat(together.params)["octo_transformer/obs_vggt_projection/kernel"]
    parts = {str(shard.index) for shard in kernel.addressable_shards}
    assert len(parts) == fsdp_devices
    assert_equal_but_for_rounding(metrics["loss"], metrics_alone["loss"])
    assert_moved_alike(together, expected, state)
