import json
import re
import sys

import pytest

from pipeline.errors import UserError, user_errors_exit
from pipeline.files import to_json_values
from pipeline.loading.data_config import DatasetConfig
from tests.own_modules import forget_modules
from train.flags import load_config, parse_flags
from train.octo.octo_config import DiffusionConfig
from train.train_config import parse_config


def test_flags_override_the_file_to_any_depth(tiny_config_path):
    flags = parse_flags(
        [
            "--config",
            str(tiny_config_path),
            "--config.num_steps=7",
            "--config.data.datasets.0.path=elsewhere",
            "--config.optimizer.learning_rate=0.5",
            "--config.augment.enabled=False",
            "--resume",
        ]
    )
    assert flags.config.num_steps == 7
    assert flags.config.data.datasets == (DatasetConfig("elsewhere"),)
    assert flags.config.optimizer.learning_rate == 0.5
    assert not flags.config.augment.enabled
    assert (flags.resume, flags.overwrite, flags.debug) == (True, False, False)


def test_how_geometry_tokens_are_used_is_one_flag():
    arguments = ["--config", "configs/libero_vggt.py:demo", "--config.model.vggt.fusion=gated"]
    vggt = parse_flags(arguments).config.model.vggt
    assert (vggt.fusion, vggt.num_tokens) == ("gated", 21)
    pooled = [*arguments[:2], "--config.model.vggt.reduction=pool"]
    pooled.append("--config.model.vggt.reduced_to=4")
    assert parse_flags(pooled).config.model.vggt.tokens_per_step == 9


def test_a_variant_is_an_entry_of_the_file(tiny_config_path):
    assert load_config(str(tiny_config_path)).model.vggt is not None
    assert load_config(f"{tiny_config_path}:untokened").model.vggt is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected --config FILE\[:VARIANT\]; found nothing"),
        (["--config", "configs/none.py"], "found no such file or preset. The presets are libero, "),
        (["--config", "libero_vgg:demo"], "found no such file or preset. The presets are libero, "),
        (["--config", "README.md"], "expected Python that defines VARIANTS.*found SyntaxError"),
        (["--config", "tests/data/make_vocabulary.py"], "found no VARIANTS"),
        (["--config", "{file}:big"], "a variant among default, untokened, shallow; found big"),
        (
            ["--config", "{file}", "--step_s=2"],
            "expected --step_s with --dry_run; found it alone",
        ),
    ],
)
def test_what_cannot_be_run_says_why(arguments, message, tiny_config_path):
    with pytest.raises(UserError, match=message):
        parse_flags([a.replace("{file}", str(tiny_config_path)) for a in arguments])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("VARIANTS = {}", r"VARIANTS = \{\}"),
        ("VARIANTS = [1]", r"VARIANTS = \[1\]"),
        ("VARIANTS = {'default': 3}", "int as default"),
        ("exit()", r"a call of exit\(None\)"),
        ("import sys\nsys.exit(0)", r"a call of exit\(0\)"),
        ("raise OSError('a\\nb')", "OSError: a b"),
        ("assert False", "AssertionError"),
        ("def f():", "IndentationError: "),
        ("def f(): f()\nf()", "RecursionError: "),
        ("x = " + "(" * 5000, "(SyntaxError|MemoryError)"),
        ("x = 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_is_no_config_says_why_in_one_line(text, found, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(
        UserError, match=f"expected Python that defines .*; found {found}"
    ) as caught:
        parse_flags(["--config", str(path)])
    assert "\n" not in str(caught.value)


def test_all_problems_of_a_config_are_reported_together(tiny_config_path):
    flags = ["--config.batch_size=0", "--config.data.window_size=0", "--config.save_interval=0"]
    arguments = ["--config", str(tiny_config_path), "--config.keep_every=2", *flags]
    with pytest.raises(UserError, match="settings that fit together") as caught:
        parse_flags(arguments)
    message = str(caught.value)
    for name in ("batch_size", "save_interval", "data.window_size"):
        assert message.count(f"  {name}: expected at least 1; found 0") == 1
    assert parse_flags([*arguments, "--dry_run"]).config.batch_size == 0


def test_a_variant_with_problems_leaves_the_others_of_its_file(tiny_config_path, tmp_path):
    path = tmp_path / "mine.py"
    text = tiny_config_path.read_text().replace("__file__", repr(str(tiny_config_path)))
    broken = 'VARIANTS["broken"] = dataclasses.replace(TINY, batch_size=0)'
    path.write_text(f"{text}\n{broken}\n")
    assert load_config(str(path)).batch_size == 4
    with pytest.raises(
        UserError, match=r"mine.py:broken, batch_size: expected at least 1; found 0"
    ):
        load_config(f"{path}:broken")
    fixed = parse_flags(["--config", f"{path}:broken", "--config.batch_size=2"])
    assert fixed.config.batch_size == 2


def test_help_without_a_config_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["--help"])
    assert ended.value.code == 0
    output = capsys.readouterr().out
    names = ("config", "name", "resume", "dry_run", "overwrite", "new_mixture", "debug")
    assert all(f"--{name} " in output for name in names)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.num_stesp=3", "--config.num_steps INT"),
        ("--config.num_steps=many", "invalid choice|many"),
        (
            "--config.num_steps=130",
            "num_steps: expected at most 100, the optimizer.decay_steps; found 130",
        ),
        (
            "--config.optimizer.warmup_steps=100",
            "expected less than optimizer.decay_steps, which is 100; found 100",
        ),
        (
            "--config.optimizer.learning_rate=-1",
            "learning_rate: expected a finite number above 0",
        ),
        ("--config.batch_size=0", "batch_size: expected at least 1; found 0"),
        ("--config.data.action_horizon=8", "expected 4, the model.head.action_horizon; found 8"),
        (
            "--config.data.window_size=3",
            "data.window_size: expected at most 2, the model.max_horizon; found 3",
        ),
    ],
)
def test_a_flag_that_does_not_fit_ends_with_code_2_and_the_reason(
    flag, message, tiny_config_path, capsys
):
    with pytest.raises(SystemExit) as exit_info, user_errors_exit():
        parse_flags(["--config", str(tiny_config_path), flag])
    assert exit_info.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_config_file_whose_settings_do_not_fit_says_which(tiny_config_path, tmp_path):
    path = tmp_path / "mine.py"
    text = tiny_config_path.read_text().replace("__file__", repr(str(tiny_config_path)))
    path.write_text(text.replace("batch_size=4", "batch_size=0"))
    message = (
        r"mine.py, batch_size: expected at least 1; found 0. .* flags such as --config.batch_size"
    )
    with pytest.raises(UserError, match=message):
        load_config(str(path))


def test_a_name_is_a_flag_of_its_own(tiny_config_path):
    flags = parse_flags(["--config", str(tiny_config_path), "--name", "first try"])
    assert (flags.config.name, flags.config.title) == ("first try", "first try")
    assert flags.unchanged is not None
    assert flags.unchanged.title == "tiny"


def test_a_mode_that_does_not_exist_ends_with_code_2_and_those_that_do(tiny_config_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_flags(["--config", str(tiny_config_path), "--config.finetuning_mode=head"])
    assert ended.value.code == 2
    output = capsys.readouterr().err
    assert all(mode in output for mode in ("full", "head_only", "head_mlp_only"))


def test_an_unknown_field_of_a_config_file_is_reported_with_the_nearest_one(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("from octograin import AugmentConfig\nAugmentConfig(hues=0.1)\n")
    message = r"unexpected keyword argument 'hues'[;.] [dD]id you mean '?hue'?\?\.? ?Fix the file"
    with pytest.raises(UserError, match=message):
        load_config(str(file))


def test_the_fields_of_a_head_are_flags(tiny_config_path, capsys):
    arguments = ["--config", str(tiny_config_path)]
    head = parse_flags([*arguments, "--config.model.head.diffusion_steps=3"]).config.model.head
    assert isinstance(head, DiffusionConfig)
    assert head.diffusion_steps == 3
    with pytest.raises(SystemExit):
        parse_flags([*arguments, "--help"])
    assert "--config.model.head.diffusion_steps INT" in capsys.readouterr().out


MY_HEADS = '''
"""Heads of a user."""
from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class Flow:
    """A head of a user's own."""
    num_steps: int = 5
    """Integration steps."""
    width: tuple[int, ...] = (8,)
    action_horizon: int = 4
    action_dim: int = 7

    def make_head(self): ...
    def draw_training_noise(self, key, shape): ...
    def draw_sampling_noise(self, key, shape): ...
'''


@pytest.fixture
def own_head(tiny_config_path, tmp_path):
    """Writes a config whose head is a class in a file beside it, and returns its path."""
    (tmp_path / "my_heads.py").write_text(MY_HEADS)

    def write(head="Flow(num_steps=7)"):
        path = tmp_path / "mine.py"
        path.write_text(
            "import dataclasses, octograin\nfrom my_heads import Flow\n"
            f"tiny = octograin.load_config({str(tiny_config_path)!r})\n"
            f"model = dataclasses.replace(tiny.model, head={head})\n"
            "VARIANTS = {'default': dataclasses.replace(tiny, model=model)}\n"
        )
        return path

    yield write
    forget_modules(tmp_path)


def test_a_config_may_have_a_head_of_a_file_beside_it(own_head, capsys, tmp_path):
    path = own_head()
    flags = [f"--config.model.head.{flag}" for flag in ("num_steps=9", "width", "action_horizon=4")]
    flags.insert(2, "16")
    flags.insert(3, "32")
    config = parse_flags(["--config", str(path), *flags]).config
    head = to_json_values(config)["model"]["head"]
    assert {name: head[name] for name in ("part", "module", "file")} == {
        "part": "Flow",
        "module": "my_heads",
        "file": "my_heads.py",
    }
    assert head["fields"] == {
        "num_steps": 9, "width": [16, 32], "action_horizon": 4, "action_dim": 7
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parse_flags(["--config", str(path), "--help"])
    shown = capsys.readouterr().out
    assert "--config.model.head.num_steps INT" in shown
    assert "Integration steps." in shown
    # The run's config is read again, in this process without the file.
    text = json.dumps(to_json_values(config))
    (tmp_path / "my_heads.py").unlink()
    assert parse_config(text, where="config.json", remedy="") == config


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            "Flow",
            "model.head: expected an instance of a frozen dataclass; found the class Flow. Write "
            "Flow(...).",
        ),
        ("Flow(num_stesp=3)", "found TypeError: Flow.__init__() got an unexpected keyword"),
        ("Flow(num_steps='7')", "model.head.num_steps: expected an integer; found '7'. Give one"),
        ("Flow(action_horizon=2)", "data.action_horizon: expected 2, the model.head.action_ho"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(own_head, head, message):
    with pytest.raises(UserError) as caught:
        load_config(own_head(head))
    text = str(caught.value).replace("mine.py, ", "")
    assert message in text
    assert "\n" not in text.partition("Change these fields")[0]
    # Python 3.13 suggests the field by itself.
    assert "stesp" not in head or "num_steps" in text


@pytest.mark.parametrize("flags", [(), ("--dry_run",), ("--config.validation.interval=3",)])
def test_a_value_of_another_type_in_the_file_is_one_line(flags, tmp_path, tiny_config_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"import octograin\ntiny = octograin.load_config({str(tiny_config_path)!r})\n"
        # Past the constructor, whose types the tests check.
        "object.__setattr__(tiny, 'validation', None)\nVARIANTS = {'default': tiny}\n"
    )
    message = r"mine.py, validation: expected an instance of ValidationConfig; found None\. Write "
    with pytest.raises(UserError, match=message):
        parse_flags(["--config", str(path), *flags])


def test_parts_are_loaded_after_the_config_that_may_import_them(own_head, tmp_path):
    arguments = ["--config", str(own_head()), "--parts", str(tmp_path / "my_heads.py")]
    config = parse_flags([*arguments, "--parts", "json"]).config
    assert type(config.model.head) is sys.modules["my_heads"].Flow
    with pytest.raises(UserError, match=r"--parts none\.py: expected a Python file .*; found no s"):
        parse_flags([*arguments, "--parts=none.py"])
