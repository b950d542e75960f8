import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurrev_jax
from neurrev_jax import models


def observe(*batches, **options):
    stats = None
    for batch in batches:
        stats = neurrev_jax.observe_activations(stats, batch, **options)
    return stats


def test_oracle_biases_plus_and_minus_one_give_rate_one_half():
    kernel, bias = jnp.zeros((3, 3, 1, 2)), jnp.array([1.0, -1.0])
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1))
    y = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stats = observe({"relu": jax.nn.relu(y + bias[None, None, None])})
    rates = neurrev_jax.dormant_rate(stats)
    assert float(rates.overall) == 0.5
    assert float(rates.layers["relu"]) == 0.5
    np.testing.assert_array_equal(
        neurrev_jax.dormant(stats)["relu"], np.array([False, True])
    )


def test_statistics_over_batches_equal_those_of_all_examples_at_once():
    h = np.maximum(np.random.default_rng(0).normal(size=(12, 4, 4, 5)) - 1, 0)
    h[..., 2] = 0
    h = h.astype(np.float32)
    stats = observe({"a": jnp.array(h[:5])}, {"a": jnp.array(h[5:])})
    np.testing.assert_array_equal(stats.maximum["a"], h.max((0, 1, 2)))
    np.testing.assert_array_equal(stats.zeros["a"], (h == 0).sum((0, 1, 2)))
    np.testing.assert_allclose(stats.magnitude["a"], h.sum((0, 1, 2)), rtol=1e-6)
    assert int(stats.count["a"]) == 12 * 16
    assert [x.shape for x in jax.tree.leaves(stats)] == [(5,), (5,), (5,), ()]


def test_one_active_position_of_one_example_keeps_a_channel_awake():
    h = jnp.zeros((4, 3, 3, 2)).at[3, 1, 2, 0].set(1e-30)
    stats = observe({"a": h[:2]}, {"a": h[2:]})
    np.testing.assert_array_equal(
        neurrev_jax.dormant(stats)["a"], np.array([False, True])
    )


def test_excluded_examples_do_not_count():
    h = jnp.ones((4, 3)).at[:2].set(0.0)
    stats = observe({"a": h}, include=jnp.array([True, True, False, False]))
    assert float(neurrev_jax.dormant_rate(stats).overall) == 1.0
    assert int(stats.count["a"]) == 2
    np.testing.assert_array_equal(stats.zeros["a"], np.array([2, 2, 2]))


def test_apoz_counts_channels_that_are_zero_nearly_always():
    h = jnp.zeros((1000, 3)).at[:10, 1].set(1.0).at[:11, 2].set(1.0)
    stats = observe({"a": h})
    expected = np.array([True, True, False])
    np.testing.assert_array_equal(neurrev_jax.dormant(stats, "apoz")["a"], expected)
    all_zero = neurrev_jax.dormant(stats, "apoz", 1.0)["a"]
    np.testing.assert_array_equal(all_zero, neurrev_jax.dormant(stats)["a"])


def test_score_compares_a_channel_with_its_layer():
    h = jnp.stack([jnp.full(8, x) for x in (0.0, 0.1, 1.0, 2.9)], axis=1)  # mean 1
    stats = observe({"a": h, "silent": jnp.zeros((8, 2))})
    chosen = neurrev_jax.dormant(stats, "score", 0.1001)
    np.testing.assert_array_equal(chosen["a"], np.array([True, True, False, False]))
    np.testing.assert_array_equal(chosen["silent"], np.array([True, True]))


def test_rate_weighs_layers_by_their_channels_and_can_leave_some_out():
    stats = observe({"one": jnp.zeros((2, 1)), "three": jnp.ones((2, 3))})
    assert float(neurrev_jax.dormant_rate(stats).overall) == 0.25
    chosen = neurrev_jax.dormant_rate(stats, where=lambda path: path == "one")
    assert float(chosen.overall) == 1.0
    assert list(chosen.layers) == ["one"]


def test_negative_activations_are_not_dormant():
    stats = observe({"a": jnp.full((2, 1), -0.5)})
    assert float(neurrev_jax.dormant_rate(stats).overall) == 0.0


def test_nan_is_not_dormant():
    stats = observe({"a": jnp.full((2, 1), jnp.nan)})
    for criterion in ("zero", "apoz", "score"):
        assert not bool(neurrev_jax.dormant(stats, criterion)["a"][0])


def test_replicas_together_see_what_one_would():
    h = jax.nn.relu(jax.random.normal(jax.random.key(0), (8, 5, 3)) - 1.5)

    def one(h):
        stats = observe({"a": h})
        return neurrev_jax.all_reduce_activations(stats, "batch")

    together = jax.pmap(one, axis_name="batch")(h.reshape(8, 1, 5, 3))
    alone = observe({"a": h})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[3], b, rtol=1e-6), together, alone
    )


def test_scan_jit_and_the_network_fit_together():
    model = models.ResNet((1,), (4,), num_classes=3)
    images = jax.random.normal(jax.random.key(1), (3, 2, 8, 8, 1))
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    variables = init(jax.random.key(0), images[0])
    # BatchNorm turned off below zero: channel 1 of the stem cannot be reached.
    params = dict(variables["params"])
    stem = params["stem"]["norm"]
    params["stem"] = {
        **params["stem"],
        "norm": {
            "scale": stem["scale"].at[1].set(0.0),
            "bias": stem["bias"].at[1].set(-1.0),
        },
    }
    variables = {"params": params, "batch_stats": variables["batch_stats"]}

    def activations(images):
        _, seen = model.apply(variables, images, mutable=[models.ACTIVATIONS])
        return seen[models.ACTIVATIONS]

    @jax.jit
    def measure(images):
        def body(stats, batch):
            return neurrev_jax.observe_activations(stats, activations(batch)), None

        shapes = jax.eval_shape(activations, images[0])
        start = neurrev_jax.init_activation_stats(shapes)
        return neurrev_jax.dormant_rate(jax.lax.scan(body, start, images)[0])

    rates = measure(images)
    assert float(rates.layers["stem/relu"]) == 0.25
    assert float(rates.overall) == pytest.approx(1 / 12)


def test_a_dormant_channel_has_exactly_zero_gradients():
    key = jax.random.key(0)
    x = jax.random.normal(key, (16, 3))
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.array([0.0, -100.0])}

    def loss(params):
        h = jax.nn.relu(x @ params["kernel"] + params["bias"][None])
        return jnp.sum(h**2), h

    grads, h = jax.grad(loss, has_aux=True)(params)
    silent = neurrev_jax.dormant(observe({"h": h}))["h"]
    np.testing.assert_array_equal(silent, np.array([False, True]))
    np.testing.assert_array_equal(grads["kernel"][:, 1], 0)
    assert float(grads["bias"][1]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "zeros"}, "choose 'zero', 'apoz' or 'score'"),
        ({"criterion": "zero", "threshold": 0.5}, "has no meaning"),
        ({"criterion": "apoz", "threshold": 1.5}, r"lie in \[0, 1\]"),
        ({"where": lambda path: False}, "no layer to measure; the layers are a"),
    ],
)
def test_wrong_options_are_errors(options, message):
    stats = observe({"a": jnp.ones((2, 1))})
    with pytest.raises(ValueError, match=message):
        neurrev_jax.dormant_rate(stats, **options)


def test_activations_without_channels_are_an_error():
    with pytest.raises(ValueError, match="has no channels"):
        neurrev_jax.init_activation_stats({"a": jnp.ones(3)})
