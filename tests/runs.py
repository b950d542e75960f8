"""Starts the experiments' command as processes, and looks at what they left."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import conftest

EPOCHS = 12
STEPS = 10 * EPOCHS
# A file, and not options: these have to concern the method of the run.
TINY = ["--config=tests/tiny_digits.py"]

# Runs the command with something done to the process first.
_WRAPPED = """
import sys
{prelude}
from experiments import main
sys.exit(main.main(["main.py", *sys.argv[1:]]))
"""


class Runner:
    """Starts the command in a process with one CPU device (or more).

    Args:
      root: the repository.
    """

    def __init__(self, root):
        self.root = root

    def start(self, workdir, *args, devices=1, base=TINY, prelude=""):
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # What has been compiled is kept for all of these processes (see conftest).
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            f"{conftest.QUICK_TO_COMPILE}",
        }
        program = (
            ["-c", _WRAPPED.format(prelude=prelude)]
            if prelude
            else ["-m", "experiments.main"]
        )
        return subprocess.Popen(
            [sys.executable, *program, f"--workdir={workdir}", *base, *args],
            cwd=self.root,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir, *args, expect=0, **options):
        """Runs the command to its end; returns its output."""
        process = self.start(workdir, *args, **options)
        try:
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
        assert process.returncode == expect, err
        return out, err

    def send(self, number, workdir, *args, after_epoch, arm="neurrev", **options):
        """Signals a run once it has finished an epoch; returns status and output."""
        process = self.start(workdir, *args, **options)
        lines = workdir / arm / "metrics.jsonl"
        wait_for(process, lambda: count_lines(lines) >= after_epoch)
        process.send_signal(number)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err


def wait_for(process, happened):
    """Waits until something has happened, or the process has ended."""
    deadline = time.monotonic() + 240
    while process.poll() is None and not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def count_lines(path):
    """Complete lines of a file; 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saved_steps(workdir, arm="neurrev"):
    """Steps of the checkpoints that count as complete."""
    found = (workdir / arm / "checkpoints").iterdir()
    return sorted(int(path.name) for path in found if path.name.isdigit())


def final_state(workdir, arm="neurrev"):
    """(step, state) of the newest checkpoint."""
    step = saved_steps(workdir, arm)[-1]
    path = workdir / arm / "checkpoints" / str(step) / "state"
    return step, ocp.PyTreeCheckpointer().restore(path)


def assert_same_end(workdir, expected):
    """Two finished runs hold the same state and metrics, to the last bit."""
    step, actual = final_state(workdir)
    expected_step, wanted = final_state(expected)
    assert step == expected_step == STEPS
    fields = {"params", "batch_stats", "opt_state", "step", "key", "progress"}
    assert fields | {"memory"} == set(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)
    name = "neurrev/metrics.jsonl"
    assert (workdir / name).read_bytes() == (expected / name).read_bytes()
    timing = (workdir / "neurrev" / "timing.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in timing] == list(range(1, EPOCHS + 1))


SIGKILLED = -signal.SIGKILL
