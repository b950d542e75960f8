"""Whole runs of procedures around training: killed anywhere, they end the same."""

import json

import jax
import numpy as np
import pytest

from tests import runs
from tests.runs import final_state

pytestmark = pytest.mark.xdist_group("runs")

# Rounds of 4, 3 and 3 epochs of ten steps; and 6 epochs of eight, of which the last
# two have a frozen block, with an exchange of examples after every other one.
LTH = [
    *runs.TINY,
    "--config.method.name=lth",
    "--config.method.lth.rounds=2",
    "--config.method.lth.rewind_epochs=1",
    "--config.epochs=4",
    "--config.checkpoint_every_epochs=1",
]
SPFDE = [
    *runs.TINY,
    "--config.method.name=spfde",
    "--config.method.spfde.host=set",
    "--config.method.spfde.sieve_every_epochs=2",
    "--config.epochs=6",
    "--config.checkpoint_every_epochs=1",
]
REMOVAL = [
    *runs.TINY,
    "--config.method.name=static",
    "--config.removal.after_epochs=2",
    "--config.removal.easy_examples=500",
    "--config.epochs=4",
    "--config.checkpoint_every_epochs=1",
]

# Runs the command up to certain steps, one after the other in one directory, before
# it runs it as a whole in another one and then to the end in the first. Nothing of a
# step that it comes to is on disk, unless that is when a checkpoint is due and saved.
INTERRUPTED = """
from experiments import main
from experiments.training import loop

class Killed(BaseException):
    pass

is_due = loop._is_checkpoint_due

def run_until(last, is_saved, *args):
    def deadly(config, plan, step):
        if step > last or (step == last and not is_saved):
            raise Killed
        return is_due(config, plan, step)

    loop._is_checkpoint_due = deadly
    try:
        main.main(["main.py", *sys.argv[1:], *args])
    except Killed:
        loop._is_checkpoint_due = is_due
    else:
        raise AssertionError("it came to an end")

often = ["--config.steps_per_call=3", "--config.checkpoint_every_steps=3"]
for last, is_saved in {kills}:
    run_until(last, is_saved, *often)
assert main.main(["main.py", *sys.argv[1:], "--workdir={expected}"]) == 0
"""


@pytest.fixture(scope="module")
def runner(request):
    return runs.Runner(request.config.rootpath)


def lines_of(workdir, arm):
    text = (workdir / arm / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same_end(workdir, expected, arm):
    step, actual = final_state(workdir, arm)
    expected_step, wanted = final_state(expected, arm)
    assert step == expected_step
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)
    name = f"{arm}/metrics.jsonl"
    assert (workdir / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize(
    ("base", "arm", "kills"),
    [
        # As the first round ends: before what it leaves is saved, and after.
        (LTH, "lth", ((40, False), (40, True))),
        # Where examples are exchanged, and in an epoch with a frozen block.
        (SPFDE, "spfde", ((16, False), (42, True))),
        pytest.param(REMOVAL, "static", ((26, True),), marks=pytest.mark.full),
    ],
)
def test_a_run_killed_anywhere_ends_bit_for_bit_the_same(
    runner, tmp_path, base, arm, kills
):
    expected, workdir = tmp_path / "undisturbed", tmp_path / "run"
    prelude = INTERRUPTED.format(kills=kills, expected=expected)
    out, _ = runner.run(workdir, base=base, prelude=prelude)
    assert out.count("continuing after epoch") == len(kills)
    assert_same_end(workdir, expected, arm)
    CHECKS[arm](expected)


def check_rounds(workdir):
    lines = lines_of(workdir, "lth")
    assert [line["round"] for line in lines] == [0] * 4 + [1] * 3 + [2] * 3
    assert [line["epoch_in_round"] for line in lines] == [1, 2, 3, 4, *[2, 3, 4] * 2]
    rates = [line["learning_rate"] for line in lines]
    assert rates[1:4] == rates[4:7] == rates[7:]
    sizes = 576 * 2
    sparsity = [line["sparsity"] * (sizes + 72 + 80) / sizes for line in lines[3::3]]
    np.testing.assert_allclose(sparsity, [0, 1 - 0.5**0.5, 0.5], atol=1e-3)
    assert [line["topology_updates"] for line in lines[3::3]] == [0, 1, 2]
    result = json.loads((workdir / "lth" / "result.json").read_text())
    assert result["round"] == 2
    assert result["examples_seen"] == 100 * 128
    assert result["best_epoch"] > 7
    assert (workdir / "lth_rounds.png").read_bytes().startswith(b"\x89PNG")


def check_frozen_and_sieved(workdir):
    lines = lines_of(workdir, "spfde")
    active = round(0.85 * 1347)
    assert [line["step"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert [line["frozen_blocks"] for line in lines] == [0, 0, 0, 0, 1, 1]
    assert {line["active_examples"] for line in lines} == {active}
    events = [line["forgetting_events"] for line in lines]
    assert events == sorted(events)
    assert events[0] == 0 < events[-1]
    _, state = final_state(workdir, "spfde")
    checkpoint = workdir / "spfde" / "checkpoints" / "40" / "state"
    before = runs.ocp.PyTreeCheckpointer().restore(checkpoint)
    for part in ("params", "batch_stats"):
        old, new = (s[part] for s in (before, state))
        jax.tree.map(np.testing.assert_array_equal, old["stem"], new["stem"])
        assert not all(
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True)
        )
    result = json.loads((workdir / "spfde" / "result.json").read_text())
    assert (result["frozen_blocks"], result["active_examples"]) == (1, active)
    assert (workdir / "spfde_trained.png").read_bytes().startswith(b"\x89PNG")


def check_removed(workdir):
    lines = lines_of(workdir, "static")
    assert [line["step"] for line in lines] == [10, 20, 26, 32]
    assert [line["active_examples"] for line in lines] == [1347, 1347, 847, 847]
    losses = [line["train_loss"] for line in lines]
    assert all(0 < loss < 4 for loss in losses)


CHECKS = {
    "lth": check_rounds,
    "spfde": check_frozen_and_sieved,
    "static": check_removed,
}
