"""The parts of training, in this process and on its eight devices."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import neurrev_jax
from experiments import config as config_lib
from experiments import methods, rn_digits, runner
from experiments.analysis import report
from experiments.data import augment, batches, digits
from experiments.data import base as data
from experiments.errors import StorageError, UsageError
from experiments.training import (
    evaluation,
    feeds,
    loop,
    metrics,
    result,
    state,
    steps,
)
from experiments.training.checkpoints import Checkpoints
from neurrev_jax import models

# Optax's schedules multiply integers by floats.
pytestmark = pytest.mark.loose_numerics

FAST = {"xla_backend_optimization_level": 0}
INFO = data.DataInfo("digits", 10, (8, 8, 1), 1347, 450, (5.0,), (6.0,))


def tiny_config(method="neurrev", **fields):
    config = rn_digits.get_config()
    config.model.stage_sizes = (1,)
    config.model.widths = (4,)
    config.method.name = method
    config.compare = ()
    config.batch_size = 64
    config.update(fields)
    return config


def split(n, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 17, size=(n, 8, 8, 1)).astype(np.uint8)
    return data.Split(images, rng.integers(0, 10, size=n).astype(np.int32))


def network():
    return models.ResNet((1,), (4,), num_classes=10)


def variables_of(model):
    init = jax.jit(model.init, compiler_options=FAST)
    variables = init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    return {name: variables[name] for name in ("params", "batch_stats")}


@pytest.mark.parametrize("n", [1, 7, 8, 13, 64, 65])
@pytest.mark.parametrize("batch_size", [1, 8, 20, 1000])
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_batches_hold_every_example_once(n, batch_size, devices):
    examples = split(n)
    laid_out = batches.lay_out(examples, batch_size, devices)
    assert laid_out.include.shape[0] == devices
    assert laid_out.include.shape[2] <= -(-batch_size // devices)
    included = laid_out.images[laid_out.include]
    assert included.shape == examples.images.shape
    as_rows = lambda x: sorted(map(tuple, x.reshape(n, -1).tolist()))
    assert as_rows(included) == as_rows(examples.images)
    assert sorted(laid_out.labels[laid_out.include]) == sorted(examples.labels)


@pytest.mark.parametrize(("n", "batch_size"), [(61, 16), (5, 512)])
def test_evaluation_counts_every_example_once(n, batch_size):
    model, examples = network(), split(n)
    variables = variables_of(model)
    laid_out = batches.lay_out(examples, batch_size, jax.local_device_count())
    evaluate = evaluation.make_evaluate(model, INFO)
    sums = evaluate(state.replicate(variables), state.distribute(laid_out))
    sums = state.unreplicate(sums)

    images = (examples.images.astype(np.float32) - INFO.mean[0]) / INFO.std[0]
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    assert int(sums.count) == n
    assert int(sums.correct) == int((logits.argmax(-1) == examples.labels).sum())
    losses = numpy_cross_entropy(logits, examples.labels, 0.0)
    np.testing.assert_allclose(float(sums.loss), losses.sum(), rtol=1e-5)


def numpy_cross_entropy(logits, labels, smoothing):
    """Cross-entropy with smoothed labels, written out."""
    logits = logits.astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    k = logits.shape[-1]
    target = (1 - smoothing) * np.eye(k)[labels] + smoothing / k
    return -(target * logp).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_smooths_labels(smoothing):
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3
    labels = np.array([0, 1, 2, 3, 4, 0], np.int32)
    actual = steps.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    expected = numpy_cross_entropy(logits, labels, smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def make_recipe(experiment, **fields):
    [(config, arm)] = experiment.arms
    return steps.Recipe(
        model=experiment.model,
        arm=arm,
        info=experiment.data.info,
        log_every_steps=config.log_every_steps or experiment.plan.steps_per_epoch,
        **fields,
    )


def start_of(experiment):
    [(config, arm)] = experiment.arms
    sample = np.zeros((1, *experiment.data.info.image_shape), np.float32)
    return state.compile_init(experiment.model, arm, sample, config.seed)


@pytest.fixture(scope="module")
def trained():
    """One epoch with frequent topology updates, in one call and in three."""
    config = tiny_config(log_every_steps=8)
    config.method.update_interval_epochs = 0.1
    config.method.update_start_epochs = 0.0
    config.distribution = "uniform"
    experiment = runner.prepare(config)
    recipe = make_recipe(experiment, crop_padding=1, flip=True)
    train = steps.make_train_on_memory(recipe, config.batch_size)
    data = state.replicate(experiment.data.train)
    start = start_of(experiment)
    whole = train(state.replicate(start), data, np.int32(21))
    parts = state.replicate(start)
    for steps_of_call in (5, 1, 15):
        parts = train(parts, data, np.int32(steps_of_call))
    return start, whole, parts


def test_every_device_ends_with_identical_masks_and_parameters(trained):
    start, whole, _ = trained
    masks = whole.opt_state.masks
    changed = jax.tree.map(
        lambda old, new: bool((old != new[0]).any()), start.opt_state.masks, masks
    )
    assert any(jax.tree.leaves(changed))
    for leaf in jax.tree.leaves(whole):
        for replica in np.asarray(leaf):
            np.testing.assert_array_equal(replica, np.asarray(leaf)[0])
    inactive = jax.tree.map(
        lambda p, m: bool((np.asarray(p)[~np.asarray(m)] != 0).any()),
        whole.params["stage_1"],
        masks["stage_1"],
    )
    assert not any(jax.tree.leaves(inactive))
    progress = state.unreplicate(whole.progress)
    # 21 steps of 64: the window began anew after steps 8 and 16.
    assert 0 < int(progress.window.correct) < int(progress.epoch.correct) <= 21 * 64
    assert 0 < float(progress.window.loss) / 5 < float(progress.epoch.loss) / 21
    assert int(progress.bad_step) == 0
    assert int(state.unreplicate(whole.step)) == 21


def test_an_epoch_in_several_calls_is_the_same_to_the_bit(trained):
    _, whole, parts = trained
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def replicas(recipe, start, images, labels, count):
    """One train step on `count` simulated devices, compiled without optimization."""
    copies = jax.tree.map(lambda x: jnp.stack([x] * count), start)
    cut = lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])
    step = jax.vmap(
        lambda s, x, y: steps.train_step(recipe, s, x, y), axis_name=state.AXIS
    )
    step = jax.jit(step, compiler_options=FAST)
    return jax.tree.map(
        lambda x: np.asarray(x[0]), step(copies, cut(images), cut(labels))
    )


def test_accumulation_on_one_device_is_the_step_of_many_devices():
    config = tiny_config()
    config.model.sync_batch_norm = False
    config.method.update_interval_epochs = 1e-6  # On every step.
    config.method.update_start_epochs = 0.0
    config.distribution = "uniform"
    experiment = runner.prepare(config)
    examples = split(64)
    images = jnp.asarray(examples.images, jnp.float32) / 16
    start = start_of(experiment)
    many = replicas(make_recipe(experiment), start, images, examples.labels, 8)
    one = replicas(
        make_recipe(experiment, accumulation_steps=8), start, images, examples.labels, 1
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), many, one
    )
    jax.tree.map(
        np.testing.assert_array_equal, many.opt_state.masks, one.opt_state.masks
    )
    assert int(many.progress.epoch.correct) == int(one.progress.epoch.correct)
    # It is not the step of the whole batch on one device: batch norm sees parts.
    whole = replicas(make_recipe(experiment), start, images, examples.labels, 1)
    kernel = lambda s: s.batch_stats["stem"]["norm"]["var"]
    np.testing.assert_allclose(kernel(many), kernel(one), rtol=5e-7)
    assert not np.allclose(kernel(whole), kernel(one), rtol=2e-6, atol=0)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32():
    config = tiny_config()
    config.model.dtype = "bfloat16"
    experiment = runner.prepare(config)
    examples = split(16)
    images = jnp.asarray(examples.images, jnp.float32) / 16
    start = start_of(experiment)
    after = replicas(make_recipe(experiment), start, images, examples.labels, 1)
    for leaf in jax.tree.leaves((after.params, after.batch_stats)):
        assert leaf.dtype == np.float32
    full = tiny_config()
    exact = runner.prepare(full)
    reference = replicas(make_recipe(exact), start, images, examples.labels, 1)
    low, high = after.progress.epoch.loss, reference.progress.epoch.loss
    assert low != high
    assert low == pytest.approx(high, rel=0.05)


class FakeStream:
    """Batches whose number is written into every pixel."""

    def __init__(self, examples):
        self.info = INFO
        self.asked = []
        self._examples = examples

    def train_batches(self, *, seed, first_step, steps_per_epoch, batch_size):
        self.asked.append((seed, first_step, steps_per_epoch, batch_size))
        for step in range(first_step, 1000):
            chosen = (np.arange(batch_size) + step) % len(self._examples.labels)
            yield self._examples.images[chosen], self._examples.labels[chosen]

    def test_batches(self, batch_size):
        n = len(self._examples.labels)
        for first in range(0, n, batch_size):
            part = data.Split(*(x[first : first + batch_size] for x in self._examples))
            laid_out = batches.lay_out(part, batch_size, 1)
            yield tuple(self._pad(x[0, 0], batch_size) for x in laid_out)

    @staticmethod
    def _pad(x, n):
        return np.concatenate([x, np.zeros((n - len(x), *x.shape[1:]), x.dtype)])

    def observed_batches(self, examples, batch_size):
        del examples
        return self.test_batches(batch_size)


def test_a_stream_is_trained_step_by_step_and_evaluated_exactly_once():
    config = tiny_config(eval_batch_size=20)
    experiment = runner.prepare(config)
    stream = FakeStream(split(50))
    feed = feeds.StreamFeed(config, stream)
    recipe = make_recipe(experiment)
    start = start_of(experiment)
    advance = feed.train(recipe, experiment.plan, 3)
    assert stream.asked == []  # Nothing is read before it is needed.
    after = state.unreplicate(advance(state.replicate(start), 4))
    assert stream.asked == [(0, 3, 21, 64)]
    assert int(after.step) == 4
    # 50 examples in batches of 24, because 20 is no multiple of 8 devices.
    parts = [state.unreplicate(b.include) for b in feed.test()]
    assert len(parts) == 3
    variables = variables_of(network())
    evaluate = evaluation.make_evaluate(network(), INFO)
    counts = [
        int(state.unreplicate(evaluate(state.replicate(variables), b)).count)
        for b in feed.test()
    ]
    assert sum(counts) == 50


def test_augmentation_pads_with_black_crops_and_flips_each_image_by_its_key():
    images = jnp.asarray(split(40).images + 1)
    keys = jax.random.split(jax.random.key(0), 40)
    augmented = augment.augment(keys, images, padding=2, flip=True)
    assert augmented.shape == images.shape
    assert augmented.dtype == images.dtype
    np.testing.assert_array_equal(
        augmented[30:], augment.augment(keys[30:], images[30:], padding=2, flip=True)
    )
    # Each is one of the 25 crops of the padded image or its mirror image.
    padded = np.pad(np.asarray(images), ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = []
    for i, image in enumerate(np.asarray(augmented)):
        matches = [
            (r, c, mirrored)
            for r in range(5)
            for c in range(5)
            for mirrored in (False, True)
            if np.array_equal(
                image[:, ::-1] if mirrored else image,
                padded[i, r : r + 8, c : c + 8],
            )
        ]
        assert matches
        found.append(matches[0])
    assert {m for _, _, m in found} == {False, True}
    assert {r for r, _, _ in found} == {c for _, c, _ in found} == set(range(5))
    assert augment.augment(keys, images, padding=0, flip=False) is images


def test_normalization_uses_the_statistics_of_each_channel():
    info = dataclasses.replace(INFO, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    images = jnp.full((1, 2, 2, 3), 5, jnp.uint8)
    normalized = augment.normalize(info, images)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized[0, 0, 0], [4.0, 1.5, 0.5])


def test_digits_are_split_by_class_and_the_same_every_time():
    one, two = digits.load(0.25), digits.load(0.25)
    assert one.train.images.shape == (1347, 8, 8, 1)
    assert one.test.labels.shape == (450,)
    assert one.train.images.dtype == np.uint8
    np.testing.assert_array_equal(one.test.images, two.test.images)
    assert np.ptp(np.bincount(one.test.labels)) <= 3
    normalized = augment.normalize(one.info, jnp.asarray(one.train.images))
    assert abs(float(normalized.mean())) < 1e-4
    assert float(normalized.std()) == pytest.approx(1, abs=1e-4)


def test_learning_rate_warms_up_and_ends_at_its_final_value():
    config = tiny_config(warmup_epochs=2.0, final_learning_rate=1e-4)
    plan = runner.prepare(config).plan
    schedule = methods.learning_rate(config, plan)
    assert float(schedule(0)) == 0
    assert float(schedule(plan.warmup_steps)) == pytest.approx(config.learning_rate)
    assert float(schedule(plan.total_steps)) == pytest.approx(1e-4)
    plan = runner.prepare(tiny_config()).plan
    flat = methods.learning_rate(tiny_config(), plan)
    assert float(flat(0)) == pytest.approx(config.learning_rate)


def test_learning_rate_by_epochs_is_a_staircase():
    config = tiny_config(learning_rate_changes="every_epoch", epochs=16)
    config.learning_rate, config.final_learning_rate = 0.1, 4e-8
    plan = runner.prepare(config).plan
    rates = np.array([methods.learning_rate(config, plan)(s) for s in range(16 * 21)])
    epochs = np.arange(16)
    expected = 4e-8 + (0.1 - 4e-8) * (1 + np.cos(np.pi * epochs / 16)) / 2
    np.testing.assert_allclose(
        rates.reshape(16, 21), expected[:, None].repeat(21, 1), rtol=1e-5
    )
    config.warmup_epochs = 2.5
    plan = runner.prepare(config).plan
    rate = methods.learning_rate(config, plan)
    warmup = plan.warmup_steps
    assert float(rate(warmup // 2)) == pytest.approx(0.1 * (warmup // 2) / warmup)
    assert float(rate(warmup)) == pytest.approx(0.1)
    assert float(rate(62)) == float(rate(warmup)) > float(rate(63))


@pytest.mark.parametrize("decay_on", ["all", "all_but_norm"])
def test_l2_spares_batch_norms_where_it_is_told_to(decay_on):
    config = tiny_config("dense", weight_decay=0.5, weight_decay_on=decay_on)
    config.momentum = 0.0
    [(_, arm)] = runner.prepare(config).arms
    params = jax.tree.map(jnp.ones_like, variables_of(network())["params"])
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = arm.tx.update(nothing, arm.tx.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        spared = decay_on == "all_but_norm" and "norm" in jax.tree_util.keystr(path)
        np.testing.assert_allclose(update, 0 if spared else -0.3 * 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "updates"), [("neurrev", 1), ("rigl", 1), ("static", 0), ("dense", 0)]
)
def test_topology_updates_are_counted(name, updates):
    config = tiny_config(name, epochs=8)
    [(_, arm)] = runner.prepare(config).arms
    counted = arm.topology_updates(8 * 21)
    # Every 3 epochs after 0.5: epochs 3.5, 6.5, but none after 75 % of 8 = 6 epochs.
    assert counted[-1] == updates
    assert counted[0] == 0


def tree(value):
    return {"a": np.full((40, 30), value, np.float32), "b": np.array(value > 1)}


def test_checkpoints_restore_the_newest_and_keep_the_last_few(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        assert saved.restore(tree(0)) == (None, [])
        for step in (1, 2, 3):
            saved.save(step, tree(step))
    with Checkpoints(tmp_path / "c", keep=2) as saved:
        restored, problems = saved.restore(tree(0))
    assert problems == []
    jax.tree.map(np.testing.assert_array_equal, restored, tree(3))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]


def saved_twice(directory):
    with Checkpoints(directory, keep=3) as saved:
        for step in (1, 2):
            saved.save(step, tree(step))


def largest_file(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(step):
    path = largest_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(step):
    path = largest_file(step)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x55
    path.write_bytes(bytes(damaged))


def lose_state(step):
    for path in sorted((step / "state").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def alter_digest(step):
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "digest": "0" * 64}))


@pytest.mark.parametrize("damage", [truncate, flip, lose_state, alter_digest])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage):
    saved_twice(tmp_path / "c")
    damage(tmp_path / "c" / "2")
    with Checkpoints(tmp_path / "c", keep=3) as saved:
        restored, [problem] = saved.restore(tree(0))
        jax.tree.map(np.testing.assert_array_equal, restored, tree(1))
        assert str(tmp_path / "c" / "2") in problem
        assert "damaged" in problem
        # Its step can be saved again.
        saved.save(2, tree(2))
    with Checkpoints(tmp_path / "c", keep=3) as saved:
        restored, problems = saved.restore(tree(0))
    assert problems == []
    jax.tree.map(np.testing.assert_array_equal, restored, tree(2))


def test_only_damaged_checkpoints_are_an_error_every_time(tmp_path):
    saved_twice(tmp_path / "c")
    truncate(tmp_path / "c" / "1")
    alter_digest(tmp_path / "c" / "2")
    said = []
    for _ in range(2):
        with (
            Checkpoints(tmp_path / "c", keep=3) as saved,
            pytest.raises(UsageError, match="all 2 checkpoints") as error,
        ):
            saved.restore(tree(0))
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "the newest: its contents do not match their digest" in said[0]
    assert f"delete {tmp_path} to train this method anew" in said[0]
    # Nothing has been touched.
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2"]


def fail_once(monkeypatch, error):
    """Makes the next attempt to read a checkpoint fail, and no other."""
    restore, errors = ocp.CheckpointManager.restore, [error]

    def failing(*args, **options):
        if errors:
            raise errors.pop()
        return restore(*args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", failing)


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch):
    saved_twice(tmp_path / "c")
    fail_once(monkeypatch, OSError(errno.EIO, "Input/output error"))
    with Checkpoints(tmp_path / "c", keep=3) as saved:
        with pytest.raises(StorageError, match=r"c/2 cannot be read \(\[Errno 5\]"):
            saved.restore(tree(0))
        restored, problems = saved.restore(tree(0))
        assert problems == []
        jax.tree.map(np.testing.assert_array_equal, restored, tree(2))
    # TensorStore raises no OSError, but for this the same as for damage.
    fail_once(monkeypatch, ValueError("UNKNOWN: Error reading local file"))
    path = largest_file(tmp_path / "c" / "2" / "state")
    path.unlink()
    path.symlink_to(path.name)
    with (
        Checkpoints(tmp_path / "c", keep=3) as saved,
        pytest.raises(StorageError, match="Too many levels of symbolic links"),
    ):
        saved.restore(tree(0))
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "2"]


def test_a_failure_that_passes_is_not_damage(tmp_path, monkeypatch):
    saved_twice(tmp_path / "c")
    fail_once(monkeypatch, ValueError("UNKNOWN: Failed to open: Input/output error"))
    with Checkpoints(tmp_path / "c", keep=3) as saved:
        restored, problems = saved.restore(tree(0))
    assert problems == []
    jax.tree.map(np.testing.assert_array_equal, restored, tree(2))


def test_metrics_after_the_checkpoint_and_half_lines_are_dropped(tmp_path):
    with metrics.MetricsWriter(tmp_path, 0) as writer:
        for epoch in (1, 2, 3):
            writer.write({"epoch": epoch, "step": 10 * epoch}, {"seconds": 1.0})
    path = tmp_path / metrics.METRICS
    with path.open("a") as file:
        file.write('{"epoch": 4, "st')
    assert len(metrics.read_lines(path)) == 3
    with metrics.MetricsWriter(tmp_path, 20) as writer:
        writer.write({"epoch": 3, "step": 30}, {"seconds": 2.0})
    assert [line["step"] for line in metrics.read_lines(path)] == [10, 20, 30]
    timing = metrics.read_lines(tmp_path / metrics.TIMING)
    assert [line["seconds"] for line in timing] == [1.0, 1.0, 2.0]


def test_results_csv_has_a_row_per_method(tmp_path):
    results = [
        {"method": name, "test_accuracy": 0.5, "layers": []} for name in ("a", "b")
    ]
    report.save(results, tmp_path)
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines == ["method,test_accuracy", "a,0.5", "b,0.5"]
    assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("fields", "step", "expected"),
    [
        ({}, 0, 21),
        ({}, 20, 21),
        ({}, 21, 42),
        ({"steps_per_call": 5}, 0, 5),
        ({"steps_per_call": 5}, 18, 21),
        ({"log_every_steps": 8}, 0, 8),
        ({"log_every_steps": 8}, 16, 21),
        ({"checkpoint_every_steps": 30}, 21, 30),
        ({"checkpoint_every_steps": 4, "log_every_steps": 3}, 3, 4),
    ],
)
def test_training_returns_to_the_host_where_something_is_due(fields, step, expected):
    config = tiny_config(**fields)
    plan = config_lib.Plan(epochs=4, steps_per_epoch=21, total_steps=84, warmup_steps=0)
    assert loop.next_stop(config, plan, step) == expected


def test_a_stream_returns_to_the_host_often():
    config = tiny_config()
    config.data.name, config.data.source = "imagenet2012", "tfds"
    plan = config_lib.Plan(
        epochs=2, steps_per_epoch=1251, total_steps=2502, warmup_steps=0
    )
    assert loop.next_stop(config, plan, 0) == 50
    assert loop.next_stop(config, plan, 1240) == 1251


def test_layers_are_listed_from_input_to_output():
    masks = {name: np.array(True) for name in ("stem", "classifier")}
    masks["stage_1"] = {f"block_{i}": np.array(True) for i in range(1, 12)}
    params = jax.tree.map(lambda _: jnp.ones((2, 2)), masks)
    summary = neurrev_jax.summarize(params, masks)
    blocks = [f"stage_1/block_{i}" for i in range(1, 12)]
    paths = [layer.path for layer in result.in_order(summary)]
    assert paths == ["stem", *blocks, "classifier"]
