"""An exported policy in a process of its own, which can import jax and numpy and no octograin."""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import pathlib
import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.data.conventions import restore_gripper
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.transforms.input_transforms import ConvertObservationRotation, StateNoise
from pipeline.loading.transforms.rotation_transforms import RelativePose
from tests.command_line import call
from tests.train.conftest import with_data, write_checkpoints
from train.checkpoints.checkpoint_store import Checkpoint, read_checkpoint
from train.exported.policy_export import ExportConfig, export_policy
from train.exported.policy_file import (
    META,
    PROGRAM,
    PolicyFile,
    load_program,
    machine,
    read_file,
    split_program,
    structs_from_json,
    structs_to_json,
)
from train.exported.stablehlo_command import instructions_of
from train.octo.octo_config import VGGTTokenizerConfig
from train.policy import GripperCommands, Policy, PolicyConfig
from train.train_config import TrainConfig

TEXTS = ("pick up the bowl", "open the drawer")
HELD = ("rx_rad", "ry_rad", "rz_rad", "gripper_left_m")
TRANSFORMS = (
    RelativePose(
        ("dx", "dy", "dz"),
        ("drx", "dry", "drz"),
        "axis_angle",
        state_position=("x_m", "y_m", "z_m"),
        state_rotation=HELD,
        state_representation="quaternion_xyzw",
        target="axis_angle",
    ),
    StateNoise("proprio", (("x_m", 0.1),)),
    ConvertObservationRotation(HELD, "quaternion_xyzw", "quaternion_wxyz"),
)

ACT = """
import importlib.util, json, sys, time
began = time.process_time()
file, arrays, out, seed = sys.argv[1:5]
sys.path[:0] = [file, *sys.argv[5:]]
absent = ("octograin", "pipeline", "train", "flax", "pydantic", "xxhash", "jaxtyping", "PIL")
assert not [name for name in absent if importlib.util.find_spec(name)]
import numpy as np
from exported_policy import ExportedPolicy
policy = ExportedPolicy(seed=int(seed), resize=True)
shown = np.load(arrays)
def step(number):
    names = policy.expected
    return {env: {name: shown[f"{env}/{number}/{name}"] for name in names} for env in (0, 7, 3)}
found, errors = {}, []
def infer(number):
    for env, chunk in policy.infer(step(number)).items():
        found[f"{env}/{number}"] = chunk
policy.reset(0, policy.instructions[0])
policy.reset(7, policy.instructions[1])
policy.reset(3, goal=step(3)[3])
infer(0)
first = time.process_time() - began
policy.instruct(3, policy.instructions[1])
infer(1)
policy.observe(step(2))
policy.reset(7, policy.instructions[0])
infer(3)
found["gripper"] = policy.restore_gripper(found["0/3"])
found["commands"] = policy.gripper_commands()(found["0/3"])
for call in (
    lambda: ExportedPolicy(seed=2**32),
    lambda: policy.reset(0, "fly"),
    lambda: policy.reset(-1, policy.instructions[0]),
    lambda: policy.reset(0, policy.instructions[0], {"image_primary": np.zeros(3)}),
    lambda: policy.infer({5: {}}),
    lambda: policy.infer({0: {"proprio": np.zeros(7)}}),
    lambda: policy.infer(step(0)[0]),
    lambda: policy.infer({0: step(0)[0] | {"proprio": np.zeros(8)}}),
):
    try:
        call()
    except ValueError as error:
        errors.append(str(error))
infer(4)
np.savez(out, **found)
print(json.dumps({"errors": errors, "origin": policy.origin, "cpu_s": first,
                  "rotation": policy.conventions.rotation, "text": str(policy)}))
"""


@pytest.fixture(scope="module")
def run(policy_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run by instructions and goals whose transforms change rotations of state and actions."""
    directory = tmp_path_factory.mktemp("exported") / "run"
    config = with_data(policy_config, transforms=TRANSFORMS, conditioning="multimodal")
    write_checkpoints(dataclasses.replace(config, save_dir=str(directory)), (1,))
    return directory


@pytest.fixture(scope="module")
def checkpoint(run: pathlib.Path) -> Checkpoint:
    return read_checkpoint(run)


@pytest.fixture(scope="module")
def exported(run: pathlib.Path) -> pathlib.Path:
    """The file of that run's policy, which the command compared with it."""
    path, printed = run.with_name("policy.zip"), io.StringIO()
    texts = [word for text in (*TEXTS, TEXTS[0]) for word in ("--instruction", text)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        arguments = ["export", run, path, "--to", "stablehlo", "--batch_size", "2"]
        assert call(patch, *arguments, "--platforms", "cpu,cuda,tpu", *texts) == 0
    first, *others = printed.getvalue().splitlines()
    assert first.startswith(f"policy: {path}, ")
    assert others == [
        "instructions: 2 texts",
        *(f"  {text}" for text in TEXTS),
        "checked: a chunk is bitwise identical to the policy's",
        f"try it: python {path}",
    ]
    return path


@pytest.fixture(scope="session")
def jax_alone(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with jax and what it requires, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    waiting, linked = ["jax"], set()
    while waiting:
        name = waiting.pop()
        if name not in linked:
            linked.add(name)
            distribution = importlib.metadata.distribution(name)
            for part in {file.parts[0] for file in distribution.files or ()} - {
                "..",
                "__pycache__",
            }:
                (folder / part).symlink_to(pathlib.Path(str(distribution.locate_file(part))))
            required = [one for one in distribution.requires or () if "extra ==" not in one]
            waiting += [re.split(r"[^\w.-]", one)[0] for one in required]
    assert linked >= {"jax", "jaxlib", "numpy"}
    return folder


def shown(env: int, number: int) -> dict[str, np.ndarray]:
    """An observation; the main camera of environment 3 has another size."""
    rng = np.random.default_rng([env, number])
    side = 96 if env == 3 else 128
    return {
        "image_primary": rng.integers(0, 256, (side, side, 3), np.uint8),
        "image_wrist": rng.integers(0, 256, (128, 128, 3), np.uint8),
        "proprio": rng.normal(size=8),
    }


def test_a_fresh_process_without_the_package_acts_bitwise_the_same(
    checkpoint: Checkpoint, exported: pathlib.Path, jax_alone: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    envs, seed = (0, 7, 3), 5
    steps = [{env: shown(env, number) for env in envs} for number in range(5)]
    np.savez(
        tmp_path / "shown.npz",
        **{
            f"{env}/{number}/{name}": array
            for number, step in enumerate(steps)
            for env, observation in step.items()
            for name, array in observation.items()
        },
    )
    out = tmp_path / "found.npz"
    arguments = [exported, tmp_path / "shown.npz", out, seed, jax_alone]
    # -I and -S: no folder of this environment, of the user or of the checkout is searched.
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ACT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    said, found = json.loads(ran.stdout), np.load(out)

    policy = Policy(checkpoint, config=PolicyConfig(batch_size=2, seed=seed, resize=True))
    policy.reset(0, TEXTS[0])
    policy.reset(7, TEXTS[1])
    policy.reset(3, goal={name: steps[3][3][name] for name in policy.spec.cameras})
    expected = {0: policy.infer(steps[0])}
    policy.instruct(3, TEXTS[1])
    expected[1] = policy.infer(steps[1])
    policy.observe(steps[2])
    policy.reset(7, TEXTS[0])
    expected[3] = policy.infer(steps[3])
    # What the other process was refused in between is in no history.
    expected[4] = policy.infer(steps[4])
    for number, chunks in expected.items():
        for env, chunk in chunks.items():
            assert found[f"{env}/{number}"].dtype == np.float32
            np.testing.assert_array_equal(found[f"{env}/{number}"], chunk)
    # Different noise, images and states: equal chunks would say nothing.
    assert len({chunk.tobytes() for chunks in expected.values() for chunk in chunks.values()}) == 12
    last = expected[3][0]
    np.testing.assert_array_equal(found["gripper"], restore_gripper(last, policy.conventions))
    np.testing.assert_array_equal(found["commands"], GripperCommands.of(policy.spec)(last))

    out_of_range, unknown, number, goal, not_reset, mistakes, unnumbered, rotation = said["errors"]
    assert out_of_range == "seed: expected 0 to 2**32 - 1; found 4294967296"
    assert unknown == (
        "instruction: expected one that was exported: 'pick up the bowl', 'open the drawer'; "
        "found 'fly'"
    )
    assert number == "reset: expected an environment from 0 to 2**32 - 1; found -1"
    assert goal.startswith("task: expected an instruction or goal images, as the policy was tr")
    assert not_reset.startswith("environment 5: expected a task; found none. Call reset(")
    assert "image_primary: missing; image_wrist: missing; proprio: float64[7]" in mistakes
    assert unnumbered.startswith("observations: expected a dictionary with one observation")
    assert "expected rotations; found quaternion_xyzw of norm 0" in rotation
    assert not any("\n" in error for error in said["errors"])
    assert (said["origin"], said["rotation"]) == ("at export", policy.conventions.rotation)
    assert "  image_wrist      uint8[128,128,3]\n" in said["text"]
    # To look at; a busy machine is slow, not wrong.
    print(f"CPU time from the start to the first action: {said['cpu_s']:.1f} s")  # noqa: T201


@pytest.mark.parametrize("member", ["arrays/embeddings", PROGRAM, META])
def test_a_corrupt_file_is_refused(
    exported: pathlib.Path, tmp_path: pathlib.Path, member: str
) -> None:
    data = bytearray(exported.read_bytes())
    with zipfile.ZipFile(exported) as opened:
        info = opened.getinfo(member)
        sizes = 30 + len(info.filename)  # of the header before the content
    data[info.header_offset + sizes + info.compress_size // 2] ^= 1
    corrupt = tmp_path / "corrupt.zip"
    corrupt.write_bytes(data)
    with pytest.raises(ValueError, match=r"corrupt\.zip: .* found a corrupt file: .*Copy it again"):
        read_file(corrupt)


def test_a_file_that_is_cut_off_is_refused(exported: pathlib.Path, tmp_path: pathlib.Path) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(exported.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"found a corrupt file: File is not a zip file"):
        read_file(cut)


def doubling(platform: str, **meta: str) -> PolicyFile:
    """A file with a program that multiplies its parameter by a number."""
    structs = {
        "x": jax.ShapeDtypeStruct((3,), jnp.float32),
        "parameters": [jax.ShapeDtypeStruct((3,), jnp.float32)],
    }

    def program(*, x: jax.Array, parameters: list[jax.Array]) -> jax.Array:
        return x * parameters[0]

    exported = jax.export.export(jax.jit(program), platforms=[platform])(**structs)
    values = np.arange(3, dtype=np.float32)
    return PolicyFile(
        pathlib.Path("policy.zip"),
        {
            "program": split_program(exported),
            "inputs": structs_to_json(structs),
            "output": "float32[3]",
            "machine": machine() | meta,
            "parameters": ["parameters/0"],
            "arrays": {"parameters/0": structs_to_json(values)},
        },
        {
            PROGRAM: exported.mlir_module_serialized,
            "arrays/parameters/0": values.tobytes(),
            "executable.bin": b"not used",
        },
    )


def test_on_another_kind_of_machine_the_program_is_compiled() -> None:
    program = load_program(doubling("cpu", cpu="another"))
    assert program.origin == "here"
    assert program({"x": np.full(3, 2, np.float32)}).tolist() == [0, 2, 4]


def test_a_compiled_program_that_cannot_be_loaded_is_reported_and_compiled() -> None:
    with pytest.warns(UserWarning, match=r"policy\.zip: executable\.bin is not used: "):
        assert load_program(doubling("cpu")).origin == "here"


def test_a_program_for_another_platform_is_refused() -> None:
    match = r"expected a program that jax \S+ compiles for cpu; found one for tpu by jax "
    with pytest.raises(ValueError, match=match):
        load_program(doubling("tpu", cpu="another"))


@pytest.mark.parametrize("text", ["float32[1,2,8]", "bfloat16[3]", "bool[]"])
def test_types_return_from_json(text: str) -> None:
    assert structs_to_json(structs_from_json({"a": [text]})) == {"a": [text]}


def test_the_program_is_for_accelerators_too_and_has_no_language_encoder(
    checkpoint: Checkpoint, exported: pathlib.Path
) -> None:
    meta = read_file(exported).meta
    assert meta["program"]["platforms"] == ["cpu", "cuda", "tpu"]
    in_t5 = jax.tree.leaves(checkpoint.params["octo_transformer"]["task_tokenizers_language"])
    every = len(jax.tree.leaves(checkpoint.params))
    assert len(meta["parameters"]) == every - len(in_t5)


def test_what_the_file_cannot_hold_is_refused(
    checkpoint: Checkpoint, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "policy.zip"
    tokens = VGGTTokenizerConfig(num_tokens=21, token_dim=64)
    shape = {"shape": [21, 64], "dtype": "float16", "dims": []}
    features = {
        name: {**values, "features": {**values["features"], "observation/vggt_tokens": shape}}
        for name, values in checkpoint.datasets.items()
    }
    config = with_data(
        checkpoint.config,
        observations=(*checkpoint.config.data.observations, "vggt_tokens"),
        model={"vggt": tokens},
    )
    tokened = dataclasses.replace(checkpoint, config=config, datasets=features)
    resized = dataclasses.replace(
        checkpoint,
        datasets={
            name: {**values, "resized": {"observation/image_wrist": [64, 64, 3]}}
            for name, values in checkpoint.datasets.items()
        },
    )
    for one, match in (
        (tokened, r"observation/vggt_tokens: .*found one that reads tokens of an encoder"),
        (resized, r"observation/image_wrist: .*found some that it resizes with Pillow"),
    ):
        with pytest.raises(UserError, match=match):
            export_policy(one, path, ExportConfig(TEXTS))
    with pytest.raises(UserError, match=r"instructions: expected .* found none"):
        export_policy(checkpoint, path)
    with pytest.raises(UserError, match=r"instructions: expected texts; found an empty one"):
        ExportConfig(("",))
    assert not path.exists()


def test_instructions_are_those_of_the_datasets_unless_these_are_gone(
    checkpoint: Checkpoint, tmp_path: pathlib.Path
) -> None:
    (dataset,) = checkpoint.datasets
    assert instructions_of(checkpoint) == open_dataset(dataset).manifest.tasks
    goals = with_data(checkpoint.config, conditioning="image_conditioned")
    assert instructions_of(dataclasses.replace(checkpoint, config=goals)) == ()
    gone = dataclasses.replace(
        checkpoint, datasets={str(tmp_path / "gone"): checkpoint.datasets[dataset]}
    )
    with pytest.raises(UserError, match=r"cannot be opened; found none \(.*gone.*--instruction"):
        instructions_of(gone)
    by_goal = dataclasses.replace(checkpoint, config=goals)
    with pytest.raises(UserError, match=r"found 'pick up the bowl', 'open the drawer'\. Leave it"):
        export_policy(by_goal, tmp_path / "policy.zip", ExportConfig(TEXTS))


def test_the_command_refuses_what_it_cannot_write(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exported: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    other = tmp_path / "notes.zip"
    other.write_text("mine")
    corrupt = tmp_path / "corrupt.zip"
    data = exported.read_bytes()
    # The list of members, whose place is in the last bytes.
    place = int.from_bytes(data[-6:-2], "little")
    corrupt.write_bytes(data[:place] + b"?" + data[place + 1 :])
    run = tmp_path / "no run"
    for out, flags, match in (
        (exported, [], "found an exported policy. Replace it with --overwrite."),
        (other, ["--overwrite"], "found a file that is no exported policy. Name another file."),
        (corrupt, ["--overwrite"], "found a file that is no exported policy. Name another file."),
        (tmp_path, ["--overwrite"], "found a directory."),
        (tmp_path / "no" / "policy.zip", [], f"found no directory {tmp_path / 'no'}."),
        (tmp_path / "policy.zip", [], f"{run}: expected the directory of a run"),
        (tmp_path / "policy.zip", ["--platforms", "cpu,gpu"], "found gpu"),
    ):
        arguments = ["export", run, out, "--to", "stablehlo", "--instruction", "x", *flags]
        assert call(monkeypatch, *arguments) == 2
        assert match in capsys.readouterr().err
    assert other.read_text() == "mine"
