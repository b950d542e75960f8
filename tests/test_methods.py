"""The methods: worked cases of their papers, and every option told from its neglect."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

THETA = [0.9, -0.8, 0.7, -0.6, 0.05, -0.04, 0.3, -0.2, 0.1, -0.5] + [0.0] * 10
BEFORE = [0.8, -0.8, 0.5, -0.1, 0.05, -0.04, 0.3, -0.5, 0.4, -0.49] + [0.0] * 10


def transform(method, active, size, inner=None, **options):
    """`method` on one layer with the given active entries; updates on call 1."""
    return neurrev_jax.sparse_transform(
        inner or optax.sgd(0.1),
        method,
        masks=harness.one_layer_masks(active, size),
        **options,
    )


def neurrev(ratio, **options):
    return neurrev_jax.neurrev(ratio, neurrev_jax.periodic(1), **options)


def on(mask):
    return set(np.flatnonzero(mask).tolist())


# --- NeurRev ------------------------------------------------------------------


def test_neurrev_oracle():
    tx = transform(neurrev(0.2), range(10), 20)
    theta, mask, state = harness.one_layer(tx, THETA, reference=BEFORE)
    kept = {0, 2, 3, 6, 7, 8}
    assert kept <= on(mask) and not {1, 9} & on(mask)
    assert on(mask) - kept <= {4, 5, *range(10, 20)} and mask.sum() == 10
    expected, reference, dropped, awakened = oracles.neurrev_update(
        np.float32(THETA), np.float32(BEFORE), np.arange(20) < 10, mask, 0.2
    )
    assert sorted(dropped) == [4, 5] and sorted(awakened) == [1, 9]
    np.testing.assert_array_equal(theta, expected)
    np.testing.assert_array_equal(
        np.ravel(state.method_state.reference["kernel"]), reference
    )
    assert reference[1] == reference[9] == 0
    assert int(state.method_state.shortfall) == 0


def test_neurrev_grows_at_random_and_nothing_else_is():
    tx = transform(neurrev(0.2), range(10), 20)
    masks = harness.one_layer_by_key(tx, THETA, keys=400, reference=BEFORE)
    assert (masks.sum(1) == 10).all()
    often = masks.sum(0)
    assert (often[[0, 2, 3, 6, 7, 8]] == 400).all() and not often[[1, 9]].any()
    # Four grow among twelve candidates: 4, 5 and 10 to 19, all alike.
    candidates = often[[4, 5, *range(10, 20)]]
    assert np.abs(candidates - 400 / 3).max() < 5 * np.sqrt(400 * 2 / 9)


def test_neurrev_compares_with_the_weights_after_the_last_update():
    """Over two updates: the second one's changes count from the first."""
    theta = np.float32([0.9, 0.8, 0.7, 0.6, -0.5, -0.4, -0.3, -0.2] + [0] * 8)
    tx = transform(
        neurrev_jax.neurrev(0.125, neurrev_jax.periodic(2), prune_ratio=0.0),
        range(8),
        16,
        inner=optax.sgd(1.0),
    )
    moves = np.zeros((4, 16), np.float32)
    moves[0, 4:8] = [0.01, 0.02, 0.03, 0.04]  # the first update takes entry 4
    moves[2, 4:8] = [0.0, 0.04, 0.03, 0.01]  # since then 7 has moved least
    params = {"kernel": jnp.asarray(theta.reshape(2, 8))}
    params, state = harness.start(tx, params)
    step = harness.stepper(tx)
    gone = []
    for move in moves:
        before = np.ravel(neurrev_jax.get_masks(state)["kernel"])
        params, state = step(params, state, {"kernel": jnp.asarray(move.reshape(2, 8))})
        after = np.ravel(neurrev_jax.get_masks(state)["kernel"])
        gone.append(on(before & ~after))
    assert gone[0] == gone[2] == set()
    assert gone[1] == {4} and gone[3] == {7}


def test_neurrev_prune_ratio_is_the_magnitude_prune_only():
    tx = transform(neurrev(0.2, prune_ratio=0.0), range(10), 20)
    _, mask, _ = harness.one_layer(tx, THETA, reference=BEFORE)
    # Nothing is dropped by magnitude, so the unmoved small -.04 (5) and the larger
    # unmoved -.8 (1) are the least changed negatives.
    assert on(np.arange(20) < 10) - on(mask) == {1, 5} and mask.sum() == 10
    # Many entries to grow into, so that what is dropped stays away.
    theta = np.concatenate([np.float32(THETA[:10]), np.zeros(990, np.float32)])
    tx = transform(neurrev(0.0, prune_ratio=0.3), range(10), 1000)
    _, mask, _ = harness.one_layer(tx, theta, reference=theta)
    assert on(np.arange(1000) < 10) - on(mask) == {4, 5, 8} and mask.sum() == 10


def test_neurrev_prunes_as_much_as_it_awakes_by_default():
    theta = np.concatenate([np.float32(THETA[:10]), np.zeros(1990, np.float32)])
    reference = np.concatenate([np.float32(BEFORE[:10]), np.zeros(1990, np.float32)])
    tx = transform(neurrev(0.2), range(10), 2000)
    _, mask, _ = harness.one_layer(tx, theta, reference=reference)
    assert on(np.arange(2000) < 10) - on(mask) == {1, 4, 5, 9}
    assert len(on(mask) - set(range(10))) == 4


def test_neurrev_ratio_of_total():
    # floor(.1 * 20) = 2 of 10 active; as a fraction of the nonzeros it would be 1.
    theta = np.float32([0.9, -0.8, 0.7, -0.6, 0.5, -0.4, 0.3, -0.2, 0.1, -0.05])
    theta = np.concatenate([theta, np.zeros(10, np.float32)])
    for ratio_of, gone in [("total", {1, 3}), ("nonzero", {1})]:
        tx = transform(neurrev(0.1, ratio_of=ratio_of, prune_ratio=0.0), range(10), 20)
        _, mask, _ = harness.one_layer(tx, theta, reference=theta)
        assert on(np.arange(20) < 10) - on(mask) == gone
        assert mask.sum() == 10


@pytest.mark.parametrize(
    ("sparsity", "ratio"),
    [(0.9, 0.1), (0.98, 0.05), (0.98, 0.03), (0.95, 0.05), (0.8, 0.15)],
)
def test_neurrev_ratios_of_the_paper_are_infeasible_of_the_total(sparsity, ratio):
    """Section 3.2.1: Table A.1's ratios cannot be fractions of all weights."""
    params = {"kernel": jnp.ones((100, 100))}
    of_total = neurrev(ratio, ratio_of="total")
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), of_total, sparsity=sparsity)
    with pytest.raises(ValueError, match=str(ratio)):
        tx.init(params)
    of_nonzero = neurrev(ratio)
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), of_nonzero, sparsity=sparsity)
    assert jax.eval_shape(tx.init, params).masks["kernel"].shape == (100, 100)


def test_neurrev_ratios_that_take_more_than_everything():
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), neurrev(0.7, prune_ratio=0.4))
    with pytest.raises(ValueError, match=r"0\.7.*0\.4"):
        tx.init({"kernel": jnp.ones((10, 10))})


def test_neurrev_eligible_survivors_or_active():
    # One free entry: k + a = 2 grow into it and the dropped -.01, so that is back.
    theta = [0.9, -0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, -0.01, 0.0]
    before = [0.9, -0.7, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, -0.01, 0.0]
    theta, before = [*theta, 0.1], [*before, 0.1]
    for eligible, gone in [("survivors", 1), ("active", 9)]:
        method = neurrev(0.1, eligible=eligible)
        tx = transform(method, [*range(10), 11], 12)
        got, mask, _ = harness.one_layer(tx, theta, reference=before)
        assert on(mask) == set(range(12)) - {gone}
        assert got[gone] == 0
        if eligible == "survivors":
            assert got[9] == np.float32(-0.01), "regrown, hence never away"


FEW = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, -0.35, 0.2, 0.1]  # one negative


@pytest.mark.parametrize(
    ("too_few", "gone_for_sure", "count", "shortfall"),
    [
        ("fewer", {7}, 10, 2),
        # Fills up by magnitude: after .1, .2, .3 are dropped, .4 and .5 are next.
        ("magnitude", {5, 4, 7}, 10, 2),
        ("drift", {7}, 12, 2),
    ],
)
def test_neurrev_too_few(too_few, gone_for_sure, count, shortfall):
    theta = np.concatenate([np.float32(FEW), np.zeros(4990, np.float32)])
    tx = transform(neurrev(0.3, too_few=too_few), range(10), 5000)
    _, mask, state = harness.one_layer(tx, theta, reference=theta)
    assert on(np.arange(5000) < 10) - on(mask) == gone_for_sure | {6, 8, 9}
    assert mask.sum() == count
    assert int(state.method_state.shortfall) == shortfall


def test_neurrev_checks_the_highest_of_ratios_over_time():
    params = {"kernel": jnp.ones((100, 100))}

    def init(ratio, **options):
        tx = neurrev_jax.sparse_transform(optax.sgd(0.1), neurrev(ratio, **options))
        return tx.init(params)

    falling = neurrev_jax.piecewise([0.1, 0.02], [50])
    with pytest.raises(ValueError, match=r"0\.1 of the total"):
        init(falling, ratio_of="total")
    init(neurrev_jax.piecewise([0.03, 0.02], [50]), ratio_of="total")
    with pytest.raises(ValueError, match=r"0\.7.*0\.4"):
        init(neurrev_jax.piecewise([0.7, 0.1], [9]), prune_ratio=0.4)
    # 0.6 and 0.6 of the active weights, but never at once.
    one, other = (neurrev_jax.piecewise(r, [9]) for r in ([0.1, 0.6], [0.6, 0.1]))
    init(one, prune_ratio=other)


def test_neurrev_without_negatives_is_set_by_magnitude():
    theta = np.concatenate([np.abs(np.float32(THETA[:10])), np.zeros(990, np.float32)])
    tx = transform(neurrev(0.2), range(10), 1000)
    _, mask, state = harness.one_layer(tx, theta, reference=theta)
    assert on(np.arange(1000) < 10) - on(mask) == {4, 5} and mask.sum() == 10
    assert int(state.method_state.shortfall) == 2


def test_neurrev_in_a_nearly_dense_layer_stays_feasible():
    """5 are to be awoken, for one there is room: -1 to -5 go, and -6 as the least."""
    theta = -np.arange(1, 21, dtype=np.float32)
    tx = transform(neurrev(0.3), range(19), 20)
    change = np.where(np.arange(20) == 5, 0, 1).astype(np.float32)
    before = (theta - change) * (np.arange(20) < 19)
    _, mask, state = harness.one_layer(
        tx, theta * (np.arange(20) < 19), reference=before
    )
    # Six places for what grows: all that are free after the magnitude prune.
    assert on(~mask) == {5}
    assert int(state.method_state.shortfall) == 4


def test_neurrev_scope():
    """Leaf a's negatives did not move; leaf b's moved a lot."""
    a = np.float32([0.9, 0.8, -0.7, -0.6, -0.5, 0.4, 0.3, 0.2, 0.35, 0.45])
    b = np.float32([0.9, 0.8, -0.7, -0.6, -0.5, 0.4, 0.3, 0.2, 0.35, 0.45])
    zeros = np.zeros(990, np.float32)
    lift = lambda x: jnp.asarray(np.concatenate([x, zeros]).reshape(2, 500))
    params = {"a": {"kernel": lift(a)}, "b": {"kernel": lift(b)}}
    masks = jax.tree.map(lambda p: p != 0, params)
    reference = {"a": {"kernel": lift(a)}, "b": {"kernel": lift(b + 0.25)}}
    gone = {}
    for scope in ("layer", "global"):
        method = neurrev(0.1, prune_ratio=0.0, scope=scope)
        tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, masks=masks)
        state = tx.init(params)
        state = state._replace(
            method_state=state.method_state._replace(reference=reference)
        )
        zero = jax.tree.map(jnp.zeros_like, params)
        _, state = harness.stepper(tx)(params, state, zero)
        new = harness.leaves(neurrev_jax.get_masks(state))
        old = harness.leaves(masks)
        gone[scope] = {p[0]: on((old[p] & ~new[p]).ravel()) for p in old}
        assert sum(m.sum() for m in new.values()) == 20
        if scope == "layer":
            assert [m.sum() for m in new.values()] == [10, 10]
    assert gone["layer"] == {"a": {2}, "b": {2}}
    assert gone["global"] == {"a": {2, 3}, "b": set()}


def test_neurrev_global_scope_leaves_frozen_leaves_out():
    """The budget of a frozen leaf is not spent on the others, nor theirs on it."""
    rng = np.random.default_rng(0)
    draw = lambda: {"kernel": jnp.asarray(rng.normal(size=(20, 30)), jnp.float32)}
    params = {"a": draw(), "b": draw()}
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0),
        neurrev(0.2, scope="global"),
        sparsity=0.8,
        distribution=harness.even,
    )
    params, state = harness.start(tx, params)
    frozen = {"a": True, "b": False}
    _, new = tx.update(params, state, params, frozen=frozen)
    harness.assert_trees_equal(new.masks["a"], state.masks["a"])
    assert harness.counts(new.masks) == {"a/kernel": 120, "b/kernel": 120}
    assert (new.masks["b"]["kernel"] != state.masks["b"]["kernel"]).any()


def test_neurrev_global_scope_keeps_the_last_weight_of_a_leaf():
    """Three negative ones that never change: all would go, and none could grow."""
    many = np.zeros(1000, np.float32)
    many[:500] = np.linspace(-2, -1, 500)
    few = np.zeros(100, np.float32)
    few[:3] = [-0.3, -0.5, -0.4]
    lift = lambda x: {"kernel": jnp.asarray(x.reshape(2, -1))}
    params = {"few": lift(few), "many": lift(many)}
    masks = jax.tree.map(lambda p: p != 0, params)
    reference = {"few": params["few"], "many": lift(many + 0.25)}
    method = neurrev(0.1, prune_ratio=0.0, scope="global")
    tx = neurrev_jax.sparse_transform(optax.sgd(0.0), method, masks=masks)
    state = tx.init(params)
    state = state._replace(
        method_state=state.method_state._replace(reference=reference)
    )
    _, state = tx.update(params, state, params)
    new = harness.leaves(state.masks)
    assert on(new["few/kernel"].ravel()) == {1}
    assert new["many/kernel"].sum() == 502


def test_neurrev_keeps_the_reference_of_a_frozen_leaf():
    rng = np.random.default_rng(3)
    draw = lambda: {"kernel": jnp.asarray(rng.normal(size=(20, 30)), jnp.float32)}
    params = {"a": draw(), "b": draw()}
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.0), neurrev(0.2), sparsity=0.8, distribution=harness.even
    )
    params, state = harness.start(tx, params)
    first = state.method_state.reference
    frozen = {"a": True, "b": False}
    for _ in range(2):
        updates, state = tx.update(params, state, params, frozen=frozen)
        params = optax.apply_updates(params, updates)
    harness.assert_trees_equal(state.method_state.reference["a"], first["a"])
    assert (state.method_state.reference["b"]["kernel"] != first["b"]["kernel"]).any()


def test_neurrev_first_update():
    for first_update, updates in [("skip", [3]), ("include", [1, 3])]:
        method = neurrev_jax.neurrev(
            0.2, neurrev_jax.periodic(3), first_update=first_update
        )
        tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.5)
        history = harness.run(tx, {"kernel": harness.net_params()["conv"]["kernel"]}, 4)
        masks = [np.asarray(neurrev_jax.get_masks(s)["kernel"]) for _, s in history]
        changed = [t for t in range(1, 5) if (masks[t] != masks[t - 1]).any()]
        assert changed == updates


def test_neurrev_order_by():
    theta = [0.9, -0.8, 0.7, -0.6, -0.5] + [0.0] * 5
    before = [0.9, -0.1, 0.7, -0.3, -0.5] + [0.0] * 5
    for order_by, gone in [("change", {4}), ("magnitude", {1})]:
        method = neurrev(0.2, prune_ratio=0.0, order_by=order_by)
        _, mask, _ = harness.one_layer(
            transform(method, range(5), 10), theta, reference=before
        )
        assert on(np.arange(10) < 5) - on(mask) == gone


def test_neurrev_decay_factor():
    # Entry 1 only decayed (by half), entry 3 was held against the decay.
    theta = [0.9, -0.5, 0.7, -0.4, 0.6] + [0.0] * 5
    before = [0.9, -1.0, 0.7, -0.5, 0.6] + [0.0] * 5
    for factor, gone in [(1.0, {3}), (0.5, {1})]:
        method = neurrev(0.2, prune_ratio=0.0, decay_factor=factor)
        _, mask, _ = harness.one_layer(
            transform(method, range(5), 10), theta, reference=before
        )
        assert on(np.arange(10) < 5) - on(mask) == gone


def test_neurrev_slots():
    for slots in ("zero", "keep"):
        method = neurrev(0.2, slots=slots)
        tx = transform(method, range(10), 1000, inner=optax.sgd(1e-4, momentum=0.5))
        theta = np.concatenate([np.float32(THETA[:10]), np.zeros(990, np.float32)])
        _, mask, state = harness.one_layer(
            tx, theta, grads=np.ones(1000), reference=theta
        )
        (trace,) = (x for x in jax.tree.leaves(state.inner_state) if x.size == 1000)
        gone = on(np.arange(1000) < 10) - on(mask)
        trace = np.ravel(trace)
        assert len(gone) == 4
        kept_momenta = {1.0} if slots == "keep" else {0.0}
        assert {float(trace[i]) for i in gone} == kept_momenta
        never_active = ~mask & (np.arange(1000) >= 10)
        assert not trace[never_active].any()


def test_slots_keep_decay_geometrically_after_the_update():
    method = neurrev_jax.neurrev(0.2, neurrev_jax.periodic(1, until=1), slots="keep")
    tx = transform(method, range(10), 1000, inner=optax.sgd(1e-4, momentum=0.5))
    theta = np.concatenate([np.float32(THETA[:10]), np.zeros(990, np.float32)])
    lift = lambda x: {"kernel": jnp.asarray(x, jnp.float32).reshape(2, 500)}
    params, state = harness.start(tx, lift(theta))
    step = harness.stepper(tx)
    params, state = step(params, state, lift(np.ones(1000)))
    gone = ~np.ravel(neurrev_jax.get_masks(state)["kernel"])[:10]
    params, state = step(params, state, lift(np.ones(1000)))
    (trace,) = (x for x in jax.tree.leaves(state.inner_state) if x.size == 1000)
    np.testing.assert_array_equal(np.ravel(trace)[:10][gone], 0.5)
    harness.assert_masked(params, neurrev_jax.get_masks(state))


@pytest.mark.parametrize("name", ["neurrev", "set_", "rigl", "static"])
def test_init_mask(name):
    build = getattr(neurrev_jax, name)
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(20, 30)))}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    masks = {}
    for init_mask in ("random", "magnitude"):
        tx = neurrev_jax.sparse_transform(
            optax.sgd(0.1), build(init_mask=init_mask), sparsity=0.75
        )
        masks[init_mask] = np.asarray(tx.init(params).masks["kernel"])
        assert masks[init_mask].sum() == 150
    largest = oracles.lowest(-np.abs(params["kernel"]), np.ones((20, 30), bool), 150)
    np.testing.assert_array_equal(masks["magnitude"], largest)
    assert (masks["random"] != largest).any()


@pytest.mark.parametrize(
    "option",
    ["ratio_of", "eligible", "too_few", "scope", "first_update", "order_by", "slots"],
)
def test_neurrev_refuses_unknown_words(option):
    with pytest.raises(ValueError, match=f"{option}.*'typo'"):
        neurrev_jax.neurrev(**{option: "typo"})


@pytest.mark.parametrize("name", ["neurrev", "set_", "rigl", "static"])
def test_unknown_init_mask(name):
    with pytest.raises(ValueError, match=r"init_mask.*'typo'"):
        getattr(neurrev_jax, name)(init_mask="typo")


@pytest.mark.parametrize("name", ["neurrev", "set_", "rigl"])
@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_update_ratio_outside_its_range(name, ratio):
    with pytest.raises(ValueError, match=f"update_ratio.*{ratio}"):
        getattr(neurrev_jax, name)(ratio)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.1, float("nan")])
def test_decay_factor_outside_its_range(factor):
    with pytest.raises(ValueError, match=f"decay_factor.*{factor}"):
        neurrev_jax.neurrev(decay_factor=factor)


def test_update_ratio_over_time():
    """The ratio is read at the number of the call."""
    ratio = neurrev_jax.piecewise([0.5, 0.0], [2])
    method = neurrev_jax.set_(ratio, neurrev_jax.periodic(1))
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.5)
    params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)))}
    history = harness.run(tx, jax.tree.map(lambda p: p.astype(jnp.float32), params), 4)
    masks = [np.asarray(s.masks["kernel"]) for _, s in history]
    assert (masks[1] != masks[0]).any()
    assert (masks[4] == masks[3]).all()


# --- SET ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "kept"), [("signed", {2, 3, 5}), ("magnitude", {3, 4, 5})]
)
def test_set_oracle(drop, kept):
    theta = np.zeros(6000, np.float32)
    theta[:6] = [0.1, 0.2, 0.3, 0.4, -0.5, -0.6]
    method = neurrev_jax.set_(0.5, neurrev_jax.periodic(1), drop=drop)
    new, mask, _ = harness.one_layer(transform(method, range(6), 6000), theta)
    assert on(mask) & set(range(6)) == kept
    assert mask.sum() == 6
    np.testing.assert_array_equal(
        new, np.where(np.isin(np.arange(6000), list(kept)), theta, 0)
    )


def test_set_drops_by_the_counts_of_each_sign():
    rng = np.random.default_rng(5)
    theta = np.zeros(9000, np.float32)
    theta[:50] = rng.normal(size=50)
    method = neurrev_jax.set_(0.3, neurrev_jax.periodic(1))
    _, mask, _ = harness.one_layer(transform(method, range(50), 9000), theta)
    gone = sorted(on(np.arange(9000) < 50) - on(mask))
    expected = oracles.set_drop(theta, np.arange(9000) < 50, 0.3)
    # Of about 15 dropped among 9000 inactive, random growth may revive one.
    assert gone == expected and mask.sum() == 50


def test_set_drops_what_has_no_sign():
    """Grown, and never moved since: it must not stay for good."""
    theta = np.zeros(6000, np.float32)
    theta[:6] = [0.1, 0.2, 0.3, 0.4, -0.5, -0.6]
    for ratio, kept in ((0.5, {2, 3, 5}), (0.0, set(range(8)))):
        method = neurrev_jax.set_(ratio, neurrev_jax.periodic(1))
        _, mask, _ = harness.one_layer(transform(method, range(8), 6000), theta)
        assert on(mask) & set(range(8)) == kept
        assert mask.sum() == 8


def test_set_unknown_drop():
    with pytest.raises(ValueError, match=r"drop.*'typo'"):
        neurrev_jax.set_(drop="typo")


# --- RigL ---------------------------------------------------------------------

RIGL = [0.5, -0.1, 0.3, 0.0, 0.0, 0.0]


def rigl(**options):
    return neurrev_jax.rigl(0.34, neurrev_jax.periodic(1), **options)


@pytest.mark.parametrize("sign", [1, -1])
def test_rigl_oracle(sign):
    grads = sign * np.float32([9, 0.2, 9, 0.1, 0.4, 0.3])
    tx = transform(rigl(), range(3), 6, inner=optax.sgd(0.0, momentum=0.9))
    theta, mask, state = harness.one_layer(tx, RIGL, grads=grads)
    assert on(mask) == {0, 2, 4}
    np.testing.assert_array_equal(theta, np.float32([0.5, 0, 0.3, 0, 0, 0]))
    (trace,) = (x for x in jax.tree.leaves(state.inner_state) if x.size == 6)
    assert not np.ravel(trace)[[1, 3, 4, 5]].any(), "a grown weight starts at rest"


def test_rigl_oracle_dropped_and_regrown():
    grads = np.float32([9, 0.9, 9, 0.1, 0.4, 0.3])
    tx = transform(rigl(), range(3), 6, inner=optax.sgd(0.0, momentum=0.9))
    theta, mask, state = harness.one_layer(tx, RIGL, grads=grads)
    assert on(mask) == {0, 1, 2}
    np.testing.assert_array_equal(theta, np.float32(RIGL))
    (trace,) = (x for x in jax.tree.leaves(state.inner_state) if x.size == 6)
    assert np.ravel(trace)[1] == np.float32(0.9), "never away, so its momentum stays"


def test_rigl_with_equal_gradients_grows_at_random():
    """Never biased toward the first indices (a fault of other implementations)."""
    theta = np.zeros(200, np.float32)
    theta[:20] = np.arange(1, 21)
    method = neurrev_jax.rigl(0.5, neurrev_jax.periodic(1))
    tx = transform(method, range(20), 200, inner=optax.sgd(0.0))
    masks = harness.one_layer_by_key(tx, theta, grads=np.ones(200), keys=300)
    often = masks.sum(0)
    assert (often[10:20] == 300).all() and often.sum() == 300 * 20
    # Ten grow among 190 candidates: 0 to 9, just dropped, and 20 to 199.
    candidates = np.delete(often, range(10, 20))
    p = 10 / 190
    assert np.abs(candidates - 300 * p).max() < 5.5 * np.sqrt(300 * p * (1 - p))


def test_gradient_masks_are_dense_just_before_rigl_updates():
    method = neurrev_jax.rigl(0.3, neurrev_jax.periodic(2, until=4))
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.5)
    history = harness.run(tx, harness.net_params(), 6)
    for call, (_, state) in enumerate(history, start=1):
        needed = harness.leaves(neurrev_jax.gradient_masks(state))
        for path, mask in harness.leaves(neurrev_jax.get_masks(state)).items():
            got = np.broadcast_to(needed[path], mask.shape)
            np.testing.assert_array_equal(got, mask | (call in (2, 4)))


@pytest.mark.parametrize("name", ["neurrev", "set_", "static"])
def test_gradient_masks_of_the_others_are_their_masks(name):
    options = () if name == "static" else (0.3, neurrev_jax.periodic(1))
    method = getattr(neurrev_jax, name)(*options)
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.5)
    for _, state in harness.run(tx, harness.net_params(), 2):
        needed = harness.leaves(neurrev_jax.gradient_masks(state))
        for path, mask in harness.leaves(neurrev_jax.get_masks(state)).items():
            np.testing.assert_array_equal(
                np.broadcast_to(needed[path], mask.shape), mask
            )


# --- static and defaults ------------------------------------------------------


def test_static_never_changes():
    tx = neurrev_jax.sparse_transform(
        optax.sgd(0.01, momentum=0.9), neurrev_jax.static(), sparsity=0.7
    )
    history = harness.run(tx, harness.net_params(), 5)
    for params, state in history[1:]:
        harness.assert_trees_equal(state.masks, history[0][1].masks)
        harness.assert_masked(params, state.masks)


@pytest.mark.parametrize(
    ("build", "every"),
    [(neurrev_jax.neurrev, 1000), (neurrev_jax.set_, 1000), (neurrev_jax.rigl, 100)],
)
def test_default_schedules(build, every):
    schedule = build().schedule
    flags = [bool(schedule(jnp.int32(t))) for t in (1, every - 1, every, 2 * every)]
    assert flags == [False, False, True, True]


@pytest.mark.parametrize(
    ("build", "changed"),
    [(neurrev_jax.neurrev, 120), (neurrev_jax.set_, 180), (neurrev_jax.rigl, 180)],
)
def test_default_update_ratios(build, changed):
    """.1 (pruned twice) or .3 of 600 active weights go; few of 60,000 come back."""
    theta = np.zeros(60_600, np.float32)
    theta[:600] = np.random.default_rng(0).normal(size=600)
    method = build(schedule=neurrev_jax.periodic(1))
    tx = transform(method, range(600), 60_600, inner=optax.sgd(0.0))
    grads = np.arange(60_600)
    _, mask, _ = (
        harness.one_layer(tx, theta, grads=grads, reference=theta)
        if (build is neurrev_jax.neurrev)
        else harness.one_layer(tx, theta, grads=grads)
    )
    assert changed - 4 <= 600 - mask[:600].sum() <= changed
    assert mask.sum() == 600


def test_cost_of_rigl():
    """RigL's factor of section 2: (3 f_S dT + 2 f_S + f_D) / (dT + 1)."""
    cost = neurrev_jax.rigl().cost
    expected = (3 * 0.2 * 100 + 2 * 0.2 + 1) / 101
    assert cost.per_example(0.2, 1.0, interval=100) == pytest.approx(expected)
    with pytest.raises(ValueError, match="interval"):
        cost.per_example(0.2, 1.0)
    for build in (neurrev_jax.neurrev, neurrev_jax.set_, neurrev_jax.static):
        assert build().cost.per_example(0.2, 1.0) == pytest.approx(0.6)
