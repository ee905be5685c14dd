import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from pipeline.errors import UserError
from train.train_config import OptimizerConfig
from train.update.optimizer import check_frozen, learning_rate, make_optimizer, split_frozen

UNITS = Path(__file__).parents[2] / "data" / "golden" / "octo" / "units"


@pytest.fixture(scope="module")
def golden():
    with np.load(UNITS / "optimizer.npz") as arrays:
        return dict(arrays)


def below(golden, prefix):
    """The arrays below a name, by path."""
    return {
        k.removeprefix(f"{prefix}/"): v for k, v in golden.items() if k.startswith(f"{prefix}/")
    }


def params():
    return {"head/kernel": np.full((2, 2), 2, np.float32), "head/bias": np.full(2, 2, np.float32)}


def updated(config, gradients, steps=2):
    """Parameters after some updates with the same gradients, and the optimizer's state."""
    optimizer, schedule = make_optimizer(config), learning_rate(config, num_steps=10)
    now = params()
    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(optimizer.init)(now)
        update = stepping(optimizer, schedule)
        for step in range(steps):
            now, state = update(gradients, state, now, np.int32(step))
    return now, state


def stepping(optimizer, schedule):
    """Compiled: the parameters and the optimizer's state after an update."""

    def update(gradients, state, now, step):
        updates, state = optimizer.update(gradients, state, now)
        return optax.apply_updates(now, jax.tree.map(lambda u: -schedule(step) * u, updates)), state

    return jax.jit(update)


def follow(golden, config, name, num_steps, gradients=None):
    """Compares every recorded update with ours, and every recorded rate with the schedule."""
    everything = below(golden, "params")
    trained, held = split_frozen(nested(everything), config.frozen)
    optimizer, schedule = make_optimizer(config), learning_rate(config, num_steps)
    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(optimizer.init)(trained)
        # Not compiled as a whole, which rounds the moments in bfloat16 differently.
        for step in range(num_steps):
            given = gradients(step) if gradients else below(golden, f"grads/{step}")
            given = {path: given[path] for path in trained}
            updates, state = optimizer.update(given, state, trained)
            rate = schedule(step)
            trained = optax.apply_updates(trained, jax.tree.map(lambda u, r=rate: -r * u, updates))
            yield step, float(rate), trained | held


def nested(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def recorded_config(golden, name):
    settings = json.loads(str(golden[f"{name}/config"]))
    rate = settings["learning_rate"]
    return OptimizerConfig(
        learning_rate=rate["peak_value"],
        schedule=rate["name"],
        warmup_steps=rate["warmup_steps"],
        decay_steps=rate.get("decay_steps"),
        rsqrt_timescale=rate.get("timescale", 10000),
        weight_decay=settings["weight_decay"],
        clip_norm=settings["clip_gradient"],
        frozen=tuple(key.replace(".", "/") for key in settings["frozen_keys"]),
    )


@pytest.mark.parametrize("name", ["finetune_full", "head_only", "rsqrt_nofreeze"])
def test_six_updates_equal_the_originals(golden, name):
    config = recorded_config(golden, name)
    compare = partial(np.testing.assert_allclose, atol=1e-6, rtol=0)
    for step, rate, ours in follow(golden, config, name, 6):
        compare(rate, golden[f"{name}/lr/{step}"])
        jax.tree.map(compare, ours, below(golden, f"{name}/params_after/{step}"))


def test_accumulation_departs_from_the_original_in_clipping_the_mean(golden):
    """The original clips each part's gradient and then averages; here a batch's is clipped once."""
    config = recorded_config(golden, "accum2")

    def mean_of_two(step):
        parts = [below(golden, f"grads/{2 * step + part}") for part in (0, 1)]
        return jax.tree.map(lambda a, b: (a + b) / 2, *parts)

    *_, (_, _, ours) = follow(golden, config, "accum2", 3, mean_of_two)
    recorded = below(golden, "accum2/params_after/5")
    frozen = "octo_transformer/hf_model/wi/kernel"
    np.testing.assert_array_equal(ours[frozen], recorded[frozen])
    difference = max(float(np.abs(ours[path] - recorded[path]).max()) for path in ours)
    assert 1e-3 < difference < 0.1


@pytest.mark.parametrize("schedule", ["cosine", "rsqrt", "constant"])
def test_rates_of_sixty_steps_equal_the_originals(schedule):
    with np.load(UNITS / "lr_schedules.npz") as arrays:
        steps, expected = arrays["steps"], arrays[schedule]
    options = {"cosine": {"decay_steps": 50}, "rsqrt": {"rsqrt_timescale": 20}, "constant": {}}
    config = OptimizerConfig(
        learning_rate=3e-4, warmup_steps=10, schedule=schedule, **options[schedule]
    )
    with jax.numpy_dtype_promotion("standard"):
        rates = [float(learning_rate(config, 50)(step)) for step in steps]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-12)


def test_the_rate_ends_at_decay_steps_where_given():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay_steps=6)
    assert float(learning_rate(config, num_steps=10)(6)) == 0.0


def test_without_gradients_only_kernels_decay():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=1, weight_decay=0.5)
    after, _ = updated(config, jax.tree.map(np.zeros_like, params()))
    np.testing.assert_array_equal(after["head/bias"], 2.0)
    np.testing.assert_allclose(after["head/kernel"], 2.0 - 0.1 * 0.5 * 2.0, rtol=1e-6)


@pytest.mark.parametrize(("clip_norm", "scale"), [(1.0, 1.0), (0.5, 0.25)])
def test_the_gradient_is_clipped_to_its_global_norm(clip_norm, scale):
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=1, weight_decay=0.0, clip_norm=clip_norm
    )
    for factor in (1.0, 1000.0):
        gradients = jax.tree.map(lambda p, f=factor: f * np.ones_like(p), params())
        _, state = updated(config, gradients)
        nu = optax.tree_utils.tree_get(state, "nu")
        # Six trained parameters with equal gradients: each gradient is 1 / sqrt(6) once clipped to
        # 1.
        np.testing.assert_allclose(nu["head/bias"], scale * (0.001 + 0.000999) / 6, rtol=1e-5)


def test_a_glob_that_freezes_nothing_or_everything_is_refused():
    paths = ["octo_transformer/a/kernel", "heads_action/b/kernel"]
    check_frozen(paths, ("octo_transformer/*",))
    check_frozen(paths, ("*hf_model*",))  # the default, on a model without an encoder
    with pytest.raises(UserError, match=r"found octo_tranformer/\*, which match none"):
        check_frozen(paths, ("octo_tranformer/*",))
    with pytest.raises(UserError, match="one trained parameter; found all 2 parameters frozen"):
        check_frozen(paths, ("*/kernel",))
