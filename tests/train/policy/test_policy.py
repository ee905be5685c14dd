import copy
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.text import load_vocabulary
from pipeline.loading.transforms.input_transforms import ConvertObservationRotation
from pipeline.loading.transforms.rotation_transforms import RelativePose
from tests.rounding import TERMS, assert_equal_but_for_rounding
from tests.train.conftest import untrained, with_data
from train.checkpoints.checkpoint_store import Checkpoint, read_checkpoint
from train.octo.functional import sample_actions
from train.octo.model import OctoModule
from train.octo.octo_config import VGGTTokenizerConfig
from train.policy import Policy, PolicyConfig, PolicySpec, Timing
from train.policy.observations import Task, check_environments, check_task
from train.policy.policy_inputs import PolicyInputs
from train.update.train_step import make_language_table, model_inputs

TEXT = "pick up the bowl"
TASK = Task(TEXT, {})
SAMPLED = 32 * TERMS
"""Rounding terms in sampled actions: the first denoising step multiplies them by 31.6."""


@pytest.fixture(scope="module")
def checkpoint(policy_run):
    return read_checkpoint(policy_run)


@pytest.fixture(scope="module")
def shared_policy(checkpoint):
    """A policy that is compiled once; the fixture `policy` clears it."""
    return Policy(checkpoint, config=PolicyConfig(batch_size=3))


@pytest.fixture
def policy(shared_policy):
    for env in range(10):
        shared_policy.forget(env)
    return shared_policy


def inputs_of(checkpoint, dataset=None, encoder=None, **options) -> PolicyInputs:
    """Makes the input path alone, without compiling anything."""
    return PolicyInputs(PolicySpec.of(checkpoint, dataset), encoder, **options)


def changed(checkpoint, **data) -> Checkpoint:
    """The checkpoint of a run with other fields of its data config."""
    return dataclasses.replace(checkpoint, config=with_data(checkpoint.config, **data))


def shown(seed: int = 0, size: int = 128) -> dict:
    rng = np.random.default_rng(seed)
    primary, wrist = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    # float64, as simulators have it
    return {"image_primary": primary, "image_wrist": wrist, "proprio": rng.normal(size=8)}


def test_the_directory_of_a_step_is_enough(policy_run, policy, tmp_path):
    shutil.copytree(policy_run / "checkpoints" / "2", tmp_path / "checkpoints" / "2")
    alone = Policy.from_run(tmp_path)
    for one in (alone, policy):
        one.reset(0, TEXT)
    assert (alone.step, alone.window_size, alone.action_horizon) == (2, 2, 4)
    found = alone.infer({0: shown()})[0]
    assert (found.dtype, found.shape) == (np.float32, (4, 7))
    assert_equal_but_for_rounding(found, policy.infer({0: shown()})[0], SAMPLED)


def test_an_example_observation_fits_and_is_in_the_datasets_units(policy, checkpoint):
    example = policy.example_observation()
    assert list(example) == list(policy.expected)
    policy.reset(0, TEXT)
    assert policy.infer({0: example})[0].shape == (4, 7)
    mean = checkpoint.datasets[policy.spec.dataset]["statistics"]["observation/proprio"]["mean"]
    np.testing.assert_allclose(example["proprio"], mean)
    seen = policy.batch([0])["observation"]["proprio"]
    np.testing.assert_allclose(seen[0, -1], np.zeros(8), atol=1e-6)
    assert (example["image_wrist"] == 127).all()


def test_a_state_that_holds_a_quaternion_is_warmed_up_and_has_an_example(checkpoint, caplog):
    """Zeros are no quaternion: the transforms refuse them."""
    held = ("rx_rad", "ry_rad", "rz_rad", "gripper_left_m")
    transforms = (
        RelativePose(
            ("dx", "dy", "dz"),
            ("drx", "dry", "drz"),
            "axis_angle",
            state_position=("x_m", "y_m", "z_m"),
            state_rotation=held,
            state_representation="quaternion_xyzw",
            target="axis_angle",
        ),
        ConvertObservationRotation(held, "quaternion_xyzw", "quaternion_wxyz"),
    )
    unstated = Policy(changed(checkpoint, transforms=transforms), config=PolicyConfig(batch_size=3))
    unstated.warm_up()
    assert "first prediction will take longer" in caplog.text
    assert "found quaternion_xyzw of norm 0" in caplog.text
    caplog.clear()
    datasets = copy.deepcopy(checkpoint.datasets)
    for values in datasets.values():
        pose = {"feature": "observation/proprio", "dim": 3, "representation": "quaternion_xyzw"}
        values["conventions"]["rotations"] = [pose]
    turned = changed(dataclasses.replace(checkpoint, datasets=datasets), transforms=transforms)
    policy = Policy(turned, config=PolicyConfig(batch_size=3))
    policy.warm_up()
    assert not caplog.text
    policy.reset(0, TEXT)
    blank = shown() | {"proprio": np.zeros(8)}
    with pytest.raises(UserError, match="expected rotations; found quaternion_xyzw of norm 0"):
        policy.infer({0: blank})
    example = policy.example_observation()
    np.testing.assert_array_equal(example["proprio"], [0, 0, 0, 0, 0, 0, 1, 0])
    assert policy.infer({0: example})[0].shape == (4, 7)
    # What a transform refuses is in no history.
    assert policy.batch([0])["observation"]["timestep_pad_mask"].tolist() == [[False, True]]
    assert str(policy).endswith("action: float32[4,7]: dx, dy, dz, drx, dry, drz, gripper")


def test_a_printed_policy_says_what_to_call_it_with(policy):
    assert repr(policy) == f"Policy(training step 2, {policy.spec.dataset!r})"
    lines = str(policy).splitlines()
    assert lines[0].startswith("policy of training step 2, ")
    assert lines[2:] == [
        "task: an instruction",
        "observation, of which the last 2 are read:",
        "  image_primary    uint8[128,128,3]",
        "  image_wrist      uint8[128,128,3]",
        "  proprio          float32[8]",
        "action: float32[4,7]: dx, dy, dz, drx, dry, drz, gripper",
    ]


def test_a_directory_that_is_no_run_and_a_step_that_is_not_there_are_reported(policy_run, tmp_path):
    with pytest.raises(UserError, match="expected the directory of a run, with checkpoints"):
        Policy.from_run(tmp_path)
    with pytest.raises(UserError, match=f"none in it. Give the run itself: {policy_run}"):
        Policy.from_run(policy_run / "checkpoints")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=f"none in it. Runs in it: {tmp_path}/run"):
        Policy.from_run(tmp_path)
    with pytest.raises(UserError, match=r"a checkpoint of step 7; found the steps \[1, 2\]"):
        Policy.from_run(policy_run, step=7)


@pytest.fixture(scope="module")
def sampled_as_in_validation(policy_config, checkpoint, mini_dataset):
    """Unnormalised actions that validation samples at a step of the first episode with a key."""
    data = policy_config.data
    dataset = open_dataset(str(mini_dataset), data.keys)
    encode = load_vocabulary(data.vocabulary).EncodeAsIds
    loader = Loader(data, 1, [dataset], encode)
    make = jax.jit(lambda params: make_language_table(policy_config.model, params, loader.tasks))
    table = make(checkpoint.params)
    module = OctoModule(policy_config.model)

    @jax.jit  # as in train/metrics/validation.py
    def sample(params, batch, table, key):
        inputs = model_inputs(batch, policy_config, table)
        return sample_actions(module, params, inputs["observation"], inputs["task"], key)

    def actions(t, key):
        chunk = sample(checkpoint.params, loader.read(0, [t]), table, key)
        return loader.normalizers["action"].unnormalize(np.asarray(chunk), np.zeros(1, np.int64))

    return actions


@pytest.mark.parametrize("t", [0, 1, 50])
def test_a_chunk_is_what_validation_samples_with_the_same_key(
    policy, policy_config, sampled_as_in_validation, mini_dataset, t
):
    dataset = open_dataset(str(mini_dataset), policy_config.data.keys)
    expected = sampled_as_in_validation(t, policy.noise_key(5, 0))
    policy.reset(5, dataset.manifest.tasks[dataset.task_index(0, 0)])
    for step in range(t):
        policy.observe({5: dataset.step(0, step)["observation"]})
    found = policy.infer({5: dataset.step(0, t)["observation"]})[5]
    assert_equal_but_for_rounding(found, expected[0], SAMPLED)
    assert np.abs(found).max() > 1e-3


def test_noise_is_of_seed_environment_and_count_alone(policy, checkpoint):
    def chunks(policy, envs):
        for env in envs:
            policy.reset(env, TEXT)
        return [policy.infer({env: shown(env % 2) for env in envs}) for _ in range(3)]

    together, alone = chunks(policy, [0, 2, 4, 6]), chunks(policy, [4])  # more than a batch
    for count in range(3):
        assert_equal_but_for_rounding(together[count][4], alone[count][4], SAMPLED)
    first, second, third = together
    assert np.abs(first[0] - first[2]).max() > 1e-2  # another environment, the same images
    assert np.abs(second[0] - third[0]).max() > 1e-2  # another count, the same window
    again = chunks(policy, [4])
    np.testing.assert_array_equal(again[1][4], alone[1][4])
    other = Policy(checkpoint, config=PolicyConfig(seed=1))
    assert np.abs(chunks(other, [4])[0][4] - alone[0][4]).max() > 1e-2


def test_the_reset_of_one_environment_leaves_the_others(policy):
    for env in (0, 1):
        policy.reset(env, TEXT)
        for seed in (1, 2):
            policy.observe({env: shown(seed)})
    policy.reset(1, "open the drawer")
    policy.observe({1: shown(3)})
    batch = policy.batch([0, 1])
    observation = batch["observation"]
    assert observation["timestep_pad_mask"].tolist() == [[True, True], [False, True]]
    images = observation["image_primary"]
    for row, seeds in ((0, (1, 2)), (1, (3, 3))):  # before the first step, the first step again
        for place, seed in enumerate(seeds):
            np.testing.assert_array_equal(images[row, place], shown(seed)["image_primary"])
    ids = batch["task"]["language_instruction"]["input_ids"]
    assert not np.array_equal(ids[0], ids[1])
    policy.instruct(1, TEXT)
    again = policy.batch([0, 1])
    np.testing.assert_array_equal(*again["task"]["language_instruction"]["input_ids"])
    np.testing.assert_array_equal(again["observation"]["image_primary"], images)


def test_an_image_that_is_used_again_by_the_environment_stays_in_the_history(policy):
    policy.reset(0, TEXT)
    seen = shown()
    policy.observe({0: seen})
    seen["image_primary"][...] = 0
    assert policy.batch([0])["observation"]["image_primary"].any()


def test_every_observation_that_does_not_fit_is_named_at_once(policy):
    for env in (0, 3):
        policy.reset(env, TEXT)
    wrong = {
        0: {"image_primary": shown()["image_primary"] / 255, "proprio": np.zeros(7)},
        3: shown() | {"image_wrist": shown(size=64)["image_wrist"], "proprio": np.full(8, np.nan)},
    }
    with pytest.raises(UserError) as caught:
        policy.infer(wrong)
    assert caught.value.expected == (
        "image_primary uint8[128,128,3], image_wrist uint8[128,128,3], proprio float32[8]"
    )
    assert caught.value.found.split("; ") == [
        "environment 0, image_primary: float64[128,128,3]",
        "environment 0, image_wrist: missing",
        "environment 0, proprio: float64[7]",
        "environment 3, image_wrist: uint8[64,64,3]",
        "environment 3, proprio: float64[8] with values that are not finite as float32",
    ]
    with pytest.raises(UserError) as caught:
        policy.infer({0: wrong[0], 3: wrong[0] | {"image_primary": None}})
    assert caught.value.found.split("; ") == [
        "environment 0, image_primary: float64[128,128,3]",
        "every environment, image_wrist: missing",
        "every environment, proprio: float64[7]",
        "environment 3, image_primary: missing",
    ]
    with pytest.raises(UserError, match=r"found image_primary: missing; image_wrist: a str\. "):
        policy.infer({0: {"image_wrist": "wrist.png", "proprio": np.zeros(8)}})
    policy.infer({0: shown()})  # the first step: what did not fit is not in the history
    assert policy.batch([0])["observation"]["timestep_pad_mask"].tolist() == [[False, True]]


def test_actions_that_are_not_finite_clear_the_histories_of_their_environments(policy):
    for env in (0, 1):
        policy.reset(env, TEXT)
    policy.observe({0: shown(0), 1: shown(1)})
    huge = shown(3) | {"proprio": np.full(8, 1e30)}
    with pytest.raises(UserError, match=r"actions of environments \[1\]: expected finite values"):
        policy.infer({0: shown(2), 1: huge})
    policy.infer({0: shown(2), 1: shown(3)})
    seen = policy.batch([0, 1])["observation"]
    assert seen["timestep_pad_mask"].tolist() == [[True, True], [False, True]]
    for place, seed in enumerate((0, 2)):
        np.testing.assert_array_equal(seen["image_primary"][0, place], shown(seed)["image_primary"])


def test_images_of_another_size_are_resized_only_on_request(checkpoint, policy):
    resizing = inputs_of(checkpoint, resize=True)
    smooth = np.broadcast_to(np.linspace(0, 255, 256)[:, None, None], (256, 256, 3))
    image = smooth.round().astype(np.uint8)
    resizing.reset(0, TASK)
    resizing.push({0: shown() | {"image_primary": image}})
    found = resizing.batch([0]).arrays["observation"]["image_primary"][0, -1]
    assert found.shape == (128, 128, 3)
    expected = smooth.reshape(128, 2, 256, 3)[:, :, :128].mean(axis=1)
    assert np.abs(found - expected).max() < 1.5
    policy.reset(0, TEXT)
    with pytest.raises(UserError, match=r"found image_primary: uint8\[256,256,3\]"):
        policy.infer({0: shown() | {"image_primary": image}})


@pytest.mark.parametrize(
    ("observations", "found"),
    [
        ({"proprio": np.zeros(8)}, "'proprio': ndarray"),
        ({0: None}, "0: NoneType"),
        ([{"proprio": np.zeros(8)}], "a list"),
    ],
)
def test_an_observation_without_the_number_of_its_environment_is_reported(observations, found):
    with pytest.raises(UserError, match=rf"found {found}\. Number the environments: policy.infer"):
        check_environments(observations)


def test_an_environment_needs_a_reset_and_a_number(policy):
    with pytest.raises(UserError, match="environment 8: expected a task; found none"):
        policy.infer({8: shown()})
    with pytest.raises(UserError, match="from 0 to 2"):
        policy.reset(-1, TEXT)
    with pytest.raises(UserError, match=r"expected an instruction as text.*found int 3\. Write"):
        check_task(3, {})
    policy.reset(8, TEXT)
    policy.infer({8: shown()})
    policy.forget(8)
    with pytest.raises(UserError, match="environment 8"):
        policy.infer({8: shown()})


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_has_no_key_of_its_own_is_refused(seed):
    with pytest.raises(UserError, match=rf"seed: expected 0 to 2\*\*32 - 1; found {seed}\. "):
        PolicyConfig(seed=seed)


def test_latency_counts_calls_without_compiling(checkpoint):
    policy = Policy(checkpoint, config=PolicyConfig(seed=1))
    assert policy.latency.num_calls == 0
    assert np.isnan(policy.latency.mean_ms)
    policy.reset(0, TEXT)
    for _ in range(5):
        policy.infer({0: shown()})
    latency = policy.latency
    assert latency.num_calls == 5
    assert 0 < latency.p50_ms <= latency.p95_ms < 1000
    assert str(latency).startswith("5 calls: ")
    timing = policy.timing
    assert min(timing.model_ms, timing.instruction_ms) > 0
    assert timing.model_ms + timing.instruction_ms < 5 * latency.mean_ms
    assert timing.tokens_ms == 0
    policy.observe({0: shown()})
    assert policy.timing == Timing()


def with_datasets(checkpoint, *, missing=(), **described) -> Checkpoint:
    """The checkpoint of a run on several datasets, by name; the last lacks what is `missing`."""
    *parts, last = (DatasetConfig(f"data/{name}") for name in described)
    parts = (*parts, dataclasses.replace(last, missing=missing))
    datasets = {f"data/{name}": values | {"name": name} for name, values in described.items()}
    return dataclasses.replace(changed(checkpoint, datasets=parts), datasets=datasets)


def mean_action(spec: PolicySpec) -> np.ndarray:
    """The action (a) that a prediction of zeros stands for."""
    batch = {"dataset_index": np.zeros(1, np.int32)}
    traced = [batch] * (len(spec.chain.stages) + 1)
    return spec.chain.invert(np.zeros((1, 4, 7), np.float32), traced)[0, 0]


def test_a_dataset_has_to_be_named_where_they_differ(checkpoint):
    (one,) = checkpoint.datasets.values()
    other = json.loads(json.dumps(one))
    other["statistics"]["action"]["mean"][0] += 1
    assert PolicySpec.of(with_datasets(checkpoint, a=one, b=one)).dataset == "data/a"
    several = with_datasets(checkpoint, a=one, b=other)
    message = r"expected one of data/a \(a\), data/b \(b\); found none named, and they differ"
    with pytest.raises(UserError, match=message):
        PolicySpec.of(several)
    with pytest.raises(UserError, match=r"data/b \(b\); found c"):
        PolicySpec.of(several, "c")
    for wanted in ("b", "data/b"):
        spec = PolicySpec.of(several, wanted)
        assert spec.dataset == "data/b"
        moved, same = (mean_action(PolicySpec.of(several, name)) for name in (wanted, "a"))
        np.testing.assert_allclose(moved - same, [1, 0, 0, 0, 0, 0, 0], atol=1e-6)


def test_a_checkpoint_without_shapes_is_reported(checkpoint):
    (values,) = checkpoint.datasets.values()
    old = {key: value for key, value in values.items() if key != "features"}
    with pytest.raises(UserError, match="expected the shape of every feature"):
        PolicySpec.of(with_datasets(checkpoint, a=old))


def test_what_the_dataset_lacked_is_neither_asked_for_nor_seen(checkpoint):
    (values,) = checkpoint.datasets.values()
    lacking = with_datasets(checkpoint, a=values, b=values, missing=("image_wrist", "proprio"))
    with pytest.raises(UserError, match="they differ"):
        PolicySpec.of(lacking)
    inputs = inputs_of(lacking, "b")
    assert list(inputs.expected) == ["image_primary"]
    inputs.reset(0, TASK)
    for _ in range(2):
        inputs.push({0: {"image_primary": shown()["image_primary"]}})
    observation = inputs.batch([0]).arrays["observation"]
    np.testing.assert_array_equal(observation["image_wrist"], np.zeros((1, 2, 128, 128, 3)))
    masks = {name: mask.tolist() for name, mask in observation["pad_mask_dict"].items()}
    nothing = [[False, False]]
    assert masks == {
        "image_primary": [[True, True]],
        "image_wrist": nothing,
        "proprio": nothing,
    }


class MeanTokens:
    """Every element of a token is the mean of the image, in 1/1024."""

    cameras = ("image_primary",)

    def __init__(self, num_tokens: int = 21) -> None:
        self.num_tokens = num_tokens
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images):
        (image,) = images
        self.batches.append(image.shape)
        mean = (image.mean(axis=(1, 2, 3)) / 1024).astype(np.float16)
        tokens = np.broadcast_to(mean[:, None, None], (len(image), self.num_tokens, 64))
        return {"observation/vggt_tokens": tokens}


@pytest.fixture(scope="module")
def token_config(policy_config):
    """A model of the wrist camera and of tokens, whose encoder reads the other camera."""
    vggt = VGGTTokenizerConfig(num_tokens=21, token_dim=64)
    return with_data(
        policy_config,
        observations=("image_primary", "image_wrist", "vggt_tokens"),
        model={"images": policy_config.model.images[1:], "lowdims": (), "vggt": vggt},
    )


@pytest.fixture(scope="module")
def token_checkpoint(token_config):
    return untrained(token_config)


def test_tokens_need_an_encoder_and_are_computed_in_one_size_of_batch(token_checkpoint):
    message = r"observation/vggt_tokens: expected an encoder, .* float16\[21,64\] of every step"
    with pytest.raises(UserError, match=message):
        Policy(token_checkpoint)
    encoder = MeanTokens()
    policy = Policy(token_checkpoint, None, PolicyConfig(batch_size=2), encoder)
    assert sorted(policy.expected) == ["image_primary", "image_wrist"]
    for env in range(3):
        policy.reset(env, TEXT)
    policy.observe({1: shown(1)})
    chunks = policy.infer({env: shown(env + 5) for env in range(3)})
    assert [chunk.shape for chunk in chunks.values()] == [(4, 7)] * 3
    assert encoder.batches == [(2, 128, 128, 3)] * 3
    tokens = policy.batch([0, 1])["observation"]["vggt_tokens"]
    assert (tokens.dtype, tokens.shape) == (np.float16, (2, 2, 21, 64))
    for place, seed in enumerate((1, 6)):
        expected = (shown(seed)["image_primary"].mean() / 1024).astype(np.float16)
        np.testing.assert_allclose(tokens[1, place], expected, rtol=1e-3)


def test_a_policy_that_was_aligned_runs_no_encoder(token_config, policy_config):
    vggt = dataclasses.replace(token_config.model.vggt, fusion="align")
    aligned = {"images": policy_config.model.images, "vggt": vggt}
    policy = Policy(untrained(with_data(token_config, model=aligned)))
    assert sorted(policy.expected) == ["image_primary", "image_wrist"]
    policy.reset(0, TEXT)
    assert policy.infer({0: shown()})[0].shape == (4, 7)


def test_tokens_that_do_not_fit_are_reported(token_checkpoint):
    inputs = inputs_of(token_checkpoint, encoder=MeanTokens(num_tokens=20))
    inputs.reset(0, TASK)
    message = r"expected float16\[1,21,64\]; found float16\[1,20,64\]"
    with pytest.raises(UserError, match=message):
        inputs.push({0: shown()})


def test_tokens_of_the_current_step_alone_are_not_computed_before(token_checkpoint):
    checkpoint = changed(token_checkpoint, current_only=("vggt_tokens",))
    encoder = MeanTokens()
    inputs = inputs_of(checkpoint, encoder=encoder)
    inputs.reset(0, TASK)
    inputs.push({0: shown()}, latest=False)
    assert encoder.batches == []
    inputs.push({0: shown(1)})
    assert len(encoder.batches) == 1
    observation = inputs.batch([0]).arrays["observation"]
    assert observation["vggt_tokens"].shape == (1, 1, 21, 64)
    assert observation["pad_mask_dict"]["vggt_tokens"].tolist() == [[False, True]]


def test_goal_images_tell_the_task_of_a_policy_that_learnt_so(checkpoint, policy):
    goal = {name: shown(9)[name] for name in ("image_primary", "image_wrist")}
    with pytest.raises(UserError, match=r"expected an instruction, as .* language_conditioned"):
        policy.reset(0, goal=goal)
    either = Policy(changed(checkpoint, conditioning="multimodal"))
    either.reset(0, goal=goal)
    by_goal = either.infer({0: shown()})[0]
    batch = either.batch([0])
    np.testing.assert_array_equal(batch["task"]["image_wrist"][0], goal["image_wrist"])
    assert batch["task"]["pad_mask_dict"]["language_instruction"].tolist() == [False]
    either.reset(0, TEXT)
    assert np.abs(either.infer({0: shown()})[0] - by_goal).max() > 1e-4
    assert not either.batch([0])["task"]["image_wrist"].any()
    with pytest.raises(UserError, match="multimodal; found an instruction and goal images"):
        either.reset(0, TEXT, goal)
    with pytest.raises(UserError, match="image_wrist: missing"):
        either.reset(0, goal={"image_primary": goal["image_primary"]})
    by_image = inputs_of(changed(checkpoint, conditioning="image_conditioned"))
    with pytest.raises(UserError, match=r"expected goal images, as .* image_conditioned"):
        by_image.reset(0, TASK)


def test_the_model_reads_exactly_what_the_policy_says(policy, policy_config, checkpoint):
    class Recorder(dict):
        def __init__(self, content, path, seen):
            super().__init__(content)
            self.path, self.seen = path, seen

        def __getitem__(self, key):
            value = super().__getitem__(key)
            path = f"{self.path}/{key}"
            if isinstance(value, dict):
                return Recorder(value, path, self.seen)
            self.seen.add(path)
            return value

        def get(self, key, default=None):
            return self[key] if self.keys() & {key} else default

    policy.reset(0, TEXT)
    policy.observe({0: shown()})
    batch = policy.batch([0])
    arrays = jax.tree.map(jnp.asarray, batch)
    resized = model_inputs(arrays, policy_config, None)
    seen: set[str] = set()
    observation, task = (Recorder(resized[part], part, seen) for part in ("observation", "task"))
    module, key = OctoModule(policy_config.model), jax.random.key(0)
    jax.eval_shape(
        lambda params: sample_actions(module, params, observation, task, key), checkpoint.params
    )
    assert seen == set(policy.spec.leaves)
