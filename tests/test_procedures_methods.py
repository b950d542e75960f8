"""From a method's name in the config to its record, and masks drawn once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    with pytest.raises(UsageError, match="there is no host 'rigl'"):
        tiny_config("powerprop", **{"method.powerprop.host": "rigl"})
    with pytest.raises(UsageError, match="frozen layers cannot take part"):
        tiny_config(
            "spfde",
            **{"method.spfde.host": "neurrev", "method.neurrev.scope": "global"},
        )


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
    with pytest.raises(UsageError, match="method grasp: "):
        drawn(digits, "grasp", **{"method.grasp.examples_per_class": 1000})


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
    assert neurrev_jax.get_masks(opt_state)["stem"]["norm"]["scale"].shape == (4,)
