import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pipeline.dataset import open_dataset
from pipeline.loader import Loader
from pipeline.text import load_vocabulary
from train.optimizer import learning_rate, make_optimizer
from train.state import TrainState, init_state
from train.step import look_up_language, make_language_table, make_train_step


def multimodal(config):
    data = dataclasses.replace(config.data, conditioning="multimodal", num_threads=0)
    return dataclasses.replace(config, data=data, batch_size=8)


@pytest.fixture
def config(tiny_config):
    return multimodal(tiny_config)


@pytest.fixture
def loader(config):
    datasets = [open_dataset(part.path) for part in config.data.datasets]
    encode = load_vocabulary(config.data.vocabulary).EncodeAsIds
    return Loader(config.data, config.batch_size, datasets, encode)


@pytest.fixture
def batch(loader):
    with contextlib.closing(loader.batches()) as batches:
        return next(batches).arrays


def started(config) -> tuple[TrainState, object]:
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    step = make_train_step(config, optimizer, learning_rate(config.optimizer, config.num_steps))
    return init_state(config.model, optimizer, config.seed), step


def test_table_has_a_row_for_each_instruction_and_one_for_none(config, loader):
    state, _ = started(config)
    table = make_language_table(config.model, state.params, loader.tasks)
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


def test_looked_up_instructions_give_the_step_of_an_encoder_inside_it(config, loader, batch):
    state, step = started(config)
    table = make_language_table(config.model, state.params, loader.tasks)
    with_table, inside = (jax.jit(step)(state, batch, t) for t in (table, None))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(with_table[1][name], inside[1][name], rtol=1e-6)
    for ours, theirs in zip(
        *(jax.tree.leaves(s.params) for s, _ in (with_table, inside)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=0)


def test_language_encoder_is_trained_where_the_config_says_so(config, loader, batch):
    language = dataclasses.replace(config.model.language, finetune=True)
    optimizer = dataclasses.replace(config.optimizer, frozen=())
    model = dataclasses.replace(config.model, language=language)
    training = dataclasses.replace(config, model=model, optimizer=optimizer)
    state, step = started(training)
    assert make_language_table(model, state.params, loader.tasks) is None
    run = jax.jit(step)
    after, _ = run(*(run(state, batch, None)[0], batch, None))  # the first step's rate is 0

    def encoder(params):
        return params["octo_transformer"]["task_tokenizers_language"]

    moved = optax.tree.norm(optax.tree.sub(encoder(after.params), encoder(state.params)))
    assert moved > 1e-4


def test_frozen_language_encoder_stays_to_the_bit(config, loader, batch):
    state, step = started(config)
    table = make_language_table(config.model, state.params, loader.tasks)
    run = jax.jit(step)
    after, _ = run(run(state, batch, table)[0], batch, table)
    for ours, theirs in zip(
        *(
            jax.tree.leaves(s.params["octo_transformer"]["task_tokenizers_language"])
            for s in (after, state)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("finetune", "frozen", "message"),
    [
        (True, ("*hf_model*",), "finetune is True, but optimizer.frozen .* freezes the encoder"),
        (False, (), "finetune is False, but optimizer.frozen does not name the encoder"),
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
