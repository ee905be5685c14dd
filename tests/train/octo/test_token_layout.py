import dataclasses

import jax

from train.octo.attention import rule_mask
from train.octo.functional import init_params
from train.octo.octo_config import (
    LowdimTokenizerConfig,
    RegressionConfig,
    VGGTTokenizerConfig,
    octo_small,
)
from train.octo.token_groups import draw_parameters, draw_tokens, group_spans


def test_tokens_of_octo_small_are_drawn() -> None:
    assert draw_tokens(octo_small(), 2).splitlines() == [
        "690 tokens: 16, then 337 in each of 2 steps",
        "                       tokens  attends to (o: also in earlier steps)",
        "                                1  2  3  4  5",
        " 1 task_language           16   x  .  .  .  .",
        " 2 obs_primary            256   x  o  o  o  .",
        " 3 obs_wrist               64   x  o  o  o  .",
        " 4 obs_task_language       16   x  o  o  o  .",
        " 5 readout_action           1   x  o  o  o  o",
    ]


def test_groups_are_those_that_the_model_has(config, params, batch) -> None:
    prefix, timestep = group_spans(config)
    assert len(rule_mask(prefix, timestep, 2)) == 16 + 2 * 37
    assert [span.name for span in prefix] == ["task_language"]
    assert [(span.name, span.num_tokens) for span in timestep] == [
        ("obs_primary", 16),
        ("obs_wrist", 4),
        ("obs_task_language", 16),
        ("readout_action", 1),
    ]


def test_every_kind_of_input_is_drawn() -> None:
    config = dataclasses.replace(
        octo_small(head=RegressionConfig(), vggt=VGGTTokenizerConfig(261, 2048)),
        lowdims=(LowdimTokenizerConfig("proprio", "proprio", 8),),
        language=None,
        num_readouts=2,
    )
    lines = draw_tokens(config, 1).splitlines()
    assert lines[0] == "591 tokens: 0, then 591 in each of 1 steps"
    assert [line.split()[1] for line in lines[3:]] == [
        "obs_primary",
        "obs_wrist",
        "obs_proprio",
        "obs_vggt",
        "readout_action",
    ]


def test_parameters_are_counted_by_part() -> None:
    shapes = jax.eval_shape(lambda: init_params(octo_small(), jax.random.key(0)))
    lines = draw_parameters(shapes).splitlines()
    assert lines[-1].split() == ["all", "366", "136,670,604"]
    counts = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert counts["octo_transformer/task_tokenizers_language"] == ["99", "109,628,544"]
    assert counts["heads_action/diffusion_model"] == ["27", "1,703,564"]
