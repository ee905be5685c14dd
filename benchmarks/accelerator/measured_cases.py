"""What is measured, at the sizes of an accelerator or of a smoke test, the most important first."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

from train.octo.octo_config import (
    DiffusionConfig,
    ImageTokenizerConfig,
    LanguageConfig,
    OctoConfig,
    T5Config,
    TransformerConfig,
    VGGTTokenizerConfig,
    octo_base,
    octo_small,
)

Variant = Literal["plain", "remat", "fused", "fused_remat"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
TOKENS = "vggt_tokens"
"""Column of the geometry tokens."""


_FIRST = "fused@16,fused@64,fused@256,plain@64,remat@64,remat@256"


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process measures."""

    name: str
    """Such as `step:small:0:plain@16,remat@64`: model, tokens per step, variants at batch sizes."""
    seconds: float
    """What it is expected to take on one H100 or H200, most of it compiling: a case that no longer
    fits into the time is skipped."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of all measurements."""

    models: Mapping[str, OctoConfig]
    """Models by name, without geometry tokens."""
    tokens: VGGTTokenizerConfig
    """Geometry tokens of the cases that have them."""
    vggt_preset: str
    """Sizes of VGGT."""
    image_size: int
    """Height and width of its images in pixels."""
    frames: int
    """Images that VGGT encodes at a time."""
    matmul_size: int | None
    """Rows and columns of the matrices; None: what fills the device."""
    copied_mb: int
    """Size of the array whose copying is timed."""
    timed_steps: int
    """Training steps of a round."""
    rounds: int
    """Rounds; the median counts."""
    run_batch: int
    """Samples per training step of the run that the loader feeds, and of the repeated steps."""
    run_steps: int
    """Training steps of that run whose waiting counts."""
    first_steps: int
    """Training steps before them: what was prefetched while the step was compiled is used up."""
    num_threads: int
    """Threads of the loader."""
    prefetch_batches: int
    """Batches that it prefetches."""
    num_repeated: int
    """Training steps that are repeated."""
    num_predictions: int
    """Predictions of the policy."""
    cases: tuple[Case, ...]
    """The plan."""


def full_sizes(num_cpus: int) -> Sizes:
    """Returns the sizes for an accelerator.

    Args:
      num_cpus: Cores of the host; the loader gets half of them, eight at most.
    """
    num_threads = max(1, min(8, num_cpus // 2))
    return Sizes(
        models={"small": octo_small(), "base": octo_base()},
        tokens=VGGTTokenizerConfig(num_tokens=261, token_dim=2048),
        vggt_preset="vggt_1b",
        image_size=224,
        frames=64,
        matmul_size=None,
        copied_mb=2048,
        timed_steps=5,
        rounds=4,
        run_batch=64,
        run_steps=200,
        first_steps=40,
        num_threads=num_threads,
        prefetch_batches=num_threads + 4,
        num_repeated=20,
        num_predictions=200,
        cases=(
            Case("card", 20),
            Case(f"step:small:0:{_FIRST}", 110),
            Case("vggt", 40),
            Case("run:0:fused", 70),
            Case("repeat:fused", 30),
            Case("step:base:0:fused@16,fused@64,remat@64", 80),
            Case("step:small:261:fused@16,fused@64,remat@64", 80),
            Case("run:261:fused", 40),
            Case("repeat:plain", 30),
            Case("step:base:261:fused@16,remat@64,fused_remat@64", 80),
            Case("step:small:0:plain@16,fused@32,fused@128,fused_remat@64,fused_remat@256", 100),
            Case("step:base:0:plain@16,plain@64,fused@256,remat@256,fused_remat@64", 100),
            Case("step:small:261:plain@16,plain@64,fused@256,remat@256,fused_remat@256", 100),
            Case("step:small:0:plain@32,plain@128,plain@256,remat@16,remat@32,remat@128", 110),
            Case("step:base:261:plain@16,fused@64,remat@16,remat@256,fused_remat@256", 100),
        ),
    )


def smoke_sizes() -> Sizes:
    """Returns sizes with which every kind of measurement takes seconds on a CPU."""
    stem = ImageTokenizerConfig("primary", "image_primary", 4, stem_features=(32,), stem_dim=32)
    t5 = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    model = OctoConfig(
        embedding_dim=32,
        max_horizon=2,
        transformer=TransformerConfig(num_layers=1, mlp_dim=32, num_heads=2),
        images=(stem,),
        language=LanguageConfig(t5=t5),
        head=DiffusionConfig(diffusion_steps=2, hidden_dim=32, num_blocks=1),
    )
    return Sizes(
        models={"small": model, "base": model},
        tokens=VGGTTokenizerConfig(num_tokens=21, token_dim=64),
        vggt_preset="tiny",
        image_size=56,
        frames=2,
        matmul_size=128,
        copied_mb=1,
        timed_steps=1,
        rounds=2,
        run_batch=4,
        run_steps=4,
        first_steps=2,
        num_threads=1,
        prefetch_batches=2,
        num_repeated=2,
        num_predictions=3,
        cases=(
            Case("card", 20),
            Case("step:small:0:fused_remat@4", 75),
            Case("vggt", 40),
            Case("run:0:fused_remat", 60),
            Case("repeat:fused_remat", 25),
            Case("step:base:21:plain@2,remat@4", 75),
        ),
    )
