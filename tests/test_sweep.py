"""Sweeps: what is planned, what is made of the results, and a small one for real."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from experiments import config as config_lib
from experiments import main as main_lib
from experiments import sweep
from experiments.analysis import comparison
from experiments.errors import UsageError
from experiments.training.signals import StopRequest
from tests import conftest, runs

pytestmark = [
    pytest.mark.xdist_group("runs"),
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


@pytest.fixture
def config(tmp_path):
    """A config file whose `neurrev` cannot work, as nobody notices before it starts."""
    path = tmp_path / "small.py"
    path.write_text(
        textwrap.dedent(
            """
            from experiments import rn_digits

            def get_config():
                config = rn_digits.get_config()
                config.method.name = "static"
                config.compare = ("neurrev", "dense")
                config.method.neurrev.update_ratio = 0.9
                config.model.stage_sizes = (1,)
                config.model.widths = (8,)
                config.distribution = "uniform"
                config.batch_size = 128
                config.epochs = 12
                config.dormant.examples = 128
                return config
            """
        )
    )
    return str(path)


def planned(config, place, sparsities=(0.9, 0.5), seeds=(0, 3), variants=None):
    return sweep.plan(config, place, sparsities, seeds, variants)


def test_every_method_is_planned_at_every_sparsity_and_seed(config, tmp_path):
    variants = {"static": ("init_mask=magnitude",), "set": ("drop=magnitude",)}
    found = planned(config, tmp_path / "all", variants=variants)
    of_seed = [
        ("static", "", 0.9),
        ("static", "", 0.5),
        ("static", "init_mask=magnitude", 0.9),
        ("static", "init_mask=magnitude", 0.5),
        ("neurrev", "", 0.9),
        ("neurrev", "", 0.5),
        ("dense", "", 0.0),
    ]
    assert [(t.method, t.variant, t.sparsity) for t in found] == of_seed * 2
    assert [t.seed for t in found] == [0] * 7 + [3] * 7
    assert len({t.workdir for t in found}) == len(found)
    assert found[3].argv[1:] == [
        f"--config={config}",
        f"--workdir={tmp_path}/all/sparsity_0.5/seed_0/static_init_mask=magnitude",
        "--config.method.name=static",
        "--config.compare=()",
        "--config.seed=0",
        "--config.sparsity=0.5",
        "--config.method.static.init_mask=magnitude",
    ]
    assert not (tmp_path / "all").exists()


def test_every_variant_is_an_option_of_its_method(tmp_path):
    found = planned("experiments/all_digits.py", tmp_path, (0.98,), (0,))
    assert {t.method for t in found if t.variant} == set(sweep.VARIANTS)
    assert {"neurrev", "lth", "spfde", "dense", "fish"} < {t.method for t in found}


def test_nothing_is_planned_over_a_run_of_another_config(config, tmp_path):
    training = planned(config, tmp_path)[0]
    training.workdir.mkdir(parents=True)
    (training.workdir / "config.json").write_text('{"seed": 7}')
    with pytest.raises(UsageError, match="holds a run of another config"):
        planned(config, tmp_path)
    with pytest.raises(UsageError, match=r"sparsity=1\.5"):
        planned(config, tmp_path / "new", sparsities=(1.5,))


def test_what_is_finished_depends_on_its_own_method_only(config, tmp_path):
    training = planned(config, tmp_path)[0]
    command = main_lib.parse(training.argv)
    fields = json.loads(config_lib.to_json(command.config))
    fields["method"]["chase"]["channel_floor"] = 0.125
    saved = training.workdir / "config.json"
    (training.workdir / "static").mkdir(parents=True)
    saved.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match="holds a run of another config"):
        planned(config, tmp_path)
    (training.workdir / "static" / "result.json").write_text('{"test_accuracy": 1.0}')
    assert planned(config, tmp_path)[0] == training
    fields["method"]["static"]["init_mask"] = "magnitude"
    saved.write_text(json.dumps(fields))
    with pytest.raises(UsageError, match=r'method.static.init_mask: "magnitude" -> "r'):
        planned(config, tmp_path)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "--workdir"),
        (["--workdir=x", "--jobs=0"], "--jobs=0 must be at least 1"),
        (["--workdir=x", "--seeds=0,a"], "invalid comma-separated int value: '0,a'"),
        (["--workdir=x", "--sparsities=0.9,0.9"], "0.9,0.9 names something twice"),
        (["--workdir=x", "--metods=set"], "unrecognized arguments: --metods=set"),
        (["--workdir=x", "--config=nowhere.py"], "there is no such file"),
    ],
)
def test_a_wrong_command_is_refused(args, complaint, capsys):
    assert sweep.main(["sweep", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and complaint in err and err.count("\n") == 1


def result(accuracy, method="set", variant="", sparsity=0.9, seed=0, **others):
    values = {
        "test_accuracy": accuracy,
        "best_test_accuracy": accuracy + 0.01,
        "sparsity": 0.899,
        "dormant_rate": 0.25,
        "topology_updates": 8,
        "examples_seen": 1000,
        "seconds": 10.0,
        **others,
    }
    return comparison.Result(method, variant, sparsity, seed, values)


THREE = [
    result(0.90, seconds=10.0),
    result(0.92, seed=1, seconds=11.0),
    result(0.97, seed=2, seconds=15.0),
]


def test_means_and_deviations_are_those_computed_by_hand():
    [row] = comparison.over_seeds(THREE)
    # Deviations -0.03, -0.01 and 0.04: squares 0.0009 + 0.0001 + 0.0016, over 2.
    assert row.accuracy == pytest.approx(0.93)
    assert row.accuracy_std == pytest.approx(0.0013**0.5)
    assert row.best_accuracy == pytest.approx(0.94)
    assert (row.method, row.target, row.seeds, row.seconds) == ("SET", 0.9, 3, 12.0)
    assert (row.sparsity, row.dormant_rate) == pytest.approx((0.899, 0.25))
    assert (row.topology_updates, row.examples_seen) == (8, 1000)


def test_the_table_has_a_line_per_method_and_columns_per_sparsity():
    rows = comparison.over_seeds(
        [
            *THREE,
            result(0.8, sparsity=0.98),
            result(0.7, "itop", "growth=random", sparsity=0.98),
            result(0.99, "dense", sparsity=0.0),
        ]
    )
    text = comparison.to_markdown(rows)
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0][1] == "90 %: test accuracy" and lines[0][5].startswith("98 %")
    assert lines[2][:3] == ["SET", "93.00 ± 3.61 %", "89.90 %"]
    # One seed has no deviation.
    assert lines[2][5] == "80.00 % (1 of 3 seeds)"
    assert lines[3][:5] == ["ITOP (growth=random)", *["–"] * 4]
    assert lines[3][5] == "70.00 % (1 of 3 seeds)"
    # The dense network is the same at every sparsity.
    assert lines[4][1:5] == lines[4][5:] and lines[4][1] == "99.00 % (1 of 3 seeds)"
    assert len(lines) == 5

    values = list(csv.DictReader(io.StringIO(comparison.to_csv(rows))))
    assert [float(line["target"]) for line in values] == [0.9, 0.98, 0.98, 0.0]
    assert float(values[0]["accuracy_std"]) == pytest.approx(0.0013**0.5)
    assert values[1]["accuracy_std"] == ""


def test_only_the_dense_network_stands_at_every_sparsity():
    rows = comparison.over_seeds(
        [
            result(0.9),
            result(0.95, sparsity=0.0),
            result(0.94, "rigl", sparsity=0.0),
            result(0.99, "dense", sparsity=0.0),
        ]
    )
    lines = [line.split(" | ") for line in comparison.to_markdown(rows).splitlines()]
    assert [cell[:3] for cell in lines[0][1::4]] == ["0 %", "90 "]
    accuracies = [line[1::4] for line in lines[2:]]
    assert accuracies == [
        ["95.00 %", "90.00 %"],
        ["94.00 %", "–"],
        ["99.00 %", "99.00 %"],
    ]
    panels = comparison.draw(rows).axes
    shown = [list(panel.lines[0].get_xdata()) for panel in panels]
    assert shown == [pytest.approx([95.0, 94.0, 99.0]), pytest.approx([90.0, 99.0])]


def test_the_figure_has_a_panel_per_sparsity_and_a_point_per_method():
    rows = comparison.over_seeds(
        [*THREE, result(0.8, sparsity=0.98), result(0.99, "dense", sparsity=0.0)]
    )
    panels = comparison.draw(rows).axes
    assert [panel.get_title() for panel in panels] == ["90 % sparsity", "98 % sparsity"]
    for panel, accuracy in zip(panels, (93.0, 80.0), strict=True):
        assert panel.lines[0].get_xdata() == pytest.approx([accuracy, 99.0])
        assert list(panel.lines[0].get_ydata()) == [0, 1]
    low, high = panels[0].collections[0].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((93 - 3.6056, 93 + 3.6056), abs=1e-3)


@pytest.mark.parametrize("text", [None, "", '{"test_accuracy": 0.', "[1]", "\x00"])
def test_a_damaged_result_counts_as_none(config, tmp_path, text):
    training = planned(config, tmp_path)[0]
    path = training.workdir / "static" / "result.json"
    path.parent.mkdir(parents=True)
    if text is not None:
        path.write_text(text)
    assert training.result() is None
    assert sweep.failure(training).startswith("static at 90 %, seed 0: never started")
    (training.workdir / "log.txt").write_text("one line\nthe disk is full\n\n")
    assert "the disk is full (see" in sweep.failure(training)
    path.write_text('{"test_accuracy": 0.5}')
    assert training.result() == {"test_accuracy": 0.5}


def test_a_worker_that_is_stopped_at_the_end_of_a_training_starts_no_other(
    config, tmp_path, monkeypatch
):
    trained = []

    def train(argv):
        trained.append(argv)
        # As in a run: it has one of its own, and has ended by the time it looks.
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(main_lib, "main", train)
    # What a worker sets for itself, and does to its JAX.
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("jax.clear_caches", lambda: None)
    trainings = planned(config, tmp_path / "all")
    sweep._train_all(trainings, str(tmp_path / "cache"))
    assert trained == [trainings[0].argv]


def test_a_sweep_is_stopped_continues_and_names_what_failed(config, tmp_path, request):
    place = tmp_path / "all"
    command = [
        *(sys.executable, "-m", "experiments.sweep", f"--workdir={place}"),
        *(f"--config={config}", "--sparsities=0.9", "--seeds=0", "--jobs=1"),
    ]
    flags = {"XLA_FLAGS": conftest.QUICK_TO_COMPILE}

    def start():
        return subprocess.Popen(
            command,
            cwd=request.config.rootpath,
            env={**os.environ, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    process = start()
    static = place / "sparsity_0.9" / "seed_0" / "static"
    lines = static / "static" / "metrics.jsonl"
    runs.wait_for(process, lambda: runs.count_lines(lines) >= 2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 75 and "the same command continues" in err
    assert "stopped by SIGTERM at step" in (static / "log.txt").read_text()
    assert not (static / "static" / "result.json").exists()

    process = start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    assert "continuing after epoch" in (static / "log.txt").read_text()
    assert err.count("failed: ") == 1
    assert "neurrev at 90 %, seed 0: experiments.main: method neurrev: update_" in err
    assert "[2/3] dense, seed 0: test accuracy" in out
    table = (place / "sweep.md").read_text()
    assert table in out and "| static |" in table and "NeurRev" not in table
    assert (place / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with (place / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    ended = json.loads((static / "static" / "result.json").read_text())
    assert [row["method"] for row in rows] == ["static", "dense"]
    assert float(rows[0]["accuracy"]) == ended["test_accuracy"]
