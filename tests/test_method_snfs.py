"""SNFS: layers share what was dropped by their momentum, which nothing masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax

EVERY = neurrev_jax.periodic(1)


def lift(tree):
    return {
        name: {"kernel": jnp.asarray(values, jnp.float32).reshape(2, -1)}
        for name, values in tree.items()
    }


def first(count, size):
    """Masks of `count` entries of `size`, the first ones."""
    return jnp.asarray(np.arange(size) < count).reshape(2, -1)


def one_call(method, theta, grads, masks, frozen=None, inner=None, seen=None):
    """One call on several layers; {name: (old mask, new mask)}, new state."""
    masks = {name: {"kernel": mask} for name, mask in masks.items()}
    tx = neurrev_jax.sparse_transform(inner or optax.sgd(0.0), method, masks=masks)
    params = lift(theta)
    state = tx.init(params)
    options = {} if frozen is None else {"frozen": frozen}
    for values in [*(seen or []), grads]:
        _, state = tx.update(lift(values), state, params, **options)
    found = {
        name: (np.ravel(masks[name]["kernel"]), np.ravel(state.masks[name]["kernel"]))
        for name in masks
    }
    return found, state


def two_layers():
    """Eight active weights of 100 each; mean |momentum| 3 and 1, others ordered."""
    theta = np.concatenate([np.arange(1.0, 9.0), np.zeros(92)])
    others = np.arange(92) / 100
    grads = {
        # The four smallest weights are not worth growing again.
        "a": np.concatenate([[0, 0, 0, 0, 6, -8, 4, 6], others]),
        "b": np.concatenate([[0, 0, 0, 0, 2, -3, 1, -2], -others]),
    }
    masks = {"a": first(8, 100), "b": first(8, 100)}
    return {"a": theta, "b": theta}, grads, masks


@pytest.mark.parametrize(("redistribute", "counts"), [(True, (10, 6)), (False, (8, 8))])
def test_what_was_dropped_is_shared_out_by_momentum(redistribute, counts):
    """Mean |momentum| 3 to 1 and 8 dropped: 6 and 2 grow."""
    theta, grads, masks = two_layers()
    method = neurrev_jax.snfs(0.5, EVERY, redistribute=redistribute)
    found, _ = one_call(method, theta, grads, masks)
    for (_, mask), count in zip(found.values(), counts, strict=True):
        # The four largest |w| stay, and the largest |momentum| grow: the last ones.
        expected = {*range(4, 8), *range(100 - (count - 4), 100)}
        assert set(np.flatnonzero(mask)) == expected


def test_growth_goes_by_what_gathered_not_by_the_last_gradient():
    theta = {"a": np.concatenate([np.arange(1.0, 5.0), np.zeros(96)])}
    before, now = np.zeros(100), np.zeros(100)
    before[50], now[60], now[:4] = 4.0, 3.0, 0.25
    grown = {}
    for momentum in (0.9, 0.5):
        method = neurrev_jax.snfs(
            0.25, neurrev_jax.periodic(2), momentum=momentum, redistribute=False
        )
        found, state = one_call(
            method, theta, {"a": now}, {"a": first(4, 100)}, seen=[{"a": before}]
        )
        (_, mask) = found["a"]
        grown[momentum] = set(np.flatnonzero(mask)) - {1, 2, 3}
        gathered = np.ravel(state.method_state.momentum["a"]["kernel"])
        np.testing.assert_allclose(gathered, momentum * before + now, rtol=1e-6)
    assert grown == {0.9: {50}, 0.5: {60}}


def test_slots_are_dense_and_a_grown_weight_starts_with_its_own():
    theta = {"a": np.concatenate([np.arange(1.0, 5.0), np.zeros(96)])}
    grads = np.arange(100.0)
    method = neurrev_jax.snfs(0.25, EVERY)
    found, state = one_call(
        method,
        theta,
        {"a": grads},
        {"a": first(4, 100)},
        inner=optax.sgd(0.5, momentum=0.5),
    )
    (trace,) = jax.tree.leaves(state.inner_state)
    np.testing.assert_array_equal(np.ravel(trace), grads)
    assert found["a"][1][99]


def test_gradients_are_needed_dense_on_every_call():
    method = neurrev_jax.snfs()
    assert all(method.dense_gradients(jnp.int32(t)) for t in (1, 2, 3))
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.5)
    state = tx.init({"kernel": jnp.ones((4, 5))})
    assert neurrev_jax.gradient_masks(state)["kernel"].all()
    assert method.cost.per_example(0.2, 1.0) == pytest.approx(2 * 0.2 + 1)


def reference_counts(sizes, active, share, ratio):
    """Dropped and grown per layer as the paper has it, but for the rounding of shares.

    Shares here come out whole, or are too large for their layers.
    """
    sizes, active = np.array(sizes, float), np.array(active, float)
    share = np.array(share, float)
    sparsity = 1 - active / sizes
    ratios = np.full(len(sizes), ratio)
    full = (sparsity < 0.2) & (share > share.mean())
    ratios[full] = np.minimum(sparsity, ratio)[full]
    dropped = np.ceil(np.round(ratios * active, 6))
    total, grown = dropped.sum(), np.zeros(len(sizes))
    caps = np.floor(0.99 * (sizes - active + dropped))
    grown = np.minimum(np.round(total * share / share.sum()), caps)
    while grown.sum() < total:
        has_room = np.flatnonzero(grown < caps)
        for i in has_room[: int(total - grown.sum())]:
            grown[i] += 1
    return dropped.astype(int), grown.astype(int)


@pytest.mark.parametrize(
    ("active", "share"),
    [
        ((20, 20, 40), (2, 1, 1)),
        # The first layer is 90 % full and wants the most: it drops 10 %, not half,
        # and has room for 18 of the 20 it would get.
        ((90, 20, 10), (10, 1, 1)),
        # As full, but with little momentum: it drops half.
        ((90, 20, 20), (1, 4, 8)),
    ],
)
def test_shares_follow_the_rules_of_full_layers(active, share):
    names = ("a", "b", "c")
    theta, grads, masks = {}, {}, {}
    for name, count, mean in zip(names, active, share, strict=True):
        weights = np.arange(1.0, 101.0)
        theta[name] = np.where(np.arange(100) < count, weights, 0)
        grads[name] = np.where(np.arange(100) < count, mean, 0)
        masks[name] = first(count, 100)
    found, _ = one_call(neurrev_jax.snfs(0.5, EVERY), theta, grads, masks)
    dropped, grown = reference_counts([100] * 3, active, share, 0.5)
    expected = np.array(active) - dropped + grown
    assert [int(new.sum()) for _, new in found.values()] == expected.tolist()
    assert expected.sum() == sum(active)
    for (old, new), gone in zip(found.values(), dropped, strict=True):
        kept = np.flatnonzero(old)[gone:]
        assert new[kept].all(), "only the smallest are dropped"


def test_the_total_holds_where_nothing_else_would():
    """Nearly dense layers: 99 % of the room is none at all."""
    theta = {"a": np.arange(1.0, 11.0), "b": np.arange(1.0, 11.0)}
    grads = {"a": np.full(10, 3.0), "b": np.ones(10)}
    masks = {"a": first(9, 10), "b": first(9, 10)}
    found, _ = one_call(neurrev_jax.snfs(0.1, EVERY), theta, grads, masks)
    assert sum(int(new.sum()) for _, new in found.values()) == 18


def test_a_batch_that_overflowed_leaves_the_momentum_as_it_was():
    theta, grads, masks = two_layers()
    broken = {name: np.where(np.arange(100) < 50, np.nan, 0) for name in grads}
    method = neurrev_jax.snfs(0.5, neurrev_jax.periodic(2))
    inner = optax.apply_if_finite(optax.sgd(0.0), 3)
    seen = [grads, broken, broken]
    found, state = one_call(method, theta, grads, masks, inner=inner, seen=seen)
    counts = [int(found[name][1].sum()) for name in ("a", "b")]
    # Both updates share 8 out as 3 to 1, which they can only by momentum.
    assert counts[0] > counts[1] and sum(counts) == 16
    momentum = state.method_state.momentum
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(momentum))


def test_frozen_layers_take_no_part():
    theta, grads, masks = two_layers()
    theta["c"], grads["c"], masks["c"] = theta["a"], grads["a"], masks["a"]
    frozen = {"a": False, "b": False, "c": True}
    found, _ = one_call(neurrev_jax.snfs(0.5, EVERY), theta, grads, masks, frozen)
    np.testing.assert_array_equal(*found["c"])
    counts = [int(found[name][1].sum()) for name in ("a", "b")]
    assert counts == [10, 6]


def test_refusals_and_defaults():
    for momentum in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"momentum={momentum}"):
            neurrev_jax.snfs(momentum=momentum)
    with pytest.raises(ValueError, match="update_ratio=2"):
        neurrev_jax.snfs(2)
    with pytest.raises(ValueError, match="init_mask='typo'"):
        neurrev_jax.snfs(init_mask="typo")
