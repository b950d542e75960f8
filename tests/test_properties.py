"""Invariants on arbitrary cases."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

SIZE = 24
select = jax.jit(neurrev_jax.select)
select_global = jax.jit(neurrev_jax.select_global)
apportion = jax.jit(neurrev_jax.apportion)
floats = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan]),
    st.floats(width=32, allow_subnormal=False),
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    scores=hnp.arrays(np.float32, SIZE, elements=floats),
    candidates=hnp.arrays(bool, SIZE),
    k=st.integers(-2, SIZE + 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_select_is_exact(scores, candidates, k, seed):
    chosen = select(scores, candidates, jnp.int32(k), jax.random.key(seed))
    oracles.check_selection(chosen, scores, candidates, k)


@hypothesis.settings(max_examples=80)
@hypothesis.given(
    scores=hnp.arrays(np.float32, SIZE, elements=floats),
    candidates=hnp.arrays(bool, SIZE),
    k=st.integers(0, SIZE),
    seed=st.integers(0, 1000),
)
def test_select_global_is_select_on_the_whole(scores, candidates, k, seed):
    split = lambda x: {"a": jnp.asarray(x[:10]).reshape(2, 5), "b": jnp.asarray(x[10:])}
    chosen = select_global(
        split(scores), split(candidates), jnp.int32(k), jax.random.key(seed)
    )
    joined = np.concatenate([np.ravel(chosen["a"]), np.ravel(chosen["b"])])
    oracles.check_selection(joined, scores, candidates, k)


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    total=st.integers(0, 5000),
    weights=hnp.arrays(np.float32, 5, elements=st.floats(0, 1000, width=32)),
    caps=hnp.arrays(np.int32, 5, elements=st.integers(0, 900)),
)
def test_apportion_spends_all_it_can_within_the_caps(total, weights, caps):
    got = np.asarray(apportion(jnp.int32(total), weights, caps))
    assert got.sum() == min(total, caps.sum())
    assert (got >= 0).all() and (got <= caps).all()
    if weights.sum() > 1e-3:
        shares = total * weights.astype(np.float64) / weights.sum(dtype=np.float64)
        if (shares + 1 <= caps).all():  # no cap binds
            assert np.abs(got - shares).max() <= 1 + 1e-3


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    theta=hnp.arrays(np.float32, SIZE, elements=st.floats(-3, 3, width=32)),
    mask=hnp.arrays(bool, SIZE),
    counts=st.tuples(*[st.integers(0, SIZE + 2)] * 3),
    seed=st.integers(0, 1000),
)
def test_prune_grow_awake_conserve_what_they_should(theta, mask, counts, seed):
    params, masks = (
        {"w": jnp.asarray(np.where(mask, theta, 0))},
        {"w": jnp.asarray(mask)},
    )
    reference = {"w": jnp.asarray(np.roll(theta, 1))}
    down, up, wake = map(jnp.int32, counts)
    one, two, three = three_steps(params, masks, reference, down, up, wake, seed)
    active = int(mask.sum())
    after = max(active - counts[0], 0)
    assert int(one[1]["w"].sum()) == after
    grown = after + min(counts[1], SIZE - after)
    assert int(two[1]["w"].sum()) == grown
    negative = np.asarray(two[1]["w"]) & (np.asarray(two[0]["w"]) < 0)
    assert int(three[1]["w"].sum()) == grown - min(counts[2], int(negative.sum()))
    for before, (now, on) in zip(
        (params, one[0], two[0]), (one, two, three), strict=True
    ):
        values, on = np.asarray(now["w"]), np.asarray(on["w"])
        assert not values[~on].any()
        np.testing.assert_array_equal(values[on], np.asarray(before["w"])[on])
    gone = np.asarray(two[1]["w"]) & ~np.asarray(three[1]["w"])
    assert (np.asarray(two[0]["w"])[gone] < 0).all(), "awake pruned a positive weight"


@jax.jit
def three_steps(params, masks, reference, down, up, wake, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    size = jax.tree.map(jnp.abs, params)
    one = neurrev_jax.prune(params, masks, down, size, keys[0])
    two = neurrev_jax.grow(*one, up, None, keys[1])
    three = neurrev_jax.awake(*two, reference, wake, keys[2])
    return one, two, three


@st.composite
def random_runs(draw):
    """A tree, a method and a schedule."""
    dims = st.integers(2, 7)
    shapes = draw(
        st.lists(
            st.one_of(st.tuples(dims, dims), st.tuples(dims, dims, dims, dims)),
            min_size=1,
            max_size=3,
        )
    )
    every = draw(st.integers(1, 3))
    schedule = neurrev_jax.periodic(
        every, until=draw(st.sampled_from([None, 4])), start=draw(st.integers(0, 2))
    )
    ratio = draw(st.floats(0.0, 0.5))
    name = draw(st.sampled_from(["neurrev", "set_", "rigl"]))
    method = getattr(neurrev_jax, name)(ratio, schedule)
    sparsity, key = draw(st.floats(0.0, 0.95)), draw(st.integers(0, 2**31 - 1))
    return shapes, method, sparsity, key


def check_random_run(case):
    shapes, method, sparsity, key = case
    rng = np.random.default_rng(key)
    params = [
        {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32), "bias": jnp.zeros(2)}
        for s in shapes
    ]
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.125, momentum=0.5), method, sparsity=sparsity, key=key
    )
    history = harness.run(tx, params, 5)
    harness.assert_trees_equal(harness.run(tx, params, 5)[-1], history[-1])
    counts = harness.counts(history[0][1].masks)
    for number in range(1, 6):
        (before, old), (after, new) = history[number - 1], history[number]
        harness.assert_masked(after, new.masks)
        assert harness.counts(new.masks) == counts
        # With powers of two the inner optimizer's arithmetic is exact.
        grads = harness.fake_grads(number, before)
        for (path, mask), trace in zip(
            harness.leaves(old.masks).items(),
            jax.tree.leaves(old.inner_state),
            strict=True,
        ):
            kept = mask & harness.leaves(new.masks)[path]
            g = np.where(mask, harness.leaves(grads)[path], 0)
            moved = harness.leaves(before)[path] - np.float32(0.125) * (
                g + np.float32(0.5) * np.asarray(trace)
            )
            np.testing.assert_array_equal(
                np.where(kept, harness.leaves(after)[path], 0), np.where(kept, moved, 0)
            )
        if not bool(method.schedule(jnp.int32(number))):
            harness.assert_trees_equal(old.masks, new.masks)


@hypothesis.settings(max_examples=5)
@hypothesis.given(random_runs())
def test_random_runs(case):
    check_random_run(case)


@pytest.mark.full
@hypothesis.settings(max_examples=60)
@hypothesis.given(random_runs())
def test_many_random_runs(case):
    check_random_run(case)
