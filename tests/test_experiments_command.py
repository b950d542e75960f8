"""The command line: every mistake is one sentence, and nothing is touched."""

import json
import textwrap

import pytest

from experiments import config as config_lib
from experiments import main as main_lib
from experiments import rn_digits, workdir
from experiments.errors import UsageError

CONFIG = "--config=experiments/rn_digits.py"


def of(name, option):
    """A method, and an option of it."""
    return [f"--config.method.name={name}", f"--config.method.{name}.{option}"]


# ml_collections loads config files that way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def refuse(capsys, *args):
    """Runs the command, which has to fail as a usage error; returns its sentence."""
    status = main_lib.main(["main.py", *map(str, args)])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.endswith(".\n") or captured.err.endswith("?\n")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.sparsty=0.5"], "did you mean 'sparsity'?"),
        (["--config.method.nme=set"], "did you mean 'method.name'?"),
        (["--config.method.name=nurrev"], "did you mean 'neurrev'?"),
        (["--config.compare=('dens',)"], "did you mean 'dense'?"),
        (["--config.sparsity=1.0"], "sparsity=1.0 must lie in [0, 1)"),
        (["--config.sparsity=-0.1"], "sparsity=-0.1 must lie in [0, 1)"),
        (["--config.sparsity=nan"], "sparsity=nan must lie in [0, 1)"),
        (["--config.sparsity=much"], "could not convert string to float: 'much'"),
        (["--config.epochs=0"], "epochs=0 must be at least 1"),
        (["--config.epochs=1.5"], "config.epochs=1.5"),
        (["--config.learning_rate=-1"], "learning_rate=-1.0 must be at least 0"),
        (["--config.momentum=1"], "momentum=1.0 must lie in [0, 1)"),
        (["--config.distribution=erq"], "choose 'uniform', 'er' or 'erk'"),
        (["--config.data.source=tfds"], "does not go with data.name='digits'"),
        (["--config.data.flip=maybe"], "config.data.flip=maybe"),
        (["--config.data.dir=x"], "data.dir has no effect unless"),
        (["--config.data.image_size=64"], "data.image_size has no effect unless"),
        (["--config.data.shuffle_buffer=9"], "has no effect unless data are streamed"),
        (["--config.model.block=bottleneck"], "unless model.name='imagenet_resnet'"),
        (["--config.model.activation=rely"], "'rely'"),
        (["--config.accumulation_steps=3"], "multiple of accumulation_steps=3"),
        (["--config.accumulation_steps=8"], "8 devices times accumulation_steps"),
        (["--config.method.neurrev.update_ratio_at=((0.9, 0.1),)"], "has no effect"),
        (
            ["--config.training_multiplier=0"],
            "training_multiplier=0.0 must be positive",
        ),
        (["--num_processes=2"], "go together; give all three or none"),
        (["--config.model.widths=(4,)"], "same length"),
        (["--config.warmup_epochs=99"], "must be less than epochs"),
        (["--config.data.name=digit"], "did you mean 'digits'?"),
        (["--config.model.name=resnets"], "did you mean 'resnet'?"),
        (["--config.batch_size=33"], "batch_size=33 must be a multiple of the 8"),
        (["--config.batch_size=8000"], "must not exceed the 1347 training"),
        (["--config.dormant.examples=5000"], "must not exceed the 1347 training"),
        (["--config.dormant.criterion=max"], "choose 'zero', 'apoz' or 'score'"),
        (["--config.dormant.threshold=0.5"], "has no effect with dormant.criterion"),
        (["--config.method.neurrev.update_ratio=1.5"], "update_ratio=1.5"),
        (["--config.method.neurrev.scope=layers"], "scope='layers' is unknown"),
        (
            ["--config.method.set.ratio_schedule=cos"],
            "choose 'constant', 'cosine' or 'stages'",
        ),
        (["--config.method.rigl.update_ratio=0.2"], "has no effect"),
        # What the library would only see once the directory is claimed.
        (of("fish", "mode=updat"), "choose 'zero' or 'update'"),
        (of("grasp", "redraw=all"), "choose 'linear' or 'nothing'"),
        (of("grasp", "temperature=0"), "temperature=0.0 must be positive"),
        (
            of("grasp", "parts=3"),
            "parts=3 does not divide the 100 examples",
        ),
        (of("grasp", "examples_per_class=500"), "examples_per_class=500: class 0 has"),
        (
            ["--config.removal.easy_examples=5000", "--config.removal.after_epochs=9"],
            "removal.easy_examples=5000 must be less than the 1347 training examples",
        ),
        (
            of("spfde", "data_fraction=0.01"),
            "13 training examples that method.spfde.data_fraction=0.01 leaves of 1347",
        ),
        (["stray"], "unexpected argument 'stray'"),
        (["--wrkdir=x"], "Did you mean: workdir"),
    ],
)
def test_a_wrong_argument_is_one_sentence(capsys, tmp_path, args, message):
    target = tmp_path / "run"
    text = refuse(capsys, CONFIG, f"--workdir={target}", *args)
    assert message in text
    assert not target.exists()


def test_a_wrong_config_path_names_the_close_one(capsys, tmp_path):
    text = refuse(
        capsys, "--config=experiments/rn_digit.py", f"--workdir={tmp_path / 'run'}"
    )
    assert "there is no such file; did you mean 'rn_digits.py'?" in text
    assert list(tmp_path.iterdir()) == []


def test_missing_flags_are_named(capsys, tmp_path):
    assert "--config is missing" in refuse(capsys, f"--workdir={tmp_path}")
    assert "--workdir is missing" in refuse(capsys, CONFIG)


def test_a_config_file_that_raises_or_misspells_is_one_sentence(capsys, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
        from experiments import config

        def get_config():
            c = config.default_config()
            c.sparsty = 0.5
            return c
        """)
    )
    text = refuse(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert "sparsity" in text
    path.write_text("def get_config():\n    return {'sparsity': 0.5}\n")
    text = refuse(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert "get_config() must return a ConfigDict" in text
    path.write_text("def get_config(:\n")
    text = refuse(capsys, f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert "invalid syntax" in text


def test_a_workdir_of_another_config_shows_the_fields(capsys, tmp_path):
    old = rn_digits.get_config()
    old.sparsity = 0.5
    old.method.name = "rigl"
    (tmp_path / "config.json").write_text(config_lib.to_json(old))
    before = sorted(tmp_path.rglob("*"))
    text = refuse(capsys, CONFIG, f"--workdir={tmp_path}")
    assert 'method.name: "rigl" -> "neurrev"; sparsity: 0.5 -> 0.9' in text
    assert "choose another --workdir" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workdir_with_an_unreadable_config_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"sparsity": 0.')
    assert "cannot be read" in refuse(capsys, CONFIG, f"--workdir={tmp_path}")


def test_a_workdir_with_methods_but_no_config_is_refused(capsys, tmp_path):
    (tmp_path / "neurrev").mkdir()
    assert "no config.json" in refuse(capsys, CONFIG, f"--workdir={tmp_path}")


def test_a_file_as_workdir_or_above_it_is_refused(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for target in (file, file / "run"):
        text = refuse(capsys, CONFIG, f"--workdir={target}")
        assert "is not a directory" in text
    assert file.read_text() == "mine"


def test_a_workdir_that_is_not_writable_is_refused(capsys, tmp_path, monkeypatch):
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(workdir.os, "access", lambda path, mode: False)
    text = refuse(capsys, CONFIG, f"--workdir={tmp_path / 'run'}")
    assert "no permission to write" in text


def test_a_workdir_that_cannot_be_made_is_refused():
    with (
        pytest.raises(UsageError, match="cannot be written"),
        workdir.claim(workdir.Path("/proc/run"), rn_digits.get_config()),
    ):
        pass


def test_a_workdir_in_use_is_refused(tmp_path):
    config = rn_digits.get_config()
    with (
        workdir.claim(tmp_path, config),
        pytest.raises(UsageError, match="in use by another process"),
        workdir.claim(tmp_path, config),
    ):
        pass
    with workdir.claim(tmp_path, config):
        assert json.loads((tmp_path / "config.json").read_text())["sparsity"] == 0.9


def test_help_names_the_fields(capsys):
    assert main_lib.main(["main.py", "--help"]) == 0
    out = capsys.readouterr().out
    assert "method.neurrev.update_ratio" in out
    assert "75 stopped by SIGTERM" in out


def test_overrides_of_every_type_reach_the_config(tmp_path):
    parsed = main_lib.parse(
        [
            "main.py",
            CONFIG,
            "--workdir",
            str(tmp_path),
            "--config.sparsity=0.95",
            "--config.method.name=rigl",
            "--config.method.rigl.update_ratio=0.2",
            "--config.compare=('static', 'rigl')",
            "--config.method.update_interval_epochs=1",
        ]
    )
    assert parsed is not None
    config, path = parsed.config, parsed.workdir
    assert (config.sparsity, config.method.rigl.update_ratio) == (0.95, 0.2)
    assert config_lib.arm_names(config) == ("rigl", "static")
    assert path == tmp_path
