"""The pages on methods: one is what the code says, the other one's code runs."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from experiments import method_options
from experiments.analysis import methods_table
from tests import harness
from tests.harness import KERNELS

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"


def test_the_page_on_methods_is_what_the_code_says():
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == methods_table.page(), (
        "run `python -m experiments.analysis.methods_table > docs/methods.md`"
    )


def test_every_method_is_on_the_page():
    dynamic = [name for name, _ in methods_table.DYNAMIC]
    options = {p.option.partition("=")[2] for p in methods_table.PROCEDURES}
    known = {*dynamic, *methods_table.ONE_SHOT, *options, "dense"}
    assert set(method_options.METHODS) <= known
    # And every function that returns masks or a method.
    for name in neurrev_jax.__all__:
        if hasattr(getattr(neurrev_jax, name), "card"):
            assert name.removesuffix("_").removesuffix("_masks") in known, name
        elif name.endswith("_masks"):
            # What works on masks, and draws none.
            assert name in {"apply_masks", "get_masks", "gradient_masks"} | {
                "pack_masks",
                "unpack_masks",
            }


def row(text, function):
    [line] = [line for line in text.splitlines() if f"`{function}`" in line]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_a_row_says_what_the_papers_say():
    page = methods_table.page()
    assert row(page, "rigl()")[2:] == [
        r"smallest \|w\|",
        r"largest \|gradient\|",
        "layer",
        "every 100 steps",
        "dense, at updates",
        "`(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1)`",
        "nothing",
        "Evci et al., 2020, section 3",
    ]
    assert row(page, "snfs()")[6:8] == ["dense, every step", "`2 f_S + f_D`"]
    assert row(page, "top_kast()")[7] == "`f_S + 2 f_B`"
    assert "bool per weight" in row(page, "deep_r()")[8]
    assert row(page, "snip_masks")[3:5] == ["global", "`loss_fn`, `batch`"]


def test_a_function_without_a_paper_is_refused():
    def mine():
        """Something new (by me)."""

    with pytest.raises(ValueError, match="mine's docstring, 'Something new"):
        methods_table.paper(mine)


@pytest.fixture(scope="module")
def blocks():
    text = (DOCS / "write_your_own_method.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def sensitivity(blocks):
    namespace = {"__name__": "write_your_own_method"}
    exec(compile(blocks[0], "write_your_own_method.md", "exec"), namespace)
    return namespace["sensitivity"]


@pytest.mark.loose_numerics  # Optax's Adam promotes.
def test_the_examples_run_and_the_method_takes_under_30_lines(blocks):
    assert len(blocks) == 2
    namespace = {"__name__": "write_your_own_method"}
    for block in blocks:
        exec(compile(block, "write_your_own_method.md", "exec"), namespace)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) < 30


def transform(method, key=0):
    return neurrev_jax.sparse_transform(
        optax.sgd(0.1, momentum=0.9),
        method,
        sparsity=0.6,
        distribution=harness.even,
        key=key,
    )


@pytest.fixture(scope="module")
def history(sensitivity):
    tx = transform(sensitivity(0.3, neurrev_jax.periodic(3)))
    return tx, harness.run(tx, harness.net_params(), 7)


def test_the_example_keeps_its_counts_and_masks(history):
    _, states = history
    sizes = {
        path: np.prod(harness.leaves(states[0][0])[path].shape) for path in KERNELS
    }
    wanted = {path: size - int(0.6 * size) for path, size in sizes.items()}
    for params, state in states:
        assert harness.counts(state.masks) == wanted
        harness.assert_masked(params, state.masks)
        harness.assert_slots_masked(state.inner_state, state.masks)


def test_the_example_changes_masks_on_schedule_and_keeps_values(history):
    _, states = history
    for call in range(1, 8):
        before, after = (harness.leaves(states[i][1].masks) for i in (call - 1, call))
        new = harness.leaves(states[call][0])
        for path in KERNELS:
            grown = after[path] & ~before[path]
            assert grown.any() == (call in (3, 6)), (call, path)
            assert not new[path][grown].any()


def test_the_example_is_deterministic(history, sensitivity):
    tx, states = history
    again = harness.run(tx, harness.net_params(), 3)
    harness.assert_trees_equal(again[3], states[3])
    other = transform(sensitivity(0.3, neurrev_jax.periodic(3)), key=1)
    masks = harness.leaves(other.init(harness.net_params()).masks)
    first = harness.leaves(states[0][1].masks)
    assert any((masks[path] != first[path]).any() for path in KERNELS)


def test_the_example_prunes_what_it_says(sensitivity):
    # |w g| is 0.9, 0.2, 0.6 and 0.5: of four active weights the second goes.
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0),
        sensitivity(0.3, neurrev_jax.periodic(1)),
        masks=harness.one_layer_masks(range(4), 8),
    )
    weights, gradients = (
        [0.9, -2.0, 0.3, 0.5, 0, 0, 0, 0],
        [1, 0.1, -2, 1, *[np.nan] * 4],
    )
    new, mask, _ = harness.one_layer(tx, weights, gradients)
    assert mask.sum() == 4
    # It may have been drawn to grow again at once; then it was never away.
    assert mask[[0, 2, 3]].all()
    np.testing.assert_array_equal(new[[0, 2, 3]], np.float32([0.9, 0.3, 0.5]))
    assert new[1] == (-2.0 if mask[1] else 0.0)
    _, _, state = harness.one_layer(tx, weights, gradients)
    assert jnp.isfinite(state.method_state.mean["kernel"]).all()
