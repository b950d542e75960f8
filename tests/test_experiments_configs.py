"""The paper's experiments as configs: Table A.1, and what follows from it."""

import importlib

import numpy as np
import pytest

from experiments import config as config_lib
from experiments import (
    method_factories,
    methods,
    override_rules,
    rn_digits,
    rules,
    runner,
)
from experiments.errors import UsageError

# Optax's schedules multiply integers by floats.
pytestmark = pytest.mark.loose_numerics

CIFAR, IMAGENET = 50_000, 1_281_167

# Table A.1: epochs, batch, rate, final rate, momentum, L2, warm-up, interval and end
# of the topology updates in epochs, update ratio by sparsity.
RN32 = (160, 64, 0.1, 4e-8, 0.9, 1e-4, 0, 5, 120, {0.9: 0.10, 0.95: 0.05, 0.98: 0.03})
VGG = (160, 64, 0.1, 4e-8, 0.9, 5e-4, 5, 5, 120, {0.9: 0.10, 0.95: 0.05, 0.98: 0.05})
LARGE = (100, 1024, 1.024, 0, 0.875, 3.05e-5, 5, 3, 75, {0.8: 0.15, 0.9: 0.10})
TABLE = {
    "rn32_cifar10": (RN32, "cifar10", CIFAR, 1_860_522),
    "rn32_cifar100": (RN32, "cifar100", CIFAR, 1_872_132),
    "vgg19_cifar10": (VGG, "cifar10", CIFAR, 20_035_018),
    "vgg19_cifar100": (VGG, "cifar100", CIFAR, 20_081_188),
    "rn34_imagenet": (LARGE, "imagenet2012", IMAGENET, 21_797_672),
    "rn50_imagenet": (LARGE, "imagenet2012", IMAGENET, 25_557_032),
    "mobilenet_imagenet": (LARGE, "imagenet2012", IMAGENET, 4_231_976),
}


def read(name, **fields):
    config = importlib.import_module(f"experiments.{name}").get_config()
    config.update(fields)
    return config


@pytest.mark.parametrize("name", TABLE)
def test_configs_hold_table_a1(name):
    config = read(name)
    rules.validate(config)
    row, data, examples, _ = TABLE[name]
    epochs, batch, rate, final, momentum, l2, warmup, interval, end, ratios = row
    assert (config.data.name, config.data.source) == (data, "tfds")
    assert (config.epochs, config.batch_size) == (epochs, batch)
    assert (config.learning_rate, config.final_learning_rate) == (rate, final)
    assert config.momentum == momentum
    assert config.weight_decay == pytest.approx(l2, rel=1e-3)
    assert config.warmup_epochs == warmup
    assert config.method.name == "neurrev"
    assert config.method.neurrev.update_ratio is None
    for sparsity, ratio in ratios.items():
        table = config.method.neurrev.update_ratio_at
        assert config_lib.ratio_at(table, sparsity) == ratio
    plan = config_lib.plan(config, examples)
    updates = config_lib.update_plan(config, plan, "neurrev")
    assert updates.interval == interval * plan.steps_per_epoch
    assert updates.until == end * plan.steps_per_epoch


@pytest.mark.parametrize("name", TABLE)
def test_every_config_trains_its_network_on_its_shapes(name):
    _, _, examples, parameters = TABLE[name]
    config = read(name)
    config.data.source = "generated"
    config.data.generated_train = 2048
    config.batch_size = 64
    if config.data.image_size:
        config.data.image_size = 32
    experiment = runner.prepare(config)
    assert f"{parameters:,} parameters" in runner.headline(experiment)
    assert (
        experiment.data.info.num_classes
        == {
            "cifar10": 10,
            "cifar100": 100,
            "imagenet2012": 1000,
        }[config.data.name]
    )
    # And the count of topology updates at full size.
    full = read(name)
    plan = config_lib.plan(full, examples)
    arm = methods.make_arm(full, plan)
    updates = arm.topology_updates(plan.total_steps)[-1]
    assert updates == (24 if examples == CIFAR else 25)


@pytest.mark.parametrize("method", ["set", "rigl", "static", "dense"])
@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_every_cell_of_a_table_is_a_changed_word(method, distribution):
    config = read("rn32_cifar10", distribution=distribution, sparsity=0.98)
    config.method.name = method
    config.data.source = "generated"
    [(_, arm)] = runner.prepare(config).arms
    assert arm.name == method
    plan = config_lib.plan(config, CIFAR)
    arm = methods.make_arm(config, plan)
    updates = arm.topology_updates(plan.total_steps)[-1]
    # RigL every 100 of 781 steps until epoch 120; SET every epoch but the last.
    assert updates == {"set": 159, "rigl": 937, "static": 0, "dense": 0}[method]


def test_the_update_ratio_reaches_the_method(monkeypatch):
    given = []
    factory = method_factories._FACTORIES["neurrev"]

    def spy(**options):
        given.append(options["update_ratio"])
        return factory(**options)

    monkeypatch.setitem(method_factories._FACTORIES, "neurrev", spy)
    for sparsity, override in ((0.95, None), (0.98, None), (0.98, 0.2)):
        config = read("rn32_cifar10", sparsity=sparsity)
        config.method.neurrev.update_ratio = override
        methods.make_arm(config, config_lib.plan(config, CIFAR))
    assert given == [0.05, 0.03, 0.2]


def test_the_ratio_between_two_entries_is_on_the_line():
    table = ((0.95, 0.05), (0.9, 0.10))
    assert config_lib.ratio_at(table, 0.925) == pytest.approx(0.075)
    assert config_lib.ratio_at(table, 0.5) == 0.10
    assert config_lib.ratio_at(table, 0.99) == 0.05


def test_epochs_become_steps_once():
    config = rn_digits.get_config()
    config.batch_size = 64
    config.epochs = 40
    config.warmup_epochs = 0.5
    config.method.update_interval_epochs = 2.0
    config.method.update_start_epochs = 0.5
    plan = config_lib.plan(config, 1347)
    assert plan == config_lib.Plan(40, 21, 840, 10, 1347)
    updates = config_lib.update_plan(config, plan, "neurrev")
    assert updates == config_lib.UpdatePlan(interval=42, start=10, until=630)


def test_what_a_method_says_of_its_schedule_goes_first():
    config = rn_digits.get_config()
    config.batch_size = 64
    config.method.set.update_interval_epochs = 1.0
    config.method.set.until_fraction = 1.0
    config.method.rigl.update_interval_steps = 7
    plan = config_lib.plan(config, 1347)
    of_set = config_lib.update_plan(config, plan, "set")
    # Never on the very last step: what grows there would not be trained.
    assert (of_set.interval, of_set.until) == (21, plan.total_steps - 1)
    of_rigl = config_lib.update_plan(config, plan, "rigl")
    assert (of_rigl.interval, of_rigl.until) == (7, round(0.75 * plan.total_steps))


@pytest.mark.parametrize("multiplier", [1.5, 3.0, 5.0])
def test_extended_training_scales_every_schedule(multiplier):
    short = read("rn50_imagenet")
    long = read("rn50_imagenet", training_multiplier=multiplier)
    before = config_lib.plan(short, IMAGENET)
    after = config_lib.plan(long, IMAGENET)
    assert after.epochs == 100 * multiplier
    assert after.total_steps == pytest.approx(multiplier * before.total_steps)
    assert after.warmup_steps == pytest.approx(multiplier * before.warmup_steps, abs=1)
    for name in ("neurrev", "rigl", "set"):
        one = config_lib.update_plan(short, before, name)
        other = config_lib.update_plan(long, after, name)
        assert other.interval == pytest.approx(multiplier * one.interval, abs=1)
        assert other.until == pytest.approx(multiplier * one.until, abs=multiplier)
    rates = [
        methods.learning_rate(config, plan)
        for config, plan in ((short, before), (long, after))
    ]
    for part in (0.01, 0.05, 0.3, 0.9):
        step = round(part * before.total_steps)
        assert float(rates[0](step)) == pytest.approx(
            float(rates[1](round(step * multiplier))), rel=1e-3
        )


def test_an_interval_of_one_step_stays_one_step():
    config = read("rn32_cifar10", training_multiplier=3.0)
    plan = config_lib.plan(config, CIFAR)
    assert config_lib.update_plan(config, plan, "deep_r").interval == 1
    assert config_lib.update_plan(config, plan, "rigl").interval == 300


def updates_of(config, plan, name):
    """Epochs after which the method updates the topology, and its record."""
    config.method.name = name
    arm = methods.make_arm(config, plan)
    at = np.flatnonzero(np.diff(arm.topology_updates(plan.total_steps))) + 1
    return [plan.epochs_at(int(step)) for step in at], arm


@pytest.mark.parametrize(
    ("after", "start", "interval"), [(70, 0, 5), (72, 0, 5), (3, 0.5, 5), (70, 71, 4)]
)
def test_removed_examples_leave_updates_at_the_same_epochs(after, start, interval):
    config = read("rn32_cifar10")
    config.removal.after_epochs = after
    config.removal.easy_examples = 12_000
    config.method.update_start_epochs = start
    config.method.update_interval_epochs = interval
    plan = config_lib.plan(config, CIFAR)
    assert plan.shorter == (after, 593)
    epochs, _ = updates_of(config, plan, "neurrev")
    expected = np.arange(start + interval, 120.01, interval)
    np.testing.assert_allclose(epochs, expected, atol=2e-3)
    if start == 0:
        assert len(epochs) == 24


def test_removed_examples_leave_ratios_and_rate_at_the_same_epochs(monkeypatch):
    given = {}
    factory = method_factories._FACTORIES["mest"]

    def spy(**options):
        given.update(options)
        return factory(**options)

    monkeypatch.setitem(method_factories._FACTORIES, "mest", spy)
    whole, config = read("rn32_cifar10"), read("rn32_cifar10")
    config.removal.after_epochs = 70
    config.removal.easy_examples = 12_000
    plan, before = (config_lib.plan(c, CIFAR) for c in (config, whole))
    updates_of(config, plan, "mest")
    ratios = [float(given["update_ratio"](plan.start_of(e))) for e in (89, 90, 120)]
    np.testing.assert_allclose(ratios, [0.02, 0.01, 0.0], rtol=1e-6)
    for changes in ("every_epoch", "every_step"):
        config.learning_rate_changes = whole.learning_rate_changes = changes
        rate = methods.learning_rate(config, plan)
        expected = methods.learning_rate(whole, before)
        for epoch in (0, 69, 70, 71, 100, 159):
            np.testing.assert_allclose(
                rate(plan.start_of(epoch)), expected(before.start_of(epoch)), rtol=1e-4
            )
    # Within an epoch too.
    np.testing.assert_allclose(
        rate(plan.start_of(100) + 593 // 2),
        expected(before.start_of(100) + 781 // 2),
        rtol=1e-4,
    )


def test_dsr_begins_where_the_config_says():
    config = read("rn32_cifar10")
    config.method.update_start_epochs = 10.0
    plan = config_lib.plan(config, CIFAR)
    epochs, _ = updates_of(config, plan, "dsr")
    assert epochs[0] == pytest.approx(10 + 100 / 781, abs=1e-6)


@pytest.mark.parametrize("name", ["mest", "spfde"])
def test_the_digits_can_be_had_at_98_percent(name):
    config = rn_digits.get_config()
    config.sparsity = 0.98
    config.method.name, config.compare = name, ()
    rules.validate(config)
    assert runner.prepare(config).arms[0][1].name == name


def test_a_schedule_that_every_method_overrides_has_no_effect():
    config = read("rn32_cifar10")
    config.method.name = "rigl"
    with pytest.raises(UsageError, match=r"method\.rigl\.update_interval_steps=100"):
        override_rules.check(config, ["method.update_interval_epochs"])
    config.method.name = "neurrev"
    override_rules.check(config, ["method.update_interval_epochs"])
    config.method.name = "set"
    with pytest.raises(UsageError, match=r"method\.set\.until_fraction=1\.0"):
        override_rules.check(config, ["method.until_fraction"])


@pytest.mark.parametrize(
    ("method", "changed", "message"),
    [
        ("static", "method.update_interval_epochs", "static has no schedule"),
        ("lth", "method.update_start_epochs", "lth has no schedule"),
        ("ac_dc", "method.until_fraction", "ac_dc has no schedule"),
        ("dense", "sparsity", "where only 'dense' is trained"),
        ("dense", "distribution", "where only 'dense' is trained"),
        ("snip", "distribution", r"spread='global'"),
        ("itop", "method.itop.final_ratio", "ratio_schedule='cosine'"),
        ("granet", "method.granet.final_ratio", "ratio_schedule='cosine'"),
    ],
)
def test_an_option_that_no_method_of_the_run_has_is_refused(method, changed, message):
    config = rn_digits.get_config()
    config.method.name, config.compare = method, ()
    config.method.itop.ratio_schedule = "constant"
    config.method.granet.ratio_schedule = "constant"
    with pytest.raises(UsageError, match=message):
        override_rules.check(config, [changed])
    # One that has it is enough.
    config.compare = ("rigl",)
    config.method.rigl.update_interval_steps = None
    config.method.itop.ratio_schedule = "cosine"
    config.method.granet.ratio_schedule = "cosine"
    override_rules.check(config, [changed])
    config.compare = ("dense",)
    config.method.name = "magnitude"
    config.method.magnitude.spread = "distribution"
    override_rules.check(config, ["distribution", "sparsity"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method.rigl.update_interval_epochs": 1.0}, "give one of them"),
        ({"method.neurrev.update_ratio_at": (0.9, 0.1)}, r"\(sparsity, ratio\) pairs"),
        ({"method.neurrev.update_ratio_at": ()}, r"\(sparsity, ratio\) pairs"),
        ({"data.source": "sklearn"}, "does not go with data.name='cifar10'"),
        ({"label_smoothing": 1.0}, r"must lie in \[0, 1\)"),
        ({"model.dtype": "float16"}, "choose 'float32' or 'bfloat16'"),
        ({"steps_per_call": 0}, "must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_named(change, message):
    config = read("rn32_cifar10")
    with config.unlocked():
        config.update_from_flattened_dict(change)
    with pytest.raises(UsageError, match=message):
        rules.validate(config)


def test_where_the_data_lie_is_not_part_of_the_run():
    old, new = read("rn32_cifar10"), read("rn32_cifar10")
    new.data.dir = "elsewhere"
    assert config_lib.differences(old.to_dict(), new.to_dict()) == []


def test_the_paper_counts_of_topology_updates():
    # Figure 4 and Table D.1 count as if an epoch had 780 steps.
    config = read("rn32_cifar10")
    plan = config_lib.plan(config, 780 * 64)
    counts = {
        name: methods.make_arm(
            read("rn32_cifar10", method={"name": name}), plan
        ).topology_updates(plan.total_steps)[-1]
        for name in ("rigl", "neurrev")
    }
    assert counts == {"rigl": 936, "neurrev": 24}
    # The 26 updates of Table D.1 need a horizon of 130 epochs.
    config.method.until_fraction = 130 / 160
    arm = methods.make_arm(config, plan)
    assert np.asarray(arm.topology_updates(plan.total_steps))[-1] == 26
    config.method.update_interval_epochs = 10.0
    arm = methods.make_arm(config, plan)
    assert arm.topology_updates(plan.total_steps)[-1] == 13
