"""Masks drawn once: their counts, and the worked cases of their papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import neurrev_jax
from tests import harness, oracles

SIZE = 72 + 216 + 30


def net_loss(params, batch):
    return harness.net_loss(params, *batch)


def tempered_loss(params, batch, temperature):
    head = jax.tree.map(lambda p: p / temperature, params["head"])
    return harness.net_loss({**params, "head": head}, *batch)


def net_forward(params, stats, images):
    """The small network without normalization; `stats` is not used."""
    del stats
    conv = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(conv(images, params["conv"]["kernel"]))
    x = jax.nn.relu(conv(x, params["deep"]["kernel"])).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"][None, :]


DRAW = {
    "random": functools.partial(neurrev_jax.random_masks, distribution=harness.even),
    "magnitude": neurrev_jax.magnitude_masks,
    "snip": functools.partial(
        neurrev_jax.snip_masks, loss_fn=net_loss, batch=harness.batch(0)
    ),
    "grasp": functools.partial(
        neurrev_jax.grasp_masks, loss_fn=tempered_loss, batch=harness.batch(0)
    ),
    "synflow": functools.partial(
        neurrev_jax.synflow_masks, apply_fn=net_forward, input_shape=(1, 6, 6, 2),
        rounds=5,
    ),
    "fish": functools.partial(
        neurrev_jax.fish_masks, loss_fn=net_loss, batch=harness.batch(0, size=3)
    ),
}  # fmt: skip


@functools.cache
def jitted(name):
    """From parameters to masks, compiled once for all tests."""
    return jax.jit(lambda p: DRAW[name](p, 0.73, key=3))


def flat(tree):
    return np.concatenate([leaf.ravel() for leaf in harness.leaves(tree).values()])


# --- what all have in common --------------------------------------------------


@pytest.mark.parametrize("name", DRAW)
def test_counts_are_exact_and_static_trains_under_the_masks(name):
    """Under jit, with the sparsity as a plain number; then three steps."""
    params = harness.net_params()
    masks = jitted(name)(params)
    counts = harness.counts(masks)
    assert tuple(counts) == harness.KERNELS, "biases and norm parameters stay dense"
    if name == "random":
        sizes = {"conv/kernel": 72, "deep/kernel": 216, "head/kernel": 30}
        assert counts == {p: oracles.initial_count(n, 0.73) for p, n in sizes.items()}
    else:
        assert sum(counts.values()) == oracles.initial_count(SIZE, 0.73)
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), neurrev_jax.static(), masks=masks)
    updates, state = tx.update(params, tx.init(params), params)
    harness.assert_trees_equal(neurrev_jax.get_masks(state), masks)
    harness.assert_masked(optax.apply_updates(params, updates), masks)


def test_a_distribution_fixes_the_count_of_each_leaf():
    params = harness.net_params()
    masks = neurrev_jax.magnitude_masks(params, 0.6, distribution="erk")
    expected = harness.counts(neurrev_jax.random_masks(params, 0.6))
    assert harness.counts(masks) == expected


def test_where_says_what_may_be_masked():
    only = lambda path, leaf: path == "deep/kernel"
    masks = neurrev_jax.magnitude_masks(harness.net_params(), 0.5, where=only)
    assert harness.counts(masks) == {"deep/kernel": 108}


@pytest.mark.parametrize("name", DRAW)
def test_refused_sparsities(name):
    with pytest.raises(ValueError, match=r"sparsity=1\.5"):
        DRAW[name](harness.net_params(), 1.5)


def test_refused_combinations():
    params = harness.net_params()
    with pytest.raises(ValueError, match="by path needs a distribution"):
        neurrev_jax.magnitude_masks(params, {"*": 0.9})
    with pytest.raises(ValueError, match="distribution='typo'"):
        neurrev_jax.magnitude_masks(params, 0.9, distribution="typo")
    vector = lambda params, batch: batch[0].sum((1, 2, 3))
    for name in ("snip", "fish"):
        with pytest.raises(ValueError, match="must return one number"):
            DRAW[name](params, loss_fn=vector)


# --- random, magnitude --------------------------------------------------------


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_random_masks_are_those_the_transformation_draws(distribution):
    params = harness.net_params()
    options = {"distribution": distribution, "key": 5}
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=0.7, **options)
    expected = tx.init(params).masks
    got = neurrev_jax.random_masks(params, 0.7, **options)
    harness.assert_trees_equal(got, expected)


def test_magnitude_masks_keep_the_largest_of_all_leaves():
    params = harness.net_params()
    params["conv"]["kernel"] = params["conv"]["kernel"] * 2
    masks = harness.leaves(neurrev_jax.magnitude_masks(params, 0.8))
    size = np.concatenate(
        [np.abs(harness.leaves(params)[p]).ravel() for p in harness.KERNELS]
    )
    got = np.concatenate([masks[path].ravel() for path in harness.KERNELS])
    kept = oracles.initial_count(SIZE, 0.8)
    np.testing.assert_array_equal(got, oracles.lowest(-size, np.ones(SIZE, bool), kept))


def test_equal_scores_are_settled_by_the_key():
    params = {"kernel": jnp.ones((30, 30))}
    masks = [
        np.asarray(neurrev_jax.magnitude_masks(params, 0.5, key=key)["kernel"])
        for key in (0, 0, 1)
    ]
    assert (masks[0] == masks[1]).all() and (masks[0] != masks[2]).any()
    assert [mask.sum() for mask in masks] == [450] * 3


# --- SNIP ---------------------------------------------------------------------


def squared_loss(params, batch):
    """Half the squared error of a linear unit whose weights form a matrix."""
    x, y = batch
    return jnp.square(jnp.sum(params["kernel"] * x) - y) / 2


@pytest.mark.parametrize("scale", [1.0, 3e4])
def test_snip_of_a_linear_unit_ranks_by_w_times_x(scale):
    """|dL/dc_i| = |error| |w_i x_i|, whatever the loss is multiplied by."""
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=(6, 7)), jnp.float32) for _ in range(2))
    masks = neurrev_jax.snip_masks(
        {"kernel": w},
        0.7,
        loss_fn=lambda p, b: squared_loss(p, b) * scale,
        batch=(x, jnp.float32(0.5)),
    )
    expected = oracles.lowest(-np.abs(w * x), np.ones((6, 7), bool), 42 - 29)
    np.testing.assert_array_equal(masks["kernel"], expected)


def test_snip_scores_are_derivatives_by_a_factor_on_every_connection():
    params, batch = harness.net_params(), harness.batch(0)

    def loss(factors):
        scaled = jax.tree.map(jnp.multiply, params, factors)
        return net_loss(scaled, batch)

    by_factor = harness.leaves(
        jax.jit(jax.grad(loss))(jax.tree.map(jnp.ones_like, params))
    )
    scores = np.concatenate([np.abs(by_factor[p]).ravel() for p in harness.KERNELS])
    masks = harness.leaves(jitted("snip")(params))
    got = np.concatenate([masks[path].ravel() for path in harness.KERNELS])
    kept = oracles.initial_count(SIZE, 0.73)
    oracles.check_selection(got, -scores.round(6), np.ones(SIZE, bool), kept)


# --- GraSP --------------------------------------------------------------------


def quadratic(params, batch, temperature):
    """Half theta' A theta over kernel and bias, a mean over the batch's A."""
    theta = jnp.concatenate([params["kernel"].ravel(), params["bias"]])
    return jnp.einsum("i,bij,j->b", theta, batch, theta).mean() / 2 / temperature


def test_grasp_removes_the_highest_score_first():
    """A = diag(2, 1), theta = (1, 3): S = -theta A A theta = (-4, -9)."""
    params = {"kernel": jnp.array([[1.0, 3.0]]), "bias": jnp.zeros(1)}
    masks = neurrev_jax.grasp_masks(
        params,
        0.5,
        loss_fn=quadratic,
        batch=jnp.diag(jnp.array([2.0, 1.0, 0.0]))[None],
        parts=1,
        redraw="nothing",
        where=lambda path, leaf: path == "kernel",
    )
    np.testing.assert_array_equal(masks["kernel"], [[False, True]])


@pytest.mark.parametrize("parts", [1, 2])
def test_grasp_sums_parts_and_leaves_unscored_parameters_out_of_the_hessian(parts):
    rng = np.random.default_rng(1)
    theta = rng.normal(size=14)
    curvature = rng.normal(size=(4, 14, 14))
    curvature = curvature + curvature.transpose(0, 2, 1)
    params = {
        "kernel": jnp.asarray(theta[:12].reshape(3, 4), jnp.float32),
        "bias": jnp.asarray(theta[12:], jnp.float32),
    }
    masks = neurrev_jax.grasp_masks(
        params,
        0.5,
        loss_fn=quadratic,
        batch=jnp.asarray(curvature, jnp.float32),
        parts=parts,
        redraw="nothing",
    )
    pieces = curvature.reshape(parts, 4 // parts, 14, 14).mean(1)
    flow = sum(a @ theta for a in pieces)[:12]
    curved = sum(a[:12, :12] @ flow for a in pieces)
    score = -theta[:12] * curved
    expected = oracles.lowest(score, np.ones(12, bool), 6)
    np.testing.assert_array_equal(np.ravel(masks["kernel"]), expected)


def test_grasp_passes_the_temperature_on():
    """The loss with the derivative (theta - T) keeps what lies far from T."""
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    loss = lambda p, batch, t: jnp.sum((p["kernel"] - t) ** 2) / 2 * batch.mean()
    masks = neurrev_jax.grasp_masks(
        params,
        0.5,
        loss_fn=loss,
        batch=jnp.ones(2),
        temperature=5.0,
        redraw="nothing",
    )
    # theta (theta - T) is -4, -6, -6, -4; with any T above 7 the first two would stay.
    np.testing.assert_array_equal(masks["kernel"], [[True, False], [False, True]])


def test_grasp_scores_a_classifier_drawn_anew():
    """Its own values make no difference; convolutions are scored as they are."""
    params = harness.net_params()
    other = harness.net_params()
    other["head"]["kernel"] = other["head"]["kernel"] * jnp.float32(-3)
    draw = jitted("grasp")
    harness.assert_trees_equal(draw(params), draw(other))
    harness.assert_trees_equal(other["conv"], params["conv"])
    other["conv"]["kernel"] = other["conv"]["kernel"] * jnp.float32(-3)
    assert (flat(draw(params)) != flat(draw(other))).any()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parts": 3}, "parts=3 does not divide a batch of 8"),
        ({"batch": (jnp.ones(4), jnp.ones(2))}, "first axis"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"redraw": "typo"}, "redraw='typo'"),
    ],
)
def test_grasp_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        DRAW["grasp"](harness.net_params(), **options)


def test_class_balanced_indices():
    labels = np.random.default_rng(0).integers(0, 5, size=200)
    picked = neurrev_jax.class_balanced_indices(labels, 4, key=1)
    assert len(set(picked.tolist())) == 20
    # Every turn holds each class once, so halves are balanced too.
    np.testing.assert_array_equal(labels[picked].reshape(4, 5), [range(5)] * 4)
    other = neurrev_jax.class_balanced_indices(labels, 4, key=2)
    assert (picked != other).any()
    with pytest.raises(ValueError, match="per_class=100"):
        neurrev_jax.class_balanced_indices(labels, 100)
    with pytest.raises(ValueError, match="per_class=0"):
        neurrev_jax.class_balanced_indices(labels, 0)


# --- FISH ---------------------------------------------------------------------


def test_fish_squares_the_gradient_of_each_example():
    """Gradients +1 and -1 score 2; the square of their mean would be 0."""
    params = {"kernel": jnp.ones((2, 2))}
    gradients = jnp.array([[[1.0, 0.9], [0.9, 0.1]], [[-1.0, 0.9], [0.9, 0.1]]])
    loss = lambda p, batch: jnp.sum(p["kernel"][None] * batch) / batch.shape[0]
    masks = neurrev_jax.fish_masks(params, 0.75, loss_fn=loss, batch=gradients)
    np.testing.assert_array_equal(masks["kernel"], [[True, False], [False, False]])


def test_fish_of_a_linear_model_in_numpy():
    rng = np.random.default_rng(2)
    w, x, y = (
        rng.normal(size=(5, 3)),
        rng.normal(size=(20, 5)),
        rng.normal(size=(20, 3)),
    )
    error = x @ w - y
    fisher = np.einsum("bi,bj->ij", x**2, error**2)
    as_floats = lambda *arrays: [jnp.asarray(a, jnp.float32) for a in arrays]
    [kernel], batch = as_floats(w), tuple(as_floats(x, y))
    loss = lambda p, one: jnp.square(one[0] @ p["kernel"] - one[1]).sum() / 2
    masks = neurrev_jax.fish_masks({"kernel": kernel}, 0.6, loss_fn=loss, batch=batch)
    expected = oracles.lowest(-fisher, np.ones((5, 3), bool), 6)
    np.testing.assert_array_equal(masks["kernel"], expected)


def test_fish_in_update_mode_leaves_unselected_parameters_where_they_are():
    """End to end, through decay and momentum: bit for bit the initial values."""
    initial = harness.net_params()
    masks = DRAW["fish"](initial, 0.9, mode="update")
    every = harness.leaves(initial)
    assert {p: m.shape for p, m in harness.leaves(masks).items()} == {
        path: leaf.shape for path, leaf in every.items()
    }, "biases and norm parameters are selected from as well"
    total = sum(leaf.size for leaf in every.values())
    assert flat(masks).sum() == oracles.initial_count(total, 0.9)
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    method = neurrev_jax.static(inactive="hold")
    tx = neurrev_jax.sparse_transform(inner, method, masks=masks)
    history = harness.run(tx, initial, 3)
    harness.assert_trees_equal(history[0][0], initial)
    params, state = history[-1]
    moved = flat(params) != flat(initial)
    np.testing.assert_array_equal(moved, flat(masks))
    harness.assert_trees_equal(neurrev_jax.effective_params(params, state), params)
    harness.assert_trees_equal(neurrev_jax.gradient_masks(state), masks)
    # The network is dense all the while, and said to cost that.
    assert method.cost.per_example(0.1, 1.0) == 3.0


def test_fish_in_zero_mode_selects_kernels_only():
    masks = DRAW["fish"](harness.net_params(), 0.9)
    assert tuple(harness.counts(masks)) == harness.KERNELS


def test_refused_words():
    with pytest.raises(ValueError, match="mode='typo'"):
        DRAW["fish"](harness.net_params(), mode="typo")
    with pytest.raises(ValueError, match="inactive='typo'"):
        neurrev_jax.static(inactive="typo")
