"""Activation functions against their formulas, and their piecewise-linear versions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from neurrev_jax import models

erf = np.vectorize(math.erf)
SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772

FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "swish": lambda x: x / (1 + np.exp(-x)),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
}

# Largest error with 16 segments, first and last breakpoint, step at the first one,
# slope right of the last one: what the documentation says.
TABLES = {
    "elu": (0.025, -8, 0, 0.0004, 1),
    "selu": (0.044, -8, 0, 0.0006, SCALE),
    "sigmoid": (0.012, -8, 8, 0.0004, 0),
    "tanh": (0.024, -4, 4, 0.0007, 0),
    "swish": (0.055, -8, 8, 0.0027, 1),
    "gelu": (0.024, -4, 4, 0.0002, 1),
}
CHEAP = sorted(set(FORMULAS) - set(TABLES))


def grid():
    return np.linspace(-12, 12, 48_001).astype(np.float32)


def evaluate(function, x):
    return np.asarray(jax.jit(function)(jnp.asarray(x)), np.float64)


def slope(function, x):
    return np.asarray(jax.jit(jax.vmap(jax.grad(function)))(jnp.asarray(x)))


def largest_error(name, segments):
    x = grid()
    function = models.make_activation(name, hardware=True, segments=segments)
    return np.abs(evaluate(function, x) - FORMULAS[name](x.astype(np.float64))).max()


def test_the_names_are_all_there_are():
    assert set(models.ACTIVATION_NAMES) == set(FORMULAS) | {"prelu"}
    assert len(models.ACTIVATION_NAMES) == 11


@pytest.mark.parametrize("name", FORMULAS)
def test_exact_functions_are_the_formulas(name):
    x = grid()
    expected = FORMULAS[name](x.astype(np.float64))
    actual = evaluate(models.make_activation(name), x)
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


# --- what hardware computes ---------------------------------------------------


@pytest.mark.parametrize("name", CHEAP)
def test_what_hardware_computes_anyway_stays_as_it_is(name):
    assert models.make_activation(name, True) is models.make_activation(name)


@pytest.mark.parametrize("name", TABLES)
def test_hardware_error_is_the_documented_one(name):
    documented, _, _, step, _ = TABLES[name]
    error = largest_error(name, None)
    assert error <= documented
    assert error > documented - 0.0015, "the documentation promises too little"
    # Quadratic in the width of a segment, down to the step at the end.
    assert largest_error(name, 32) < error / 3.2
    assert largest_error(name, 256) <= step + 2e-6


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("segments", [1, 7, 16])
def test_hardware_is_exact_at_the_breakpoints_and_linear_between(name, segments):
    _, low, high, _, _ = TABLES[name]
    function = models.make_activation(name, hardware=True, segments=segments)
    at = np.linspace(low, high, segments + 1)
    values = FORMULAS[name](at)
    # The ends in float32 are the ends; other breakpoints may be rounded, which the
    # continuity of the function makes up for.
    actual = evaluate(function, at.astype(np.float32))
    np.testing.assert_allclose(actual, values, atol=3e-6)
    shares = np.array([[0.25], [0.5], [0.9]])
    between = (at[:-1] + shares * np.diff(at)).ravel().astype(np.float32)
    expected = (values[:-1] + shares * np.diff(values)).ravel()
    np.testing.assert_allclose(evaluate(function, between), expected, atol=3e-6)
    slopes = np.tile(np.diff(values) / np.diff(at), 3)
    np.testing.assert_allclose(slope(function, between), slopes, atol=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_hardware_is_the_asymptote_outside(name):
    _, low, high, step, right = TABLES[name]
    function = models.make_activation(name, hardware=True)
    x = np.float32([low - 1e-3, low - 5, -1e30, -np.inf, high + 1e-3, high + 5, 1e30])
    actual = evaluate(function, x)
    limit = FORMULAS[name](np.array(-200.0))
    np.testing.assert_allclose(actual[:4], limit, rtol=1e-6, atol=1e-30)
    assert abs(limit - FORMULAS[name](np.array(float(low)))) <= step
    far = FORMULAS[name](np.array([200.0, 201.0]))
    np.testing.assert_allclose(far[1] - far[0], right, atol=1e-9)
    line = right * x[4:] + (far[0] - right * 200)
    np.testing.assert_allclose(actual[4:], line, rtol=1e-6)
    expected = np.float32([0, 0, 0, 0, right, right, right])
    np.testing.assert_allclose(slope(function, x), expected, rtol=1e-6)

    top, nan = evaluate(function, np.float32([np.inf, np.nan]))
    assert top == (np.inf if right else 1)
    assert np.isnan(nan)


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_dtype_is_kept(name, hardware):
    x = jnp.asarray([-1.5, 0.3, 2.0], jnp.bfloat16)
    y = models.make_activation(name, hardware)(x)
    assert y.dtype == jnp.bfloat16
    wide = models.make_activation(name, hardware)(x.astype(jnp.float32))
    np.testing.assert_allclose(y.astype(jnp.float32), wide, rtol=1e-2, atol=4e-3)


# --- in a network -------------------------------------------------------------


def one_layer(**options):
    return models.VGG((1,), (8,), num_classes=3, **options)


def feature_maps(model, variables, images):
    _, seen = model.apply(variables, images, mutable=[models.ACTIVATIONS])
    return np.asarray(seen[models.ACTIVATIONS]["stage_1"]["layer_1"]["relu"])


@pytest.fixture(scope="module")
def images():
    return 4 * jax.random.normal(jax.random.key(1), (2, 6, 6, 3))


@pytest.fixture(scope="module")
def layer(images):
    """Variables of a network of one layer and what comes out before activation."""
    model = one_layer(activation=lambda x: x)
    options = {"xla_backend_optimization_level": 0}
    init = jax.jit(model.init, compiler_options=options)
    variables = init(jax.random.key(0), images)
    variables = {name: variables[name] for name in ("params", "batch_stats")}
    return variables, feature_maps(model, variables, images)


@pytest.mark.parametrize("name", FORMULAS)
def test_networks_take_every_name(name, layer, images):
    variables, before = layer
    assert before.min() < -3 and before.max() > 3
    exact = feature_maps(one_layer(activation=name), variables, images)
    expected = FORMULAS[name](before.astype(np.float64))
    np.testing.assert_allclose(exact, expected, rtol=2e-5, atol=5e-6)
    hardware = one_layer(activation=name, hardware=True)
    approximate = feature_maps(hardware, variables, images)
    if name in CHEAP:
        np.testing.assert_array_equal(approximate, exact)
    else:
        error = np.abs(approximate - expected).max()
        assert TABLES[name][0] / 4 < error <= TABLES[name][0]


@pytest.mark.parametrize("hardware", [False, True])
def test_prelu_learns_a_slope_per_channel(hardware, layer, images):
    variables, before = layer
    model = one_layer(activation="prelu", hardware=hardware)
    options = {"xla_backend_optimization_level": 0}
    init = jax.jit(model.init, compiler_options=options)
    params = init(jax.random.key(0), images)["params"]["stage_1"]["layer_1"]
    # Nothing named kernel, which would be masked.
    assert set(params) == {"conv", "norm", "prelu"}
    assert {name: leaf.shape for name, leaf in params["prelu"].items()} == {
        "slope": (8,)
    }
    np.testing.assert_array_equal(params["prelu"]["slope"], 0.25)
    slopes = np.linspace(-0.5, 1, 8).astype(np.float32)
    plain = variables["params"]["stage_1"]["layer_1"]
    learned = {**plain, "prelu": {"slope": jnp.asarray(slopes)}}
    params = {**variables["params"], "stage_1": {"layer_1": learned}}
    variables = {**variables, "params": params}
    actual = feature_maps(model, variables, images)
    expected = np.maximum(before, 0) + slopes * np.minimum(before, 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_prelu_gradient_is_the_sum_of_the_negative_part():
    x = jnp.array([[-2.0, 3.0], [-1.0, -4.0]])
    variables = models.PReLU().init(jax.random.key(0), x)
    grad = jax.grad(lambda v: models.PReLU().apply(v, x).sum())(variables)
    np.testing.assert_allclose(grad["params"]["slope"], [-3, -4])
    assert models.PReLU().apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_hardware_knows_the_name_of_a_function(layer, images):
    variables, _ = layer
    by_name = one_layer(activation="elu", hardware=True)
    by_function = one_layer(activation=nn.elu, hardware=True)
    np.testing.assert_array_equal(
        feature_maps(by_name, variables, images),
        feature_maps(by_function, variables, images),
    )
    default = one_layer(hardware=True)
    assert feature_maps(default, variables, images).min() == 0


# --- errors -------------------------------------------------------------------


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"'rleu'.*'leaky_relu'"):
        models.make_activation("rleu")
    for wrong in ("rleu", 3):
        with pytest.raises(ValueError, match=f"{wrong!r}.*'leaky_relu'"):
            one_layer(activation=wrong).init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


def test_hardware_needs_a_name():
    model = one_layer(activation=lambda x: x, hardware=True)
    with pytest.raises(ValueError, match=r"hardware=True.*'gelu'.*hardware=False"):
        model.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


def test_prelu_is_no_plain_function():
    with pytest.raises(ValueError, match=r"models\.PReLU"):
        models.make_activation("prelu")


@pytest.mark.parametrize("segments", [0, -3, 2.5, True, "16"])
def test_segments_out_of_range(segments):
    with pytest.raises(ValueError, match=f"segments={segments!r} must be"):
        models.make_activation("elu", hardware=True, segments=segments)


@pytest.mark.parametrize(("name", "hardware"), [("relu", True), ("elu", False)])
def test_segments_where_there_is_no_table(name, hardware):
    with pytest.raises(ValueError, match="leave segments out"):
        models.make_activation(name, hardware, segments=8)
