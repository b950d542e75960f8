"""Who may import whom, and what is public."""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys
import types

import pytest

import neurrev_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]

PUBLIC = {
    # The transformation and its state.
    "sparse_transform",
    "SparseState",
    "sparsify",
    "effective_params",
    "gradient_masks",
    # Masks.
    "get_masks",
    "apply_masks",
    "density",
    "summarize",
    "Summary",
    "LayerSummary",
    "pack_masks",
    "unpack_masks",
    # Topology updates as functions.
    "select",
    "select_global",
    "apportion",
    "prune",
    "grow",
    "awake",
    # What methods are made of.
    "Method",
    "Context",
    "Rewired",
    "Targets",
    "Cost",
    "Card",
    "EmptyState",
    "NeurRevState",
    # Dormant neurons.
    "ActivationStats",
    "DormantRates",
    "all_reduce_activations",
    "dormant",
    "dormant_rate",
    "init_activation_stats",
    "observe_activations",
    # Methods, schedules, ratios, distributions.
    "neurrev",
    "set_",
    "rigl",
    "static",
    "itop",
    "exploration_rate",
    "mest",
    "top_kast",
    "powerprop",
    "snfs",
    "deep_r",
    "dsr",
    "staged",
    "ac_dc",
    "gradual_magnitude",
    "granet",
    "phases",
    "chase",
    "ChaseState",
    # Masks drawn once.
    "random_masks",
    "magnitude_masks",
    "snip_masks",
    "grasp_masks",
    "class_balanced_indices",
    "synflow_masks",
    "fish_masks",
    # What forms a channel.
    "ChannelAxis",
    "ChannelGroup",
    "channel_group",
    "periodic",
    "constant",
    "cosine",
    "cubic",
    "piecewise",
    "uniform",
    "er",
    "erk",
}


def imported_packages(path):
    """Top-level packages that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


def files(package):
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package} has no modules"
    return found


def test_the_core_imports_numpy_jax_and_optax_only():
    allowed = sys.stdlib_module_names | {"neurrev_jax", "numpy", "jax", "optax"}
    models = ROOT / "neurrev_jax" / "models"
    for path in files("neurrev_jax"):
        extra = {"flax"} if models in path.parents else set()
        wrong = set(imported_packages(path)) - allowed - extra
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("neurrev_jax", {"experiments", "tflite_export", "tensorflow", "benchmarks"}),
        ("tflite_export", {"experiments", "tests", "benchmarks"}),
        ("experiments", {"tests", "benchmarks"}),
    ],
)
def test_nothing_imports_from_its_right(package, forbidden):
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = set(imported_packages(path)) & forbidden
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_oracles_import_nothing_of_ours():
    path = ROOT / "tests" / "oracles.py"
    assert set(imported_packages(path)) <= {"math", "numpy"}


def test_tests_use_the_public_names_only():
    for path in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert "_src" not in (node.module or ""), path.name
            elif isinstance(node, ast.Attribute):
                assert node.attr != "_src", path.name


def test_the_public_surface_is_closed():
    assert set(neurrev_jax.__all__) == PUBLIC
    assert len(neurrev_jax.__all__) == len(PUBLIC), "a name twice"
    visible = {
        name
        for name, value in vars(neurrev_jax).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_documented(name):
    doc = getattr(neurrev_jax, name).__doc__ or ""
    assert len(doc.splitlines()[0]) > 15, "no summary line"


def test_the_version_is_the_packages():
    assert neurrev_jax.__version__ == importlib.metadata.version("neurrev_jax")


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import neurrev_jax, optax, jax.numpy as jnp
tx = neurrev_jax.sparse_transform(optax.sgd(0.1))
tx.init({{"kernel": jnp.ones((10, 10))}})
loaded = sorted(set(name.split(".")[0] for name in sys.modules) & {names!r})
assert not loaded, loaded
"""


def test_the_core_works_without_flax_and_never_loads_tensorflow():
    names = {"flax", "tensorflow", "orbax", "ml_collections", "sklearn"}
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
