"""Whole runs as processes: finished, killed, stopped, damaged, diverged."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from experiments import config as config_lib
from experiments import main as main_lib
from experiments.training import loop
from tests import runs
from tests.runs import EPOCHS, TINY, assert_same_end, final_state
from tflite_export import runs as export_runs

pytestmark = pytest.mark.xdist_group("runs")


def in_process(test):
    """Marks a test that runs the command here, with what ml_collections warns of."""
    ignore = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
    return pytest.mark.loose_numerics(ignore(test))


@pytest.fixture(scope="module")
def runner(request):
    return runs.Runner(request.config.rootpath)


# A process that has imported TensorFlow ends with a status of its own.
WITHOUT_TENSORFLOW = """
import atexit, os
atexit.register(lambda: "tensorflow" in sys.modules and os._exit(99))
"""


@pytest.fixture(scope="module")
def undisturbed(runner, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    out, err = runner.run(workdir, prelude=WITHOUT_TENSORFLOW)
    return workdir, out, err


def test_a_run_leaves_a_network_that_others_can_compute_with(undisturbed):
    workdir, _, _ = undisturbed
    found = export_runs.open_run(workdir)
    result = json.loads((workdir / "neurrev" / "result.json").read_text())
    assert found.description["training"]["step"] == result["steps"]
    for layer in result["layers"]:
        kernel = found.params
        for name in layer["path"].split("/"):
            kernel = kernel[name]
        # Active weights may be zero, inactive ones have to be.
        assert np.count_nonzero(kernel) <= layer["active"]
    images = found.normalize(found.test_images)
    logits = jax.jit(found.apply)(found.params, images)
    accuracy = np.mean(np.argmax(logits, axis=1) == found.test_labels)
    assert found.has_whole_test_set
    assert accuracy == pytest.approx(result["test_accuracy"])


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


def test_a_run_killed_twice_continues_and_ends_bit_for_bit_the_same(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    # Within an epoch, and with a step log: the one is no part of the run, and the
    # other must not disturb it.
    steps = "--config.steps_per_call=3"
    status, _, _ = runner.send(signal.SIGKILL, workdir, after_epoch=5)
    assert status == runs.SIGKILLED
    status, _, _ = runner.send(signal.SIGKILL, workdir, steps, after_epoch=8)
    assert status == runs.SIGKILLED
    assert not (workdir / "neurrev" / "result.json").exists()
    out, _ = runner.run(workdir)
    assert "continuing after epoch" in out
    assert_same_end(workdir, undisturbed[0])


# Kills the process as it is about to commit its third checkpoint.
KILL_WHILE_SAVING = """
import os, signal
rename = os.rename

def deadly(source, target, **options):
    if os.path.basename(target) == "60":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, **options)

os.rename = deadly
"""


def test_a_run_killed_while_saving_loses_the_steps_since_the_checkpoint_before(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    process = runner.start(workdir, prelude=KILL_WHILE_SAVING)
    _, err = process.communicate(timeout=240)
    assert process.returncode == runs.SIGKILLED, err
    left = {path.name for path in (workdir / "neurrev" / "checkpoints").iterdir()}
    assert {"20", "40"} <= left
    assert "60" not in left
    assert any("60" in name and "tmp" in name for name in left)
    out, _ = runner.run(workdir)
    assert "continuing after epoch 4 (step 40)" in out
    assert_same_end(workdir, undisturbed[0])


def test_sigterm_saves_within_an_epoch_and_the_same_command_continues(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    # Checkpoints are so rare that only the signal can have caused one.
    options = [
        f"--config.checkpoint_every_epochs={EPOCHS}",
        "--config.steps_per_call=1",
    ]
    status, _, err = runner.send(signal.SIGTERM, workdir, *options, after_epoch=2)
    assert status == 75
    assert "the same command continues" in err
    assert err.count("\n") == 1
    lines = (workdir / "neurrev" / "metrics.jsonl").read_text().splitlines()
    step, state = final_state(workdir)
    assert f"stopped by SIGTERM at step {step} of {runs.STEPS}" in err
    assert step == int(state["step"])
    # One step at a time: it need not have reached the end of the epoch.
    assert 0 <= step - json.loads(lines[-1])["step"] < 10
    expected = (undisturbed[0] / "neurrev" / "metrics.jsonl").read_text().splitlines()
    assert lines == expected[: len(lines)]
    runner.run(workdir, *options)
    assert_same_end(workdir, undisturbed[0])


# No file may grow beyond 12 KiB: what a disk that is full does to a checkpoint.
FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (12 * 1024, 12 * 1024))
"""


def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoints(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    arm = workdir / "neurrev"
    (arm / "result.json").unlink()
    for step in runs.saved_steps(workdir)[1:]:
        shutil.rmtree(arm / "checkpoints" / str(step))
    [kept] = runs.saved_steps(workdir)
    process = runner.start(workdir, prelude=FULL_DISK)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 74, err
    last = err.splitlines()[-1]
    assert "cannot write in" in last
    assert str(arm) in last
    assert "Make room" in last
    assert "Traceback" not in err
    assert runs.saved_steps(workdir) == [kept]
    runner.run(workdir)
    assert_same_end(workdir, undisturbed[0])


@in_process
def test_a_directory_that_cannot_be_written_is_one_sentence(
    tmp_path, capsys, monkeypatch, request
):
    monkeypatch.chdir(request.config.rootpath)
    workdir = tmp_path / "run"
    command = ["main.py", f"--workdir={workdir}", *TINY, "--config.method.name=static"]
    parsed = main_lib.parse(command)
    assert parsed is not None
    workdir.mkdir()
    (workdir / "config.json").write_text(config_lib.to_json(parsed.config))
    (workdir / "static").mkdir()
    (workdir / "static" / "checkpoints").write_text("in the way")
    assert main_lib.main(command) == 74
    err = capsys.readouterr().err
    assert f"cannot write in {workdir / 'static'}" in err
    assert err.count("\n") == 1
    assert (workdir / "static" / "checkpoints").read_text() == "in the way"


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


def test_a_run_killed_between_its_last_checkpoint_and_network_writes_the_network(
    runner, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[0], workdir)
    arm = workdir / "neurrev"
    (arm / "result.json").unlink()
    (arm / "network.msgpack").write_bytes(b"of an earlier step")
    runner.run(workdir)
    assert (arm / "result.json").exists()
    expected = undisturbed[0] / "neurrev" / "network.msgpack"
    assert (arm / "network.msgpack").read_bytes() == expected.read_bytes()


@in_process
def test_sigterm_in_the_last_epoch_of_a_method_stops_before_the_next(
    tmp_path, capsys, monkeypatch, request
):
    monkeypatch.chdir(request.config.rootpath)
    workdir = tmp_path / "run"
    options = [
        "--config.method.name=dense",
        "--config.compare=('static',)",
        "--config.epochs=1",
    ]
    next_stop = loop.next_stop

    def signaled(config, plan, step):
        stop = next_stop(config, plan, step)
        if stop == plan.total_steps:
            signal.raise_signal(signal.SIGTERM)
        return stop

    monkeypatch.setattr(loop, "next_stop", signaled)
    before = signal.getsignal(signal.SIGTERM)
    assert main_lib.main(["main.py", f"--workdir={workdir}", *TINY, *options]) == 75
    assert signal.getsignal(signal.SIGTERM) == before
    err = capsys.readouterr().err
    assert "stopped by SIGTERM before static, with 1 of 2 methods finished" in err
    assert err.count("\n") == 1
    assert json.loads((workdir / "dense" / "result.json").read_text())["epochs"] == 1
    assert not (workdir / "static").exists()
    assert not (workdir / "results.json").exists()


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


@pytest.mark.full
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
    assert re.search(r"the loss became infinite or NaN at step \d \(epoch 1\)", err)
    assert "Lower learning_rate" in err
    assert err.count("\n") == 1
    # Nothing of the epoch that diverged is on disk.
    assert (workdir / "dense" / "metrics.jsonl").read_text() == ""
    assert list((workdir / "dense" / "checkpoints").iterdir()) == []
    assert not (workdir / "dense" / "result.json").exists()


@in_process
def test_a_run_that_diverges_later_keeps_the_last_good_checkpoint(
    tmp_path, capsys, monkeypatch, request
):
    monkeypatch.chdir(request.config.rootpath)
    workdir = tmp_path / "run"
    # The first step has rate 0; what the second one leaves is not finite any more,
    # and is not to be saved, although its loss was.
    options = [
        "--config.learning_rate=3e38",
        "--config.warmup_epochs=1",
        "--config.checkpoint_every_steps=1",
        "--config.method.name=dense",
    ]
    assert main_lib.main(["main.py", f"--workdir={workdir}", *TINY, *options]) == 3
    err = capsys.readouterr().err
    assert "earlier checkpoints are kept" in err
    assert err.count("\n") == 1
    step, state = final_state(workdir, "dense")
    assert step >= 1
    for leaf in jax.tree.leaves(state["params"]):
        assert np.isfinite(leaf).all()
