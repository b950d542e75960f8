"""Two real processes over loopback, two devices each, against one with four."""

import json
import os
import re
import signal
import socket

import jax
import numpy as np
import pytest

from experiments import distributed
from experiments.errors import UsageError
from tests import data_files, runs
from tests.runs import final_state

pytestmark = pytest.mark.xdist_group("distributed")

EPOCHS = 4
SHORT = [
    f"--config.epochs={EPOCHS}",
    "--config.method.until_fraction=1.0",
    # A large rate would blow rounding up until it changes which weight is smallest.
    "--config.learning_rate=0.02",
]


@pytest.fixture(scope="module")
def runner(request):
    return runs.Runner(request.config.rootpath)


def start_two(runner, workdirs, *args, **options):
    """Starts both processes of a run; the first one is the primary."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        runner.start(
            workdir,
            *args,
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={i}",
            devices=2,
            **options,
        )
        for i, workdir in enumerate(workdirs)
    ]


def finish(processes):
    """[(status, out, err), ...] of processes once they have ended."""
    try:
        ends = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, without_notes(out), without_notes(err))
        for process, (out, err) in zip(processes, ends, strict=True)
    ]


def without_notes(text):
    """Output without what gloo and the coordination service say of themselves."""
    # Several threads write at once, so that a note may be broken in two.
    notes = re.compile(r"\[Gloo\]|peer ranks|^[IW]\d{4} |^ *$")
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not notes.search(line))


@pytest.fixture(scope="module")
def one_process(runner, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    runner.run(workdir, *SHORT, devices=4)
    return workdir


@pytest.fixture(scope="module")
def two_processes(runner, tmp_path_factory):
    home = tmp_path_factory.mktemp("two")
    # A directory of its own for the second process shows what it writes: nothing.
    workdirs = [home / "run", home / "second"]
    return workdirs, finish(start_two(runner, workdirs, *SHORT))


def read(workdir, name):
    """The lines of one of NeurRev's files."""
    path = workdir / "neurrev" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_training(workdir, expected):
    """The same masks, and up to the order of summation the same parameters."""
    step, actual = final_state(workdir)
    expected_step, wanted = final_state(expected)
    assert step == expected_step == 10 * EPOCHS
    masks = [state["opt_state"]["masks"] for state in (actual, wanted)]
    jax.tree.map(np.testing.assert_array_equal, *masks)
    for part in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            actual[part],
            wanted[part],
        )
    lines = (read(path, "metrics") for path in (workdir, expected))
    for ours, theirs in zip(*lines, strict=True):
        assert ours["topology_updates"] == theirs["topology_updates"]
        assert ours["sparsity"] == theirs["sparsity"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-3)


def test_two_processes_train_what_one_process_trains(two_processes, one_process):
    [workdir, _], ends = two_processes
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert_same_training(workdir, one_process)
    updates = json.loads((workdir / "neurrev" / "result.json").read_text())
    assert updates["topology_updates"] == EPOCHS - 1


def test_only_one_process_writes_and_speaks(two_processes):
    [workdir, second], [(_, out, _), (_, silent, errors)] = two_processes
    assert "4 cpu devices of 2 processes" in out
    assert "neurrev: epoch 4/4" in out
    assert (silent, errors) == ("", "")
    assert (workdir / "results.json").exists()
    assert not second.exists()


def test_a_signal_to_one_process_stops_both_and_one_process_resumes(
    runner, one_process, tmp_path
):
    workdir = tmp_path / "run"
    lines = workdir / "neurrev" / "metrics.jsonl"
    processes = start_two(runner, [workdir, workdir], *SHORT)
    runs.wait_for(processes[0], lambda: runs.count_lines(lines) >= 1)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [status for status, _, _ in ends] == [75, 75], ends
    assert "the same command continues" in ends[0][2]
    out, _ = runner.run(workdir, *SHORT, devices=4)
    assert "neurrev: continuing after epoch" in out
    assert_same_training(workdir, one_process)


def test_what_the_first_process_finds_wrong_stops_both(runner, two_processes):
    [workdir, _], _ = two_processes
    processes = start_two(runner, [workdir, workdir], *SHORT, "--config.sparsity=0.6")
    ends = finish(processes)
    assert [status for status, _, _ in ends] == [2, 2], ends
    assert "holds a run of another config (sparsity: 0.5 -> 0.6)" in ends[0][2]
    assert "Traceback" not in ends[0][2] + ends[1][2]


STREAM = [
    "--config=experiments/rn34_imagenet.py",
    "--config.data.image_size=16",
    "--config.data.stream_shares=4",
    "--config.data.shuffle_buffer=5",
    "--config.model.stage_sizes=(1,)",
    "--config.model.widths=(8,)",
    "--config.epochs=2",
    "--config.warmup_epochs=0",
    "--config.batch_size=8",
    "--config.learning_rate=0.01",
    "--config.distribution=uniform",
    "--config.method.update_interval_epochs=0.5",
    "--config.log_every_steps=2",
    "--config.eval_batch_size=16",
    "--config.dormant.examples=20",
]


@pytest.mark.full
@data_files.NEEDS_TENSORFLOW
def test_a_stream_is_shared_out_and_resumes_within_an_epoch(runner, tmp_path):
    splits = {
        split: data_files.imagenet_examples(map(data_files.picture, range(n)))
        for split, n in (("train", 52), ("validation", 23))
    }
    features = data_files.imagenet_features()
    data_files.write_tfds(tmp_path, "imagenet2012", features, splits, per_file=7)
    stream = [*STREAM, f"--config.data.dir={tmp_path}"]
    # 52 examples: 6 batches of 8 an epoch, of which every process reads its half.
    expected = tmp_path / "expected"
    runner.run(expected, devices=4, base=stream)

    workdir = tmp_path / "run"
    log = workdir / "neurrev" / "steps.jsonl"
    base = [*stream, "--config.steps_per_call=1"]
    processes = start_two(runner, [workdir, workdir], base=base)
    runs.wait_for(processes[0], lambda: runs.count_lines(log) >= 1)
    processes[0].send_signal(signal.SIGTERM)
    ends = finish(processes)
    assert [status for status, _, _ in ends] == [75, 75], ends
    [stopped] = runs.saved_steps(workdir)
    assert 2 <= stopped < 12

    out, _ = runner.run(workdir, devices=4, base=base)
    assert f"continuing after epoch {stopped // 6} (step {stopped})" in out
    ours, theirs = read(workdir, "steps"), read(expected, "steps")
    assert [line["step"] for line in ours] == [2, 4, 6, 8, 10, 12]
    for a, b in zip(ours, theirs, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
    a, b = read(workdir, "metrics")[-1], read(expected, "metrics")[-1]
    assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-3)
    assert a["topology_updates"] == b["topology_updates"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", None, None), "give all three or none"),
        ((None, 2, 0), "give all three or none"),
        (("127.0.0.1:1", 2, 2), r"--process_id=2 must lie in \[0, --num_processes=2\)"),
        (("127.0.0.1:1", 2, -1), "--process_id=-1 must lie"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        distributed.initialize(*given, auto=False)


def test_a_process_alone_does_not_look_for_others(monkeypatch):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a: called.append(a))
    for name in list(os.environ):
        if name.startswith(("SLURM", "OMPI", "TPU", "JAX_COORD")):
            monkeypatch.delenv(name)
    distributed.initialize(None, None, None, auto=False)
    distributed.initialize("127.0.0.1:1", 1, 0, auto=False)
    assert called == []
    distributed.initialize(None, None, None, auto=True)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    distributed.initialize(None, None, None, auto=False)
    distributed.initialize("127.0.0.1:1", 2, 1, auto=False)
    assert called == [(None, None, None), (None, None, None), ("127.0.0.1:1", 2, 1)]


def test_joining_that_fails_is_one_sentence(monkeypatch):
    def fail(*args):
        raise RuntimeError("no coordinator\nanywhere")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UsageError, match=r"could not join .*no coordinator anywhere"):
        distributed.initialize(None, None, None, auto=True)
