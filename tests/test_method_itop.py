"""ITOP: exploration is measured, and may be sought."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness


def kernel(*shape):
    rng = np.random.default_rng(0)
    return {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}


def transform(method, sparsity=0.75, **options):
    return neurrev_jax.sparse_transform(
        optax.sgd(0.125), method, sparsity=sparsity, **options
    )


def rates(tx, params, steps):
    history = harness.run(tx, params, steps)
    return [float(neurrev_jax.exploration_rate((s, ()))) for _, s in history]


def test_the_exploration_rate_starts_at_the_density_and_never_falls():
    method = neurrev_jax.itop(0.5, neurrev_jax.periodic(2), growth="random")
    found = rates(transform(method), kernel(10, 20), 8)
    assert found[0] == found[1] == 0.25
    assert found == sorted(found) and found[8] > found[2] > 0.25


def test_random_growth_explores_what_chance_says():
    """E[new] = k unseen / M: 5 grow among 30 unseen and the 5 just dropped."""
    theta = np.concatenate([np.arange(1.0, 11.0), np.zeros(30)])
    method = neurrev_jax.itop(0.5, neurrev_jax.periodic(1), growth="random")
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0), method, masks=harness.one_layer_masks(range(10), 40)
    )
    masks = harness.one_layer_by_key(tx, theta, keys=400)
    new = masks[:, 10:].sum(1)
    # Hypergeometric: variance k p (1 - p) (M - k)/(M - 1) = 0.54.
    assert abs(new.mean() - 5 * 30 / 35) < 5 * np.sqrt(0.54 / 400)
    assert masks[:, 5:10].all(), "the largest weights are kept"


def test_preferring_new_positions_sees_everything_soonest():
    method = neurrev_jax.itop(
        0.5, neurrev_jax.periodic(1), growth="random", prefer_new=True
    )
    found = rates(transform(method), kernel(4, 10), 8)
    # 10 of 40 are active, and each update finds 5 new ones while there are any.
    assert found == [min(10 + 5 * j, 40) / 40 for j in range(9)]


def test_growth_by_gradient_is_rigls():
    schedule = neurrev_jax.periodic(2)
    runs = [
        harness.run(transform(build(0.5, schedule)), kernel(10, 20), 4)
        for build in (neurrev_jax.itop, neurrev_jax.rigl)
    ]
    for (a, mine), (b, theirs) in zip(*runs, strict=True):
        harness.assert_trees_equal((a, mine.masks), (b, theirs.masks))


def test_only_growth_by_gradient_needs_dense_gradients():
    for growth, dense in (("gradient", {2, 4}), ("random", set())):
        method = neurrev_jax.itop(0.5, neurrev_jax.periodic(2), growth=growth)
        assert (method.cost.update is not None) == bool(dense)
        assert {t for t in range(1, 6) if method.dense_gradients(jnp.int32(t))} == dense
        for call, (_, state) in enumerate(
            harness.run(transform(method), kernel(10, 20), 4), start=1
        ):
            needed = np.asarray(neurrev_jax.gradient_masks(state)["kernel"])
            assert needed.all() == (call in dense)


def test_the_exploration_of_a_host_is_measured_too():
    host = neurrev_jax.itop(0.5, neurrev_jax.periodic(1), growth="random")
    method = neurrev_jax.powerprop(host, growth_start=0.01)
    found = rates(transform(method), kernel(20, 10), 3)
    assert found[0] == 0.25 and found[-1] > found[1] > 0.25


def test_frozen_leaves_are_not_explored():
    params = {"a": kernel(10, 20), "b": kernel(10, 20)}
    method = neurrev_jax.itop(0.5, neurrev_jax.periodic(1), growth="random")
    tx = transform(method, distribution=harness.even)
    state = tx.init(params)
    frozen = {"a": True, "b": False}
    for _ in range(2):
        _, state = tx.update(params, state, params, frozen=frozen)
    seen = jax.tree.map(jnp.logical_or, state.method_state.seen, state.masks)
    assert int(seen["a"]["kernel"].sum()) == 50 < int(seen["b"]["kernel"].sum())


def test_defaults():
    for growth, every in (("gradient", 4000), ("random", 1500)):
        schedule = neurrev_jax.itop(growth=growth).schedule
        fires = [bool(schedule(jnp.int32(t))) for t in (every - 1, every, 900 * every)]
        assert fires == [False, True, True]
    method = neurrev_jax.itop(schedule=neurrev_jax.periodic(1))
    theta = np.concatenate([np.arange(1.0, 11.0), np.zeros(90)])
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0), method, masks=harness.one_layer_masks(range(10), 100)
    )
    _, mask, _ = harness.one_layer(tx, theta, grads=np.arange(100))
    assert set(np.flatnonzero(mask)) == {*range(5, 10), *range(95, 100)}


def test_refusals():
    with pytest.raises(ValueError, match=r"growth='typo'"):
        neurrev_jax.itop(growth="typo")
    with pytest.raises(ValueError, match=r"prefer_new.*random"):
        neurrev_jax.itop(prefer_new=True)
    with pytest.raises(ValueError, match=r"update_ratio=1\.5"):
        neurrev_jax.itop(1.5)
    state = transform(neurrev_jax.static()).init(kernel(4, 10))
    with pytest.raises(ValueError, match=r"EmptyState.*itop"):
        neurrev_jax.exploration_rate(state)
