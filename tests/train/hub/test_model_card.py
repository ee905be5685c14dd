"""The card and the figure of a policy, from the files that a run leaves."""

import copy
import dataclasses
import io
import re
import shutil

import pytest
from PIL import Image

from pipeline.checksums import to_json_line, write_json
from pipeline.errors import DataError
from pipeline.files import dump_json, to_json_values
from pipeline.hub.card_text import is_signed
from tests.train.report.test_report_page import EVIL, episode, step_metrics, validation
from train.checkpoints.checkpoint_store import read_checkpoint
from train.evaluate.results import Results, Settings, TrialResult, checkpoint_digest
from train.hub.card_figure import draw_card_figure
from train.hub.model_card import model_card
from train.hub.published_run import PublishedRun
from train.metrics.validation_files import append_validation
from train.report.report_inputs import RunFiles

ADDRESS = "hf://alice/pick-up"


@pytest.fixture(scope="module")
def checkpoint(policy_run):
    return read_checkpoint(policy_run)


@pytest.fixture(scope="module")
def run(policy_run, checkpoint, tmp_path_factory):
    """A run of two steps with all of its figures, and evaluations of which one is of its end."""
    directory = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(policy_run, directory)
    lines = [to_json_line(step_metrics(step)) for step in (1, 2)]
    (directory / "metrics.jsonl").write_text("".join(lines))
    for step, error in ((1, 0.5), (2, 0.25)):
        append_validation(directory, validation(step, error))
    episode().save(directory)
    packages = {"octograin": "0.7.0", "jax": "0.10.2", "none": None}
    write_json(directory / "environment.json", {"devices": "1 x cpu", "packages": packages})
    for name, digest in (("a", checkpoint_digest(checkpoint)), ("b", "0" * 32)):
        settings = Settings(digest, 2, "d", "libero_spatial", 0, 4, None, "mujoco 3.3, egl")
        trials = [
            TrialResult("libero_spatial", 0, "lift", n, n < 3, 80, 1.0, 0, is_demonstrated=n == 0)
            for n in range(4)
        ]
        (directory / "evaluation" / name).mkdir(parents=True)
        results = to_json_values(Results("run", settings, None, tuple(trials)))
        (directory / "evaluation" / name / "results.json").write_text(dump_json(results))
    return directory


def card(run: PublishedRun, figure=None, report=None) -> str:
    text = model_card(run, figure=figure, report=report)
    assert is_signed(text)
    return text


def bare(checkpoint, **changed) -> PublishedRun:
    """A run that left nothing but a checkpoint."""
    config = to_json_values(checkpoint.config)
    files = RunFiles("run", config, (), (), None, None, None, checkpoint.datasets)
    return PublishedRun(ADDRESS, checkpoint, files, (), changed.pop("licence", None))


def test_a_card_has_the_figures_of_its_checkpoint(run):
    text = card(PublishedRun.of(run, None, ADDRESS, "mit"), "training.png", "report.html")
    assert text.startswith(
        '---\nlicense: "mit"\nlibrary_name: "octograin"\npipeline_tag: "robotics"\n'
        'tags: ["robotics", "octo", "jax"]\n---\n\n# pick-up\n\nOcto trained from random weights '
        "on libero_mini; 4 samples per step. This is the policy at training step 2 of 2: "
    )
    for line in (
        "![Loss and action error over the training](training.png)",
        "Below loss and error: the actions of episode 3, held out from training, and the chunks "
        "that the policy predicts along it, in the dataset's units.",
        "The mean loss of the last 2 training steps is 1.75, that of the validation 0.500.",
        "| all dimensions | 0.250 | 0.790 |",
        "| gripper | 1.00 | 0.790 |",
        "| `libero_spatial` | 1 | 3 of 4 | 75.0 % (30.1 % to 95.4 %) | 1 | 4 |",
        "| libero_mini | 455 | 20 | rotated 180 | axis angle | removed at source | dimension 6, "
        "open \N{MINUS SIGN}1, close 1 | CC-BY-4.0 | libero_mini |",
        "Trained with octograin 0.7.0, jax 0.10.2, on 1 x cpu. [report.html](report.html) has all "
        "figures of the run; download it to open it.",
    ):
        assert f"\n{line}\n" in text
    assert "at training step 2, on 32 samples of episodes that it was trained on" in text
    assert "No licence was given" not in text
    assert "float16" not in text


def test_a_card_of_half_precision_keeps_the_evaluations_of_the_run(run):
    text = card(PublishedRun.of(run, None, ADDRESS, "mit", "float16"))
    assert "| `libero_spatial` | 1 | 3 of 4 |" in text
    assert (
        "\nThe parameters are stored as float16. Losses, errors and successes are those of the "
        "run's float32 parameters.\n"
    ) in text


def test_figures_of_later_steps_are_left_out(run):
    published = PublishedRun.of(run, 1, ADDRESS, None)
    text = card(published)
    assert "is 2.00, that of the validation 1.00." in text
    assert "It was not rolled out in a simulator." in text
    assert (len(published.files.metrics), published.files.episode) == (1, None)


def test_a_run_without_figures_says_so(checkpoint):
    text = card(bare(checkpoint))
    assert "No losses or validation are recorded with it." in text
    assert "No licence was given for the policy. Those of its data are in the table." in text
    assert "](" not in text
    assert "\nlicense" not in text


def test_the_example_is_python_for_the_policy(checkpoint):
    lines = re.findall(r"```python\n(.*?)```", card(bare(checkpoint)), re.DOTALL)
    compile(lines[0], "card", "exec")
    assert 'policy = Policy.from_run("hf://alice/pick-up")\npolicy.reset(0, "' in lines[0]


def test_what_an_acting_policy_needs_is_named(checkpoint):
    """Parts of its author, one of several datasets, the weights of an encoder."""
    (path, values) = next(iter(checkpoint.datasets.items()))
    other = copy.deepcopy(values)
    other["conventions"]["gripper_open"] = 2.0
    encoder = {"encoder": {"weights": "/mnt/vggt", "licence": "none"}}
    other["encoders"] = {"observation/vggt_tokens": encoder}
    other["provenance"] = {"address": "hf://datasets/bob/bowls@v1"}
    pinned = f"hf://datasets/carol/cups@{'0' * 40}"
    several = dataclasses.replace(
        checkpoint, datasets={path: values, "b c": other, pinned: copy.deepcopy(other)}
    )
    published = bare(several)
    part = {"part": "Mine", "module": "my_parts", "file": "my_parts.py", "checksum": "0"}
    config = {**published.files.config, "head": {**part, "fields": {}}}
    files = dataclasses.replace(published.files, config=config)
    text = card(dataclasses.replace(published, files=files))
    assert 'datasets: ["bob/bowls", "carol/cups"]\n' in text
    assert f"| {pinned} |\n" in text
    assert f"--port 8000 --parts my_parts.py --dataset {path}\n" in text
    assert f'load_parts("my_parts.py")\npolicy = Policy.from_run("{ADDRESS}", dataset="' in text
    assert "which you need as files: `my_parts.py`." in text
    assert f"robot's: `{path}`, `b c`, `{pinned}`." in text
    assert "with the weights `/mnt/vggt`. Say where they lie with `--weights PATH`" in text


def test_texts_of_strangers_are_no_markup(checkpoint):
    values = copy.deepcopy(next(iter(checkpoint.datasets.values())))
    values |= {"name": f"{EVIL}|\n# x", "provenance": {"source": "[a](http://b)"}}
    text = card(bare(dataclasses.replace(checkpoint, datasets={"d": values})))
    assert "<script>" not in text
    assert r"| \<script\>alert(1)\</script\> & put it\| \# x | 455 |" in text
    assert r"\[a\](http://b)" in text


def test_the_figure_has_two_charts_and_one_panel_per_dimension(run):
    files = PublishedRun.of(run, None, ADDRESS, None).files
    for kept, height in ((files.episode, 605), (None, 330)):
        png = draw_card_figure(dataclasses.replace(files, episode=kept))
        assert png is not None
        image = Image.open(io.BytesIO(png))
        assert image.size == (1100, height)
    nothing = dataclasses.replace(files, metrics=(), validation=(), episode=None)
    assert draw_card_figure(nothing) is None


def test_a_corrupt_file_of_the_run_is_an_error(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "validation.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"validation\.jsonl"):
        PublishedRun.of(tmp_path / "run", None, ADDRESS, None)
