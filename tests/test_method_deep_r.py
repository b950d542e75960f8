"""Deep-R: signs never change, connections do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness

TINY = np.float32(1e-12)


def transform(active, size, inner=None, **options):
    options = {"temperature": 0.0, "l1": 0.0, **options}
    return neurrev_jax.sparse_transform(
        inner or optax.sgd(1.0),
        neurrev_jax.deep_r(**options),
        masks=harness.one_layer_masks(active, size),
    )


def one_call(tx, theta, grads):
    """One call on a masked kernel whose initial values, and signs, were `theta`."""
    lift = lambda values: {"kernel": jnp.asarray(values, jnp.float32).reshape(2, -1)}
    params, state = harness.start(tx, lift(theta))
    # Not compiled as a whole: one call is all there is.
    updates, state = tx.update(lift(grads), state, params)
    params = optax.apply_updates(params, updates)
    return np.ravel(params["kernel"]), np.ravel(state.masks["kernel"]), state


def test_exactly_the_weights_that_cross_zero_move_elsewhere():
    theta = np.float32([0.5, -0.5, 0.25, -0.25, 1, -1, 0.75, -0.75, 0.125, -0.125])
    theta = np.concatenate([theta, np.float32([0.1, -0.1] * 20)])
    grads = np.zeros(50, np.float32)
    # 0 and 3 cross, 2 lands on zero, 1 and 5 move away from it, 4 comes near.
    grads[:6] = [1.0, 1.0, 0.25, -0.5, 0.875, 0.5]
    tx = transform(range(10), 50)
    new, mask, state = one_call(tx, theta, grads)
    kept = np.isin(np.arange(50), [1, 4, 5, 6, 7, 8, 9])
    assert mask[kept].all() and mask.sum() == 10
    np.testing.assert_array_equal(new[kept], (theta - grads)[kept])
    # Grown ones start just off zero, on the side of their initial value.
    grown = mask & ~kept
    np.testing.assert_array_equal(new[grown], TINY * np.sign(theta[grown]))
    assert grown.sum() == 3 and not new[~mask].any()
    np.testing.assert_array_equal(
        np.ravel(state.method_state.positive["kernel"]), theta > 0
    )


def test_growth_is_uniform_over_what_was_inactive():
    theta = np.float32([0.5, -0.5, 1.0, -1.0] + [0.1] * 36)
    grads = np.zeros(40, np.float32)
    grads[:2] = [1.0, -1.0]
    masks = harness.one_layer_by_key(transform(range(4), 40), theta, grads, keys=400)
    assert masks[:, 2:4].all()
    # Those that have just crossed zero are inactive like all others.
    often = np.delete(masks, [2, 3], axis=1).sum(0)
    p = 2 / 38
    assert often.sum() == 800
    assert np.abs(often - 400 * p).max() < 5 * np.sqrt(400 * p * (1 - p))


def test_signs_and_counts_hold_on_every_step():
    method = neurrev_jax.deep_r(0.5, l1=0.1, step_size=0.1)
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.1, momentum=0.9),
        method,
        sparsity=0.6,
        distribution=harness.even,
    )
    start = harness.net_params()
    signs = {p: np.sign(w) for p, w in harness.leaves(start).items()}
    history = harness.run(tx, start, 6)
    first = harness.counts(history[0][1].masks)
    for (_, old), (params, state) in itertools.pairwise(history):
        assert harness.counts(state.masks) == first
        before, changed = harness.leaves(old.masks), 0
        for path, mask in harness.leaves(state.masks).items():
            if mask.ndim:
                weights = harness.leaves(params)[path]
                assert (np.sign(weights[mask]) == signs[path][mask]).all()
                changed += int((mask != before[path]).sum())
        assert changed


def test_drift_shrinks_active_weights():
    theta = [1.0, -1.0, 0.5, -0.5] + [0.0] * 46
    tx = transform(range(4), 50, optax.sgd(0.0), l1=0.5, step_size=0.25)
    new, _, _ = one_call(tx, theta, np.zeros(50))
    np.testing.assert_array_equal(new[:4], [0.875, -0.875, 0.375, -0.375])


def test_noise_has_the_spread_of_the_temperature():
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(100, 100)) + 50, jnp.float32)}
    params["bias"] = jnp.ones(100)
    heat = neurrev_jax.piecewise([0.5, 0.0], [2])
    method = neurrev_jax.deep_r(heat, l1=0.0, step_size=0.04)
    tx = neurrev_jax.sparse_transform(optax.sgd(0.0), method, sparsity=0.5)
    (start, _), (first, state), (second, _) = harness.run(tx, params, 2)
    mask = np.asarray(state.masks["kernel"])
    moved = np.asarray(first["kernel"] - start["kernel"])[mask]
    # sqrt(2 * 0.04 * 0.5) = 0.2, from 5000 draws.
    assert abs(moved.std() - 0.2) < 5 * 0.2 / np.sqrt(2 * 5000)
    assert abs(moved.mean()) < 5 * 0.2 / np.sqrt(5000)
    np.testing.assert_array_equal(first["bias"], 1.0)
    harness.assert_trees_equal(first, second)


@pytest.mark.parametrize("jitted", [True, False])
def test_in_a_full_leaf_what_crosses_zero_starts_anew_in_its_place(jitted):
    params = {"kernel": jnp.array([[1.0, -1.0], [2.0, 3.0]]), "bias": jnp.ones(2)}
    masks = {"kernel": jnp.ones((2, 2), bool), "bias": jnp.array(True)}
    method = neurrev_jax.deep_r(0.0, l1=0.0)
    inner = optax.sgd(1.0, momentum=0.5)
    tx = neurrev_jax.sparse_transform(inner, method, masks=masks)
    params, state = harness.start(tx, params)
    update = jax.jit(tx.update) if jitted else tx.update
    grads = {"kernel": jnp.array([[5.0, -5.0], [0.5, 0.0]]), "bias": jnp.ones(2)}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    assert state.masks["kernel"].all()
    # 1e-12 would be lost beside the old 1; 2^-24 is the first number below 1 less 1.
    expected = np.float32([[2.0**-24, -(2.0**-24)], [1.5, 3.0]])
    np.testing.assert_array_equal(params["kernel"], expected)
    trace = state.inner_state[0].trace
    np.testing.assert_array_equal(trace["kernel"], [[0.0, 0.0], [0.5, 0.0]])
    np.testing.assert_array_equal(trace["bias"], 1.0)


def test_signs_of_zero_weights_are_drawn():
    tx = transform(range(100), 400)
    state = tx.init({"kernel": jnp.zeros((2, 200))})
    share = float(state.method_state.positive["kernel"].mean())
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_grown_start_is_the_callers():
    theta = np.float32([0.5, 1.0] + [0.1, -0.1] * 24)
    tx = transform([0, 1], 50, grown_start=0.25)
    new, mask, _ = one_call(tx, theta, [1.0] + [0.0] * 49)
    grown = mask & (np.arange(50) > 1)
    assert grown.sum() == 1
    np.testing.assert_array_equal(new[grown], 0.25 * np.sign(theta[grown]))


def test_refusals_and_defaults():
    for options, match in (
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"l1": -1.0}, r"l1=-1\.0"),
        ({"step_size": 2.0}, r"step_size=2\.0"),
        ({"grown_start": 0.0}, r"grown_start=0\.0"),
        ({"init_mask": "typo"}, "init_mask='typo'"),
    ):
        with pytest.raises(ValueError, match=match):
            neurrev_jax.deep_r(**options)
    schedule = neurrev_jax.deep_r().schedule
    assert jax.vmap(schedule)(jnp.arange(1, 6, dtype=jnp.int32)).all()
