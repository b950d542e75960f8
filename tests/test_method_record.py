"""Every field of the `Method` record does what it says, with methods made for it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from neurrev_jax import Method, Rewired

PARAMS = {"kernel": jnp.arange(1.0, 13.0).reshape(3, 4), "bias": jnp.ones(4)}
GRADS = {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.full(4, 0.5)}
FIRST = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
SECOND = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], bool)
MASKS = {"kernel": jnp.array(FIRST), "bias": jnp.array(True)}
MOMENTUM = optax.sgd(0.5, momentum=0.5)


def swap(context: Any, **more: Any) -> Rewired:
    """The topology update of all these methods: FIRST becomes SECOND."""
    masks = {"kernel": jnp.array(SECOND), "bias": context.masks["bias"]}
    return Rewired(masks, context.method_state, **more)


def make(**fields: Any) -> Method:
    fields = {"rewire": swap, "schedule": neurrev_jax.periodic(2), **fields}
    return Method(name="made for a test", **fields)


@pytest.fixture(params=["eager", "jit"])
def run(request):
    """Runs so many steps; returns parameters, state and the last updates."""

    def steps(method, count, inner=MOMENTUM):
        tx = neurrev_jax.sparse_transform(inner, method, masks=MASKS)
        state = tx.init(PARAMS)
        params = neurrev_jax.sparsify(PARAMS, state)
        update = jax.jit(tx.update) if request.param == "jit" else tx.update
        for _ in range(count):
            updates, state = update(GRADS, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    return steps


def trace(state):
    return np.asarray(state.inner_state[0].trace["kernel"])


def test_the_schedule_says_when(run):
    method = make(schedule=lambda t: (t == 1) | (t == 3))
    for count, expected in ((1, SECOND), (0, FIRST)):
        _, state = run(method, count)
        np.testing.assert_array_equal(state.masks["kernel"], expected)


def test_grown_entries_start_at_the_values_the_method_gives(run):
    def rewire(context):
        return swap(context, grown=jax.tree.map(lambda p: p * 0 + 7, context.params))

    params, state = run(make(rewire=rewire), 2)
    grown = SECOND & ~FIRST
    assert grown.sum() == 1
    np.testing.assert_array_equal(np.asarray(params["kernel"])[grown], 7.0)
    np.testing.assert_array_equal(trace(state)[grown], 0.0)
    np.testing.assert_array_equal(np.asarray(params["kernel"])[~SECOND], 0.0)


@pytest.mark.parametrize("reset", [False, True, "traced"])
def test_reset_slots_zeroes_those_of_all_leaves(run, reset):
    def rewire(context):
        flag = context.t == 2 if reset == "traced" else reset
        return swap(context, reset_slots=flag)

    params, state = run(make(rewire=rewire), 2)
    kept = FIRST & SECOND
    # 0.5 after one step, 0.75 after two.
    np.testing.assert_array_equal(trace(state)[kept], 0.0 if reset else 0.75)
    left = 0.0 if reset else 0.75
    np.testing.assert_array_equal(state.inner_state[0].trace["bias"], left)
    # The step itself was taken with the momentum there was.
    moved = np.asarray(PARAMS["kernel"])[kept] - 0.5 * (0.5 + 0.75)
    np.testing.assert_array_equal(np.asarray(params["kernel"])[kept], moved)


def test_add_gradient_reaches_the_inner_optimizer(run):
    method = make(add_gradient=lambda c: jax.tree.map(jnp.ones_like, c.params))
    params, _ = run(method, 1, optax.sgd(1.0))
    start = np.asarray(PARAMS["kernel"])
    moved = np.asarray(params["kernel"])
    np.testing.assert_array_equal(moved[FIRST], start[FIRST] - 1.5)
    np.testing.assert_array_equal(moved[~FIRST], 0.0)


def test_after_step_moves_active_entries_only(run):
    method = make(after_step=lambda c: jax.tree.map(jnp.ones_like, c.params))
    params, state = run(method, 1, optax.sgd(1.0, momentum=0.5))
    start = np.asarray(PARAMS["kernel"])
    moved = np.asarray(params["kernel"])
    np.testing.assert_array_equal(moved[FIRST], start[FIRST] - 0.5 + 1.0)
    np.testing.assert_array_equal(moved[~FIRST], 0.0)
    np.testing.assert_array_equal(trace(state)[FIRST], 0.5)


class Seen(NamedTuple):
    calls: jax.Array
    total: jax.Array


def test_observe_runs_on_every_call_and_sees_raw_gradients(run):
    method = make(
        init=lambda context: Seen(jnp.int32(0), jnp.float32(0)),
        observe=lambda c: Seen(
            c.method_state.calls + 1,
            c.method_state.total + jnp.sum(c.grads["kernel"]),
        ),
    )
    _, state = run(method, 3)
    assert int(state.method_state.calls) == 3
    assert float(state.method_state.total) == 3 * 6.0


def test_dense_gradients_with_kept_slots_fill_every_slot(run):
    _, state = run(make(inner_gradients="dense", slots="keep"), 1)
    np.testing.assert_array_equal(trace(state), 0.5)


def test_dense_gradients_with_zeroed_slots_leave_inactive_ones_zero(run):
    params, state = run(make(inner_gradients="dense"), 1)
    np.testing.assert_array_equal(trace(state)[~FIRST], 0.0)
    np.testing.assert_array_equal(np.asarray(params["kernel"])[~FIRST], 0.0)


def test_kept_slots_stay_where_an_entry_is_pruned_and_are_never_new(run):
    _, state = run(make(slots="keep"), 2)
    pruned, grown = FIRST & ~SECOND, SECOND & ~FIRST
    np.testing.assert_array_equal(trace(state)[pruned], 0.75)
    np.testing.assert_array_equal(trace(state)[grown], 0.0)


class Latent(NamedTuple):
    """Computes with the active entries, trains those of `backward` too."""

    backward: Any

    def gradient_masks(self, masks):
        del masks
        return self.backward

    def effective_params(self, params, masks):
        return neurrev_jax.apply_masks(params, masks)

    def sparsify(self, params, masks):
        del masks
        return params


BACKWARD = FIRST | np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


def latent(**fields: Any) -> Method:
    backward = {"kernel": jnp.array(BACKWARD), "bias": jnp.array(True)}
    return make(
        init=lambda context: Latent(backward),
        inner_gradients="backward",
        inactive="hold",
        **fields,
    )


@pytest.mark.loose_numerics
@pytest.mark.parametrize("steps", [1, 2])
def test_held_entries_move_inside_the_gradient_masks_and_nowhere_else(run, steps):
    inner = optax.adamw(0.1, weight_decay=0.5)
    params, state = run(latent(), steps, inner)
    start, moved = np.asarray(PARAMS["kernel"]), np.asarray(params["kernel"])
    np.testing.assert_array_equal(moved[~BACKWARD], start[~BACKWARD])
    assert (moved[BACKWARD] != start[BACKWARD]).all()
    mu = np.asarray(state.inner_state[0].mu["kernel"])
    np.testing.assert_array_equal(mu[~BACKWARD], 0.0)
    assert (mu[BACKWARD] != 0).all()


def test_views_follow_the_method_state(run):
    params, state = run(latent(), 0)
    np.testing.assert_array_equal(params["kernel"], PARAMS["kernel"])
    effective = neurrev_jax.effective_params(params, (state, ()))["kernel"]
    np.testing.assert_array_equal(effective, np.where(FIRST, PARAMS["kernel"], 0))
    seen = neurrev_jax.gradient_masks((state, ()))["kernel"]
    np.testing.assert_array_equal(seen, BACKWARD)


def test_extra_arguments_reach_the_method():
    def rewire(context):
        masks = {"kernel": context.extra["wanted"], "bias": context.masks["bias"]}
        return Rewired(masks, context.method_state)

    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.1), make(rewire=rewire, schedule=lambda t: t > 0), masks=MASKS
    )
    state = tx.init(PARAMS)
    _, state = tx.update(GRADS, state, PARAMS, wanted=jnp.array(SECOND))
    np.testing.assert_array_equal(state.masks["kernel"], SECOND)


def test_a_rewire_that_changes_the_structure_is_refused():
    def rewire(context):
        return Rewired({"kernel": context.masks["kernel"]}, context.method_state)

    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), make(rewire=rewire), masks=MASKS)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"rewire must return masks and a state"):
        jax.jit(tx.update)(GRADS, state, PARAMS)


def test_growth_values_of_other_shapes_are_refused():
    def rewire(context):
        return swap(context, grown={"kernel": jnp.ones((3, 4)), "bias": jnp.ones(())})

    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), make(rewire=rewire), masks=MASKS)
    with pytest.raises(ValueError, match=r"Rewired\.grown must have .* shapes"):
        jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)


def test_start_may_change_counts_and_the_draw():
    def start(targets):
        counts = dict.fromkeys(targets.counts, 5)
        return neurrev_jax.Targets(targets.sizes, counts, "magnitude")

    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.1), make(start=start), sparsity=0.5, distribution="uniform"
    )
    mask = np.asarray(tx.init(PARAMS).masks["kernel"])
    np.testing.assert_array_equal(np.flatnonzero(mask), np.arange(7, 12))
