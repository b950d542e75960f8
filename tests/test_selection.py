"""Selection: exactly k, by score, ties at random, NaN last, and never by sorting."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurrev_jax
from tests import oracles

select = jax.jit(neurrev_jax.select)


def primitives(jaxpr):
    """Names of all primitives of a jaxpr, those of inner jaxprs included."""
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for value in jax.tree.leaves(
            list(eqn.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                names |= primitives(inner)
    return names


@pytest.mark.parametrize("k", [0, 1, 7, 30, 59, 60, 61, 1000, -3])
def test_select_takes_the_k_lowest_candidates(k):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10, 12)).astype(np.float32)
    candidates = np.zeros(120, bool)
    candidates[rng.permutation(120)[:60]] = True
    candidates = candidates.reshape(10, 12)
    chosen = select(scores, candidates, jnp.int32(k), jax.random.key(0))
    np.testing.assert_array_equal(chosen, oracles.lowest(scores, candidates, k))


def test_select_is_compiled_once_for_all_k():
    traces = []

    @jax.jit
    def traced(scores, candidates, k, key):
        traces.append(1)
        return neurrev_jax.select(scores, candidates, k, key)

    scores, candidates = jnp.arange(9.0), jnp.ones(9, bool)
    for k in range(11):
        chosen = traced(scores, candidates, jnp.int32(k), jax.random.key(k))
        np.testing.assert_array_equal(chosen, np.arange(9) < k)
    assert len(traces) == 1


def test_select_outside_jit_and_with_a_python_count():
    chosen = neurrev_jax.select(
        jnp.array([3.0, 1.0, 2.0]), jnp.ones(3, bool), 2, jax.random.key(0)
    )
    np.testing.assert_array_equal(chosen, [False, True, True])


SPECIAL = {
    "all_equal": [2.5] * 8,
    "zeros_of_both_signs": [0.0, -0.0, 0.0, -0.0, -0.0, 1.0, -1.0, 0.0],
    "infinities": [np.inf, -np.inf, 0.0, np.inf, -np.inf, 3e38, -3e38, 1.0],
    "nan": [np.nan, 1.0, np.nan, -1.0, np.inf, -np.inf, -np.nan, 0.0],
    "all_nan": [np.nan] * 8,
    "tiny": [2e-38, -2e-38, 0.0, 4e-38, -4e-38, 1e-37, -1e-37, -0.0],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_select_handles_special_scores(name):
    scores = np.array(SPECIAL[name], np.float32)
    candidates = np.array([1, 1, 1, 1, 1, 1, 1, 0], bool)
    for k, seed in itertools.product(range(9), range(3)):
        chosen = select(scores, candidates, jnp.int32(k), jax.random.key(seed))
        oracles.check_selection(chosen, scores, candidates, k)


def test_signed_zeros_tie():
    scores = jnp.array([0.0, -0.0] * 4)
    pick = jax.vmap(lambda key: select(scores, jnp.ones(8, bool), 4, key))
    often = np.asarray(pick(jax.random.split(jax.random.key(0), 400))).sum(0)
    assert often.min() > 130 and often.max() < 270, often


@pytest.mark.parametrize(
    "dtype",
    [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8, jnp.uint8, jnp.int32, bool],
)
def test_select_keeps_the_order_of_every_dtype(dtype):
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.normal(size=64) * 40).astype(dtype)
    candidates = rng.random(64) < 0.7
    for k in (0, 1, 5, 20, 64):
        chosen = select(scores, candidates, jnp.int32(k), jax.random.key(k))
        oracles.check_selection(
            chosen, np.asarray(scores.astype(jnp.float32)), candidates, k
        )


def test_integers_beyond_float32_precision_stay_apart():
    scores = jnp.array([2**24 + 1, 2**24, -(2**31), 2**31 - 1, 2**31 - 2], jnp.int32)
    for k, expected in enumerate([[], [2], [2, 1], [2, 1, 0], [2, 1, 0, 4]]):
        chosen = select(scores, jnp.ones(5, bool), jnp.int32(k), jax.random.key(0))
        np.testing.assert_array_equal(np.flatnonzero(chosen), sorted(expected))


def test_ties_are_uniform_over_subsets():
    keys = jax.random.split(jax.random.key(3), 2000)
    one = functools.partial(neurrev_jax.select, jnp.ones(12), jnp.ones(12, bool), 3)
    chosen = np.asarray(jax.jit(jax.vmap(one))(keys)).astype(int)
    assert (chosen.sum(1) == 3).all()
    # Five standard deviations of a binomial, for entries and for pairs of them.
    entries = chosen.sum(0)
    assert np.abs(entries - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75), entries
    pairs = (chosen.T @ chosen)[np.triu_indices(12, 1)]
    p = 3 * 2 / (12 * 11)
    assert np.abs(pairs - 2000 * p).max() < 5 * np.sqrt(2000 * p * (1 - p)), pairs


def test_only_the_tied_scores_are_left_to_chance():
    scores = jnp.array([0.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    one = functools.partial(neurrev_jax.select, scores, jnp.ones(6, bool), 3)
    chosen = np.asarray(jax.vmap(one)(jax.random.split(jax.random.key(4), 800)))
    often = chosen.sum(0)
    assert often[0] == 800 and often[5] == 0
    assert np.abs(often[1:5] - 400).max() < 5 * np.sqrt(200), often


def test_one_key_one_answer():
    scores, candidates = jnp.zeros((20, 20)), jnp.ones((20, 20), bool)
    first, again, other = (
        np.asarray(select(scores, candidates, 100, jax.random.key(seed)))
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_typed_and_raw_keys_agree():
    scores, candidates = jnp.zeros(50), jnp.ones(50, bool)
    np.testing.assert_array_equal(
        select(scores, candidates, 20, jax.random.key(9)),
        select(scores, candidates, 20, jax.random.PRNGKey(9)),
    )


def test_select_under_vmap_equals_a_loop():
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.integers(0, 5, size=(6, 40)), jnp.float32)
    candidates = jnp.asarray(rng.random((6, 40)) < 0.8)
    counts = jnp.arange(6, dtype=jnp.int32) * 7
    keys = jax.random.split(jax.random.key(0), 6)
    together = jax.jit(jax.vmap(neurrev_jax.select))(scores, candidates, counts, keys)
    for row in range(6):
        alone = select(scores[row], candidates[row], counts[row], keys[row])
        np.testing.assert_array_equal(together[row], alone)


def test_selection_does_not_sort():
    arguments = (
        jnp.zeros((8, 8)),
        jnp.ones((8, 8), bool),
        jnp.int32(3),
        jax.random.key(0),
    )
    sorts = {"sort", "top_k", "approx_top_k"}
    control = jax.make_jaxpr(lambda x: jnp.argsort(x.ravel()))(arguments[0])
    assert primitives(control.jaxpr) & sorts
    jaxpr = jax.make_jaxpr(neurrev_jax.select)(*arguments)
    assert not primitives(jaxpr.jaxpr) & sorts
    grow = jax.make_jaxpr(
        lambda p, m, k, key: neurrev_jax.grow(
            {"a": p}, {"a": m}, k, scores=None, key=key
        )
    )(*arguments)
    assert not primitives(grow.jaxpr) & sorts


def test_leaf_with_more_entries_than_float32_counts():
    size = 2**24 + 9
    scores = jnp.zeros(size, jnp.float32).at[::2].set(1.0)
    zeros = size // 2
    chosen = select(
        scores, jnp.ones(size, bool), jnp.int32(zeros + 3), jax.random.key(0)
    )
    assert int(np.asarray(chosen).sum()) == zeros + 3
    assert np.asarray(chosen)[1::2].all()
    everything_but_one = select(
        scores, jnp.ones(size, bool), jnp.int32(size - 1), jax.random.key(0)
    )
    assert int(np.asarray(everything_but_one).sum()) == size - 1


def test_mismatching_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        neurrev_jax.select(jnp.zeros(3), jnp.ones(4, bool), 1, jax.random.key(0))


def tree_of_scores():
    rng = np.random.default_rng(3)
    scores = {
        "a": rng.normal(size=(4, 5)).astype(np.float32),
        "b": [rng.normal(size=30).astype(np.float32) + 1],
    }
    candidates = jax.tree.map(lambda x: rng.random(x.shape) < 0.8, scores)
    return scores, candidates


@pytest.mark.parametrize("k", [0, 1, 13, 25, 500])
def test_select_global_ranks_all_leaves_together(k):
    scores, candidates = tree_of_scores()
    chosen = jax.jit(neurrev_jax.select_global)(
        scores, candidates, jnp.int32(k), jax.random.key(0)
    )
    assert jax.tree.structure(chosen) == jax.tree.structure(scores)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    np.testing.assert_array_equal(
        flat(chosen), oracles.lowest(flat(scores), flat(candidates), k)
    )


def test_select_global_settles_ties_between_leaves_at_random():
    scores = {"a": jnp.zeros(5), "b": jnp.zeros((3, 5))}
    candidates = jax.tree.map(lambda x: jnp.ones(x.shape, bool), scores)
    one = lambda key: neurrev_jax.select_global(scores, candidates, 8, key)["a"].sum()
    totals = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 600))
    # Hypergeometric: mean 2, variance 8 (1/4) (3/4) (12/19).
    assert abs(float(jnp.mean(totals.astype(jnp.float32))) - 2) < 5 * np.sqrt(
        8 * 0.25 * 0.75 * 12 / 19 / 600
    )


@pytest.mark.parametrize("floor", [4, {"a": 4, "b": [1]}])
def test_select_global_leaves_a_floor_unselected(floor):
    scores = {"a": jnp.arange(6.0), "b": [jnp.arange(8.0) + 100]}
    candidates = jax.tree.map(lambda x: jnp.ones(x.shape, bool), scores)
    chosen = neurrev_jax.select_global(
        scores, candidates, 5, jax.random.key(0), floor=floor
    )
    np.testing.assert_array_equal(np.flatnonzero(chosen["a"]), [0, 1])
    np.testing.assert_array_equal(np.flatnonzero(chosen["b"][0]), [0, 1, 2])


def test_select_global_stops_where_the_floors_begin():
    scores = {"a": jnp.arange(6.0), "b": [jnp.arange(3.0)]}
    candidates = jax.tree.map(lambda x: jnp.ones(x.shape, bool), scores)
    chosen = neurrev_jax.select_global(
        scores, candidates, 100, jax.random.key(0), floor=4
    )
    assert int(chosen["a"].sum()) == 2 and int(chosen["b"][0].sum()) == 0


@pytest.mark.parametrize(
    ("total", "weights", "caps", "expected"),
    [
        (8, [30, 10], [100, 100], [6, 2]),  # DSR's oracle
        (8, [3, 1], [100, 100], [6, 2]),  # SNFS's oracle
        (8, [3, 1], [2, 100], [2, 6]),  # the overflow goes to the other
        (10, [1, 1, 8], [100, 100, 4], [3, 3, 4]),
        (7, [5, 3], [2, 3], [2, 3]),  # no more than the caps hold
        (0, [1, 2], [5, 5], [0, 0]),
        (5, [0, 2], [5, 9], [0, 5]),
    ],
)
def test_apportion_worked_cases(total, weights, caps, expected):
    got = jax.jit(neurrev_jax.apportion)(
        jnp.int32(total), jnp.asarray(weights, jnp.float32), jnp.asarray(caps)
    )
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, expected)


def test_apportion_beyond_the_sum_that_an_int32_holds():
    total, caps = jnp.int32(2**28), jnp.full(16, 2**28, jnp.int32)
    weights = jnp.zeros(16).at[:2].set(jnp.array([3.0, 1.0]))
    got = jax.jit(neurrev_jax.apportion)(total, weights, caps)
    np.testing.assert_array_equal(got[:3], [3 * 2**26, 2**26, 0])
    # As much as fits where a sum between 2**30 and 2**31 is less than the total.
    caps = jnp.array([2**30, 2**28, 7], jnp.int32)
    got = jax.jit(neurrev_jax.apportion)(jnp.int32(2**31 - 1), jnp.ones(3), caps)
    np.testing.assert_array_equal(got, caps)


def test_apportion_takes_what_is_not_finite_for_nothing():
    for bad in (jnp.inf, jnp.nan):
        got = neurrev_jax.apportion(11, jnp.array([bad, 1.0]), jnp.array([100, 100]))
        np.testing.assert_array_equal(got, [0, 11])


@pytest.mark.parametrize("total", [1, 10, 97, 1000])
def test_apportion_is_largest_remainder_where_no_cap_binds(total):
    weights = np.array([3.1, 1.7, 0.4, 9.3, 2.2])
    got = neurrev_jax.apportion(
        total, jnp.asarray(weights, jnp.float32), jnp.full(5, 10**6)
    )
    np.testing.assert_array_equal(got, oracles.apportion_without_caps(total, weights))
