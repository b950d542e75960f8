"""A whole NeurRev run against its NumPy replay: the same masks, weights, momenta."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

STEPS, EVERY, RATIO, RATE, MOMENTUM = 40, 5, 0.15, 0.125, 0.5
SHAPES = {"a": (3, 3, 4, 8), "b": (24, 10)}


@pytest.fixture(scope="module")
def history():
    """Gradients and the library's run on them: eight topology updates."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {name: {"kernel": jnp.asarray(draw(*s))} for name, s in SHAPES.items()}
    grads = [
        {name: {"kernel": jnp.asarray(draw(*s))} for name, s in SHAPES.items()}
        for _ in range(STEPS)
    ]
    tx = neurrev_jax.sparse_transform(
        optax.sgd(RATE, momentum=MOMENTUM),
        neurrev_jax.neurrev(RATIO, neurrev_jax.periodic(EVERY)),
        sparsity=0.7,
        key=4,
    )
    return grads, harness.run(tx, params, STEPS, grads=lambda t, _: grads[t - 1])


@pytest.mark.parametrize("layer", SHAPES)
def test_the_run_equals_its_replay(history, layer):
    grads, states = history
    flat = lambda tree: np.ravel(tree[layer]["kernel"])
    theta, mask = flat(states[0][0]), flat(states[0][1].masks)
    replay = oracles.neurrev_run(
        theta,
        mask,
        [flat(g) for g in grads],
        [flat(state.masks) for _, state in states[1:]],
        every=EVERY,
        ratio=RATIO,
        rate=RATE,
        momentum=MOMENTUM,
    )
    (trace_like,) = {
        i
        for i, leaf in enumerate(jax.tree.leaves(states[0][1].inner_state))
        if leaf.shape == SHAPES[layer]
    }
    updates = 0
    for (params, state), (theta, expected, trace, reference) in zip(
        states[1:], replay, strict=True
    ):
        np.testing.assert_array_equal(flat(state.masks), expected)
        np.testing.assert_array_equal(flat(params), theta)
        slot = jax.tree.leaves(state.inner_state)[trace_like]
        np.testing.assert_array_equal(np.ravel(slot), trace)
        np.testing.assert_array_equal(flat(state.method_state.reference), reference)
        updates += not np.array_equal(mask, expected)
        mask = expected
    assert updates == STEPS // EVERY


@pytest.mark.parametrize("layer", SHAPES)
def test_growth_in_the_run_is_spread_out(history, layer):
    """Most positions get their turn: growth is not stuck in a corner."""
    _, states = history
    seen = np.any([np.ravel(s.masks[layer]["kernel"]) for _, s in states], axis=0)
    assert seen.mean() > 0.45
