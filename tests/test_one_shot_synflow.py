"""SynFlow: worked scores, exact rescaling, no empty layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurrev_jax
from tests import harness, oracles


def everywhere(path, leaf):
    del path, leaf
    return True


def kernels(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"layer_{i:02d}": {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
        for i, shape in enumerate(shapes)
    }


def mlp(params, stats, x):
    """A chain of linear layers with ReLU between them, biases where there are any."""
    del stats
    for layer in params.values():
        bias = layer.get("bias", jnp.zeros(layer["kernel"].shape[1]))
        x = jax.nn.relu(x @ layer["kernel"] + bias[None, :])
    return x


def draw(params, sparsity, **options):
    first = next(iter(params.values()))["kernel"].shape[0]
    options = {"apply_fn": mlp, "input_shape": (1, first), **options}
    return neurrev_jax.synflow_masks(params, sparsity, **options)


def test_the_worked_scores():
    """W1 = [[1, -2], [.5, 3]], W2 = [2, -1]: scores [[2, 4], [.5, 3]] and [6, 3.5]."""
    params = {
        "layer_1": {"kernel": jnp.array([[1.0, 0.5], [-2.0, 3.0]])},
        "layer_2": {"kernel": jnp.array([[2.0], [-1.0]])},
    }
    scores = np.array([2.0, 0.5, 4.0, 3.0, 6.0, 3.5])
    masks = draw(params, 0.5, rounds=1, where=everywhere)
    got = np.concatenate([m.ravel() for m in harness.leaves(masks).values()])
    np.testing.assert_array_equal(got, oracles.lowest(-scores, np.ones(6, bool), 3))


def synflow(weights, biases, sparsity, rounds):
    """Algorithm 1 for such a chain, in float64."""
    masks = [np.ones(w.shape, bool) for w in weights]
    size = sum(w.size for w in weights)
    final = oracles.initial_count(size, sparsity)
    for j in range(1, rounds + 1):
        ws = [np.abs(w) * m for w, m in zip(weights, masks, strict=True)]
        activations = [np.ones(weights[0].shape[0])]
        for w, b in zip(ws, biases, strict=True):
            activations.append(activations[-1] @ w + np.abs(b))
        back = [np.ones(weights[-1].shape[1])]
        for w, after in zip(ws[::-1], activations[:0:-1], strict=True):
            back.append(w @ (back[-1] * (after > 0)))
        alive = [after > 0 for after in activations[1:]]
        scores = [
            a[:, None] * w * (b * on)[None, :]
            for a, w, b, on in zip(
                activations[:-1], ws, back[-2::-1], alive, strict=True
            )
        ]
        flat = np.concatenate([s.ravel() for s in scores])
        candidates = np.concatenate([m.ravel() for m in masks])
        kept = max(final, round(size * (final / size) ** (j / rounds)))
        chosen = oracles.lowest(-flat, candidates, kept if j < rounds else final)
        ends = np.cumsum([w.size for w in weights])[:-1]
        masks = [
            part.reshape(w.shape)
            for part, w in zip(np.split(chosen, ends), weights, strict=True)
        ]
    return masks


def test_the_rounds_are_those_of_the_algorithm():
    shapes = ((6, 20), (20, 16), (16, 12), (12, 5))
    params = kernels(*shapes)
    rng = np.random.default_rng(7)
    for layer, (_, width) in zip(params.values(), shapes, strict=True):
        bias = rng.normal(size=width)
        layer["bias"] = jnp.asarray(bias, jnp.float32)
    weights = [np.float64(layer["kernel"]) for layer in params.values()]
    biases = [np.float64(layer["bias"]) for layer in params.values()]
    masks = jax.jit(lambda p: draw(p, 0.9, rounds=20))(params)
    expected = synflow(weights, biases, 0.9, 20)
    for layer, mask in zip(masks.values(), expected, strict=True):
        np.testing.assert_array_equal(layer["kernel"], mask)


def test_networks_whose_flow_does_not_fit_a_float32():
    """Scaling every layer by a power of two changes no rank, to the last bit."""
    depth = 12
    params = kernels(*[(12, 12)] * depth)
    draw_all = jax.jit(lambda p: draw(p, 0.8, rounds=10))
    plain = draw_all(params)
    for exponent, extreme in [(14, jnp.inf), (-18, 0.0)]:
        scaled = jax.tree.map(lambda w, e=exponent: w * jnp.float32(2.0**e), params)
        outputs = mlp(jax.tree.map(jnp.abs, scaled), None, jnp.ones((1, 12)))
        assert bool((outputs == extreme).all())
        harness.assert_trees_equal(draw_all(scaled), plain)
    size = 144 * depth
    assert sum(harness.counts(plain).values()) == oracles.initial_count(size, 0.8)
    weights = [np.float64(layer["kernel"]) for layer in params.values()]
    expected = synflow(weights, [np.zeros(12)] * depth, 0.8, 10)
    got = [np.asarray(layer["kernel"]) for layer in plain.values()]
    np.testing.assert_array_equal(got, expected)


def test_a_distribution_fixes_the_count_of_each_leaf():
    params = kernels((6, 10), (10, 8))
    by_path = {"layer_00/*": 0.9, "layer_01/*": 0.5}
    masks = draw(params, by_path, rounds=3, distribution=harness.even)
    assert harness.counts(masks) == {"layer_00/kernel": 6, "layer_01/kernel": 40}


def test_no_layer_is_emptied_before_all_that_are_left_is_one_path():
    """Of 1,228 weights 6 stay, in four layers; one round alone empties some."""
    params = kernels((10, 30), (30, 24), (24, 8), (8, 2), seed=3)
    sparsity = 1 - 6 / 1228
    masks = draw(params, sparsity, rounds=100)
    counts = harness.counts(masks)
    assert sum(counts.values()) == 6 and min(counts.values()) >= 1
    path = np.ones(10)
    for layer in masks.values():
        path = path @ np.asarray(layer["kernel"])
    assert path.any(), "there is a way from input to output"
    at_once = harness.counts(draw(params, sparsity, rounds=1))
    assert min(at_once.values()) == 0


def test_absolute_statistics_and_parameters_are_what_the_network_gets():
    """Where a sign came through, the ReLU would silence that unit."""
    params = kernels((2, 4))
    params["layer_00"]["scale"] = jnp.array([1.0, -1.0, 1.0, -1.0])
    stats = {"gate": jnp.array([1.0, 1.0, -1.0, -1.0]), "mean": jnp.zeros(4)}

    def apply(params, stats, x):
        layer = params["layer_00"]
        shape = (layer["scale"] * stats["gate"])[None, :]
        return jax.nn.relu(x @ layer["kernel"] * shape - stats["mean"][None, :])

    masks = draw(params, 0.5, apply_fn=apply, stats=stats, rounds=1)
    size = np.abs(params["layer_00"]["kernel"])
    expected = oracles.lowest(-size, np.ones((2, 4), bool), 4)
    np.testing.assert_array_equal(masks["layer_00"]["kernel"], expected)


def test_the_parameters_stay_as_they_are_and_rounds_are_checked():
    params = kernels((3, 4), (4, 2))
    before = jax.tree.map(jnp.copy, params)
    draw(params, 0.5, rounds=2)
    harness.assert_trees_equal(params, before)
    with pytest.raises(ValueError, match="rounds=0"):
        draw(params, 0.5, rounds=0)
