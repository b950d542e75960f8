"""AC/DC: dense in dense phases, globally the largest weights in sparse ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

EPOCHS = [*range(10, 80, 5), 85]
PHASES = neurrev_jax.phases([2, 4, 6])
# 31 of 75 + 20 entries, as asked for per leaf: 25 and 6.
ASKED = {"a/kernel": 2 / 3, "b/kernel": 0.7}
TOTAL = 25 + 6


def params(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"a": {"kernel": draw(5, 15)}, "b": {"kernel": draw(4, 5)}}


@functools.cache
def run(**options):
    """Eight steps of SGD with momentum; returns [(params, state), ...]."""
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.125, momentum=0.5),
        neurrev_jax.ac_dc(PHASES, **options),
        distribution=ASKED,
    )
    return harness.run(tx, params(), 8)


def flat(tree):
    return np.concatenate([leaf.ravel() for leaf in harness.leaves(tree).values()])


def test_half_of_the_papers_hundred_epochs_is_sparse():
    schedule = neurrev_jax.phases(EPOCHS)
    sparse = [bool(schedule.is_sparse_after(epoch)) for epoch in range(100)]
    assert sum(sparse) == 50 and sparse[-1]
    runs = [e for e in range(1, 100) if sparse[e] != sparse[e - 1]]
    assert runs == EPOCHS and not sparse[0]
    assert schedule.sparse_share(100) == 0.5
    # The default is this with 1000 calls to an epoch.
    default = neurrev_jax.ac_dc().schedule
    assert [b / 1000 for b in default.boundaries] == EPOCHS
    assert neurrev_jax.ac_dc().cost.per_example(0.1, 1.0) == pytest.approx(1.65)


def test_phases_fire_at_their_boundaries_and_count_them():
    schedule = neurrev_jax.phases([2, 5, 9])
    assert [t for t in range(1, 12) if schedule(t)] == [2, 5, 9]
    assert [schedule.number_of_updates(calls) for calls in (1, 5, 20)] == [0, 2, 3]
    # Sparse in calls 3 to 5 and from 10 on.
    assert schedule.sparse_share(10) == 0.4 and schedule.sparse_share(4) == 0.5
    method = neurrev_jax.ac_dc(schedule, calls=10)
    assert (method.cost.sparse, method.cost.dense) == pytest.approx((1.2, 1.8))


def test_dense_and_sparse_phases_alternate_and_the_last_one_is_sparse():
    history = run(reset_slots=True)
    for call, (values, state) in enumerate(history):
        sparse = call in (2, 3, 6, 7, 8)
        assert flat(state.masks).sum() == (TOTAL if sparse else 95)
        if call - 1 not in (1, 3, 5) and call:
            harness.assert_trees_equal(state.masks, history[call - 1][1].masks)
        harness.assert_masked(values, state.masks)


def test_the_largest_weights_of_all_leaves_together_stay():
    """The global count is exact, the counts per leaf follow the weights."""
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0),
        neurrev_jax.ac_dc(neurrev_jax.phases([1])),
        distribution=ASKED,
    )
    before = params()
    before["b"]["kernel"] = before["b"]["kernel"] * 3
    state = tx.init(before)
    updates, state = jax.jit(tx.update)(before, state, before)
    size = np.abs(flat(before))
    expected = oracles.lowest(-size, np.ones(95, bool), TOTAL)
    np.testing.assert_array_equal(flat(state.masks), expected)
    after = flat(optax.apply_updates(before, updates))
    np.testing.assert_array_equal(after, np.where(expected, flat(before), 0))
    assert harness.counts(state.masks)["b/kernel"] > 6


def test_scope_layer_keeps_the_count_of_each_leaf():
    for call, (_, state) in enumerate(run(scope="layer")):
        expected = {2: [25, 6], 3: [25, 6], 4: [75, 20], 8: [25, 6]}.get(call)
        if expected:
            assert list(harness.counts(state.masks).values()) == expected


@pytest.mark.parametrize(
    "reset_slots", [True, pytest.param(False, marks=pytest.mark.full)]
)
def test_momentum_is_reset_when_the_network_becomes_dense(reset_slots):
    history = run(reset_slots=reset_slots)
    for call, (values, state) in enumerate(history):
        trace = flat(state.inner_state[0].trace)
        if call == 4:
            kept = flat(history[3][1].masks)
            assert not trace[~kept].any(), "what comes back starts at rest"
            assert not flat(values)[~kept].any(), "and at zero"
            assert trace[kept].any() == (not reset_slots)
        elif call in (2, 6):
            assert trace[flat(state.masks)].all(), "no reset at compression"


@pytest.mark.full
def test_a_frozen_leaf_keeps_its_mask_and_the_total_holds():
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0),
        neurrev_jax.ac_dc(neurrev_jax.phases([1])),
        distribution=ASKED,
    )
    before = params()
    frozen = {"a": False, "b": True}
    state = tx.init(before)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, frozen=frozen))
    _, state = update(before, state, before)
    assert harness.counts(state.masks) == {"a/kernel": TOTAL - 20, "b/kernel": 20}


@pytest.mark.parametrize(
    ("boundaries", "match"),
    [([1, 2], "odd number"), ([], "odd number"), ([0, 1, 2], "increase"),
     ([3, 2, 4], "increase")],
)  # fmt: skip
def test_phases_refuse(boundaries, match):
    with pytest.raises(ValueError, match=match):
        neurrev_jax.phases(boundaries)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"schedule": neurrev_jax.periodic(10)}, r"phases\("),
        ({"scope": "typo"}, "scope='typo'"),
        ({"calls": 0}, "calls=0"),
    ],
)
def test_ac_dc_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        neurrev_jax.ac_dc(**options)


def test_given_masks_are_refused_because_training_starts_dense():
    masks = jax.tree.map(lambda p: p > 0, params())
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.1), neurrev_jax.ac_dc(PHASES), masks=masks
    )
    with pytest.raises(ValueError, match="dense phase"):
        tx.init(params())
