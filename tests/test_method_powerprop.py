"""Powerpropagation: a change of variables around another method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness

EVERY = neurrev_jax.periodic(1)


def transform(host, alpha=2.0, inner=None, masks=None, **options):
    method = neurrev_jax.powerprop(host, alpha, **options)
    if masks is not None:
        return neurrev_jax.sparse_transform(
            inner or optax.sgd(1.0), method, masks=masks
        )
    return neurrev_jax.sparse_transform(inner or optax.sgd(1.0), method, sparsity=0.5)


def row(*values):
    return {"kernel": jnp.array([values], jnp.float32)}


ALL = {"kernel": jnp.ones((1, 2), bool)}


@pytest.mark.parametrize(
    ("alpha", "weights", "slope"), [(2.0, [4, -1], [4, 2]), (1.0, [2, -1], [1, 1])]
)
def test_weights_and_gradients_of_the_paper(alpha, weights, slope):
    state = transform(neurrev_jax.static(), alpha, masks=ALL).init(row(2, -1))
    view = lambda p: neurrev_jax.effective_params(p, state)["kernel"]
    np.testing.assert_array_equal(view(row(2, -1)), [weights])
    grads = jax.grad(lambda p: view(p).sum())(row(2, -1))
    np.testing.assert_array_equal(grads["kernel"], [slope])


def test_the_derivative_at_zero_is_finite():
    for alpha, slope in ((1.0, 1.0), (1.5, 0.0), (3.0, 0.0)):
        state = transform(neurrev_jax.static(), alpha, masks=ALL).init(row(2, -1))
        view = lambda p, s=state: neurrev_jax.effective_params(p, s)["kernel"].sum()
        np.testing.assert_array_equal(jax.grad(view)(row(0, 0))["kernel"], slope)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
def test_sparsify_is_the_inverse(alpha):
    tx = transform(neurrev_jax.static(), alpha)
    start = harness.net_params()
    params, state = harness.start(tx, start)
    weights = neurrev_jax.effective_params(params, state)
    masked = neurrev_jax.apply_masks(start, state.masks)
    for path, expected in harness.leaves(masked).items():
        found = harness.leaves(weights)[path]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(weights["norm"]["scale"], start["norm"]["scale"])


def test_with_power_one_the_host_is_alone():
    host = neurrev_jax.rigl(0.3, neurrev_jax.periodic(2))
    inner = optax.sgd(0.125, momentum=0.5)
    alone = neurrev_jax.sparse_transform(inner, host, sparsity=0.5)
    params = {"kernel": harness.net_params()["conv"]["kernel"]}
    runs = [harness.run(tx, params, 4) for tx in (alone, transform(host, 1.0, inner))]
    for (a, mine), (b, theirs) in zip(*runs, strict=True):
        harness.assert_trees_equal(mine.masks, theirs.masks)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_grown_weights_start_where_they_are_told_to_and_move():
    host = neurrev_jax.set_(0.5, neurrev_jax.periodic(2), drop="magnitude")
    tx = transform(host, inner=optax.sgd(1e-3), growth_start=0.01)
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(20, 20)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    history = harness.run(tx, params, 3)
    old, new = (np.asarray(history[i][1].masks["kernel"]) for i in (1, 2))
    grown = new & ~old
    weights = [
        np.asarray(neurrev_jax.effective_params(*history[i])["kernel"]) for i in (2, 3)
    ]
    np.testing.assert_allclose(np.abs(weights[0][grown]), 0.01, rtol=1e-5)
    assert 0.2 < (weights[0][grown] > 0).mean() < 0.8
    assert (weights[1][grown] != weights[0][grown]).all()


@pytest.mark.parametrize(("gradient", "gone"), [(12.0, 0), (7.5, 1)])
def test_the_host_sees_weights_and_their_gradients(gradient, gone):
    """MEST's score |w| + |dL/dw|, where |phi| + |dL/dphi| would rank otherwise."""
    host = neurrev_jax.mest(0.0005, EVERY, gradient_weight=1.0)
    masks = harness.one_layer_masks(range(2), 2000)
    tx = transform(host, inner=optax.sgd(0.0), masks=masks, growth_start=0.01)
    theta, grads = np.zeros(2000), np.zeros(2000)
    # w is 4 and 1; dL/dw is 1, and 6 or 3.75: scores 5, and 7 or 4.75. With phi or its
    # gradient entry 1 would score higher than entry 0 both times.
    theta[:2], grads[:2] = [2, 1], [4, gradient]
    _, mask, _ = harness.one_layer(tx, theta, grads)
    assert mask.sum() == 2 and set(np.flatnonzero(mask[:2])) == {1 - gone}


def test_decay_acts_on_the_weights():
    tx = transform(neurrev_jax.static(), masks=ALL, weight_decay=0.125)
    params = row(2, -1)
    state = tx.init(params)
    updates, _ = tx.update(row(0, 0), state, params)
    # 0.125 w dw/dphi: 0.125 * 4 * 4 and 0.125 * (-1) * 2.
    np.testing.assert_array_equal(updates["kernel"], [[-2.0, 0.25]])


def test_top_kast_as_host():
    host = neurrev_jax.top_kast(0.25, EVERY, penalty=0.0625)
    method = neurrev_jax.powerprop(host)
    tx = neurrev_jax.sparse_transform(
        optax.sgd(1.0), method, sparsity=0.75, where=lambda *_: True
    )
    start = row(16, -9, 4, -1)
    params, state = harness.start(tx, start)
    np.testing.assert_array_equal(params["kernel"], [[4, -3, 2, -1]])
    view = lambda p: neurrev_jax.effective_params(p, state)["kernel"]
    np.testing.assert_array_equal(view(params), [[16, 0, 0, 0]])
    needed = neurrev_jax.gradient_masks(state)["kernel"]
    np.testing.assert_array_equal(needed, [[True, True, False, False]])
    grads = jax.grad(lambda p: view(p).sum())(params)
    np.testing.assert_array_equal(grads["kernel"], [[8, 6, 4, 2]])
    updates, _ = tx.update(row(0, 0, 0, 0), state, params)
    # The penalty's gradient in w (1 and -2.25) times the slope (8 and 6).
    np.testing.assert_array_equal(updates["kernel"], [[-8, 13.5, 0, 0]])


def test_top_kast_is_the_default_host():
    method = neurrev_jax.powerprop()
    assert method.name == "powerprop" and method.inactive == "hold"
    assert method.cost == neurrev_jax.top_kast().cost


@pytest.mark.parametrize(
    ("host", "options", "match"),
    [
        (neurrev_jax.set_, {}, r"alpha=2\.0.*'set'.*growth_start"),
        (neurrev_jax.neurrev, {}, r"'neurrev'.*growth_start"),
        (neurrev_jax.rigl, {"growth_start": 0.1}, r"'rigl'.*inactive weights"),
        (neurrev_jax.snfs, {}, r"'snfs'.*inactive weights"),
        (neurrev_jax.deep_r, {"alpha": 1.0}, "'deep_r'.*another host"),
        (neurrev_jax.static, {"growth_start": 0.1}, "'static'.*nothing"),
        (neurrev_jax.top_kast, {"growth_start": 0.1}, "'top_kast'.*own values"),
        (neurrev_jax.set_, {"growth_start": 0.0}, r"growth_start=0\.0"),
        (neurrev_jax.static, {"alpha": 0.5}, r"alpha=0\.5"),
        (neurrev_jax.static, {"weight_decay": -1.0}, r"weight_decay=-1\.0"),
    ],
)
def test_refusals(host, options, match):
    with pytest.raises(ValueError, match=match):
        neurrev_jax.powerprop(host(), **options)
