"""prune, grow, awake: exact, pure, leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurrev_jax
from tests import harness, oracles


def layer(values, active):
    values = jnp.asarray(values, jnp.float32)
    mask = jnp.zeros(values.size, bool).at[jnp.asarray(active)].set(True)
    return {"w": jnp.where(mask, values, 0)}, {"w": mask}


def by_key(function, keys):
    """The function's result under many keys: [keys, ...]."""
    function = jax.jit(jax.vmap(function))
    return np.asarray(function(jax.random.split(jax.random.key(0), keys)))


def on(masks, name="w"):
    return np.flatnonzero(masks[name]).tolist()


def test_prune_deactivates_the_lowest_scores():
    params, masks = layer([0.5, -0.1, 0.3, 0.2, 7.0], [0, 1, 2, 3])
    scores = {"w": jnp.abs(params["w"])}
    params, masks = jax.jit(neurrev_jax.prune)(
        params, masks, 2, scores, jax.random.key(0)
    )
    assert on(masks) == [0, 2]
    np.testing.assert_array_equal(params["w"], np.float32([0.5, 0, 0.3, 0, 0]))


def test_prune_never_removes_more_than_is_active():
    params, masks = layer([1.0, 2.0, 3.0], [1])
    params, masks = neurrev_jax.prune(
        params, masks, 5, {"w": params["w"]}, jax.random.key(0)
    )
    assert on(masks) == [] and not params["w"].any()


def test_grow_activates_the_highest_scores_at_zero():
    params, masks = layer([0.5, 9.0, 9.0, 9.0, 0.2], [0, 4])
    scores = {"w": jnp.array([8.0, 1.0, 3.0, 2.0, 9.0])}
    params, masks = jax.jit(neurrev_jax.grow)(
        params, masks, 2, scores, jax.random.key(0)
    )
    assert on(masks) == [0, 2, 3, 4]
    np.testing.assert_array_equal(params["w"], np.float32([0.5, 0, 0, 0, 0.2]))


def test_grow_without_scores_is_uniform():
    params, masks = layer(np.ones(12), [0, 1])
    one = lambda key: neurrev_jax.grow(params, masks, 3, None, key)[1]["w"]
    often = by_key(one, 1000)
    assert (often.sum(1) == 5).all() and often[:, :2].all()
    expected, deviation = 300, np.sqrt(1000 * 0.3 * 0.7)
    assert np.abs(often[:, 2:].sum(0) - expected).max() < 5 * deviation


def test_grow_with_equal_scores_is_random_too():
    params, masks = layer(np.ones(8), [0])
    scores = {"w": jnp.zeros(8)}
    one = lambda key: neurrev_jax.grow(params, masks, 2, scores, key)[1]["w"]
    often = by_key(one, 400).sum(0)
    assert often[0] == 400
    assert np.abs(often[1:] - 400 * 2 / 7).max() < 5 * np.sqrt(400 * 2 / 7 * 5 / 7)


def test_counts_may_differ_by_leaf_and_be_traced():
    params = {"a": jnp.arange(1.0, 7.0), "b": jnp.arange(1.0, 9.0).reshape(2, 4)}
    masks = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    counts = {"a": jnp.int32(1), "b": jnp.int32(5)}
    _, masks = jax.jit(neurrev_jax.prune)(
        params, masks, counts, params, jax.random.key(0)
    )
    assert harness.counts(masks) == {"a": 5, "b": 3}


@pytest.mark.parametrize("function", ["prune", "grow", "awake"])
def test_dense_leaves_are_untouched(function):
    params, masks = layer([0.5, -0.5, -0.4, 0.3], [0, 1, 2])
    params["bias"], masks["bias"] = jnp.array([-1.0, -2.0]), jnp.array(True)
    other, key = jax.tree.map(jnp.zeros_like, params), jax.random.key(0)
    if function == "awake":
        got, got_masks = neurrev_jax.awake(params, masks, other, 1, key)
    else:
        got, got_masks = getattr(neurrev_jax, function)(params, masks, 1, other, key)
    np.testing.assert_array_equal(got["bias"], [-1.0, -2.0])
    assert got_masks["bias"].shape == () and bool(got_masks["bias"])
    expected = 4 if function == "grow" else 2
    assert int(got_masks["w"].sum()) == expected


def test_leaves_draw_different_positions():
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64)}
    masks = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params)
    _, masks = neurrev_jax.grow(params, masks, 20, None, jax.random.key(0))
    assert on(masks, "a") != on(masks, "b")


def test_awake_takes_the_negatives_that_moved_least():
    theta = [0.9, -0.8, 0.7, -0.6, 0.3, -0.2, 0.1, -0.5, -9.0]
    reference = [0.9, -0.7, 0.7, -0.1, 0.3, -0.2, 0.1, -0.51, -9.0]
    params, masks = layer(theta, range(8))
    params, masks = jax.jit(neurrev_jax.awake)(
        params, masks, {"w": jnp.array(reference)}, 2, jax.random.key(0)
    )
    # Changes of the negatives 1, 3, 5, 7: .1, .5, 0, .01; entry 8 is inactive.
    assert on(masks) == [0, 1, 2, 3, 4, 6]
    assert float(params["w"][5]) == 0 and float(params["w"][7]) == 0


def test_awake_breaks_equal_changes_by_larger_magnitude():
    params, masks = layer([-0.1, -0.4, -0.3, -0.2, 0.5], range(5))
    _, masks = neurrev_jax.awake(params, masks, params, 2, jax.random.key(0))
    assert on(masks) == [0, 3, 4]


def test_awake_breaks_full_ties_at_random():
    params, masks = layer([-0.5] * 10, range(10))
    one = lambda key: neurrev_jax.awake(params, masks, params, 3, key)[1]["w"]
    kept = by_key(one, 400)
    assert (kept.sum(1) == 7).all()
    assert np.abs(kept.sum(0) - 280).max() < 5 * np.sqrt(400 * 0.3 * 0.7)


def test_awake_takes_no_positive_and_no_zero():
    params, masks = layer([0.5, 0.0, -0.1, -0.0, 0.2], range(5))
    got, masks = neurrev_jax.awake(params, masks, params, 4, jax.random.key(0))
    assert on(masks) == [0, 1, 3, 4]
    np.testing.assert_array_equal(got["w"], np.float32([0.5, 0, 0, 0, 0.2]))


def test_awake_respects_eligible():
    params, masks = layer([-0.5, -0.4, -0.3, -0.2], range(4))
    eligible = {"w": jnp.array([False, True, False, True])}
    _, masks = neurrev_jax.awake(
        params, masks, params, 3, jax.random.key(0), eligible=eligible
    )
    assert on(masks) == [0, 2]


def test_permuting_entries_permutes_the_result():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=40).astype(np.float32)
    reference = rng.normal(size=40).astype(np.float32)
    order = rng.permutation(40)

    def kept(values, before):
        params, masks = layer(values, range(40))
        _, masks = neurrev_jax.awake(
            params, masks, {"w": jnp.asarray(before)}, 6, jax.random.key(0)
        )
        return np.asarray(masks["w"])

    np.testing.assert_array_equal(
        kept(theta, reference)[order], kept(theta[order], reference[order])
    )


def test_the_inputs_are_not_changed():
    params, masks = layer([0.5, -0.1, 0.3], range(3))
    before = jax.tree.map(np.array, (params, masks))
    neurrev_jax.prune(params, masks, 1, params, jax.random.key(0))
    harness.assert_trees_equal(before, jax.tree.map(np.asarray, (params, masks)))


def test_neurrev_oracle_as_a_composition():
    """Section 3.2's worked case, composed by hand of the three functions."""
    theta = [0.9, -0.8, 0.7, -0.6, 0.05, -0.04, 0.3, -0.2, 0.1, -0.5]
    reference = [0.8, -0.8, 0.5, -0.1, 0.05, -0.04, 0.3, -0.5, 0.4, -0.49]
    params, masks = layer(theta + [0.0] * 10, range(10))
    reference = {"w": jnp.asarray(reference + [0.0] * 10)}
    keys = jax.random.split(jax.random.key(0), 3)
    magnitude = {"w": jnp.abs(params["w"])}
    params, kept = neurrev_jax.prune(params, masks, 2, magnitude, keys[0])
    assert on(kept) == [0, 1, 2, 3, 6, 7, 8, 9]
    params, grown = neurrev_jax.grow(params, kept, 4, None, keys[1])
    assert set(on(grown)) - set(on(kept)) <= {4, 5, *range(10, 20)}
    params, final = neurrev_jax.awake(
        params, grown, reference, 2, keys[2], eligible=kept
    )
    assert set(on(grown)) - set(on(final)) == {1, 9}
    assert int(final["w"].sum()) == 10
    new, _, dropped, awakened = oracles.neurrev_update(
        np.float32(theta + [0.0] * 10),
        np.asarray(reference["w"]),
        np.asarray(masks["w"]),
        np.asarray(final["w"]),
        0.2,
    )
    assert sorted(dropped) == [4, 5] and sorted(awakened) == [1, 9]
    assert new[1] == new[9] == 0
