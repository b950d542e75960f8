"""From a method's name in the config to its record, and masks drawn once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import neurrev_jax
from experiments import config as config_lib
from experiments import method_factories, methods, networks, rn_digits, rules, runner
from experiments.analysis import figures
from experiments.errors import UsageError
from experiments.training import feeds, one_shot
from experiments.training import state as state_lib

# Optax's schedules multiply integers by floats.
pytestmark = pytest.mark.loose_numerics


def tiny_config(method, **fields):
    config = rn_digits.get_config()
    config.model.stage_sizes = (1,)
    config.model.widths = (4,)
    config.method.name = method
    config.compare = ()
    config.batch_size = 64
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    rules.validate(config)
    return config


# Topology updates in 16 epochs of 21 steps with the defaults of the config: every 5
# epochs (105 steps) until 3/4 of 336 steps, or what a method says of itself.
UPDATES = {
    "neurrev": 2,
    "set": 2,
    "rigl": 2,
    "mest": 2,
    "itop": 3,
    "snfs": 3,
    "granet": 3,
    "chase": 3,
    "gradual_magnitude": 2,
    "deep_r": 319,
    "top_kast": 3,
    "powerprop": 3,
    "spfde": 2,
    "ac_dc": 15,
    # Every 20 steps, 40 from step 42 on, 80 from step 134 on, 160 from step 235 on.
    "dsr": 5,
    **dict.fromkeys(config_lib.method_options.ONE_SHOT, 0),
    "static": 0,
    "dense": 0,
}


@pytest.mark.parametrize("name", config_lib.METHODS)
def test_every_method_is_a_word_in_the_config(name):
    config = tiny_config(name, epochs=16)
    config.method.dsr.update_interval_steps = 20
    config.method.update_interval_epochs = 5.0
    config.method.update_start_epochs = 0.0
    plan = config_lib.plan(config, 1347)
    arm = methods.make_arm(config, plan)
    assert (arm.name, arm.method is None) == (name, name == "dense")
    # What a method checks of its ratios and of the density, it checks here.
    shapes = {"conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)}}
    jax.eval_shape(arm.tx.init, shapes)
    assert name in figures._STYLES
    if name == "lth":
        assert arm.topology_updates(plan.total_steps)[-1] == 3
        return
    if name == "spfde":
        assert plan.total_steps == 16 * 17
    assert arm.topology_updates(plan.total_steps)[-1] == UPDATES[name]


def test_styles_of_the_figures_differ():
    assert len(set(figures._STYLES.values())) == len(figures._STYLES)
    assert set(figures._STYLES) == set(config_lib.METHODS)


def spied(monkeypatch, name):
    given = {}
    factory = method_factories._FACTORIES[name]

    def spy(**options):
        given.update(options)
        return factory(**options)

    monkeypatch.setitem(method_factories._FACTORIES, name, spy)
    return given


def test_ratios_over_time_follow_the_schedule(monkeypatch):
    def made(name, **fields):
        given = spied(monkeypatch, name)
        config = tiny_config(name, **{"epochs": 16, **fields})
        methods.make_arm(config, config_lib.Plan(16, 100, 1600, 0))
        return given

    ratio = made("mest", sparsity=0.9)["update_ratio"]
    # Updates at 350, 650, 950: it is halved at 3/4 and 0 at the last.
    ratios = [round(float(ratio(t)), 4) for t in (350, 650, 711, 712, 949, 950)]
    assert ratios == [0.02, 0.02, 0.02, 0.01, 0.01, 0.0]
    ratio = made("itop")["update_ratio"]
    assert float(ratio(0)) == 0.5
    assert float(ratio(1599)) == pytest.approx(0.005)
    chase = made("chase")
    assert (chase["soft_until"], chase["channel_window"]) == (1300, (50, 1300))
    assert chase["final_ratio"] == 0.05
    temperature = made("deep_r")["temperature"]
    steps = (0, 199, 200, 640, 1120)
    expected = (1e-5, 1e-5, 1e-8, 1e-12, 1e-15)
    np.testing.assert_allclose([temperature(t) for t in steps], expected, rtol=1e-5)


def test_a_host_is_built_from_its_own_section(monkeypatch):
    given = spied(monkeypatch, "set")
    fields = {"method.powerprop.host": "set", "method.set.update_ratio": 0.25}
    config = tiny_config("powerprop", **fields)
    plan = config_lib.plan(config, 1347)
    # What grows at zero would never move.
    with pytest.raises(UsageError, match="growth_start"):
        runner.prepare(config)
    config.method.powerprop.growth_start = 1e-3
    assert methods.make_arm(config, plan).method.name == "powerprop"
    assert given["update_ratio"] == 0.25


@pytest.mark.parametrize(
    ("host", "change", "message"),
    [
        ("rigl", {}, "uses the gradients of inactive weights"),
        ("itop", {}, "uses the gradients of inactive weights"),
        ("deep_r", {}, "moves the weights after the optimizer's step"),
        ("itop", {"method.itop.growth": "random"}, None),
        ("rigl", {"method.powerprop.alpha": 1.0}, None),
    ],
)
def test_the_library_says_what_a_power_fits_around(host, change, message):
    growth_start = None if host == "deep_r" else 1e-3
    fields = {"powerprop.host": host, "powerprop.growth_start": growth_start}
    fields = {f"method.{name}": value for name, value in fields.items()}
    config = tiny_config("powerprop", **fields, **change)
    plan = config_lib.plan(config, 1347)
    if message is None:
        assert methods.make_arm(config, plan).method.name == "powerprop"
        return
    with pytest.raises(ValueError, match=message):
        methods.make_arm(config, plan)


# Weight decay, of what has no other gradient.

DECAY = 0.125


def decay_of(config):
    """Parameters, optimizer state, and the gradients that a step was made along."""
    plan = config_lib.Plan(36, 1000, 36_000, 0)
    arm = methods.make_arm(config, plan)
    rng = np.random.default_rng(0)
    leaf = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    # The uniform distribution leaves the first convolution and the classifier dense.
    params = {
        "stem": {"conv": {"kernel": leaf(3, 3, 1, 4)}},
        "block": {"conv": {"kernel": leaf(3, 3, 4, 8)}, "norm": {"scale": leaf(8)}},
        "classifier": {"kernel": leaf(8, 10), "bias": leaf(10)},
    }

    def step(params):
        opt_state = arm.tx.init(params)
        params = arm.sparsify(params, opt_state)
        nothing = jax.tree.map(jnp.zeros_like, params)
        updates, _ = arm.tx.update(nothing, opt_state, params)
        return params, opt_state, updates

    options = {"xla_backend_optimization_level": 0}
    params, opt_state, updates = jax.jit(step, compiler_options=options)(params)
    gradients = jax.tree.map(lambda u: np.asarray(u) / -0.3, updates)
    return jax.tree.map(np.asarray, params), opt_state, gradients


@pytest.mark.parametrize(
    ("method", "change", "expected"),
    [
        ("set", {}, "parameters"),
        ("powerprop", {}, "penalty through the power"),
        ("powerprop", {"method.powerprop.host": "static"}, "through the power"),
        (
            "powerprop",
            {
                "method.powerprop.host": "static",
                "method.powerprop.weight_decay_on": "parameters",
            },
            "parameters",
        ),
        ("top_kast", {}, "penalty"),
        ("top_kast", {"method.top_kast.penalty": 0.5}, "strong penalty"),
        ("spfde", {"method.spfde.host": "top_kast"}, "penalty"),
    ],
)
def test_every_parameter_is_decayed_once(method, change, expected):
    norms = "all_but_norm" if method == "powerprop" else "all"
    config = tiny_config(
        method,
        distribution="uniform",
        sparsity=0.75,
        weight_decay=DECAY,
        weight_decay_on=norms,
        **{"momentum": 0.0, "method.powerprop.alpha": 3.0, **change},
    )
    params, opt_state, gradients = decay_of(config)
    value = params["block"]["conv"].pop("kernel")
    actual = gradients["block"]["conv"].pop("kernel")
    # What is dense the optimizer decays as ever.
    if norms != "all":
        params["block"]["norm"]["scale"] = np.zeros(8)
    jax.tree.map(
        lambda g, p: np.testing.assert_allclose(g, DECAY * p, rtol=1e-5),
        gradients,
        params,
    )
    masks = opt_state.masks["block"]["conv"]["kernel"]
    is_power = "power" in expected
    weights = value * np.abs(value) ** 2 if is_power else value
    strength = np.where(masks, DECAY, 0)
    if "penalty" in expected:
        state = opt_state.method_state
        wider = getattr(state, "host", state).backward["block"]["conv"]["kernel"]
        assert wider.sum() > masks.sum() == 72
        # Of density 1/4.
        strength = np.where(masks, DECAY, np.where(wider, DECAY / 0.25, 0))
    if expected == "strong penalty":
        strength = strength * 4
    slope = 3 * value**2 if is_power else 1
    np.testing.assert_allclose(actual, strength * weights * slope, rtol=1e-4, atol=1e-7)


def test_chase_is_told_the_channels_of_the_network(monkeypatch):
    given = spied(monkeypatch, "chase")
    runner.prepare(tiny_config("chase", **{"method.chase.channel_sparsity": 0.25}))
    assert len(given["groups"]) == 1
    assert given["channel_sparsity"] == 0.25


# Masks that are drawn once.


@pytest.fixture(scope="module")
def digits():
    config = tiny_config("snip")
    experiment = runner.prepare(config)
    return experiment, feeds.MemoryFeed(config, experiment.data)


def drawn(digits, name, **fields):
    experiment, feed = digits
    config = tiny_config(name, **fields)
    return one_shot.draw_masks(config, experiment.model, feed)


SIZE = 9 * 4 + 2 * 9 * 16 + 4 * 10


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("magnitude", {}),
        ("snip", {}),
        ("grasp", {"method.grasp.examples_per_class": 2}),
        ("synflow", {"method.synflow.rounds": 5}),
        ("fish", {"method.fish.examples": 8}),
    ],
)
def test_one_shot_masks_follow_from_the_seed(digits, name, fields):
    masks = drawn(digits, name, **fields)
    sparse = [m for m in jax.tree.leaves(masks) if m.ndim]
    assert sum(m.size for m in sparse) == SIZE
    assert sum(m.sum() for m in sparse) == SIZE - int(0.9 * SIZE)
    if name != "magnitude":
        again = drawn(digits, name, **fields)
        jax.tree.map(np.testing.assert_array_equal, masks, again)
    # It is what training starts from, and with the very same weights as any other.
    experiment, _ = digits
    config = tiny_config(name, **fields)
    arm = methods.make_arm(config, config_lib.plan(config, 1347)).with_masks(masks)
    sample = jnp.zeros((1, 8, 8, 1))
    start = state_lib.compile_init(experiment.model, arm, sample, config.seed)
    jax.tree.map(np.testing.assert_array_equal, start.opt_state.masks, masks)
    dense = experiment.model.init(
        jax.random.fold_in(jax.random.key(config.seed), 0), sample
    )["params"]
    expected = jax.tree.map(lambda p, m: np.where(m, p, 0), dense, masks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), start.params, expected
    )


def test_examples_are_drawn_by_the_seed(digits):
    _, feed = digits
    one, same, other = (feed.sample(5, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, same.images)
    assert not np.array_equal(one.images, other.images)
    assert feed.sample(10**6, 0).labels.shape == (1347,)
    with pytest.raises(UsageError, match="examples_per_class=1000: class 0"):
        drawn(digits, "grasp", **{"method.grasp.examples_per_class": 1000})


class Scored(nn.Module):
    """One layer behind a batch norm: what it computes is easy to say otherwise."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        norm = nn.BatchNorm(not train, axis_name=self.axis_name, epsilon=1e-3)
        return nn.Dense(10, use_bias=False)(norm(images.reshape(len(images), -1)))


@pytest.mark.parametrize(
    ("name", "is_train", "temperature"),
    [("snip", True, 1), ("grasp", True, 200), ("fish", False, 1)],
)
def test_what_masks_are_scored_by(digits, monkeypatch, name, is_train, temperature):
    _, feed = digits

    def spy(params, sparsity, *, loss_fn, batch, key, temperature=None, **options):
        del sparsity, key, options
        more = () if temperature is None else (temperature,)
        return {"loss": loss_fn(params, batch, *more), "params": params, "batch": batch}

    monkeypatch.setitem(one_shot._DRAW, name, spy)
    seen = one_shot.draw_masks(tiny_config(name), Scored(), feed)
    images, labels = seen["batch"]
    x = images.reshape(len(images), -1).astype(np.float64)
    mean, variance = (x.mean(axis=0), x.var(axis=0)) if is_train else (0, 1)
    x = (x - mean) / np.sqrt(variance + 1e-3)
    logits = x @ seen["params"]["Dense_0"]["kernel"] / temperature
    true = logits[np.arange(len(labels)), labels]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - true)
    np.testing.assert_allclose(seen["loss"], expected, rtol=1e-4)


class Stream:
    """Batches that say which example they hold."""

    def __init__(self, info):
        self.info = info

    def train_batches(self, *, seed, first_step, steps_per_epoch, batch_size):
        del seed, steps_per_epoch
        for step in range(first_step, 100):
            labels = np.arange(batch_size, dtype=np.int32) + step * batch_size
            yield np.zeros((batch_size, 8, 8, 1), np.uint8), labels


def test_of_a_stream_the_first_examples_are_taken(digits):
    experiment, _ = digits
    feed = feeds.StreamFeed(tiny_config("snip"), Stream(experiment.data.info))
    assert feed.sample(100, 0).labels.tolist() == list(range(100))
    assert feed.sample(0, 0).images.shape == (0, 8, 8, 1)
    with pytest.raises(UsageError, match="have no number"):
        feed.train_labels()


def test_balanced_examples_of_a_stream_are_refused():
    config = tiny_config("grasp")
    config.data.name, config.data.source = "imagenet2012", "tfds"
    with pytest.raises(UsageError, match="not sorted by class"):
        rules.validate(config)


def test_what_fish_does_not_select_keeps_its_value(digits):
    fields = {"method.fish.mode": "update", "method.fish.examples": 8}
    masks = drawn(digits, "fish", **fields)
    # Among all parameters, not among kernels alone.
    assert masks["classifier"]["bias"].shape == (10,)
    config = tiny_config("fish", **fields)
    arm = methods.make_arm(config, config_lib.plan(config, 1347)).with_masks(masks)
    model = networks.make_network(config.model, 10, axis_name=None)
    params = model.init(jax.random.key(1), jnp.zeros((1, 8, 8, 1)))["params"]
    opt_state = arm.tx.init(params)
    after = arm.sparsify(params, opt_state)
    jax.tree.map(np.testing.assert_array_equal, after, params)
    assert arm.method.inactive == "hold"
    # The network computes with all of them: it is not sparse.
    summary = arm.summarize(params, opt_state)
    assert summary.total.active == summary.total.size == SIZE
    assert neurrev_jax.get_masks(opt_state)["stem"]["norm"]["scale"].shape == (4,)
