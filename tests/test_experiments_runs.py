"""Whole runs as processes: finished, killed, stopped, damaged, diverged."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import main as main_lib

EPOCHS = 12
TINY = [
    "--config=experiments/rn_digits.py",
    "--config.model.stage_sizes=(1,)",
    "--config.model.widths=(8,)",
    "--config.batch_size=128",
    "--config.learning_rate=0.3",
    f"--config.epochs={EPOCHS}",
    "--config.method.update_interval_epochs=1",
    "--config.dormant.examples=128",
    "--config.compare=()",
    "--config.sparsity=0.5",
    "--config.distribution=uniform",
    "--config.checkpoint_every_epochs=2",
]


def in_process(test):
    """Marks a test that runs the command here, with what ml_collections warns of."""
    ignore = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
    return pytest.mark.loose_numerics(ignore(test))


class Runner:
    """Starts the command in a process with one CPU device (or more)."""

    def __init__(self, root, cache):
        self.root = root
        self.cache = cache

    def start(self, workdir, *args, devices=1):
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # These programs take longer to optimize than to run, and they are the
            # same in all of these processes.
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.main", f"--workdir={workdir}"),
                *TINY,
                *args,
            ],
            cwd=self.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir, *args, expect=0, **options):
        process = self.start(workdir, *args, **options)
        out, err = process.communicate(timeout=240)
        assert process.returncode == expect, err
        return out, err

    def send(self, number, workdir, *args, after_epoch, arm="neurrev", **options):
        """Signals a run once it has finished an epoch; returns status and output."""
        process = self.start(workdir, *args, **options)
        lines = workdir / arm / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if lines.exists() and lines.read_bytes().count(b"\n") >= after_epoch:
                process.send_signal(number)
                break
            time.sleep(0.005)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def runner(request, tmp_path_factory):
    return Runner(request.config.rootpath, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def undisturbed(runner, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    out, err = runner.run(workdir)
    return workdir, out, err


def final_state(workdir):
    checkpoints = workdir / "neurrev" / "checkpoints"
    step = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    return step, ocp.PyTreeCheckpointer().restore(checkpoints / str(step) / "state")


def assert_same_end(workdir, expected):
    step, actual = final_state(workdir)
    expected_step, wanted = final_state(expected)
    assert step == expected_step == 10 * EPOCHS
    assert {"params", "batch_stats", "opt_state", "step", "key"} == set(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)
    name = "neurrev/metrics.jsonl"
    assert (workdir / name).read_bytes() == (expected / name).read_bytes()
    timing = (workdir / "neurrev" / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in timing] == list(range(1, EPOCHS + 1))


def test_a_run_prints_its_tables_and_writes_every_file(undisturbed):
    workdir, out, err = undisturbed
    assert err == ""
    for text in ("neurrev: epoch 12/12", "Methods", "Layers of neurrev", "stem/conv"):
        assert text in out
    for name in ("config.json", "results.json", "results.csv"):
        assert (workdir / name).stat().st_size > 0
    for name in ("accuracy.png", "dormant_neurons.png", "layer_density.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    arm = workdir / "neurrev"
    text = (arm / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(10, 10 * EPOCHS + 1, 10))
    assert lines[-1]["test_accuracy"] > 0.8
    assert lines[-1]["topology_updates"] == 8
    # Half of two 3x3 convolutions of 8 channels; stem and classifier stay dense.
    assert lines[-1]["sparsity"] == 576 / (72 + 2 * 576 + 80)
    assert 0 <= lines[-1]["dormant_rate"] <= 1
    assert list((arm / "tensorboard").glob("events.*"))
    assert json.loads((arm / "config.json").read_text())["epochs"] == EPOCHS
    [result] = json.loads((workdir / "results.json").read_text())
    assert result["test_accuracy"] == lines[-1]["test_accuracy"]
    best = max(line["test_accuracy"] for line in lines)
    assert result["best_test_accuracy"] == best


def test_a_killed_run_continues_and_ends_bit_for_bit_the_same(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    status, _, _ = runner.send(signal.SIGKILL, workdir, after_epoch=5)
    assert status == -signal.SIGKILL
    assert not (workdir / "neurrev" / "result.json").exists()
    out, _ = runner.run(workdir)
    assert "continuing after epoch" in out
    assert_same_end(workdir, undisturbed[0])


def test_sigterm_saves_and_exits_with_its_own_status(runner, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    # Checkpoints are so rare that only the signal can have caused one.
    rare = f"--config.checkpoint_every_epochs={EPOCHS}"
    status, _, err = runner.send(signal.SIGTERM, workdir, rare, after_epoch=2)
    assert status == 75
    assert "the same command continues" in err
    assert err.count("\n") == 1
    lines = (workdir / "neurrev" / "metrics.jsonl").read_text().splitlines()
    stopped_at = json.loads(lines[-1])["step"]
    step, state = final_state(workdir)
    assert step == stopped_at == int(state["step"]) < 10 * EPOCHS
    expected = (undisturbed[0] / "neurrev" / "metrics.jsonl").read_text().splitlines()
    assert lines == expected[: len(lines)]


def test_a_damaged_checkpoint_falls_back_and_ends_the_same(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    (workdir / "neurrev" / "result.json").unlink()
    newest = workdir / "neurrev" / "checkpoints" / str(10 * EPOCHS)
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    out, _ = runner.run(workdir)
    assert "is damaged" in out
    assert str(newest) in out
    assert f"continuing after epoch {EPOCHS - 2} " in out
    assert_same_end(workdir, undisturbed[0])


@in_process
def test_a_finished_method_is_not_repeated(
    undisturbed, tmp_path, capsys, monkeypatch, request
):
    monkeypatch.chdir(request.config.rootpath)
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    before = (workdir / "neurrev" / "timing.jsonl").read_bytes()
    assert main_lib.main(["main.py", f"--workdir={workdir}", *TINY]) == 0
    out = capsys.readouterr().out
    assert "neurrev: finished before" in out
    assert "epoch 1/" not in out
    assert "Methods" in out
    assert (workdir / "neurrev" / "timing.jsonl").read_bytes() == before


def test_four_devices_train_the_same_network(runner, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    # Static starts from the same masks as NeurRev, and compiles in less time.
    status, out, err = runner.send(
        signal.SIGTERM,
        workdir,
        "--config.method.name=static",
        after_epoch=1,
        arm="static",
        devices=4,
    )
    assert status == 75, err
    assert "4 cpu devices" in out
    one, four = (
        json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
        for path in (undisturbed[0] / "neurrev", workdir / "static")
    )
    # The same examples in the same order; only sums are in another order.
    assert four["topology_updates"] == one["topology_updates"] == 0
    assert four["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
    assert four["test_loss"] == pytest.approx(one["test_loss"], rel=1e-2)
    assert four["sparsity"] == one["sparsity"]


@in_process
def test_a_diverged_run_says_so_and_saves_nothing_of_it(
    tmp_path, capsys, monkeypatch, request
):
    monkeypatch.chdir(request.config.rootpath)
    workdir = tmp_path / "run"
    options = ["--config.learning_rate=1e38", "--config.method.name=dense"]
    assert main_lib.main(["main.py", f"--workdir={workdir}", *TINY, *options]) == 3
    err = capsys.readouterr().err
    assert re.search(r"the loss became (inf|nan) at step \d+ \(epoch 1\)", err)
    assert "Lower learning_rate" in err
    assert err.count("\n") == 1
    # Nothing of the epoch that diverged is on disk.
    assert (workdir / "dense" / "metrics.jsonl").read_text() == ""
    assert list((workdir / "dense" / "checkpoints").iterdir()) == []
    assert not (workdir / "dense" / "result.json").exists()
