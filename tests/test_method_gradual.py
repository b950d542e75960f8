"""Gradual magnitude pruning and GraNet: the sparsity follows a cubic, exactly."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

# 60 and 40 entries of which 15 and 10 are to stay: sparsity 0.75.
SIZES, FINAL = np.array([60, 40]), np.array([15, 10])
EVERY = neurrev_jax.periodic(2)
WINDOW = (2, 10)


def left(call):
    """(1 - progress)^3 at the last topology update up to the call."""
    at = call - call % 2
    return (1 - np.clip((at - 2) / 8, 0, 1)) ** 3


def params(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"a": {"kernel": draw(6, 10)}, "b": {"kernel": draw(5, 8)}}


def transform(method, **options):
    options = {"sparsity": 0.75, "distribution": harness.even, **options}
    return neurrev_jax.sparse_transform(optax.sgd(0.125), method, **options)


@functools.cache
def run(method, **options):
    build = getattr(neurrev_jax, method)
    tx = transform(build(schedule=EVERY, window=WINDOW, **options))
    return harness.run(tx, params(), 12)


def flat(tree):
    return np.concatenate([leaf.ravel() for leaf in harness.leaves(tree).values()])


def counts(state):
    return np.array(list(harness.counts(state.masks).values()))


# --- gradual magnitude --------------------------------------------------------


@pytest.mark.parametrize(
    "initial_sparsity", [0.0, pytest.param(0.5, marks=pytest.mark.full)]
)
def test_each_leaf_follows_the_cubic_to_its_own_count(initial_sparsity):
    first = SIZES - np.floor(initial_sparsity * SIZES).astype(int)
    for call, (_, state) in enumerate(
        run("gradual_magnitude", initial_sparsity=initial_sparsity, scope="layer")
    ):
        remaining = 1.0 if call < 2 else left(call)
        expected = FINAL + np.floor(remaining * (first - FINAL)).astype(int)
        np.testing.assert_array_equal(counts(state), expected)
    np.testing.assert_array_equal(counts(state), FINAL)


def test_the_whole_follows_the_cubic_where_the_scope_is_global():
    history = run("gradual_magnitude", initial_sparsity=0.0, scope="global")
    for call, (_, state) in enumerate(history):
        remaining = 1.0 if call < 2 else left(call)
        assert counts(state).sum() == 25 + int(remaining * 75)
    assert (counts(state) != FINAL).any(), "the leaves share the total as weights say"


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_pruning_takes_the_smallest_weights_and_gives_nothing_back(scope):
    history = run("gradual_magnitude", initial_sparsity=0.0, scope=scope)
    for (_, old), (now, new) in itertools.pairwise(history):
        before, after = flat(old.masks), flat(new.masks)
        assert not (after & ~before).any()
        harness.assert_masked(now, new.masks)
    # One update apart from a run: by weights that are known.
    method = neurrev_jax.gradual_magnitude(
        neurrev_jax.periodic(1), window=(0, 1), scope=scope
    )
    tx, start = transform(method), params(3)
    zeros = jax.tree.map(jnp.zeros_like, start)
    _, state = jax.jit(tx.update)(zeros, tx.init(start), start)
    size = np.abs(flat(start))
    if scope == "global":
        expected = oracles.lowest(-size, np.ones(100, bool), 25)
    else:
        parts = [(size[:60], 15), (size[60:], 10)]
        expected = np.concatenate(
            [oracles.lowest(-part, np.ones(part.size, bool), k) for part, k in parts]
        )
    np.testing.assert_array_equal(flat(state.masks), expected)


def test_gradual_magnitude_grows_nothing_and_says_so():
    assert neurrev_jax.gradual_magnitude().grows == "nothing"
    assert neurrev_jax.granet().grows == "zero"


# --- GraNet -------------------------------------------------------------------


def test_granet_is_at_85_percent_in_the_middle_of_its_window():
    """From 0.5 to 0.9: s(1/2) = 0.9 - 0.4 / 8 = 0.85."""
    method = neurrev_jax.granet(0.2, neurrev_jax.periodic(1), window=(0, 2))
    tx = transform(method, sparsity=0.9)
    start = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)))}
    start = jax.tree.map(lambda p: p.astype(jnp.float32), start)
    totals = [int(counts(s)[0]) for _, s in harness.run(tx, start, 3)]
    assert totals == [1000, 300, 200, 200]


def granet_update(theta, mask, gradient, total, ratio):
    """One topology update in NumPy: two leaves, of 60 and 40 entries."""
    kept = mask & ~oracles.lowest(np.abs(theta), mask, mask.sum() - total)
    new = np.zeros(100, bool)
    for part in (slice(0, 60), slice(60, 100)):
        k = oracles.update_count(ratio, kept[part].sum())
        dropped = kept[part] & ~oracles.lowest(np.abs(theta[part]), kept[part], k)
        grown = oracles.lowest(-np.abs(gradient[part]), ~dropped, k)
        new[part] = dropped | grown
    return kept, new


def test_granet_prunes_globally_then_regenerates_each_leaf():
    method = neurrev_jax.granet(0.3, neurrev_jax.periodic(1), window=(0, 2))
    tx = transform(method)
    start = params(4)
    state = tx.init(start)
    start = neurrev_jax.sparsify(start, state)
    gradient = jax.tree.map(lambda p: p.astype(jnp.float32), params(5))
    theta, mask = flat(start), flat(state.masks)
    moved = np.where(mask, theta - np.float32(0.125) * flat(gradient), 0)
    _, new = jax.jit(tx.update)(gradient, state, start)
    # 50 at the start; an eighth of the way from 25 to 50 is left.
    kept, expected = granet_update(moved, mask, flat(gradient), 28, 0.3)
    np.testing.assert_array_equal(flat(new.masks), expected)
    # Regeneration changes masks and keeps the count of each leaf.
    assert (kept != expected).any()
    np.testing.assert_array_equal(
        counts(new), [expected[:60].sum(), expected[60:].sum()]
    )
    np.testing.assert_array_equal(counts(new), [kept[:60].sum(), kept[60:].sum()])


def test_granet_goes_on_regenerating_at_the_final_sparsity():
    history = run("granet", update_ratio=0.3)
    late = [flat(state.masks) for _, state in history[10:]]
    assert [mask.sum() for mask in late] == [25, 25, 25]
    assert (late[0] == late[1]).all() and (late[1] != late[2]).any()


def test_granet_needs_dense_gradients_on_scheduled_calls_only():
    for call, (_, state) in enumerate(run("granet", update_ratio=0.3), start=1):
        needed, active = flat(neurrev_jax.gradient_masks(state)), flat(state.masks)
        np.testing.assert_array_equal(needed, active | (call % 2 == 0))
    assert neurrev_jax.granet().cost.update == (2.0, 1.0)
    assert [bool(neurrev_jax.granet().dense_gradients(t)) for t in (999, 1000)] == [
        False,
        True,
    ]


# --- the start ----------------------------------------------------------------

SHAPES = {"a": (3, 3, 8, 16), "b": (3, 3, 16, 32), "c": (32, 10), "d": (1, 1, 16, 32)}


@pytest.mark.parametrize("build", ["granet"])
@pytest.mark.parametrize("initial", [0.5, pytest.param(0.85, marks=pytest.mark.full)])
def test_erk_counts_start_as_erk_at_the_initial_sparsity(build, initial):
    """At 0.85 nothing of these is dense; at 0.5 two leaves hit their cap."""
    tree = {name: {"kernel": jnp.zeros(shape)} for name, shape in SHAPES.items()}
    method = getattr(neurrev_jax, build)(initial_sparsity=initial)
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.9)
    got = harness.counts(tx.init(tree).masks)
    density, _ = oracles.erdos_renyi(SHAPES, initial, kernel=True)
    assert (max(density.values()) == 1) == (initial == 0.5)
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert sum(got.values()) == size - int(initial * size)
    for name, shape in SHAPES.items():
        # The final counts that are scaled up are integers themselves.
        expected = density[name] * np.prod(shape)
        assert got[f"{name}/kernel"] == pytest.approx(expected, rel=0.02)


def test_the_targets_a_method_sees_are_those_asked_for():
    seen = []

    def rewire(context):
        seen.append(jax.tree.map(int, context.targets))
        return neurrev_jax.Rewired(context.masks, context.method_state)

    def start(targets):
        full = dict(targets.sizes)
        return neurrev_jax.Targets(targets.sizes, full)

    method = neurrev_jax.Method("full", neurrev_jax.periodic(1), rewire, start=start)
    tx = transform(method)
    state = tx.init(params())
    tx.update(params(), state, params())
    assert seen == [{"a": {"kernel": 15}, "b": {"kernel": 10}}]
    np.testing.assert_array_equal(counts(state), SIZES)


@pytest.mark.parametrize("build", ["granet", "gradual_magnitude"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"initial_sparsity": 1.0}, r"initial_sparsity=1\.0"),
        ({"initial_sparsity": "dense"}, "initial_sparsity='dense'"),
        ({"window": (5, 5)}, r"window=\(5, 5\)"),
        ({"window": (-1, 5)}, "window"),
        (
            {"schedule": neurrev_jax.periodic(10, until=99), "window": (0, 95)},
            "last topology update, at call 90",
        ),
        (
            {
                "schedule": neurrev_jax.staged([10, 20], [50], until=99),
                "window": (0, 95),
            },
            "last topology update, at call 90",
        ),
        (
            {"schedule": neurrev_jax.periodic(10, until=9), "window": (0, 5)},
            "of which there is none",
        ),
    ],
)
def test_ramps_refuse(build, options, match):
    with pytest.raises(ValueError, match=match):
        getattr(neurrev_jax, build)(**options)


def test_refused_arguments():
    with pytest.raises(ValueError, match="scope='typo'"):
        neurrev_jax.gradual_magnitude(scope="typo")
    with pytest.raises(ValueError, match="update_ratio"):
        neurrev_jax.granet(1.5)
    with pytest.raises(ValueError, match="above the final sparsity"):
        transform(neurrev_jax.granet(initial_sparsity=0.8)).init(params())
    masks = jax.tree.map(lambda p: p > 0, params())
    with pytest.raises(ValueError, match="masks= was given"):
        transform(neurrev_jax.granet(), masks=masks).init(params())
