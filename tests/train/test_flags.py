import re

import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import UserError
from train.flags import load_config, parse_flags


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
    assert parse_flags(pooled).config.model.vggt.num_group_tokens == 9


def test_a_variant_is_an_entry_of_the_file(tiny_config_path):
    assert load_config(str(tiny_config_path)).model.vggt is not None
    assert load_config(f"{tiny_config_path}:untokened").model.vggt is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected --config FILE\[:VARIANT\]; found nothing"),
        (["--config", "configs/none.py"], "expected a config file; found none at that path"),
        (["--config", "README.md"], "expected Python that defines VARIANTS.*found SyntaxError"),
        (["--config", "tests/data/make_vocabulary.py"], "found KeyError: 'VARIANTS'"),
        (["--config", "{file}:big"], "expected a variant among default, untokened; found big"),
    ],
)
def test_what_cannot_be_run_says_why(arguments, message, tiny_config_path):
    with pytest.raises(UserError, match=message):
        parse_flags([a.replace("{file}", str(tiny_config_path)) for a in arguments])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.num_stesp=3", "--config.num_steps INT"),
        ("--config.num_steps=many", "invalid choice|many"),
        ("--config.num_steps=30", "num_steps 30 is beyond optimizer.decay_steps 20"),
        ("--config.optimizer.warmup_steps=20", "warmup_steps 20 must be less than 20"),
        (
            "--config.optimizer.learning_rate=-1",
            "learning_rate must be above 0 and finite",
        ),
        ("--config.batch_size=0", "batch_size must be at least 1, not 0"),
        ("--config.data.action_horizon=8", "8 is not model.head.action_horizon 4"),
        ("--config.data.window_size=3", "data.window_size 3 is beyond model.max_horizon 2"),
    ],
)
def test_a_flag_that_does_not_fit_ends_with_code_2_and_the_reason(
    flag, message, tiny_config_path, capsys
):
    with pytest.raises(SystemExit) as exit_info:
        parse_flags(["--config", str(tiny_config_path), flag])
    assert exit_info.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_config_file_whose_settings_do_not_fit_says_which(tiny_config_path, tmp_path):
    path = tmp_path / "mine.py"
    text = tiny_config_path.read_text().replace("__file__", repr(str(tiny_config_path)))
    path.write_text(text.replace("batch_size=4", "batch_size=0"))
    message = r"mine.py: expected settings that fit each other; found batch_size must be at least 1"
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
    told = capsys.readouterr().err
    assert all(mode in told for mode in ("full", "head_only", "head_mlp_only"))
