import dataclasses

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from tests.train.conftest import with_data
from train.octo.octo_config import DiffusionConfig, demo
from train.octo.released.weight_loading import Pretrained
from train.run_setup import open_inputs


def test_inputs_are_opened_in_the_order_of_the_config(tiny_config):
    inputs = open_inputs(tiny_config)
    assert [dataset.num_episodes for dataset in inputs.datasets] == [4]
    assert inputs.weights is None


def test_all_that_is_missing_is_reported_at_once_with_its_commands(tiny_config, tmp_path):
    missing = tmp_path / "none"
    config = with_data(
        tiny_config,
        datasets=(
            DatasetConfig(str(missing / "a"), commands=("fetch a", "convert a")),
            DatasetConfig(str(missing / "b")),
        ),
        vocabulary=str(missing / "spiece.model"),
    )
    with pytest.raises(UserError, match="3 that cannot be used") as error:
        open_inputs(config)
    message = str(error.value)
    assert f"{missing}/a: expected a dataset directory; found none. Get it with:\n" in message
    assert "      fetch a\n      convert a\n" in message
    assert f"octograin convert SRC {missing}/b" in message
    assert f"{missing}/spiece.model: expected a file" in message


def test_missing_sets_of_a_mixture_are_one_problem(tiny_config, mini_dataset, tmp_path):
    mixture = DataConfig.from_mixture("openvla/bridge_rt_1", tmp_path, "").datasets
    parts = (DatasetConfig(str(mini_dataset)), *mixture)
    with pytest.raises(UserError) as error:
        open_inputs(with_data(tiny_config, datasets=tuple(map(unweighted, parts))))
    first, *commands = str(error.value).splitlines()
    assert first == (
        "data.datasets: expected 3 dataset directories; found 1, without "
        f"{tmp_path}/bridge_orig, {tmp_path}/fractal20220817_data. Get them with:"
    )
    assert commands == [
        f"      octograin convert SRC/{name} {tmp_path}/{name}"
        for name in ("bridge_orig", "fractal20220817_data")
    ]


def unweighted(part: DatasetConfig) -> DatasetConfig:
    return dataclasses.replace(part, weight=None, missing=())


def test_a_missing_token_column_is_named(tiny_config, mini_dataset):
    config = with_data(tiny_config, observations=(*tiny_config.data.observations, "depth"))
    with pytest.raises(UserError, match=rf"{mini_dataset}: expected a feature observation/depth"):
        open_inputs(config)


def test_a_vocabulary_beyond_the_encoders_table_is_refused(tiny_config):
    t5 = dataclasses.replace(tiny_config.model.language.t5, vocab_size=8)
    language = dataclasses.replace(tiny_config.model.language, t5=t5)
    model = dataclasses.replace(tiny_config.model, language=language)
    with pytest.raises(UserError, match="at most 8 pieces"):
        open_inputs(dataclasses.replace(tiny_config, model=model))


def test_a_run_needs_a_vocabulary_where_a_loop_of_ones_own_does_not(tiny_config):
    data = dataclasses.replace(tiny_config.data, vocabulary="")
    with pytest.raises(UserError, match=r"data\.vocabulary: expected T5's .*found an empty name"):
        open_inputs(dataclasses.replace(tiny_config, data=data))


@dataclasses.dataclass(frozen=True)
class OfAnotherModel:
    """A source of weights of one's own, whose model was trained with other bounds."""

    def load(self) -> Pretrained:
        model = demo(head=DiffusionConfig(max_action=3.0))
        return Pretrained(model, {"heads_action": {"bias": np.zeros(1, np.float32)}})


def test_weights_of_ones_own_source_are_compared_with_the_model(tiny_config):
    config = dataclasses.replace(tiny_config, pretrained=OfAnotherModel())
    with pytest.raises(UserError, match=r"of OfAnotherModel: expected .*head.max_action 5.0.*3.0"):
        open_inputs(config)


def test_weights_that_are_no_octo_checkpoint_are_named_with_the_rest(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, pretrained_path=str(tmp_path / "octo"))
    with pytest.raises(UserError, match=r"octo/config.json: expected Octo's config.json"):
        open_inputs(config)
