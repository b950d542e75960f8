"""Eight virtual CPU devices and strict numerics for every test."""

import importlib.metadata
import os
import pathlib

# Before JAX is imported: all is read when its backends start. What is tested is
# small: making its machine code fast takes longer than running it.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# XLA ends the process over a flag it does not know, and jaxlib 0.11 has not this one.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        QUICK_TO_COMPILE,
    )
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Nearly all the time goes into compiling: keep what was compiled for the next run.
_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".jax_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import pytest

# The same examples on every run: a failure in CI is a failure at home.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, max_examples=30
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def strict_numerics(request):
    """Makes implicit rank and dtype promotion an error while a test runs."""
    if request.node.get_closest_marker("loose_numerics"):
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
