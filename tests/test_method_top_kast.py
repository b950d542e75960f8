"""Top-KAST: what is computed with, what is trained, what is held."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness

THETA = jnp.array([[4.0, -3.0, 2.0, -1.0]])


def transform(ratio=0.25, schedule=None, inner=None, sparsity=0.75, **options):
    schedule = schedule or neurrev_jax.periodic(1)
    method = neurrev_jax.top_kast(ratio, schedule, **options)
    return neurrev_jax.sparse_transform(
        inner or optax.sgd(1.0), method, sparsity=sparsity, where=lambda *_: True
    )


def step(tx, params, state, grads):
    updates, state = tx.update({"kernel": jnp.asarray(grads)}, state, params)
    return optax.apply_updates(params, updates), state


def row(tree):
    return np.ravel(tree["kernel"]).tolist()


def test_the_paper_in_small():
    tx = transform(penalty=0.0625)
    params = {"kernel": THETA}
    state = tx.init(params)
    params = neurrev_jax.sparsify(params, state)
    assert row(params) == [4, -3, 2, -1], "nothing is lost"
    assert row(neurrev_jax.effective_params(params, state)) == [4, 0, 0, 0]
    assert row(neurrev_jax.gradient_masks(state)) == [True, True, False, False]
    params, state = step(tx, params, state, jnp.zeros((1, 4)))
    # The penalty alone: 0.0625 * 4 in A, 0.0625 * (-3) / 0.25 in B outside A.
    assert row(params) == [4 - 0.25, -3 + 0.75, 2, -1]


def test_nothing_moves_outside_the_backward_set():
    tx = transform(inner=optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)))
    params = {"kernel": THETA}
    state = tx.init(params)
    new, _ = step(tx, params, state, jnp.full((1, 4), 0.5))
    assert row(new)[2:] == [2, -1]
    assert new["kernel"][0, 0] != 4 and new["kernel"][0, 1] != -3


def test_the_mask_is_straight_through():
    tx = transform()
    state = tx.init({"kernel": THETA})
    weight = jnp.array([[1.0, 10.0, 100.0, 1000.0]])

    def loss(params):
        return jnp.sum(weight * neurrev_jax.effective_params(params, state)["kernel"])

    value, grads = jax.value_and_grad(loss)({"kernel": THETA})
    assert float(value) == 4.0 and row(grads) == row({"kernel": weight})


def test_a_trained_weight_that_overtakes_takes_the_place_of_an_active_one():
    tx = transform(penalty=0.0)
    params = {"kernel": THETA}
    state = tx.init(params)
    # -3 becomes -5, and -1 stays what it is whatever its gradient.
    params, state = step(tx, params, state, jnp.array([[0.0, 2.0, 0.0, 9.0]]))
    assert row(params) == [4, -5, 2, -1]
    assert row(state.masks) == [False, True, False, False]
    assert row(neurrev_jax.gradient_masks(state)) == [True, True, False, False]
    assert row(neurrev_jax.effective_params(params, state)) == [0, -5, 0, 0]


def test_without_exploration_it_is_a_static_magnitude_mask():
    tx = transform(0.0, inner=optax.sgd(1e-4))
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 10)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    history = harness.run(tx, params, 3)
    largest = np.argsort(-np.abs(np.ravel(params["kernel"])))[:10]
    for _, state in history:
        assert set(np.flatnonzero(state.masks["kernel"])) == set(largest)
        np.testing.assert_array_equal(
            neurrev_jax.gradient_masks(state)["kernel"], state.masks["kernel"]
        )


def test_the_sets_stay_between_refreshes_and_after_the_last():
    tx = transform(schedule=neurrev_jax.periodic(2, until=2), penalty=0.0)
    params = {"kernel": THETA}
    state = tx.init(params)
    firsts = []
    # 1 is pushed past 0 in call 1, and pushed back in call 3.
    for push in (4.0, 0.0, -4.0, 0.0):
        params, state = step(tx, params, state, jnp.array([[0.0, push, 0.0, 0.0]]))
        firsts.append(row(state.masks).index(True))
    assert firsts == [0, 1, 1, 1]


def test_a_random_backward_set():
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(10, 20)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    sets = []
    for key in (0, 1):
        method = neurrev_jax.top_kast(0.25, backward="random")
        tx = neurrev_jax.sparse_transform(
            optax.sgd(1.0), method, sparsity=0.75, distribution=harness.even, key=key
        )
        state = tx.init(params)
        backward = np.asarray(neurrev_jax.gradient_masks(state)["kernel"])
        assert backward.sum() == 100 and (backward >= state.masks["kernel"]).all()
        sets.append((np.asarray(state.masks["kernel"]), backward))
    np.testing.assert_array_equal(sets[0][0], sets[1][0])
    assert (sets[0][1] != sets[1][1]).any()


@pytest.mark.parametrize(("slots", "momentum"), [("zero", 0.0), ("keep", -1.0)])
def test_slots_of_entries_that_leave_the_backward_set(slots, momentum):
    inner = optax.sgd(0.5, momentum=0.5)
    options = {} if slots == "zero" else {"slots": slots}
    tx = transform(inner=inner, penalty=0.0, **options)
    params = {"kernel": jnp.array([[4.0, -2.0, 1.9, 0.1]])}
    state = tx.init(params)
    # -2 shrinks to -1.5, so that 1.9 takes its place in B.
    params, state = step(tx, params, state, jnp.array([[0.0, -1.0, 0.0, 0.0]]))
    assert row(neurrev_jax.gradient_masks(state)) == [True, False, True, False]
    (trace,) = jax.tree.leaves(state.inner_state)
    assert float(trace[0, 1]) == momentum


def test_an_empty_layer_may_be_trained():
    """B has members where A has none; their penalty is finite."""
    method = neurrev_jax.top_kast(0.25, neurrev_jax.periodic(1), penalty=0.0625)
    masks = {"kernel": jnp.zeros((1, 4), bool)}
    tx = neurrev_jax.sparse_transform(optax.sgd(1.0), method, masks=masks)
    params = {"kernel": THETA}
    params, state = step(tx, params, tx.init(params), jnp.zeros((1, 4)))
    # As if one of the four were active: 0.0625 * 4 * 4.
    assert row(params) == [3, -3, 2, -1]
    assert row(neurrev_jax.effective_params(params, state)) == [0, 0, 0, 0]


def test_a_frozen_layer_keeps_both_sets():
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.5),
        neurrev_jax.top_kast(0.25, neurrev_jax.periodic(1)),
        sparsity=0.5,
        distribution=harness.even,
    )
    params = {name: {"kernel": harness.net_params()["head"]["kernel"]} for name in "ab"}
    state = tx.init(params)
    before = neurrev_jax.gradient_masks(state), state.masks
    # Layer a has moved meanwhile, as by an optimizer outside.
    moved = {**params, "a": {"kernel": -params["a"]["kernel"][::-1]}}
    # All that is trained goes to zero, so that the rest overtakes it.
    grads = jax.tree.map(lambda p: 2 * p, params)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, frozen={"a": True, "b": False}))
    _, state = update(grads, state, moved)
    after = neurrev_jax.gradient_masks(state), state.masks
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old["a"]["kernel"], new["a"]["kernel"])
        assert (old["b"]["kernel"] != new["b"]["kernel"]).any()


def test_training_cost_counts_the_backward_set():
    cost = neurrev_jax.top_kast().cost
    # Forward at density 0.1, backward at 0.2, as published: 0.1 + 2 * 0.2.
    assert cost.per_example(0.1, 1.0, f_backward=0.2) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"f_backward.*gradient_masks"):
        cost.per_example(0.1, 1.0)


def test_refusals_and_defaults():
    for options, match in (
        ({"backward": "typo"}, "backward='typo'"),
        ({"slots": "typo"}, "slots='typo'"),
        ({"penalty": -1.0}, r"penalty=-1\.0"),
        ({"exploration_ratio": 1.5}, r"exploration_ratio=1\.5"),
    ):
        with pytest.raises(ValueError, match=match):
            neurrev_jax.top_kast(**options)
    schedule = neurrev_jax.top_kast().schedule
    assert [bool(schedule(jnp.int32(t))) for t in (99, 100)] == [False, True]
