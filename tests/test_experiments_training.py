"""The parts of training, in this process and on its eight devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import methods, rn_digits, runner
from experiments.analysis import report
from experiments.errors import UsageError
from experiments.training import data, loop, metrics, state, steps
from experiments.training.checkpoints import Checkpoints
from neurrev_jax import models

# Optax's schedules multiply integers by floats.
pytestmark = pytest.mark.loose_numerics

FAST = {"xla_backend_optimization_level": 0}


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
    images = rng.normal(size=(n, 8, 8, 1)).astype(np.float32)
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
    laid_out = data.batches(examples, batch_size, devices)
    assert laid_out.include.shape[0] == devices
    assert laid_out.include.shape[2] <= -(-batch_size // devices)
    included = laid_out.images[laid_out.include]
    assert included.shape == examples.images.shape
    order = np.argsort(included[:, 0, 0, 0])
    expected = np.argsort(examples.images[:, 0, 0, 0])
    np.testing.assert_array_equal(included[order], examples.images[expected])
    np.testing.assert_array_equal(
        laid_out.labels[laid_out.include][order], examples.labels[expected]
    )


@pytest.mark.parametrize(("n", "batch_size"), [(61, 16), (5, 512)])
def test_evaluation_counts_every_example_once(n, batch_size):
    model, examples = network(), split(n)
    variables = variables_of(model)
    laid_out = data.batches(examples, batch_size, jax.local_device_count())
    evaluate = steps.make_evaluate(model)
    sums = evaluate(state.replicate(variables), state.distribute(laid_out))
    sums = state.unreplicate(sums)

    logits = jax.jit(model.apply)(variables, examples.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.labels)
    assert int(sums.count) == n
    assert int(sums.correct) == int((logits.argmax(-1) == examples.labels).sum())
    np.testing.assert_allclose(float(sums.loss), float(losses.sum()), rtol=1e-5)


def test_every_device_ends_with_identical_masks_and_parameters():
    config = tiny_config()
    config.method.update_interval_epochs = 0.1
    config.method.update_start_epochs = 0.0
    config.distribution = "uniform"
    experiment = runner.prepare(config)
    shared = loop.share(config, experiment.dataset, experiment.model)
    [(_, arm)] = experiment.arms
    start = state.compile_init(
        experiment.model, arm, experiment.dataset.train.images[:1], 0
    )
    epoch = steps.make_train_epoch(
        experiment.model,
        arm,
        steps=experiment.plan.steps_per_epoch,
        batch_size=config.batch_size,
        shift_pixels=1,
    )
    trained, values = epoch(state.replicate(start), shared.train, 0)
    masks = trained.opt_state.masks
    changed = jax.tree.map(
        lambda old, new: bool((old != new[0]).any()), start.opt_state.masks, masks
    )
    assert any(jax.tree.leaves(changed))
    for leaf in jax.tree.leaves(trained):
        for replica in np.asarray(leaf):
            np.testing.assert_array_equal(replica, np.asarray(leaf)[0])
    inactive = jax.tree.map(
        lambda p, m: bool((np.asarray(p)[~np.asarray(m)] != 0).any()),
        trained.params["stage_1"],
        masks["stage_1"],
    )
    assert not any(jax.tree.leaves(inactive))
    losses = np.asarray(values.loss)[0]
    assert losses.shape == (21,)
    assert losses[-3:].mean() < losses[:3].mean()


def test_shift_moves_images_and_does_not_depend_on_the_batch():
    images = jnp.asarray(split(6).images)
    keys = jax.random.split(jax.random.key(0), 6)
    shifted = data.random_shift(keys, images, 1)
    assert shifted.shape == images.shape
    assert not np.array_equal(shifted, images)
    np.testing.assert_array_equal(
        shifted[4:], data.random_shift(keys[4:], images[4:], 1)
    )
    assert data.random_shift(keys, images, 0) is images
    inner = np.asarray(images[0, 1:-1, 1:-1])
    padded = np.pad(np.asarray(shifted[0]), ((1, 1), (1, 1), (0, 0)))
    found = [
        np.array_equal(padded[r : r + 6, c : c + 6], inner)
        for r in range(5)
        for c in range(5)
    ]
    assert any(found)


def test_digits_are_split_by_class_and_the_same_every_time():
    config = rn_digits.get_config().data
    one, two = data.load(config), data.load(config)
    assert one.train.images.shape == (1347, 8, 8, 1)
    assert one.test.labels.shape == (450,)
    assert one.train.images.dtype == np.float32
    np.testing.assert_array_equal(one.test.images, two.test.images)
    assert np.ptp(np.bincount(one.test.labels)) <= 3
    assert abs(float(one.train.images.mean())) < 1e-4


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
    with Checkpoints(tmp_path / "c", keep=3) as saved:
        for step in (1, 2):
            saved.save(step, tree(step))
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


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    with Checkpoints(tmp_path / "c", keep=3) as saved:
        saved.save(1, tree(1))
    truncate(tmp_path / "c" / "1")
    with (
        Checkpoints(tmp_path / "c", keep=3) as saved,
        pytest.raises(UsageError, match="all 1 checkpoints"),
    ):
        saved.restore(tree(0))


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
