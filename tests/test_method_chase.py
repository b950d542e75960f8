"""Chase: exploration under a soft bound, and channels that vanish for good."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

EVERY = neurrev_jax.periodic(2)
SHAPES = {
    "a": {"kernel": (1, 1, 6, 10), "bias": (10,)},
    "norm": {"scale": (10,)},
    "b": {"kernel": (1, 1, 10, 8)},
    "c": {"kernel": (8, 5)},
}
KERNELS = ("a/kernel", "b/kernel", "c/kernel")
SIZES = (60, 80, 40)  # 180 in all
BUDGET = 24 + 32 + 16  # at sparsity 0.6


def params(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def groups():
    """Ten channels between a and b, eight between b and c."""
    name = neurrev_jax.channel_group
    inner = {"a/bias": 0, "norm/scale": 0, "b/kernel": 2}
    return (
        name(params(), {"a/kernel": 3}, inner),
        name(params(), {"b/kernel": 3}, {"c/kernel": 0}),
    )


def transform(method, **options):
    options = {"sparsity": 0.6, "distribution": harness.even, **options}
    return neurrev_jax.sparse_transform(optax.sgd(0.125), method, **options)


@functools.cache
def run(steps=12, **options):
    options = {"channel_window": (0, 8), "soft_until": 8, **options}
    if options.get("channel_sparsity"):
        options["groups"] = groups()
    return harness.run(
        transform(neurrev_jax.chase(0.05, EVERY, **options)), params(), steps
    )


def total(state):
    counts = harness.counts(state.masks)
    return sum(counts[path] for path in KERNELS)


def flat(tree):
    tree = harness.leaves(tree)
    return np.concatenate([tree[path].ravel() for path in KERNELS])


def left(state):
    return [np.asarray(there) for there in state.method_state.channels]


# --- exploration --------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel_sparsity", "ratio_of", "above"),
    [
        (0.4, "total", 9),
        pytest.param(0.0, "nonzero", 3, marks=pytest.mark.full),
    ],
)
def test_the_total_is_constant_above_the_budget_and_then_on_it(
    channel_sparsity, ratio_of, above
):
    """Channels vanish, the number of active weights does not change."""
    history = run(channel_sparsity=channel_sparsity, ratio_of=ratio_of)
    for call, (values, state) in enumerate(history):
        exact = BUDGET if call < 2 or call >= 10 else BUDGET + above
        assert total(state) == exact
        harness.assert_masked(values, state.masks)
    gone = sum(int((~there).sum()) for there in left(state))
    assert gone == int(channel_sparsity * 18)


def one_update(theta, mask, gradient, keep, end):
    """A topology update over everything at once, in NumPy."""
    mask = mask & ~oracles.lowest(np.abs(theta), mask, mask.sum() - keep)
    return mask | oracles.lowest(-np.abs(gradient), ~mask, end - mask.sum())


@pytest.mark.parametrize(
    ("soft_until", "keep", "end"), [(1, BUDGET, BUDGET + 18), (0, BUDGET - 14, BUDGET)]
)
def test_prune_and_grow_are_global(soft_until, keep, end):
    """Soft: back to the budget, then a tenth of 180 more. After: a fifth exchanged."""
    method = neurrev_jax.chase(
        0.1, neurrev_jax.periodic(1), soft_until=soft_until, final_ratio=0.2
    )
    tx, start, gradient = transform(method), params(1), params(2)
    start["b"]["kernel"] = start["b"]["kernel"] * 3
    state = tx.init(start)
    if soft_until:  # as if an update had come before
        more = jax.tree.map(lambda m: m | True, state.masks)
        state = state._replace(masks={**state.masks, "c": more["c"]})
    start = neurrev_jax.sparsify(start, state)
    theta, mask = flat(start), flat(state.masks)
    moved = np.where(mask, theta - np.float32(0.125) * flat(gradient), 0)
    _, new = jax.jit(tx.update)(gradient, state, start)
    expected = one_update(moved, mask, flat(gradient), keep, end)
    np.testing.assert_array_equal(flat(new.masks), expected)
    assert expected.sum() == end


def test_dense_gradients_are_declared_for_scheduled_calls():
    for call, (_, state) in enumerate(
        run(channel_sparsity=0.4, ratio_of="total"), start=1
    ):
        needed = flat(neurrev_jax.gradient_masks(state))
        np.testing.assert_array_equal(needed, flat(state.masks) | (call % 2 == 0))
    assert neurrev_jax.chase().cost.update == (2.0, 1.0)


# --- channels -----------------------------------------------------------------


def test_the_unmasked_mean_decides_which_channel_goes():
    """Over all positions .125 goes before .15; over active ones .5 would stay."""
    filters = np.float32([[0.5, 0, 0, 0], [0.2, 0.2, 0.2, 0]]).T
    tree = {"a": {"kernel": jnp.asarray(filters)}, "b": {"kernel": jnp.ones((2, 3))}}
    group = neurrev_jax.channel_group(tree, {"a/kernel": 1}, {"b/kernel": 0})
    method = neurrev_jax.chase(
        0.0,
        neurrev_jax.periodic(1),
        groups=[group],
        channel_sparsity=0.5,
        channel_window=(0, 1),
    )
    masks = jax.tree.map(lambda p: p != 0, tree)
    tx = neurrev_jax.sparse_transform(optax.sgd(0.0), method, masks=masks)
    state = tx.init(tree)
    _, state = jax.jit(tx.update)(tree, state, tree)
    assert left(state)[0].tolist() == [False, True]
    new = harness.leaves(state.masks)
    assert not new["a/kernel"][:, 0].any() and not new["b/kernel"][0].any()
    # What went, 1 + 3, has room for 1 only: the other filter's fourth position.
    assert new["a/kernel"][:, 1].all() and new["b/kernel"][1].all()


def test_removed_channels_take_everything_along_and_stay_away():
    history = run(channel_sparsity=0.4, ratio_of="total")
    gone_before = [np.zeros(10, bool), np.zeros(8, bool)]
    for values, state in history:
        gone = [~there for there in left(state)]
        for now, before in zip(gone, gone_before, strict=True):
            assert not (before & ~now).any(), "a channel came back"
        gone_before = gone
        masks, values = harness.leaves(state.masks), harness.leaves(values)
        for tree in (masks, values):
            assert not tree["a/kernel"][..., gone[0]].any()
            assert not tree["b/kernel"][:, :, gone[0], :].any()
            assert not tree["b/kernel"][..., gone[1]].any()
            assert not tree["c/kernel"][gone[1]].any()
        for path in ("a/bias", "norm/scale"):
            # Norm entries of the other channels are left alone.
            np.testing.assert_array_equal(masks[path], ~gone[0])
            np.testing.assert_array_equal(values[path] != 0, ~gone[0])
    assert sum(mask.sum() for mask in gone) == 7


def test_channels_go_along_the_cubic():
    """floor(18 * 0.4 * (1 - (1 - t/8)^3)) at calls 2, 4, 6 and 8."""
    history = run(channel_sparsity=0.4, ratio_of="total")
    removed = [sum(int((~there).sum()) for there in left(s)) for _, s in history]
    wanted = [int(7.2 * (1 - (1 - min(t - t % 2, 8) / 8) ** 3)) for t in range(13)]
    assert removed == wanted and removed[2] == 4 and removed[4] == 6


@pytest.mark.parametrize(
    ("floor", "widths"),
    [(0.35, [4, 5]), pytest.param(0.5, [5, 4], marks=pytest.mark.full)],
)
def test_every_group_keeps_its_floor(floor, widths):
    """All of the first group score lowest; of ten it keeps ceil(10 floor)."""
    method = neurrev_jax.chase(
        0.0,
        neurrev_jax.periodic(1),
        groups=groups(),
        channel_sparsity=0.5,
        channel_window=(0, 1),
        channel_floor=floor,
    )
    tx, tree = transform(method), params()
    tree["a"]["kernel"] = tree["a"]["kernel"] * 1e-3
    state = tx.init(tree)
    _, state = jax.jit(tx.update)(tree, state, neurrev_jax.sparsify(tree, state))
    assert [int(there.sum()) for there in left(state)] == widths


def test_leaves_that_are_to_be_dense_lose_removed_channels_only():
    """c reads b's channels, but the distribution leaves it out."""
    method = neurrev_jax.chase(
        0.05,
        EVERY,
        groups=groups(),
        channel_sparsity=0.2,
        channel_window=(0, 4),
        soft_until=4,
    )
    dense_c = {"a/kernel": 0.6, "b/kernel": 0.6}
    tx = transform(method, distribution=dense_c)
    tree = params()
    tree["b"]["kernel"] = tree["b"]["kernel"] * 1e-2
    for call, (_, state) in enumerate(harness.run(tx, tree, 6)):
        masks = harness.leaves(state.masks)
        there = left(state)[1]
        np.testing.assert_array_equal(
            masks["c/kernel"], np.broadcast_to(there[:, None], (8, 5))
        )
        soft = 7 if 2 <= call < 6 else 0  # floor(0.05 * 140)
        assert masks["a/kernel"].sum() + masks["b/kernel"].sum() == 24 + 32 + soft
    assert not there.all()


@pytest.mark.full
def test_frozen_leaves_lose_no_channels():
    method = neurrev_jax.chase(
        0.0,
        neurrev_jax.periodic(1),
        groups=groups(),
        channel_sparsity=0.2,
        channel_window=(0, 1),
        channel_floor=0.1,
    )
    tx, tree = transform(method), params()
    state = tx.init(tree)
    frozen = {"a": True, "norm": False, "b": False, "c": False}
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, frozen=frozen))
    _, new = update(tree, state, neurrev_jax.sparsify(tree, state))
    assert left(new)[0].all() and left(new)[1].sum() == 5
    np.testing.assert_array_equal(new.masks["a"]["kernel"], state.masks["a"]["kernel"])
    assert total(new) == BUDGET


def test_without_channels_to_remove_norm_parameters_have_no_masks():
    tx = transform(neurrev_jax.chase(groups=groups()))
    state = tx.init(params())
    assert state.masks["norm"]["scale"].shape == ()
    assert state.method_state.channels == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio_of": "typo"}, "ratio_of='typo'"),
        ({"update_ratio": 2.0}, "update_ratio"),
        ({"final_ratio": -1.0}, "final_ratio"),
        ({"channel_sparsity": 1.0, "groups": groups()}, "channel_sparsity=1"),
        ({"channel_sparsity": 0.3}, "needs groups="),
        ({"channel_floor": 0.0}, "channel_floor=0"),
        ({"channel_sparsity": 0.6, "groups": groups()}, r"of 18 channels 9 stay"),
        (
            {
                "channel_sparsity": 0.3,
                "groups": groups(),
                "channel_window": (4, 2),
            },
            "channel_window",
        ),
        ({"schedule": neurrev_jax.periodic(10, until=500)}, "soft_until"),
    ],
)
def test_chase_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        neurrev_jax.chase(**options)


def test_groups_and_masks_have_to_fit():
    method = neurrev_jax.chase(groups=groups(), channel_sparsity=0.3)
    other = params()
    other["c"]["kernel"] = jnp.ones((8, 6))
    with pytest.raises(ValueError, match=r"c/kernel of shape \(8, 5\)"):
        transform(method).init(other)


def test_given_masks_may_leave_norms_dense_and_layers_empty():
    """What is not counted loses channels only; an empty leaf may grow."""
    method = neurrev_jax.chase(
        0.1,
        neurrev_jax.periodic(1),
        groups=groups(),
        channel_sparsity=0.3,
        channel_window=(0, 1),
        soft_until=1,
    )
    masks = jax.tree.map(lambda p: p > 0, params())
    masks["norm"]["scale"] = masks["a"]["bias"] = jnp.array(True)
    masks["c"]["kernel"] = jnp.zeros_like(masks["c"]["kernel"])
    tx, tree = transform(method, masks=masks), params()
    state = tx.init(tree)
    asked = sum(harness.counts(state.masks)[path] for path in KERNELS)
    gradient = jax.tree.map(lambda p: 0.01 * p, params(1))
    gradient["c"]["kernel"] = gradient["c"]["kernel"] * 1e4
    _, state = jax.jit(tx.update)(gradient, state, neurrev_jax.sparsify(tree, state))
    gone = [~there for there in left(state)]
    assert sum(int(g.sum()) for g in gone) == 5
    for path in ("a/bias", "norm/scale"):
        np.testing.assert_array_equal(harness.leaves(state.masks)[path], ~gone[0])
    assert total(state) == asked + 18
    assert harness.leaves(state.masks)["c/kernel"].any()
