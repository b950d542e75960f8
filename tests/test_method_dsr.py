"""DSR: one threshold for all layers, and a total that never changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness

EVERY = neurrev_jax.periodic(1)


def layer(small, large, size):
    """A kernel of `small` weights of 0.01, `large` ones of 1 and zeros; its mask."""
    values = np.zeros(size, np.float32)
    values[:small], values[small : small + large] = 0.01, 1.0
    values *= (-1.0) ** np.arange(size)
    shaped = jnp.asarray(values, jnp.float32).reshape(2, -1)
    return {"kernel": shaped}, {"kernel": shaped != 0}


@functools.cache
def transform(target_count=10, threshold=0.1, **options):
    method = neurrev_jax.dsr(
        None, EVERY, target_count=target_count, threshold=threshold, **options
    )
    return method


def one_call(method, frozen=None, **layers):
    params = {name: values for name, (values, _) in layers.items()}
    masks = {name: mask for name, (_, mask) in layers.items()}
    tx = neurrev_jax.sparse_transform(optax.sgd(0.0), method, masks=masks)
    grads = jax.tree.map(jnp.zeros_like, params)
    options = {} if frozen is None else {"frozen": frozen}
    _, state = tx.update(grads, tx.init(params), params, **options)
    old = {name: np.ravel(mask["kernel"]) for name, mask in masks.items()}
    new = {name: np.ravel(mask["kernel"]) for name, mask in state.masks.items()}
    return old, new, state.method_state


def test_growth_follows_the_survivors():
    """30 and 10 survive, 8 are pruned: 6 and 2 grow, where there was nothing."""
    old, new, state = one_call(transform(8), a=layer(4, 30, 100), b=layer(4, 10, 100))
    for name, survivors, grown in (("a", 30, 6), ("b", 10, 2)):
        assert not new[name][:4].any(), "what was just pruned is no candidate"
        assert new[name][4 : 4 + survivors].all()
        assert new[name][4 + survivors :].sum() == grown
        assert old[name].sum() == 4 + survivors
    assert int(state.pruned) == 8 and float(state.threshold) == np.float32(0.1)


@pytest.mark.parametrize(
    ("pruned", "factor"), [(12, 0.5), (11, 1), (10, 1), (9, 1), (8, 2), (0, 2)]
)
def test_the_threshold_follows_what_is_pruned(pruned, factor):
    _, _, state = one_call(transform(10), a=layer(pruned, 30, 100))
    assert int(state.pruned) == pruned
    assert float(state.threshold) == np.float32(0.1) * factor


def test_the_target_is_a_fraction_of_the_active_weights():
    # 0.25 of 48 is 12.
    for ratio, factor in ((0.25, 1), (0.2, 0.5), (0.3, 2)):
        method = neurrev_jax.dsr(ratio, EVERY, threshold=0.1)
        _, _, state = one_call(method, a=layer(8, 16, 100), b=layer(4, 20, 100))
        assert float(state.threshold) == np.float32(0.1) * factor


def test_every_layer_keeps_its_last_weight():
    _, new, state = one_call(transform(10), a=layer(5, 0, 100), b=layer(0, 20, 100))
    assert new["a"][:5].sum() == 1 and int(state.pruned) == 4
    assert new["a"].sum() + new["b"].sum() == 25


def test_what_does_not_fit_is_grown_elsewhere():
    # a would get 6 of 8, and has room for 2.
    _, new, _ = one_call(transform(8), a=layer(4, 30, 36), b=layer(4, 10, 100))
    assert new["a"].sum() == 32 and new["b"].sum() == 16


def test_no_more_is_pruned_than_can_be_grown():
    old, new, state = one_call(transform(8), a=layer(6, 30, 40), b=layer(4, 10, 14))
    assert int(state.pruned) == 4
    assert new["a"].sum() + new["b"].sum() == 50
    for name in ("a", "b"):
        gone = old[name] & ~new[name]
        assert not gone[6 if name == "a" else 4 :].any()


def test_frozen_layers_take_no_part():
    frozen = {"a": True, "b": False}
    old, new, state = one_call(
        transform(8), frozen, a=layer(4, 30, 100), b=layer(4, 10, 100)
    )
    np.testing.assert_array_equal(old["a"], new["a"])
    assert new["b"].sum() == 14 and int(state.pruned) == 4
    assert (new["b"] != old["b"]).any()


def after_calls(method, calls, frozen=None, **layers):
    """The threshold after several calls without a gradient, and the masks."""
    params = {name: values for name, (values, _) in layers.items()}
    masks = {name: mask for name, (_, mask) in layers.items()}
    tx = neurrev_jax.sparse_transform(optax.sgd(0.0), method, masks=masks)
    update = jax.jit(lambda s, p: tx.update(p, s, p, frozen=frozen))
    state = tx.init(params)
    for _ in range(calls):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
    return float(state.method_state.threshold), state.masks


def test_the_threshold_does_not_run_away_from_frozen_layers():
    layers = {"a": layer(0, 500, 600), "b": layer(10, 40, 100)}
    method = neurrev_jax.dsr(0.2, EVERY, threshold=0.1)
    everything, _ = after_calls(method, 8, {"a": True, "b": True}, **layers)
    assert everything == np.float32(0.1)
    # A fifth of b's 50 is 10, and 10 lie below.
    one, masks = after_calls(method, 1, {"a": True, "b": False}, **layers)
    assert one == np.float32(0.1)
    assert harness.counts(masks) == {"a/kernel": 500, "b/kernel": 50}


def test_the_threshold_does_not_run_away_from_what_there_is_no_room_for():
    # A tenth of 95 is aimed at, and 5 can be exchanged.
    method = neurrev_jax.dsr(0.1, EVERY, threshold=0.1)
    threshold, _ = after_calls(method, 8, a=layer(5, 90, 100))
    assert threshold <= 0.2


def test_a_target_that_the_network_does_not_have():
    tx = neurrev_jax.sparse_transform(optax.sgd(0.0), neurrev_jax.dsr(target_count=20))
    with pytest.raises(ValueError, match="target_count=20 must be less than the 20"):
        tx.init({"kernel": jnp.ones((20, 10))})
    assert tx.init({"kernel": jnp.ones((21, 10))}).masks["kernel"].sum() == 21


def test_grown_weights_start_at_zero_and_the_total_holds():
    method = neurrev_jax.dsr(0.2, neurrev_jax.periodic(2), threshold=0.25)
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.01), method, sparsity=0.6, distribution=harness.even
    )
    history = harness.run(tx, harness.net_params(), 6)
    totals = [sum(harness.counts(s.masks).values()) for _, s in history]
    assert len(set(totals)) == 1
    (_, old), (params, new) = history[1], history[2]
    grown = jax.tree.map(lambda o, n: n & ~o, old.masks, new.masks)
    found = [
        np.asarray(p)[np.broadcast_to(g, p.shape)]
        for p, g in zip(jax.tree.leaves(params), jax.tree.leaves(grown), strict=True)
    ]
    assert sum(f.size for f in found) > 0 and not any(f.any() for f in found)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"update_ratio": 0.1, "target_count": 5}, "0.1.*target_count=5"),
        ({"update_ratio": 1.1}, r"update_ratio=1\.1"),
        ({"target_count": 0}, "target_count=0"),
        ({"threshold": 0.0}, r"threshold=0\.0"),
        ({"tolerance": 1.0}, r"tolerance=1\.0"),
        ({"init_mask": "typo"}, "init_mask='typo'"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        neurrev_jax.dsr(**options)


def test_defaults():
    method = neurrev_jax.dsr()
    fires = [bool(method.schedule(jnp.int32(t))) for t in (99, 100)]
    assert fires == [False, True]


# --- the schedule with growing intervals ---------------------------------------


def test_staged_intervals_of_the_original():
    """100, 200, 400 and 800 calls from epochs 0, 25, 80 and 140, up to 190."""
    epoch = 400
    edges = [25 * epoch, 80 * epoch, 140 * epoch]
    schedule = neurrev_jax.staged([100, 200, 400, 800], edges, until=190 * epoch)
    calls = np.arange(1, 200 * epoch + 1, dtype=np.int32)
    fires = np.flatnonzero(jax.jit(jax.vmap(schedule))(calls)) + 1
    expected, now = [], 0
    while True:
        stage = sum(now >= edge for edge in edges)
        now += [100, 200, 400, 800][stage]
        if now > 190 * epoch:
            break
        expected.append(now)
    assert fires.tolist() == expected
    assert schedule.number_of_updates(200 * epoch) == len(expected)
    assert schedule.number_of_updates(30 * epoch) == sum(t <= 30 * epoch for t in fires)


@pytest.mark.parametrize(
    ("every", "boundaries"), [([1, 2], []), ([1, 2, 3], [5, 4]), ([1, 0], [5])]
)
def test_staged_refuses_what_makes_no_sense(every, boundaries):
    with pytest.raises(ValueError, match=r"\d"):
        neurrev_jax.staged(every, boundaries)
