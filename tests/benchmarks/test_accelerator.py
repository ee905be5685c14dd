"""`benchmarks.accelerator`: its smoke run, its count of operations, and its time."""

import dataclasses
import json
import math
import os
import pathlib
import sys
import time

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import train.run_setup
from benchmarks.accelerator.__main__ import Args, measure_all
from benchmarks.accelerator.case_runner import run_cases
from benchmarks.accelerator.figure_files import to_markdown, with_share, write_files
from benchmarks.accelerator.measured_cases import Case, full_sizes, smoke_sizes
from benchmarks.accelerator.model_flops import products_of, training_flops
from pipeline.errors import UserError
from tests.flax_parameters import check_parameters_once
from train.octo.functional import init_params, input_spec, loss_fn
from train.octo.model import OctoModule
from train.octo.octo_config import OctoConfig

check_parameters_once()
STEP = {"step_ms", "samples_s", "model_gflop", "xla_gflop", "model_tflop_s", "percent_of_matmul"}
STEP |= {"planned_gb", "peak_gb", "estimated_gb", "dispatch_ms", "compile_s", "loss"}
VGGT = {"frames_s", "gflop_per_frame", "model_tflop_s", "percent_of_matmul", "peak_gb"}
EXPECTED = {
    "matmul": {"bfloat16_tflop_s", "float32_default_tflop_s", "float32_highest_tflop_s"},
    "copy": {"read_and_written_gb_s"},
    "step:small:0:fused_remat@4": STEP,
    "vggt:bfloat16": VGGT,
    "vggt:float32_highest": VGGT,
    "run:0:fused_remat": {"step_ms", "samples_s", "loader_wait_percent", "estimated_gb"},
    "policy": {"median_ms", "p99_ms", "start_s"},
    "repeat:fused_remat": {"last_loss", "losses_identical", "parameters_identical"},
    "profile:fused_remat": {"kernel_ms_per_step", "kernels_per_step"},
}


def smoke(dataset: pathlib.Path, output: pathlib.Path, *cases: str) -> dict[str, dict]:
    """Measures in this process; returns the figures by measurement, as they were written."""
    measure_all(Args(str(dataset), str(output), cases=cases, compilation_cache=None, smoke=True))
    rows = json.loads((output / "accelerator.json").read_text())
    return {row["measurement"]: row for row in rows}


def filled_state(init, shardings):
    """The state of the run, without compiling the program that draws it."""
    structs = jax.eval_shape(init)
    return jax.device_put(
        jax.tree.map(lambda leaf: np.full(leaf.shape, 0.02, leaf.dtype), structs), shardings
    )


def check(rows: dict[str, dict], expected: dict[str, set[str]]) -> None:
    for name, keys in expected.items():
        assert keys <= rows[name].keys(), name
        assert {key for key in keys if not math.isfinite(rows[name][key])} == set(), name
        assert "failed" not in rows[name]


def test_a_smoke_run_takes_every_kind_of_figure(
    mini_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [case.name for case in smoke_sizes().cases if ":21:" not in case.name]
    monkeypatch.setattr(train.run_setup, "fresh_state", filled_state)
    rows = smoke(mini_dataset, tmp_path, *cases)
    check(rows, EXPECTED)
    assert rows["repeat:fused_remat"]["losses_identical"] is True
    assert rows["repeat:fused_remat"]["parameters_identical"] is True
    step = rows["step:small:0:fused_remat@4"]
    assert step["samples_s"] == pytest.approx(4e3 / step["step_ms"], rel=0.01)
    # XLA also counts what is no matrix product, and what remat computes again.
    assert 1 < step["xla_gflop"] / step["model_gflop"] < 3
    shown = capsys.readouterr().out
    assert [json.loads(line)["measurement"] for line in shown.splitlines() if line[:1] == "{"] == [
        *rows
    ]
    assert (tmp_path / "accelerator.md").read_text() in shown


@pytest.mark.slow
def test_a_smoke_run_has_steps_with_tokens_in_several_variants(
    mini_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = smoke(mini_dataset, tmp_path, "card", "step:base:21:plain@2,remat@4")
    check(rows, {f"step:base:21:{which}": STEP for which in ("plain@2", "remat@4")})


def test_an_unknown_case_is_an_error_that_lists_the_plan(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"(?s)--cases.*vggt.*found step:large:0:plain@4"):
        measure_all(Args("none", str(tmp_path), cases=("step:large:0:plain@4",)))


def test_the_first_cases_of_the_plan_fit_into_its_time() -> None:
    planned = full_sizes(16).cases
    assert len({case.name for case in planned}) == len(planned)
    assert sum(case.seconds for case in planned[:7]) < 0.95 * 60 * Args().minutes


# --- operations


def products_in(config: OctoConfig, window: int, *, gradient: bool) -> list[tuple[str, int]]:
    """(name, operations forward) of the products in the traced loss, or in its gradient."""
    spec = input_spec(config, 1, window)
    if config.language is not None:  # encoded before, as in a run
        shape = (1, config.language.max_length, config.language.t5.d_model)
        spec["task"] = {"language_embedding": jax.ShapeDtypeStruct(shape, jnp.float32)}
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: init_params(config, key))
    noise = jax.eval_shape(lambda: config.head.draw_training_noise(key, (1, window)))
    module = OctoModule(config)

    def loss(params, batch, noise):
        return loss_fn(module, params, batch, noise)

    traced = jax.make_jaxpr(jax.grad(loss) if gradient else loss)(params, spec, noise)
    names = ("dot_general", "conv_general_dilated")
    found = [one for one in _equations(traced.jaxpr) if one.primitive.name in names]
    return [(one.primitive.name, _flops(one)) for one in found]


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if isinstance(value, jex.ClosedJaxpr):
                yield from _equations(value.jaxpr)
            elif isinstance(value, jex.Jaxpr):
                yield from _equations(value)


def _flops(equation) -> int:
    (left, right), (out,) = equation.invars, equation.outvars
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        return 2 * out.aval.size * math.prod(left.aval.shape[axis] for axis in contracted)
    # Forward: each number that comes out sums over the kernel of its channel.
    return 2 * out.aval.size * right.aval.size // right.aval.shape[-1]


def test_operations_are_those_of_the_traced_loss_and_gradient() -> None:
    sizes = smoke_sizes()
    small = sizes.models["small"]
    head = dataclasses.replace(small.head, n_diffusion_samples=3, num_blocks=2)
    seeing = dataclasses.replace(small, head=head, vggt=sizes.tokens)
    forward = products_in(seeing, 2, gradient=False)
    assert sum(flops for _, flops in forward) == sum(p.flops for p in products_of(seeing, 2))
    # A stem of one layer whose images have no gradient, then a convolution of one pixel: 2 and 3.
    names = [name for name, _ in products_in(seeing, 2, gradient=True)]
    assert names.count("conv_general_dilated") == 5
    blind = dataclasses.replace(seeing, images=())
    backward = products_in(blind, 2, gradient=True)
    assert training_flops(blind, 2) == sum(flops for _, flops in backward)


@pytest.mark.parametrize(("model", "gflop"), [("small", 122.861), ("base", 413.684)])
def test_operations_of_the_presets(model: str, gflop: float) -> None:
    assert training_flops(full_sizes(16).models[model], 2) / 1e9 == pytest.approx(gflop, abs=1e-3)


# --- time


def programs(*sources: str):
    """Cases that run Python, and the command for each."""
    cases = [Case(f"case:{number}", 1.0) for number in range(len(sources))]
    texts = dict(zip([case.name for case in cases], sources, strict=True))
    return cases, lambda case: [sys.executable, "-c", texts[case.name]]


def test_a_case_that_fails_or_takes_too_long_loses_only_what_it_has_not_printed(
    tmp_path: pathlib.Path,
) -> None:
    cases, command = programs(
        "print('library'); print('{\"measurement\": \"one\"}'); raise ValueError('no memory')",
        'print(\'{"measurement": "two"}\', flush=True); import time; time.sleep(60)',
        "print('never')",
    )
    started = time.monotonic()
    rows = list(run_cases(cases, command, 3.0, tmp_path))
    assert time.monotonic() - started < 20
    rows = [row for row in rows if row["measurement"] != "case"]
    assert [row["measurement"] for row in rows] == ["one", "case:0", "two", "case:1", "case:2"]
    assert rows[1]["failed"] == "ValueError: no memory"
    assert rows[3]["failed"].startswith("stopped after ")
    assert rows[4]["failed"].startswith("skipped: ")


def test_who_stops_reading_ends_the_case_at_once(tmp_path: pathlib.Path) -> None:
    cases, command = programs(
        "import os, time; print('{\"pid\": %d}' % os.getpid(), flush=True); time.sleep(60)"
    )
    rows = run_cases(cases, command, 60.0, tmp_path)
    pid = next(rows)["pid"]
    started = time.monotonic()
    rows.close()
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_rows_are_compared_with_the_rate_of_their_dtype_and_written_as_tables(
    tmp_path: pathlib.Path,
) -> None:
    matmul = {"measurement": "matmul", "bfloat16_tflop_s": 800, "float32_highest_tflop_s": 50}
    step = with_share({"measurement": "step:small:0:plain@64", "model_tflop_s": 200}, [matmul])
    assert step["percent_of_matmul"] == 25
    frames = {"model_tflop_s": 30, "compared_with": "float32_highest_tflop_s"}
    assert with_share(frames, [matmul])["percent_of_matmul"] == 60
    assert with_share(frames, []) == frames
    failed = {"measurement": "step:small:0:plain@256", "failed": "out of memory"}
    write_files(tmp_path, [matmul, step, failed])
    assert json.loads((tmp_path / "accelerator.json").read_text()) == [matmul, step, failed]
    text = (tmp_path / "accelerator.md").read_text()
    assert text == to_markdown([matmul, step, failed])
    assert "| step:small:0:plain@64 | 200 | 25.0 |  |" in text
    assert "| step:small:0:plain@256 |  |  | out of memory |" in text
