"""A training step exported to LiteRT trains as JAX and Optax do, under masks."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

import neurrev_jax
from neurrev_jax import models
from tflite_export import ExportError, VerificationError, training_step
from tflite_export.convolution import convolve, max_pool
from tflite_export.convolution_rules import with_builtin_gradients
from tflite_export.trainer import Trainer, params_and_masks, with_masks
from tflite_export.training_step import convert_training_step
from tflite_export.training_step_sgd import Step

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
NHWC = ("NHWC", "HWIO", "NHWC")
BATCH, DECAY, RATE = 32, 1e-3, 0.1


def compiled(function):
    """Without optimization, which would take longer than everything else."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


class Everything(nn.Module):
    """Every kind of layer that the networks have, on 8 x 8 pixels."""

    convolution: object = models.loop_convolution

    @nn.compact
    def __call__(self, x, train=False):
        def conv(x, features, size, strides, name, groups=1):
            pad = size // 2
            return nn.Conv(
                features,
                (size, size),
                strides=(strides, strides),
                padding=((pad, pad), (pad, pad)),
                feature_group_count=groups,
                use_bias=False,
                conv_general_dilated=self.convolution,
                name=name,
            )(x)

        def norm(x, name):
            return nn.BatchNorm(not train, momentum=0.9, name=name)(x)

        x = nn.relu(norm(conv(x, 8, 3, 1, "stem"), "stem_norm"))
        y = norm(conv(x, 8, 3, 2, "strided"), "strided_norm")
        x = nn.relu(y + conv(x, 8, 1, 2, "shortcut"))
        x = nn.max_pool(x, (3, 3), strides=(1, 1), padding=((1, 1), (1, 1)))
        x = nn.relu(norm(conv(x, 8, 3, 2, "depthwise", groups=8), "depthwise_norm"))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(10, name="classifier")(jnp.mean(x, axis=(1, 2)))


def cross_entropy(params, stats, images, labels):
    logits, new = Everything(convolution=None).apply(
        {"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses), new["batch_stats"]


def by_path(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(p, simple=True, separator="/"): a for p, a in leaves}


class Reference:
    """The same training in JAX, by `sparse_transform` around Optax's SGD."""

    def __init__(self):
        self.variables = Everything().init(
            jax.random.key(0), jnp.zeros((BATCH, 8, 8, 1))
        )
        self.tx = neurrev_jax.sparse_transform(
            optax.chain(
                optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=0.9)
            ),
            neurrev_jax.neurrev(0.2, neurrev_jax.periodic(3)),
            sparsity=0.8,
            key=1,
        )
        self.opt_state = self.tx.init(self.variables["params"])
        self.params = neurrev_jax.sparsify(self.variables["params"], self.opt_state)
        self.stats = self.variables["batch_stats"]
        self.masks = neurrev_jax.get_masks(self.opt_state)
        self.step = compiled(self._step)
        self.value_and_grad = compiled(jax.value_and_grad(cross_entropy, has_aux=True))

    def _step(self, params, stats, opt_state, images, labels):
        (loss, stats), grads = jax.value_and_grad(cross_entropy, has_aux=True)(
            params, stats, images, labels
        )
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return loss, optax.apply_updates(params, updates), stats, opt_state


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    return images, labels.astype(np.int32)


@pytest.fixture(scope="module")
def reference():
    with jax.numpy_dtype_promotion("standard"):
        return Reference()


@pytest.fixture(scope="module")
def model(reference):
    # The variables are unmasked: converting masks them.
    return convert_training_step(
        Everything(),
        reference.variables,
        jax.ShapeDtypeStruct((BATCH, 8, 8, 1), "float32"),
        masks=reference.masks,
        weight_decay=DECAY,
        infer_batch_size=3,
    )


def test_only_builtin_operators_and_no_transposed_convolution(model):
    operators = model.operators()
    assert set(operators) == {"train", "infer"}
    for found in operators.values():
        assert found["CONV_2D"] >= 2, found
        assert not set(found) & {"CUSTOM", "TRANSPOSE_CONV", "DELEGATE"}, found
    assert operators["train"]["DEPTHWISE_CONV_2D"] >= 2  # forwards and backwards


def test_the_signatures_are_named_by_paths(model):
    assert "params/strided/kernel" in model.state
    assert "masks/strided/kernel" in model.state
    assert "masks/depthwise/kernel" not in model.state, "dense leaves have no mask"
    momenta = {n for n in model.state if n.startswith("momentum/")}
    assert len(momenta) == sum(n.startswith("params/") for n in model.state)


def test_gradients_are_those_of_jax(model, reference, digits):
    images, labels = digits[0][:BATCH], digits[1][:BATCH]
    actual = model.trainer().gradients(images, labels)
    _, grads = reference.value_and_grad(
        reference.params, reference.stats, images, labels
    )
    expected = by_path(grads)
    assert set(actual) == set(expected)
    for path, gradient in expected.items():
        # Sums of up to 2048 float32 products in another order; a wrong gradient is
        # off by its own size. Where the exact value is 0 both are rounding.
        scale = max(float(jnp.max(jnp.abs(gradient))), 1e-3)
        np.testing.assert_allclose(
            actual[path], gradient, rtol=0, atol=2e-5 * scale, err_msg=path
        )


def test_training_in_lockstep_with_a_topology_update_in_between(
    model, reference, digits
):
    trainer = model.trainer()
    params, stats, opt_state = reference.params, reference.stats, reference.opt_state
    rewired = 0
    for t in range(5):
        images, labels = (x[t * BATCH : (t + 1) * BATCH] for x in digits)
        metrics = trainer.step(images, labels, RATE)
        loss, params, stats, opt_state = reference.step(
            params, stats, opt_state, images, labels
        )
        # What the topology update did on the host, done to the device's state.
        masks = by_path(neurrev_jax.get_masks(opt_state))
        before = params_and_masks(trainer.state)[1]
        rewired += any(np.any(before[p] != masks[p]) for p in masks)
        trainer.state = with_masks(trainer.state, masks)
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-4)
        state = trainer.state
        momenta = by_path(opt_state.inner_state[1][0].trace)
        for prefix, expected in (
            ("params/", by_path(params)),
            ("batch_stats/", by_path(stats)),
            ("momentum/", momenta),
        ):
            for path, array in expected.items():
                # One step rounds by some 1e-6; five of them, each from where the
                # last ended and through ReLUs, stay far below 1e-3.
                np.testing.assert_allclose(
                    state[prefix + path], array, rtol=1e-3, atol=1e-4, err_msg=path
                )
        for path, mask in masks.items():
            if mask.ndim:
                np.testing.assert_array_equal(state["masks/" + path], mask)
                assert not np.any(state["params/" + path][~mask])
                assert not np.any(state["momentum/" + path][~mask])
    assert rewired == 1


def test_the_loss_falls_and_inactive_weights_stay_exactly_zero(model, digits):
    trainer = model.trainer()
    images, labels = digits[0][:BATCH], digits[1][:BATCH]
    first = trainer.step(images, labels, RATE)
    for _ in range(20):
        last = trainer.step(images, labels, RATE)
    assert last.loss < 0.5 * first.loss
    assert last.accuracy > first.accuracy
    params, masks = params_and_masks(trainer.state)
    for path, mask in masks.items():
        if mask.ndim:
            assert not np.any(params[path][~mask])
            assert np.all(params[path][mask] != 0)


def test_a_nan_in_the_gradient_of_an_inactive_weight_goes_nowhere(model, digits):
    # All gradients are NaN: what is inactive stays exactly zero nevertheless.
    trainer = model.trainer()
    trainer.step(np.full((BATCH, 8, 8, 1), np.nan, np.float32), digits[1][:BATCH], RATE)
    params, masks = params_and_masks(trainer.state)
    mask = masks["strided/kernel"]
    assert np.all(np.isnan(params["strided/kernel"][mask]))
    assert not np.any(params["strided/kernel"][~mask])


def test_infer_uses_the_same_weights_and_the_running_statistics(
    model, reference, digits
):
    trainer = model.trainer()
    trainer.step(digits[0][:BATCH], digits[1][:BATCH], RATE)
    images = digits[0][:3]
    state = trainer.state
    variables = {
        collection: jax.tree.unflatten(
            jax.tree.structure(reference.variables[collection]),
            [
                state[f"{collection}/{path}"]
                for path in by_path(reference.variables[collection])
            ],
        )
        for collection in ("params", "batch_stats")
    }
    expected = Everything().apply(variables, images)
    np.testing.assert_allclose(trainer.infer(images), expected, rtol=1e-4, atol=1e-5)


def test_a_written_model_goes_on_where_it_stopped(model, digits, tmp_path):
    images, labels = digits[0][:BATCH], digits[1][:BATCH]
    model.write(tmp_path / "new")
    contents = (tmp_path / "new" / "training_step.tflite").read_bytes()
    with np.load(tmp_path / "new" / "state.npz") as stored:
        one = Trainer(contents, stored)
    other = model.trainer()
    other.step(images, labels, RATE)
    one.step(images, labels, RATE)
    again = Trainer(contents, one.state, threads=2)
    assert again.description["momentum"] == 0.9
    assert again.description["weight_decay"] == DECAY
    again.step(images, labels, RATE)
    other.step(images, labels, RATE)
    for name, array in other.state.items():
        np.testing.assert_allclose(again.state[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "strides", "kernel", "pads", "groups"),
    [
        (7, (2, 2), 3, ((1, 1), (1, 1)), 1),
        (8, (2, 2), 1, ((0, 0), (0, 0)), 1),
        (9, (3, 2), 2, ((1, 0), (0, 2)), 1),
        (8, (1, 2), 3, ((3, 0), (0, 1)), 1),
        (8, (2, 2), 3, ((1, 1), (1, 1)), 3),
        (7, (2, 1), 3, ((0, 1), (2, 2)), 3),
    ],
)
def test_convolution_has_the_gradients_of_lax(size, strides, kernel, pads, groups):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (2, size, size + 1, 3))
    shape = (kernel, kernel, 3, 5) if groups == 1 else (kernel, kernel, 1, 3)
    w = jax.random.normal(keys[1], shape)

    def lax_convolve(x, w):
        return lax.conv_general_dilated(
            x, w, strides, pads, dimension_numbers=NHWC, feature_group_count=groups
        )

    def gradients(convolution):
        value = lambda x, w: jnp.sum(jnp.sin(convolution(x, w)))
        return compiled(jax.grad(value, argnums=(0, 1)))(x, w)

    ours = gradients(lambda x, w: convolve(x, w, strides, pads, groups))
    for actual, expected in zip(ours, gradients(lax_convolve), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("window", "strides", "pads"),
    [
        ((2, 2), (2, 2), ((0, 0), (0, 0))),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 3), (1, 3), ((0, 1), (1, 0))),
    ],
)
def test_max_pool_has_the_gradients_of_jax_with_ties(window, strides, pads):
    # Whole numbers from a small range: most windows have several maxima.
    x = jax.random.randint(jax.random.key(0), (2, 7, 8, 3), 0, 3).astype(jnp.float32)

    def gradient(pool):
        value = lambda x: jnp.sum(jnp.sin(1 + jnp.cumsum(pool(x), axis=1)))
        return compiled(jax.grad(value))(x)

    actual = gradient(lambda x: max_pool(x, window, strides, pads))
    expected = gradient(lambda x: nn.max_pool(x, window, strides, pads))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_rules_reach_into_grouped_operations_and_keep_other_gradients():
    @jax.custom_jvp
    def twice(x):
        return 2 * x

    # A gradient of its own, that no rewriting may lose.
    twice.defjvp(lambda primals, tangents: (2 * primals[0], 7 * tangents[0]))

    @jax.jit
    def inner(x):
        return nn.max_pool(twice(x), (2, 2), strides=(2, 2))

    def function(tree):
        return {"sum": jax.checkpoint(inner)(tree["x"]).sum()}

    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    rewritten = with_builtin_gradients(function)
    assert rewritten({"x": x})["sum"] == function({"x": x})["sum"]
    gradient = jax.grad(lambda x: rewritten({"x": x})["sum"])
    np.testing.assert_array_equal(gradient(x).ravel(), [0, 0, 0, 7])
    assert "select_and_scatter_add" not in str(jax.make_jaxpr(gradient)(x))


X, W = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 4, 4))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: lax.conv_general_dilated(
                x, W[:, :, :2], (1, 1), "SAME", None, None, NHWC, 2
            ),
            "in 2 groups",
        ),
        (
            lambda x: lax.conv_general_dilated(
                x, W, (1, 1), "SAME", None, (2, 2), NHWC
            ),
            "undilated",
        ),
        (
            lambda x: lax.map(lambda one: nn.max_pool(one[None], (2, 2)), x),
            "inside of scan",
        ),
        (
            lambda x: lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 1, 1, 2), (1, 1, 1, 2), "VALID"
            ),
            "max pool",
        ),
        (
            lambda x: nn.max_pool(x.astype(jnp.bfloat16), (2, 2)),
            "only float32",
        ),
    ],
)
def test_what_has_no_known_gradient_is_refused(function, message):
    with pytest.raises(ExportError, match=message):
        with_builtin_gradients(function)(X)


SPEC = jax.ShapeDtypeStruct((BATCH, 8, 8, 1), "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.0}, r"momentum=1.0 must lie in \[0, 1\)"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be 0 or more"),
        ({"infer_batch_size": 0}, "infer_batch_size=0 must be at least 1"),
        ({"masks": {"stem": True}}, "masks do not fit params"),
        ({"variables": {"params": {}, "cache": {}}}, "'cache'"),
        ({"input_spec": jax.ShapeDtypeStruct((8, 8), "float32")}, r"float32\[8, 8\]"),
    ],
)
def test_settings_that_make_no_sense_are_refused(reference, changes, message):
    arguments = {"variables": reference.variables, "input_spec": SPEC} | changes
    with pytest.raises(ExportError, match=message):
        convert_training_step(Everything(), **arguments)


def test_weights_of_another_type_are_refused(reference):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), reference.variables)
    with pytest.raises(ExportError, match="of type bfloat16"):
        convert_training_step(Everything(), half, SPEC)


def test_what_the_converter_cannot_express_is_said():
    class Averaged(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = jnp.sort(nn.Dense(4)(x.reshape(x.shape[0], -1)), axis=-1)
            return nn.Dense(10)(x)

    variables = Averaged().init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
    with pytest.raises(ExportError, match="builtin operators"):
        convert_training_step(
            Averaged(), variables, jax.ShapeDtypeStruct((2, 4, 4, 1), "float32")
        )


def test_what_is_inactive_becomes_zero_whatever_it_was():
    # A caller who changes masks and forgets the weights is helped by the next step.
    params = {"kernel": jnp.ones((2, 2))}
    step = Step({"params": params}, 0.9, 0.1, True)
    forward = lambda params, stats, images: (images @ params["kernel"], stats)
    mask = np.array([[True, False], [False, True]])
    state = {
        "params/kernel": jnp.full((2, 2), 5.0),
        "momentum/kernel": jnp.full((2, 2), jnp.inf),
        "masks/kernel": mask,
        "images": jnp.ones((1, 2)),
        "labels": jnp.zeros((1,), jnp.int32),
        "learning_rate": jnp.float32(RATE),
    }
    new = step.of(forward)(state)
    for name in ("params/kernel", "momentum/kernel"):
        np.testing.assert_array_equal(np.asarray(new[name])[~mask], 0)
        assert np.all(np.asarray(new[name])[mask] != 0)


def test_new_masks_keep_what_stays_and_start_the_rest_at_zero():
    old, new = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    state = {
        "params/w": np.arange(2.0, 6.0),
        "momentum/w": np.arange(6.0, 10.0),
        "masks/w": old,
        "params/b": np.ones(2),
        "momentum/b": np.ones(2),
        "batch_stats/m": np.ones(2),
    }
    after = with_masks(state, {"w": new, "b": True})
    np.testing.assert_array_equal(after["params/w"], [2, 0, 0, 0])
    np.testing.assert_array_equal(after["momentum/w"], [6, 0, 0, 0])
    np.testing.assert_array_equal(after["masks/w"], new)
    for name in ("params/b", "momentum/b", "batch_stats/m"):
        assert after[name] is state[name]
    np.testing.assert_array_equal(state["params/w"], np.arange(2.0, 6.0))


def test_wrong_gradients_do_not_leave_the_house(monkeypatch):
    # JAX's own gradients, of which LiteRT computes something else.
    class Strided(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            pads = ((1, 1), (1, 1))
            x = nn.Conv(3, (3, 3), padding=pads, name="first")(x)
            x = nn.Conv(10, (3, 3), strides=(2, 2), padding=pads, name="second")(x)
            return jnp.mean(x, axis=(1, 2))

    spec = jax.ShapeDtypeStruct((2, 8, 8, 1), "float32")
    variables = Strided().init(jax.random.key(0), jnp.zeros(spec.shape))
    module = "tflite_export.training_step"
    monkeypatch.setattr(f"{module}.with_builtin_gradients", lambda function: function)
    refuse = training_step._refuse_wrong_operators
    monkeypatch.setattr(f"{module}._refuse_wrong_operators", lambda model: None)
    with pytest.raises(
        VerificationError, match=r"differs from JAX's in .*/first/"
    ) as e:
        convert_training_step(Strided(), variables, spec)
    # And it is refused before it has run, by what it is made of.
    with pytest.raises(ExportError, match="has a TRANSPOSE_CONV"):
        refuse(e.value.exported)


@pytest.mark.parametrize(
    ("momentum", "decay", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.1, False), (0.9, 0.1, True), (0.0, 0.1, False)],
)
def test_the_step_is_that_of_optax(momentum, decay, nesterov):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"kernel": jax.random.normal(keys[0], (4, 3)), "bias": jnp.zeros((3,))}
    masks = {"kernel": jax.random.bernoulli(keys[1], 0.5, (4, 3)), "bias": True}
    masks = jax.tree.map(jnp.asarray, masks)
    params = neurrev_jax.apply_masks(params, masks)
    images, labels = jax.random.normal(keys[2], (6, 4)), jnp.arange(6) % 3

    def forward(params, stats, images):
        return images @ params["kernel"] + params["bias"][None], stats

    step = compiled(Step({"params": params}, momentum, decay, nesterov).of(forward))
    state = {f"params/{p}": a for p, a in params.items()}
    state |= {f"momentum/{p}": jnp.zeros_like(a) for p, a in params.items()}
    state |= {"masks/kernel": masks["kernel"]}
    tx = neurrev_jax.sparse_transform(
        optax.chain(
            optax.add_decayed_weights(decay),
            optax.sgd(RATE, momentum=momentum, nesterov=nesterov),
        ),
        neurrev_jax.static(),
        masks=masks,
    )
    opt_state = tx.init(params)

    def loss_of(params):
        logits, _ = forward(params, {}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses)

    for _ in range(3):
        inputs = {"images": images, "labels": labels.astype(jnp.int32)}
        state = step(state | inputs | {"learning_rate": jnp.float32(RATE)})
        np.testing.assert_allclose(state.pop("loss"), loss_of(params), rtol=1e-5)
        assert 0 <= state.pop("accuracy") <= 1
        updates, opt_state = tx.update(jax.grad(loss_of)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        for path, array in params.items():
            np.testing.assert_allclose(state[f"params/{path}"], array, rtol=1e-5)


def test_a_trainer_refuses_what_does_not_fit(model, digits):
    trainer = model.trainer()
    images, labels = digits[0][:BATCH], digits[1][:BATCH]
    with pytest.raises(ExportError, match=r"images is float32\[31, 8, 8, 1\]"):
        trainer.step(images[1:], labels, RATE)
    with pytest.raises(ExportError, match="the network has 10 classes"):
        trainer.step(images, labels + 1, RATE)
    with pytest.raises(ExportError, match="labels of type float32"):
        trainer.step(images, labels.astype(np.float32), RATE)
    with pytest.raises(ExportError, match=r"images is float64\[3, 8, 8, 1\]"):
        trainer.infer(images[:3].astype(np.float64))
    with pytest.raises(ExportError, match=r"differ in momentum/stem/kernel"):
        trainer.state = {
            n: a for n, a in model.state.items() if n != "momentum/stem/kernel"
        }
    with pytest.raises(ExportError, match=r"not a \.tflite model"):
        Trainer(b"nothing", model.state)


def test_new_masks_have_to_fit(model):
    _, masks = params_and_masks(model.state)
    with pytest.raises(ExportError, match="stem/kernel is in the masks or"):
        with_masks(model.state, {p: m for p, m in masks.items() if p != "stem/kernel"})
    for wrong in (np.ones((3, 3), bool), np.array(True)):
        with pytest.raises(ExportError, match="that of strided/kernel has the shape"):
            with_masks(model.state, masks | {"strided/kernel": wrong})
    with pytest.raises(ExportError, match=r"stays dense \(shape \(\), True\)"):
        with_masks(model.state, masks | {"classifier/bias": np.array(False)})


@pytest.mark.loose_numerics
def test_the_page_about_training_on_a_device_runs(tmp_path, monkeypatch):
    text = (DOCS / "on_device_training.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for number, block in enumerate(blocks, start=1):
        code = compile(block, f"on_device_training.md, block {number}", "exec")
        exec(code, namespace)
    # Chance is 10 % and a loss of 2.3.
    assert namespace["metrics"].loss < 1
    hits = namespace["predicted"] == namespace["labels"][1280:1312]
    assert np.mean(hits) > 0.5
    masks = [params_and_masks(namespace[m].state)[1] for m in ("model", "trainer")]
    assert any(np.any(masks[0][path] != masks[1][path]) for path in masks[0])


@pytest.mark.full
@pytest.mark.loose_numerics
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (models.ResNet((1, 1), (8, 16), num_classes=10), (8, 8, 8, 1)),
        (models.VGG((1, 1), (8, 16), num_classes=10), (8, 8, 8, 1)),
        (
            models.MobileNetV1(num_classes=10, widths=(8, 16, 16), strides=(2, 1, 2)),
            (8, 16, 16, 3),
        ),
        (
            models.ImageNetResNet((1, 1), "bottleneck", widths=(4, 8), num_classes=10),
            (4, 32, 32, 3),
        ),
    ],
)
def test_networks_convert(network, shape):
    # Converting compares LiteRT's first step with JAX's.
    variables = network.init(jax.random.key(0), jnp.zeros(shape))
    spec = jax.ShapeDtypeStruct(shape, "float32")
    model = convert_training_step(network, variables, spec)
    assert "TRANSPOSE_CONV" not in model.operators()["train"]
