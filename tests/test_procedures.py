"""What goes around training: rounds of pruning, frozen layers, sieved examples."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as config_lib
from experiments import main as main_lib
from experiments import networks, rn_digits, rules, runner
from experiments.errors import UsageError
from experiments.procedures import freezing, lottery, rounds, sieving
from experiments.training import state as state_lib
from experiments.training import steps

# Optax's schedules multiply integers by floats.
pytestmark = pytest.mark.loose_numerics

FAST = {"xla_backend_optimization_level": 0}


def tiny_config(method, **fields):
    config = rn_digits.get_config()
    config.model.stage_sizes = (2,)
    config.model.widths = (4,)
    config.method.name = method
    config.compare = ()
    config.batch_size = 64
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


def prepared(method, **fields):
    """(experiment, arm, state before the first step)."""
    config = tiny_config(method, **fields)
    rules.validate(config)
    experiment = runner.prepare(config)
    [(_, arm)] = experiment.arms
    sample = np.zeros((1, *experiment.data.info.image_shape), np.float32)
    start = state_lib.compile_init(experiment.model, arm, sample, config.seed)
    return experiment, arm, start


def batch(experiment, n=16):
    labels = experiment.data.train.labels[:n]
    return jnp.asarray(experiment.data.train.images[:n], jnp.float32) / 16, labels


def one_step(recipe, state, images, labels, examples=None, devices=1):
    """A train step on simulated devices: the state of the first of them."""
    step = jax.vmap(
        lambda s, *data: steps.train_step(recipe, s, *data), axis_name=state_lib.AXIS
    )
    copies = jax.tree.map(lambda x: jnp.stack([x] * devices), state)
    data = [x for x in (images, labels, examples) if x is not None]
    cut = [x.reshape(devices, x.shape[0] // devices, *x.shape[1:]) for x in data]
    after = jax.jit(step, compiler_options=FAST)(copies, *cut)
    return jax.tree.map(lambda x: np.asarray(x)[0], after)


def leaves_of(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# Durations.


def naive_schedule(plan):
    """(epoch, first step of the epoch) of every step, by counting."""
    rows = []
    for epoch in range(plan.epochs):
        length = plan.steps_per_epoch
        if plan.shorter is not None and epoch >= plan.shorter[0]:
            length = plan.shorter[1]
        rows += [(epoch, len(rows))] * length
    return rows


@pytest.mark.parametrize("shorter", [None, (2, 3), (5, 1), (0, 2)])
def test_epochs_of_two_lengths_are_counted(shorter):
    plan = config_lib.Plan(5, 4, 0, 0, shorter=shorter)
    rows = naive_schedule(plan)
    assert plan.start_of(5) == len(rows)
    epochs = jax.jit(plan.epoch_of)(jnp.arange(len(rows)))
    for step, (epoch, start) in enumerate(rows):
        assert plan.epoch_of(step) == epochs[step] == epoch
        assert plan.start_of(epoch) == start
        length = plan.start_of(epoch + 1) - start
        assert plan.epochs_at(step) == pytest.approx(epoch + (step - start) / length)


@pytest.mark.parametrize("rewind", [0, 1, 3])
def test_rounds_repeat_the_end_of_the_first_training(rewind):
    config = tiny_config("lth", epochs=5)
    config.method.lth.rounds = 2
    config.method.lth.rewind_epochs = rewind
    plan = config_lib.plan(config, 1347)
    first = list(range(5))
    expected = [(0, epoch) for epoch in first]
    for number in (1, 2):
        expected += [(number, epoch) for epoch in first[rewind:]]
    assert plan.epochs == len(expected)
    assert plan.training_epochs == 5
    assert plan.training_steps == 5 * 21
    actual = [(plan.round_of(e), plan.epoch_in_training(e)) for e in range(plan.epochs)]
    assert actual == expected
    for step in range(plan.total_steps):
        epoch, within = divmod(step, 21)
        assert plan.step_in_training(step) == 21 * expected[epoch][1] + within


def test_durations_follow_the_method():
    config = tiny_config("spfde", epochs=10)
    plan = config_lib.plan(config, 1347)
    assert plan.steps_per_epoch == round(0.85 * 1347) // 64
    assert plan.total_steps == 10 * plan.steps_per_epoch
    config = tiny_config("set", epochs=10)
    config.removal.after_epochs = 4
    config.removal.easy_examples = 500
    plan = config_lib.plan(config, 1347)
    assert plan.total_steps == 4 * 21 + 6 * 13
    # However short training is made, there are examples to remove from.
    config.training_multiplier = 0.2
    rules.validate(config)
    plan = config_lib.plan(config, 1347)
    assert (plan.epochs, plan.shorter) == (2, (1, 13))
    config.removal.after_epochs = 1
    assert config_lib.plan(config, 1347).shorter == (1, 13)


# Rounds of pruning.


@pytest.mark.parametrize("size", [1000, 999, 26_000_000])
def test_every_round_leaves_four_fifths_and_the_last_one_the_budget(size):
    budget = size // 10
    kept = [rounds.kept(done, 11, 0.2, size, budget) for done in range(12)]
    for done in range(11):
        assert kept[done] - size * 0.8**done == pytest.approx(0.5, abs=0.51)
    assert kept[-1] == budget
    by_rounds = rounds.prune_fraction(3, 0.9)
    assert (1 - by_rounds) ** 3 == pytest.approx(0.1)


def test_the_survivors_are_the_largest_of_the_whole_network_and_nested():
    rng = np.random.default_rng(0)
    params = {
        "a": rng.normal(size=(7, 5)).astype(np.float32),
        "bias": np.full(5, 1e-9, np.float32),
        "b": 3 * rng.normal(size=(4, 6)).astype(np.float32),
    }
    masks = {"a": np.ones((7, 5), bool), "bias": np.array(True)}
    masks["b"] = rng.random((4, 6)) < 0.7
    total = masks["a"].sum() + masks["b"].sum()
    key = jax.random.key(0)
    for keep in (total, total - 9, 3, 0):
        new = lottery.survivors(params, masks, int(keep), key)
        assert new["bias"].shape == ()
        sizes = [np.abs(params[n])[masks[n]] for n in "ab"]
        limit = np.sort(np.concatenate(sizes))[::-1][: int(keep)]
        for name in "ab":
            expected = masks[name] & np.isin(np.abs(params[name]), limit)
            np.testing.assert_array_equal(new[name], expected)


@pytest.fixture(scope="module")
def second_round():
    """States of LTH: fresh, at the rewind point, trained, and after the round."""
    experiment, arm, start = prepared(
        "lth",
        **{"method.lth.rounds": 2, "method.lth.rewind_epochs": 1, "epochs": 4},
    )
    recipe = steps.Recipe(experiment.model, arm, experiment.data.info)
    images, labels = batch(experiment)
    early = one_step(recipe, start, images, labels)
    early = early._replace(step=np.int32(21))
    early = jax.tree.map(np.asarray, arm.around.after_epoch(early, 1))
    trained = one_step(recipe, early, images, labels)
    trained = trained._replace(step=np.int32(84))
    untouched = arm.around.after_epoch(trained, 2)
    again = jax.tree.map(np.asarray, arm.around.after_epoch(trained, 4))
    return experiment, arm, start, early, trained, untouched, again


def test_a_round_rewinds_the_survivors_to_the_bit(second_round):
    _, _, start, early, trained, untouched, again = second_round
    jax.tree.map(np.testing.assert_array_equal, untouched, trained)
    for state in (start, early, trained):
        assert all(m.all() for m in jax.tree.leaves(state.opt_state.masks))
    # The budget is that of every method at this sparsity.
    static = prepared("static")[2].opt_state.masks
    budget = sum(m.sum() for m in jax.tree.leaves(static) if m.ndim)
    assert int(start.memory.ticket.budget) == budget
    size = sum(m.size for m in jax.tree.leaves(static) if m.ndim)
    kept = rounds.kept(1, 2, rounds.prune_fraction(2, 0.9), size, budget)
    masks = again.opt_state.masks
    assert sum(m.sum() for m in jax.tree.leaves(masks) if m.ndim) == kept
    expected = jax.tree.map(lambda p, m: np.where(m, p, 0), early.params, masks)
    jax.tree.map(np.testing.assert_array_equal, again.params, expected)
    jax.tree.map(np.testing.assert_array_equal, again.batch_stats, early.batch_stats)
    assert not np.array_equal(
        early.params["classifier"]["kernel"], start.params["classifier"]["kernel"]
    )


def test_a_round_starts_the_optimizer_anew_at_the_rewind_step(second_round):
    _, _, _, early, _, _, again = second_round
    fresh = again.opt_state.inner_state
    assert any(leaf.any() for leaf in leaves_of(early.opt_state.inner_state).values())
    for leaf in jax.tree.leaves(fresh):
        assert not leaf.any() or (leaf.ndim == 0 and leaf == 21)
    assert int(again.opt_state.count) == 21
    assert jax.tree.structure(again) == jax.tree.structure(early)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(early), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_the_last_round_leaves_the_wanted_sparsity(second_round):
    _, arm, _, _, _, _, again = second_round
    last = jax.tree.map(np.asarray, arm.around.after_epoch(again, 7))
    assert int(last.memory.ticket.done) == 2
    masks = [m for m in jax.tree.leaves(last.opt_state.masks) if m.ndim]
    assert sum(m.sum() for m in masks) == int(last.memory.ticket.budget)
    nested = jax.tree.map(
        lambda new, old: not (new & ~old).any(),
        last.opt_state.masks,
        again.opt_state.masks,
    )
    assert all(jax.tree.leaves(nested))
    assert arm.around.plan.epochs == 4 + 3 + 3
    updates = arm.topology_updates(arm.plan.total_steps)
    # Pruned between step 84 and 85, and between 147 and 148.
    assert np.flatnonzero(np.diff(updates)).tolist() == [84, 147]


# Frozen layers.

NETWORKS = {
    "resnet": ("rn32_cifar10", {"model.stage_sizes": (1, 1), "model.widths": (4, 8)}),
    "vgg": ("vgg19_cifar10", {"model.stage_sizes": (1, 2), "model.widths": (4, 8)}),
    "imagenet_resnet": (
        "rn50_imagenet",
        {"model.stage_sizes": (1, 1), "model.widths": (4, 8)},
    ),
    "mobilenet": ("mobilenet_imagenet", {"model.width_multiplier": 0.1}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_blocks_of_every_network_keep_their_batch_statistics(name):
    module, fields = NETWORKS[name]
    config = importlib.import_module(f"experiments.{module}").get_config()
    config.update_from_flattened_dict(fields)
    model = networks.make_network(config.model, 3, axis_name=None)
    images = jnp.ones((2, 16, 16, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    count = networks.count_blocks(config.model)
    found = freezing.blocks(variables["params"])
    assert len(found) == count
    stats = variables["batch_stats"]
    assert freezing.blocks(stats) == found
    for k in (0, 1, 2, count - 1, count):

        def statistics(variables, k=k):
            _, new = model.clone(frozen_blocks=k).apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
            return new["batch_stats"]

        # A statistic that is not updated is the input itself.
        closed = jax.make_jaxpr(statistics)(variables)
        inputs = set(closed.jaxpr.invars)
        kept = [var in inputs for var in closed.jaxpr.outvars]
        assert kept == jax.tree.leaves(freezing.is_frozen(stats, k))
    with pytest.raises(ValueError, match=rf"must lie in \[0, {count}\]"):
        jax.eval_shape(
            model.clone(frozen_blocks=count + 1).init, jax.random.key(0), images
        )


def convolutions(jaxpr):
    """Number of convolutions anywhere in a jaxpr."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == "conv_general_dilated"
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    count += convolutions(inner)
    return count


def test_nothing_is_propagated_back_through_frozen_blocks():
    experiment, arm, start = prepared("spfde", **{"method.spfde.data_fraction": 1.0})
    # Without convolutions whose derivative is written by hand.
    model = experiment.model.clone(convolution=None)
    images, labels = batch(experiment)
    states = jax.tree.map(lambda x: jnp.asarray(x)[None], start)

    def count(frozen_blocks, parts=1):
        recipe = steps.Recipe(
            model,
            arm,
            experiment.data.info,
            accumulation_steps=parts,
            frozen_blocks=frozen_blocks,
        )
        step = jax.vmap(
            lambda s: steps.train_step(recipe, s, images, labels),
            axis_name=state_lib.AXIS,
        )
        return convolutions(jax.make_jaxpr(step)(states).jaxpr)

    # Five convolutions: the stem's and two in each of two blocks. All go forward;
    # each unfrozen one has the gradient of its kernel; and each of these but the
    # first has that of its input.
    assert count(0) == 5 + 5 + 4
    assert count(1) == 5 + 4 + 3
    assert count(2) == count(2, parts=2) == 5 + 2 + 1


@pytest.mark.parametrize("parts", [1, pytest.param(3, marks=pytest.mark.full)])
def test_frozen_blocks_stay_as_they_are_to_the_bit(parts):
    experiment, arm, start = prepared(
        "spfde",
        **{
            "method.spfde.data_fraction": 1.0,
            "method.spfde.host": "rigl",
            "method.rigl.update_interval_steps": 1,
            "method.update_start_epochs": 0.0,
            "distribution": "uniform",
        },
    )
    info = experiment.data.info
    images, labels = batch(experiment, 18)
    before = one_step(steps.Recipe(experiment.model, arm, info), start, images, labels)
    recipe = steps.Recipe(
        experiment.model, arm, info, accumulation_steps=parts, frozen_blocks=2
    )
    after = one_step(recipe, before, images, labels)
    inner = lambda s: s.opt_state.inner_state
    momentum = lambda s: inner(s)[1][0].trace
    compared = {
        "params": lambda s: s.params,
        "masks": lambda s: s.opt_state.masks,
        "momentum": momentum,
        "statistics": lambda s: s.batch_stats,
    }
    for name, part in compared.items():
        old, new = leaves_of(part(before)), leaves_of(part(after))
        changed = {path for path in old if not np.array_equal(old[path], new[path])}
        assert not any(p.startswith(("stem", "stage_1/block_1")) for p in changed)
        assert any(p.startswith("stage_1/block_2") for p in changed), name
    assert int(after.step) == int(before.step) + 1
    assert [int(s.opt_state.count) for s in (before, after)] == [1, 2]


def test_the_last_block_is_never_frozen():
    for blocks in (2, 3, 16):
        for first, epochs in ((0, 7), (6, 10), (9, 10), (96, 160)):
            schedule = freezing.Freezing(blocks, first, epochs)
            frozen = [schedule.frozen_blocks(epoch) for epoch in range(epochs)]
            assert frozen[:first] == [0] * first
            assert frozen[first] >= 1
            assert max(frozen) <= blocks - 1
            assert frozen == sorted(frozen)
    assert frozen[-1] == 15


# Sieved examples.


def make_sieve(order, active, forgotten, learned=None):
    forgotten = np.array(forgotten, np.int32)
    learned = np.ones(len(order), bool) if learned is None else np.array(learned)
    correct = np.zeros(len(order), bool)
    return sieving.Sieve(
        np.array(order, np.int32), np.int32(active), correct, learned, forgotten
    )


def test_the_easiest_leave_and_those_that_waited_longest_come_in():
    # Of the active examples 4, 0, 2, 5 the last two were forgotten least often.
    sieve = make_sieve([4, 0, 2, 5, 1, 3, 6], 4, forgotten=[5, 0, 1, 0, 3, 2, 0])
    after = sieving.exchange(sieve, 2, jax.random.key(0))
    np.testing.assert_array_equal(after.order, [4, 0, 1, 3, 6, 2, 5])
    assert int(after.active) == 4
    np.testing.assert_array_equal(after.forgotten, sieve.forgotten)
    # Next, 6 is at the head; 1 and 3 were never forgotten.
    again = sieving.exchange(after, 1, jax.random.key(0))
    assert again.order[3] == 6
    assert again.order[-1] in (1, 3)


def test_what_was_never_learned_is_hardest():
    sieve = make_sieve(
        [0, 1, 2, 3], 4, [0, 9, 0, 2], learned=[False, True, False, True]
    )
    after = sieving.remove(sieve, 2, jax.random.key(0))
    np.testing.assert_array_equal(after.order, [0, 2, 1, 3])
    assert int(after.active) == 2


def test_equally_easy_ones_are_drawn_by_the_key():
    sieve = make_sieve(range(20), 20, np.zeros(20))
    removed = {
        tuple(sieving.remove(sieve, 5, jax.random.key(seed)).order[15:].tolist())
        for seed in (0, 1, 2, 0)
    }
    assert len(removed) == 3


def test_sieving_keeps_the_number_of_active_examples_and_lets_all_come_in():
    schedule = sieving.Sieving(examples=40, active=30, every_epochs=2, exchanged=4)
    sieve = jax.tree.map(np.asarray, sieving.start(40, 30, jax.random.key(3)))
    seen = set(sieve.order[:30].tolist())
    assert seen != set(range(30))
    for epoch in range(1, 9):
        before = sieve
        sieve = schedule.after_epoch(sieve, epoch, jax.random.key(epoch))
        assert sorted(sieve.order) == list(range(40))
        assert int(sieve.active) == 30
        left = set(before.order[:30].tolist()) - set(sieve.order[:30].tolist())
        assert len(left) == (4 if epoch % 2 == 0 else 0)
        seen |= set(sieve.order[:30].tolist())
    assert seen == set(range(40))


def test_an_epoch_takes_the_active_examples_at_random():
    sieve = make_sieve(np.arange(12)[::-1], 7, np.zeros(12))
    orders = [np.asarray(sieving.shuffle(sieve, jax.random.key(s))) for s in (0, 1)]
    for order in orders:
        assert sorted(order[:7]) == list(range(5, 12))
        assert sorted(order) == list(range(12))
    assert list(orders[0]) != list(orders[1])


def test_forgetting_is_counted_as_by_hand():
    rng = np.random.default_rng(0)
    sieve = sieving.start(9, 9, jax.random.key(0))
    histories = [[] for _ in range(9)]
    for _ in range(30):
        examples = rng.permutation(9)[:4]
        correct = rng.random(4) < 0.5
        sieve = sieving.observe(sieve, jnp.asarray(examples), jnp.asarray(correct))
        for i, hit in zip(examples, correct, strict=True):
            histories[i].append(bool(hit))
    events = [sum(a and not b for a, b in itertools.pairwise(h)) for h in histories]
    np.testing.assert_array_equal(sieve.forgotten, events)
    np.testing.assert_array_equal(sieve.learned, [any(h) for h in histories])


def test_an_epoch_is_of_active_examples_and_each_is_noted():
    experiment, arm, start = prepared("spfde", **{"model.stage_sizes": (1,)})
    recipe = steps.Recipe(experiment.model, arm, experiment.data.info)
    train = steps.make_train_on_memory(recipe, 64)
    data = state_lib.replicate(experiment.data.train)
    length = experiment.plan.steps_per_epoch
    first = train(state_lib.replicate(start), data, np.int32(length))
    for leaf in jax.tree.leaves(first.memory):
        for replica in np.asarray(leaf):
            np.testing.assert_array_equal(replica, np.asarray(leaf)[0])
    after = state_lib.unreplicate(first)
    sieve = after.memory.sieve
    # Every example is seen once at most, and only active ones are.
    assert int(after.progress.epoch.correct) == sieve.correct.sum() > 0
    assert not sieve.forgotten.any()
    active = set(sieve.order[: int(sieve.active)].tolist())
    assert set(np.flatnonzero(sieve.correct).tolist()) <= active
    second = state_lib.unreplicate(train(first, data, np.int32(length)))
    forgotten = second.memory.sieve.forgotten
    assert set(np.unique(forgotten)) == {0, 1}
    assert not (forgotten.astype(bool) & ~sieve.correct).any()


def test_any_number_of_devices_notes_the_same():
    experiment, arm, start = prepared("spfde", **{"model.stage_sizes": (1,)})
    images, labels = batch(experiment, 24)
    examples = np.arange(1000, 1024, dtype=np.int32)
    noted = []
    for devices, parts in ((1, 1), (4, 1), (1, 3)):
        recipe = steps.Recipe(
            experiment.model, arm, experiment.data.info, accumulation_steps=parts
        )
        # As if all of them had been classified rightly before.
        sieve = start.memory.sieve._replace(correct=np.ones(1347, bool))
        state = start._replace(memory=start.memory._replace(sieve=sieve))
        after = one_step(recipe, state, images, labels, examples, devices).memory.sieve
        right = after.correct[examples]
        assert 0 < right.sum() < 24
        np.testing.assert_array_equal(after.forgotten[examples], ~right)
        assert after.forgotten.sum() == (~right).sum()
        noted.append(right)
    np.testing.assert_array_equal(noted[0], noted[1])


# What does not go together.


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("lth", {"sparsity": 0.0}, "nothing to prune"),
        ("lth", {"method.lth.rewind_epochs": 36}, "must be less than epochs=36"),
        ("lth", {"method.lth.rounds": 0}, r"must lie in \[1, 1000\]"),
        ("spfde", {"method.spfde.host": "dense"}, "it has no masks"),
        ("spfde", {"method.spfde.host": "lth"}, "it is several trainings"),
        ("spfde", {"method.spfde.host": "dsr"}, "it moves weights between layers"),
        ("spfde", {"method.spfde.host": "ac_dc"}, "it changes how many weights"),
        ("spfde", {"method.spfde.host": "snip"}, "it draws its masks before"),
        ("spfde", {"method.spfde.host": "powerprop"}, "goes around another method"),
        ("spfde", {"method.spfde.host": "mst"}, "did you mean 'mest'"),
        ("powerprop", {"method.powerprop.host": "spfde"}, "goes around another"),
        ("spfde", {"method.mest.memory": "soft"}, "mest.memory='soft' takes weights"),
        (
            "spfde",
            {"method.spfde.host": "neurrev", "method.neurrev.too_few": "drift"},
            "too_few='drift' changes how many",
        ),
        (
            "spfde",
            {"method.spfde.host": "neurrev", "method.neurrev.scope": "global"},
            "frozen layers cannot take part",
        ),
        ("spfde", {"epochs": 10}, "no examples are ever exchanged"),
        (
            "spfde",
            {"method.spfde.sieve_every_epochs": 36, "training_multiplier": 0.5},
            "is as long as all of 18 epochs",
        ),
        ("spfde", {"method.spfde.freeze_from_fraction": 0.99}, "no layer is ever"),
        ("powerprop", {"method.powerprop.weight_decay_on": "w"}, "choose 'weights' or"),
        (
            "powerprop",
            {"method.powerprop.weight_decay_on": "parameters"},
            "takes the place of weight decay",
        ),
        ("top_kast", {"method.top_kast.penalty": -1.0}, "must be at least 0"),
        (
            "set",
            {
                "removal.easy_examples": 9,
                "removal.after_epochs": 3,
                "training_multiplier": 0.01,
            },
            "needs an epoch before it and one after",
        ),
        (
            "dsr",
            {
                "removal.easy_examples": 9,
                "removal.after_epochs": 3,
                "method.dsr.update_interval_steps": None,
            },
            "give method.dsr.update_interval_steps",
        ),
        ("spfde", {"method.spfde.exchange_fraction": 0.16}, "must not exceed"),
        (
            "spfde",
            {"method.spfde.data_fraction": 1.0, "method.spfde.freeze_from_fraction": 1},
            "train 'mest' instead",
        ),
        ("set", {"removal.easy_examples": 9}, "needs removal.after_epochs"),
        ("set", {"removal.after_epochs": 9}, "has no effect"),
        (
            "set",
            {"removal.easy_examples": 9, "removal.after_epochs": 36},
            "must be less than epochs=36",
        ),
        (
            "lth",
            {"removal.easy_examples": 9, "removal.after_epochs": 3},
            "does not go with method 'lth'",
        ),
        (
            "spfde",
            {"removal.easy_examples": 9, "removal.after_epochs": 3},
            "chooses its examples itself",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(method, change, message):
    with pytest.raises(UsageError, match=message):
        rules.validate(tiny_config(method, **change))


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("spfde", {}),
        ("set", {"removal.easy_examples": 9, "removal.after_epochs": 3}),
    ],
)
def test_examples_of_a_stream_cannot_be_sieved(method, change):
    config = tiny_config(method, **change)
    config.data.name, config.data.source = "imagenet2012", "tfds"
    with pytest.raises(UsageError, match="examples have no number"):
        rules.validate(config)
    if method == "spfde":
        config.method.spfde.data_fraction = 1.0
        rules.validate(config)


def test_more_examples_than_there_are_cannot_be_removed():
    fields = {"removal.easy_examples": 1300, "removal.after_epochs": 3}
    message = "the 47 training examples that removal.easy_examples=1300 leaves of 1347"
    with pytest.raises(UsageError, match=message):
        runner.prepare(tiny_config("set", **fields))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.method.lth.rounds=2"], "lth.rounds has no effect"),
        (
            ["--config.method.name=spfde", "--config.method.rigl.update_ratio=0.2"],
            "this run trains spfde",
        ),
        (
            ["--config.method.name=lth", "--config.method.lth.prune_fraction=0.3"],
            "lth.prune_fraction has no effect where method.lth.rounds is set",
        ),
        (
            [
                "--config.method.name=spfde",
                "--config.method.spfde.data_fraction=1.0",
                "--config.method.spfde.exchange_fraction=0.1",
            ],
            "all examples are active",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_options_without_effect_are_refused(options, message, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    command = ["main.py", "--config=experiments/rn_digits.py", "--workdir=unused"]
    with pytest.raises(UsageError, match=message):
        main_lib.parse([*command, "--config.compare=()", *options])
    # Those of a host have an effect.
    parsed = main_lib.parse(
        [
            *command,
            "--config.compare=()",
            "--config.method.name=spfde",
            "--config.method.spfde.host=rigl",
            "--config.method.rigl.update_ratio=0.2",
        ]
    )
    assert parsed is not None
