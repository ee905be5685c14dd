"""The page of a run, from synthetic run directories."""

import dataclasses
import html
import html.parser
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError, UserError
from pipeline.files import to_json_values
from train.metrics.step_metrics import StepMetrics
from train.metrics.validation_files import EpisodePrediction, ValidationMetrics, append_validation
from train.octo.released.weights_report import LoadReport, LoadRow
from train.report.__main__ import main
from train.report.charts import Axis, Curve, curves, draw, smooth, smoothing_window
from train.report.html_page import duration, percent, short, three_digits
from train.report.report_inputs import RunFiles, read_run
from train.report.report_page import chunk_error, chunk_interval, to_page, write_report

EVIL = "<script>alert(1)</script> & put it"
DIMS = ("x_m", "y_m", "z_m", "gripper")
HEADINGS = (
    "Loss",
    "Action error",
    "Error by task",
    "Predicted actions along an episode",
    "What the model saw at step 0",
    "Updates",
    "Pace and memory",
    "Pretrained weights",
    "Datasets",
    "Environment",
    "Config",
)
CONFIG = {
    "data": {"validation_fraction": 0.1, "normalization": "normal"},
    "model": {"images": [{"observation_key": "image_primary"}]},
    "optimizer": {"clip_norm": 1.0},
    "batch_size": 64,
    "num_steps": 400,
    "pretrained_path": "weights/octo",
}


def step_metrics(step: int, **changed: float) -> StepMetrics:
    values = {
        "loss": 1.0 + 1.0 / step,
        "grad_norm": 2.0,
        "update_norm": 0.1,
        "param_norm": 50.0,
        "learning_rate": 3e-4,
        "applied": 1,
        "step_s": 0.5,
        "data_wait_s": 0.01,
        "memory_gb": 12.5,
    }
    return StepMetrics(step=step, batch_fingerprint=f"{step:08x}", **values | changed)


def validation(step: int, error: float) -> ValidationMetrics:
    return ValidationMetrics(
        step=step,
        loss=2.0 * error,
        action_error=error,
        by_dim={dim: error * (1 + place) for place, dim in enumerate(DIMS)},
        by_task={"easy task": error / 2, EVIL: error * 2},
        num_samples=32,
        constant_error=0.79,
        constant_by_dim=dict.fromkeys(DIMS, 0.79),
    )


def episode() -> EpisodePrediction:
    actions = np.full((24, 4), 0.5, np.float32)
    return EpisodePrediction(
        dataset="data/bowls",
        episode=3,
        is_held_out=True,
        task=EVIL,
        dims=DIMS,
        actions=actions,
        chunks=np.repeat(actions[:, None] + np.float32(0.25), 4, axis=1),
        frames=(np.zeros((2, 16, 16, 3), np.uint8),),
        frame_steps=np.array([0, 23], np.int32),
    )


def make_run(directory: pathlib.Path) -> pathlib.Path:
    """Every file of a run of 400 steps, of which two are skipped, one with a loss that is nan."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    changed = {100: {"loss": float("nan"), "applied": 0}, 200: {"applied": 0}}
    metrics = [step_metrics(step, **changed.get(step, {})) for step in range(1, 401)]
    lines = [json.dumps(dataclasses.asdict(one)) + "\n" for one in metrics]
    (directory / "metrics.jsonl").write_text("".join(lines))
    for step, error in ((200, 0.5), (400, 0.25)):
        append_validation(directory, validation(step, error))
    episode().save(directory)
    Image.new("RGB", (32, 16), "navy").save(directory / "views.png")
    rows = [
        {"path": f"a/<b>/{status}", "status": status, "target_shape": [5, 10]}
        | {"checkpoint_shape": None, "how": ""}
        for status in ("loaded", "loaded", "new")
    ]
    (directory / "load_report.json").write_text(json.dumps({"rows": rows}))
    moments = {name: [0.5] * 4 for name in ("mean", "std", "min", "p01", "p99", "max")}
    dataset = {
        "name": "bowls & plates",
        "digest": "0123456789abcdef",
        "schema_hash": "feed",
        "conventions": {"control_frequency_hz": 20.0, "gripper_dim": 3, "gripper_open": -1.0},
        "normalization": "normal",
        "choice": "episodes 0-9; 'pick*' 2 times as often",
        "licences": {"steps": "CC-BY-4.0", "vggt_tiny": "none: random numbers"},
        "features": {"observation/proprio": {"dims": ["j1_rad", "j2_rad", "j3_rad", "j4_rad"]}},
        "encoders": {
            "observation/vggt_tiny": {"encoder": {"weights": "random:tiny", "licence": "none"}}
        },
        "statistics": dict.fromkeys(("action", "observation/proprio"), moments | {"count": 1234}),
    }
    (directory / "datasets.json").write_text(json.dumps({"data/bowls": dataset}))
    packages = {"jax": "0.10.2", "grain": None}
    environment = {"devices": "2 x H100", "commit": "abc123", "packages": packages}
    (directory / "environment.json").write_text(json.dumps(environment))
    return directory


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory) -> pathlib.Path:
    return make_run(tmp_path_factory.mktemp("report") / "bowls_&_plates")


@pytest.fixture(scope="module")
def run(run_directory) -> RunFiles:
    return read_run(run_directory)


@pytest.fixture(scope="module")
def page(run_directory) -> str:
    path = write_report(run_directory)
    assert path == run_directory / "report.html"
    return path.read_text()


class Outline(html.parser.HTMLParser):
    """Collects a page's headings, links and ids; fails on tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.images_without_alt = 0
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [given[key] for key in ("src", "srcset", "href") if key in given]
        self.ids += [given["id"]] if "id" in given else []
        self.images_without_alt += tag == "img" and not given.get("alt")
        if tag not in ("img", "meta", "source", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


def text_of(page: str) -> str:
    """Returns the text of the page, without tags and style sheet."""
    body = page.partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def section(run: RunFiles, anchor: str) -> str:
    """Returns one section of a run's page."""
    return to_page(run).partition(f'<section id="{anchor}"')[2].partition("</section>")[0]


def figures(page: str) -> dict[str, str]:
    """Returns the numbers at the top by name."""
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", page)
    return {name: html.unescape(value) for name, value in pairs}


def test_the_numbers_at_the_top_are_those_of_the_run(page):
    assert figures(page) == {
        "Steps": "400",
        "Final loss": "1.00",
        "Validation loss": "0.500",
        "Action error": "0.250",
        "Wall time": "3 min 20 s",
        "Samples/s": "128",
        "Wait share": "2.0 %",
        "Skipped": "2",
    }


def test_the_final_loss_is_the_mean_of_the_last_20_that_are_finite(run):
    losses = [1.0] * 80 + [2.0] * 10 + [float("nan")] + [4.0] * 9
    metrics = tuple(step_metrics(n, loss=loss) for n, loss in enumerate(losses, 1))
    found = dataclasses.replace(run, metrics=metrics).final_loss
    assert found == pytest.approx((10 * 2.0 + 9 * 4.0) / 19)


def test_the_pace_is_in_steps_where_the_batch_size_is_not_known(run):
    found = figures(to_page(dataclasses.replace(run, config={})))
    assert found["Steps/s"] == "2.00"


def test_every_section_is_there_in_order_and_the_page_is_well_formed(page):
    outline = Outline(page)
    assert outline.headings == list(HEADINGS)
    assert outline.images_without_alt == 0
    assert len(re.findall('role="img" aria-label="[^"]', page)) == page.count("<svg") > 0
    assert len(outline.ids) == len(set(outline.ids))
    links = [address[1:] for address in outline.addresses if address.startswith("#")]
    assert len(links) == len(HEADINGS)
    assert set(links) <= set(outline.ids)


@pytest.mark.parametrize(
    "text",
    [
        "bowls_&_plates",
        "Octo finetuned from weights/octo on bowls & plates; 64 samples per step; tokens of "
        "vggt_tiny by untrained weights.",
        "a constant: 0.790",
        "has an error of 0.790; the model has 0.250, 31.6 % of it.",
        "CC-BY-4.0, none: random numbers",
        "random:tiny, untrained",
        "j2_rad 0.500",
        "devices 2 x H100 commit abc123",
        "jax 0.10.2",
        "32 samples of held-out episodes",
        "skipped update (2)",
        "Episode 3 of data/bowls, held out from training; 24 steps.",
        "chunk of 4 actions, sampled at its dot, every 4 steps",
        "x m, error 0.250, constant 0.00",
        "image_primary",
        "step 23",
        "before clipping, clipped at 1",
        "1,234",
        "Sampled of bowls & plates: episodes 0-9; 'pick*' 2 times as often",
        "dimension 3, open \N{MINUS SIGN}1, close 0",
        '"clip_norm": 1.0',
    ],
)
def test_the_page_shows(page, text):
    assert text in text_of(page)


def test_page_and_charts_follow_what_the_readers_system_prefers(page):
    sheet, _, body = page.partition("</style>")
    dark = sheet.partition("@media screen and (prefers-color-scheme: dark)")[2]
    assert "--ink: #e4e9ef" in dark
    # Every colour is a variable, which the dark part replaces.
    assert "#" not in re.sub(r"--[a-z-]+: #[0-9a-f]+;", "", sheet).partition("<style>")[2]
    assert not re.search(r"#[0-9a-f]{3,6};|stroke=|fill=", body)
    kinds = set(re.findall(r'<path class="(\S+)', page))
    assert kinds == {"raw", "train", "validation", "skipped", "recorded", "chunk"}
    assert all(re.search(rf"\.{kind}\b[^{{]*{{ color:", sheet) for kind in kinds)


def test_text_of_the_run_is_escaped(page):
    assert "<script" not in page
    assert html.escape(EVIL) in page
    assert "&lt;b&gt;" in page


def test_the_page_loads_nothing(page):
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    addresses = Outline(page).addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)


def test_a_missing_file_leaves_its_reason(tmp_path):
    (tmp_path / "config.json").write_text('{"pretrained_path": "weights", "batch_size": 8}')
    page = write_report(tmp_path).read_text()
    assert Outline(page).headings == list(HEADINGS)
    reasons = re.findall(r'<h2 [^>]*>([^<]*)</h2>\s*<p class="absent">([^<]*)</p>', page)
    unlogged = "No step was logged: metrics.jsonl is missing or empty."
    unvalidated = "The run has not been validated: validation.jsonl is missing or empty."
    assert dict(reasons) == {
        "Loss": unlogged,
        "Action error": unvalidated,
        "Error by task": unvalidated,
        HEADINGS[3]: "No chunks were sampled along an episode: episode.npz is missing.",
        HEADINGS[4]: "The camera images of step 0 were not saved: views.png is missing.",
        "Updates": unlogged,
        "Pace and memory": unlogged,
        "Pretrained weights": "What was loaded is not known: load_report.json is missing.",
        "Datasets": "The datasets were not described: datasets.json is missing.",
        "Environment": "The environment is not known: environment.json is missing.",
    }
    assert figures(page)["Steps"] == "\N{EN DASH}"


def test_what_a_file_lacks_is_left_out(run):
    bare = dataclasses.replace(run, datasets={"data/<a>": {}}, environment={"python": "3.11"})
    text = text_of(to_page(bare))
    assert "Statistics of data/<a> data/<a>, schema not known" in text
    assert "devices commit not a checkout Python 3.11" in text


def test_a_chart_that_ends_with_a_skipped_update_is_described_by_finite_values(run):
    last = step_metrics(401, grad_norm=float("nan"), applied=0)
    found = section(dataclasses.replace(run, metrics=(*run.metrics, last)), "updates")
    assert "clipped at 1) over the steps; 2.00 at the end." in found
    assert "nan" not in re.findall("[a-z]+", found)


def test_the_alignment_loss_is_shown_where_the_model_aligns(run, page):
    metrics = tuple(dataclasses.replace(one, align_loss=0.25) for one in run.metrics)
    found = section(dataclasses.replace(run, metrics=metrics), "loss")
    assert "Alignment loss" in found
    assert "over the steps; 0.250 at the end." in found
    assert "Alignment loss" not in page


def test_the_bar_of_a_dimension_marks_the_first_validation_and_the_constant_action(run):
    # The largest error is the gripper's at the first validation, 4 * 0.5.
    bars = re.findall(r'<span class="bar.*', section(run, "error"))
    places = [re.findall(r'"(\w+ \w+)" style="\w+:([\d.]+)%', one) for one in bars]
    assert places[0] == [("fill error", "12.5"), ("tick first", "25.0"), ("tick constant", "39.5")]


def test_without_a_config_the_page_is_written_all_the_same(tmp_path):
    append_validation(tmp_path, validation(5, 0.5))
    text = text_of(write_report(tmp_path).read_text())
    assert "The config is not known: config.json is missing." in text
    assert "Error by dimension at step 5" in text


def test_a_run_that_holds_nothing_out_is_shown_how_to(run):
    config = CONFIG | {"data": {"validation_fraction": 0.0}}
    held_in = dataclasses.replace(run, config=config, validation=(), episode=None)
    for anchor in ("error", "tasks", "episode"):
        reason = "No episodes were held out: set data.validation_fraction."
        assert reason in section(held_in, anchor)
    validated = dataclasses.replace(held_in, validation=run.validation)
    assert "32 samples of episodes that it was trained on" in text_of(to_page(validated))


def test_random_weights_are_the_reason_for_no_load_report(run):
    config = CONFIG | {"pretrained_path": None}
    found = section(dataclasses.replace(run, config=config, load_report=None), "weights")
    assert "The run started from random weights: pretrained_path is not set." in found


def test_tensors_are_counted_by_status_and_listed_with_the_loaded_ones_last(run):
    rows = (
        LoadRow("a", "loaded", (30, 100), (30, 100)),
        LoadRow("b", "new", (1000,), None),
        LoadRow("c", "mismatched shape", (2,), (3,), "heads"),
    )
    words = text_of(to_page(dataclasses.replace(run, load_report=LoadReport(rows))))
    assert "loaded taken from the checkpoint 1 3,000 75.0 %" in words
    assert "new only the model has them: fresh values 1 1,000 25.0 %" in words
    shape = "30 \N{MULTIPLICATION SIGN} 100"
    assert f"c mismatched shape 2 3 heads b new 1000 \N{EN DASH} a loaded {shape} {shape}" in words


def test_tasks_are_sorted_by_error_and_the_rest_is_folded(run):
    by_task = {f"task {n}": n / 100 for n in range(1, 31)}
    last = dataclasses.replace(run.validation[-1], by_task=by_task)
    found = section(dataclasses.replace(run, validation=(last,)), "tasks")
    order = [int(number) for number in re.findall(r">task (\d+)<", found)]
    assert order == list(range(30, 0, -1))
    assert found.index("6 tasks with smaller errors") < found.index("task 6<")
    single = dataclasses.replace(last, by_task={"only task": 0.5})
    found = section(dataclasses.replace(run, validation=(single,)), "tasks")
    assert "The last validation names fewer than two tasks." in found


def test_many_tasks_and_long_lists_of_a_config_are_cut_with_a_count(run):
    last = dataclasses.replace(run.validation[-1], by_task={f"task {n}": n for n in range(9000)})
    part = {"episode_list": [*range(0, 1_000_000, 2)], "segments": [[n, 0, 1] for n in range(5000)]}
    page = to_page(dataclasses.replace(run, validation=(last,), config={"datasets": [part]}))
    assert len(page) < 1_000_000
    assert "And 8,500 more in" in page
    assert page.count(">task ") == 500
    assert re.search(r"\[0, 2, 4, .*\.\.\. \([\d,]{9} characters in all\)\n", page)
    assert re.search(r"\n\.\.\. and [\d,]+ more lines</pre>", page)


@pytest.mark.slow
def test_50000_steps_make_a_small_page(run_directory, tmp_path):
    rng = np.random.default_rng(0)
    losses = rng.lognormal(size=50_000)
    line = json.dumps(dataclasses.asdict(step_metrics(1, loss=-1.0)))
    start, end = line.replace('"step": 1,', '"step": STEP,').split("-1.0")
    lines = [
        f"{start.replace('STEP', str(step))}{loss}{end}\n" for step, loss in enumerate(losses, 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    page = to_page(read_run(tmp_path))
    assert len(page) < 1_000_000
    assert figures(page)["Steps"] == "50,000"


def test_a_large_image_of_the_views_is_made_smaller(run):
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 2400, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    found = section(dataclasses.replace(run, views=buffer.getvalue()), "views")
    assert "data:image/jpeg" in found
    assert len(found) < len(buffer.getvalue()) / 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", r"config.json: expected a JSON object.*Delete that file"),
        ("datasets.json", "[]", r"datasets.json: expected a JSON object; found list"),
        ("load_report.json", '{"rows": 3}', r"load_report.json: expected a valid LoadReport"),
        ("episode.npz", "PK", r"episode.npz: expected the arrays of an EpisodePrediction"),
        ("validation.jsonl", "{}\n", r"validation.jsonl, line 1: expected a valid"),
        ("metrics.jsonl", "[]\n", r"metrics.jsonl, line 1: expected a JSON object; found list"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)


def test_a_directory_without_a_run_gets_no_page(tmp_path):
    with pytest.raises(UserError, match="none of a run's files in it"):
        write_report(tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="found checkpoints alone, as in a policy that was handed"):
        write_report(tmp_path)


def test_a_directory_that_does_not_exist_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.report", "NOWHERE"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == (
        "error: NOWHERE: expected a run directory with a config.json; found no such directory. "
        "Give the save_dir of a run.\n"
    )


def test_the_command_prints_where_the_page_is(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["train.report", str(tmp_path)])
    main()
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--config.typo=1", "junk"], "--config.typo=1, junk"),
        (["--config.seed", "1", "--sed", "2"], "--sed, 2"),
        (["--config.seed=x"], "Error parsing --config.seed"),
        (["--seed", "1"], "expected RUN and --config flags; found --seed"),
    ],
)
def test_flags_that_change_no_field_are_refused(
    policy_config, monkeypatch, capsys, tmp_path, words, found
):
    (tmp_path / "config.json").write_text(json.dumps(to_json_values(policy_config)))
    monkeypatch.setattr(sys, "argv", ["train.report", str(tmp_path), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert found in printed.err
    assert not (tmp_path / "report.html").exists()


def test_a_page_is_the_same_each_time(run, page):
    assert to_page(run) == page


def test_chunks_do_not_overlap_and_are_not_too_many():
    assert [chunk_interval(*shape) for shape in ((120, 4), (400, 4), (10, 1))] == [4, 10, 1]


def test_the_error_of_chunks_leaves_out_what_lies_beyond_the_episode():
    actions = np.zeros((3, 1), np.float32)
    chunks = np.array([[1, 2], [3, 4], [5, 100]], np.float32)[:, :, None]
    np.testing.assert_allclose(chunk_error(actions, chunks), [3.0])


@pytest.mark.parametrize("horizon", [1, 4, 9])
def test_chunks_of_any_length_are_drawn(run, horizon):
    actions = np.zeros((6, 4), np.float32)
    chunks = np.ones((6, horizon, 4), np.float32)
    short_one = dataclasses.replace(run.episode, actions=actions, chunks=chunks)
    found = section(dataclasses.replace(run, episode=short_one), "episode")
    paths = dict(re.findall(r'<path class="(chunk [a-z]+)" d="([^"]*)"', found))
    assert paths["chunk dots"].count("M") == -(-6 // horizon)
    assert ("L" in paths["chunk line"]) == (horizon > 1)


def test_a_curve_has_a_gap_where_a_value_is_missing_and_few_points_have_dots():
    steps, values = np.arange(5.0), np.array([0.0, 5, np.nan, 10, 10])
    axes = Axis(0.0, 4.0), Axis(0.0, 10.0)
    path = Curve("recorded", steps, values).path(*axes)
    assert path.startswith("M0 10000L2500 5000M7500 0L10000 0")
    dotted = Curve("chunk", steps, values, mark="dots").path(*axes)
    assert dotted == "M0 10000h1M2500 5000h1M7500 0h1M10000 0h1"
    line, dots = curves("train", steps, values)
    assert line.path(*axes).startswith("M0 10000L2500 5000L7500 0L10000 0")
    assert dots.path(*axes) == dotted


@pytest.mark.parametrize(
    ("values", "is_from_zero", "labels"),
    [
        ([0.2, 0.9], True, ["0", "0.25", "0.5", "0.75"]),
        ([0.0, 0.0], True, ["0", "0.25", "0.5", "0.75", "1"]),
        ([0.1, 9.0], False, ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        ([0.1, 9000.0], False, ["0.1", "1", "10", "100", "1,000", "10,000"]),
        ([3.0, 3.0], False, ["2.8", "3", "3.2"]),
        ([3.0, 3.0 + 1e-12], False, ["2.8", "3", "3.2"]),
        ([1234.1, 1234.6], False, ["1,200", "1,300"]),
        ([1230.0, 1240.0], False, ["1,230", "1,235", "1,240"]),
        ([float("nan")], False, ["0", "0.5", "1"]),
    ],
)
def test_an_axis_suits_its_values(values, is_from_zero, labels):
    curve = Curve("train", np.arange(len(values), dtype=float), np.array(values))
    drawn = draw(("", "", ""), [curve], 1, from_zero=is_from_zero)
    assert [label for _, label in drawn.y_ticks] == labels
    assert [label for _, label in drawn.x_ticks] == ["0", "1"]


def test_steps_are_divided_evenly():
    curve = Curve("train", np.arange(10.0), np.arange(10.0))
    assert [label for _, label in draw(("", "", ""), [curve], 10).x_ticks] == ["0", "5", "10"]


def test_a_long_curve_is_simplified_but_keeps_its_spikes():
    steps, values = np.arange(50_000.0), np.random.default_rng(0).random(50_000)
    values[[12_345, 40_000]] = 10.0, -9.0
    path = Curve("raw", steps, values).path(Axis(0.0, 50_000.0), Axis(-9.0, 10.0))
    assert {"2469 0", "8000 10000"} <= set(re.split("[ML]", path))
    assert len(path) < 50_000


def test_smoothing_is_a_mean_over_a_window_that_shrinks_at_the_ends():
    assert [smoothing_window(n) for n in (0, 10, 1000, 50_000)] == [5, 5, 21, 1001]
    assert smooth(np.array([0.0, 3, 6, 9, 12, 15])).tolist() == [3, 4.5, 6, 9, 10.5, 12]
    assert smooth(np.zeros(0)).tolist() == []
    assert set(smooth(np.full(1000, 0.1)).tolist()) == {0.1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (three_digits(0.041239), "0.0412"),
        (three_digits(123.4), "123"),
        (three_digits(12345.6), "12,346"),
        (three_digits(-1.2e-7), "\N{MINUS SIGN}1.20e\N{MINUS SIGN}7"),
        (short(3e-5), "3e\N{MINUS SIGN}5"),
        (short(20000.0), "20,000"),
        (percent(0.0), "0.0 %"),
        (percent(1e-5), "< 0.1 %"),
        (duration(8.25), "8.2 s"),
        (duration(9660.0), "2 h 41 min"),
        (duration(90000.0), "1 d 1 h"),
    ],
)
def test_numbers_are_written_for_people(text, expected):
    assert text == expected
