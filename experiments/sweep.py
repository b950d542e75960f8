"""Trains every method of a config at several sparsities and seeds, and compares them.

python -m experiments.sweep --workdir=runs/all \
    [--config=experiments/all_digits.py --sparsities=0.9,0.98 --seeds=0,1,2 --jobs=2]

Each training is a run of `experiments.main` of its own, in a directory of its own,
with whatever else is to change in a config file. Some methods are trained in several
forms (`VARIANTS`), the dense network once per seed. Of the trainings, `--jobs` go on at
a time, with one CPU device and one thread each; what one has compiled the others read.

The table is in `sweep.md` and `sweep.csv`, the figure in `sweep.png`.

Exit status: 0 all trained; 1 some failed, which the last lines name, and the table is
of the others; 2 the command is not usable; 75 stopped by SIGTERM, 130 by Ctrl-C. After
all but 2 the same command continues: what is finished is not trained again.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments import config as config_lib
from experiments import errors, workdir
from experiments import main as main_lib
from experiments.training.signals import StopRequest

EXIT_SOME_FAILED = 1
LOG = "log.txt"

VARIANTS = {
    "set": ("drop=magnitude",),
    "itop": ("growth=random",),
    "mest": ("memory=soft",),
    "chase": ("channel_sparsity=0.3",),
    "magnitude": ("spread=distribution",),
}
"""Methods that are trained in other forms besides the one of the config."""

# After these a worker does not go on to its next training.
_STOPPED = (errors.EXIT_STORAGE, errors.EXIT_INTERRUPTED, 130)


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a sweep.

    Attributes:
      method: the method's name in the config.
      variant: `field=value` in the method's section, or nothing.
      sparsity: the target, 0 for the dense network.
      seed: of everything that is random.
      config: path of the config file.
      workdir: directory of the run.
    """

    method: str
    variant: str
    sparsity: float
    seed: int
    config: str
    workdir: Path

    @property
    def argv(self) -> list[str]:
        """The command line of `experiments.main`, program name first."""
        options = [
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            f"--config.method.name={self.method}",
            "--config.compare=()",
            f"--config.seed={self.seed}",
        ]
        if self.method != "dense":
            options.append(f"--config.sparsity={self.sparsity}")
        if self.variant:
            options.append(f"--config.method.{self.method}.{self.variant}")
        return ["experiments.main", *options]

    @property
    def label(self) -> str:
        """What to call it in lines of progress."""
        form = f" ({self.variant})" if self.variant else ""
        at = "" if self.method == "dense" else f" at {100 * self.sparsity:g} %"
        return f"{self.method}{form}{at}, seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """What it ended with; None if it has not ended, or nobody can read how."""
        path = self.workdir / self.method / "result.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def plan(
    config: str,
    directory: Path,
    sparsities: Sequence[float],
    seeds: Sequence[int],
    variants: dict[str, tuple[str, ...]] | None = None,
) -> list[Training]:
    """Lists the trainings, and checks that each of them can start.

    Args:
      config: path of a config file; the methods are its own and those it compares.
      directory: where to keep the runs.
      sparsities: targets; at least one.
      seeds: at least one.
      variants: by method, in what forms to train it besides; `VARIANTS` by default.

    Returns:
      The trainings, all of the first seed first: others find compiled what it needs.

    Raises:
      UsageError: if the config or one of the directories cannot be used.
    """
    variants = VARIANTS if variants is None else variants
    base = main_lib.parse(["sweep", f"--config={config}", f"--workdir={directory}"])
    assert base is not None
    trainings = []
    for seed, name in itertools.product(seeds, config_lib.arm_names(base.config)):
        for form in ("", *variants.get(name, ())):
            for sparsity in [0.0] if name == "dense" else sparsities:
                part = f"sparsity_{sparsity:g}/seed_{seed}/{name}"
                place = directory / (f"{part}_{form}" if form else part)
                training = Training(name, form, sparsity, seed, config, place)
                command = main_lib.parse(training.argv)
                assert command is not None
                _check(training, command.config)
                trainings.append(training)
    return trainings


def _check(training: Training, config: config_lib.Config) -> None:
    """Raises UsageError where the directory holds something else.

    What is finished counts whatever the options of methods that it does not use.
    """
    saved = training.workdir / workdir.CONFIG
    if training.result() is None or not saved.exists():
        workdir.check(training.workdir, config)
        return
    used = config_lib.methods_of(config, training.method)
    unused = {f"method.{name}" for name in config_lib.METHODS if name not in used}
    old = json.loads(saved.read_text(encoding="utf-8"))
    changed = [
        difference
        for difference in config_lib.differences(
            old, json.loads(config_lib.to_json(config))
        )
        if ".".join(difference.partition(":")[0].split(".")[:2]) not in unused
    ]
    if changed:
        raise errors.UsageError(
            f"{training.workdir} holds a training of another config "
            f"({'; '.join(changed)}); choose another --workdir, or give the old values."
        )


def run(
    trainings: Sequence[Training],
    directory: Path,
    jobs: int,
    say: Callable[[str], None] = print,
) -> list[Training]:
    """Trains whatever is not finished.

    Args:
      trainings: from `plan`.
      directory: where to keep what has been compiled.
      jobs: how many to train at a time.
      say: what to do with lines of progress.

    Returns:
      Those that did not end as they should.

    Raises:
      InterruptedRun: after SIGTERM, when all have saved their state.
      KeyboardInterrupt: after Ctrl-C, likewise.
    """
    left = [training for training in trainings if training.result() is None]
    say(
        f"{len(trainings)} trainings, {len(trainings) - len(left)} finished before; "
        f"{jobs} at a time, with what each says in its {LOG}."
    )
    directory.mkdir(parents=True, exist_ok=True)
    # Without starting JAX here, and the workers without what this process has.
    context = multiprocessing.get_context("spawn")
    cache = str((directory / "compiled").resolve())
    workers = [
        context.Process(target=_train_all, args=(left[first::jobs], cache))
        for first in range(min(jobs, len(left)))
    ]
    with _sigterm_raises():
        try:
            for worker in workers:
                worker.start()
            _watch(left, workers, say)
        except (KeyboardInterrupt, errors.InterruptedRun):
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()  # SIGTERM: the training saves its state.
            for worker in workers:
                if worker.pid is not None:
                    worker.join()
            raise
    return [training for training in left if training.result() is None]


def _watch(
    left: Sequence[Training], workers: Sequence[Any], say: Callable[[str], None]
) -> None:
    """Says what has been finished, until no worker is at work."""
    begin, waiting, done = time.monotonic(), list(left), 0
    while waiting:
        # Looked at before the results: none can come after the last worker has gone.
        working = any(worker.is_alive() for worker in workers)
        for training in list(waiting):
            result = training.result()
            if result is None:
                continue
            waiting.remove(training)
            done += 1
            minutes = (time.monotonic() - begin) / done * (len(left) - done) / 60
            say(
                f"[{done}/{len(left)}] {training.label}: test accuracy "
                f"{100 * result['test_accuracy']:.2f} %, {result['seconds']:.0f} s; "
                f"about {minutes:.0f} min left"
            )
        if not working:
            break
        time.sleep(0.5)
    for worker in workers:
        worker.join()


@contextlib.contextmanager
def _sigterm_raises():
    """Makes SIGTERM an exception, as Ctrl-C is."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        del number, frame
        raise errors.InterruptedRun("stopped by SIGTERM; the same command continues.")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _train_all(trainings: Iterable[Training], cache: str) -> None:
    """What a worker does: one training after the other."""
    # All of it is read when JAX starts, which it has not yet in this process.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    one_thread = "--xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one_thread}".strip()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    # Small programs too: a training compiles ninety of them, in two seconds.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    with StopRequest() as stop:
        for training in trainings:
            # A training that was at its end when the signal came has succeeded.
            if stop.requested or _train(training) in _STOPPED:
                return
            # Not before it has read the environment above.
            import jax

            # The programs of sixty trainings take gigabytes, and the bookkeeping of so
            # much compiled code has been seen to crash.
            jax.clear_caches()


def _train(training: Training) -> int:
    """Runs one training with its output in a file; returns its exit status."""
    training.workdir.mkdir(parents=True, exist_ok=True)
    with (
        (training.workdir / LOG).open("a", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            return main_lib.main(training.argv)
        # One that fails in an unforeseen way must not take the others with it.
        except Exception:
            traceback.print_exc()
            return EXIT_SOME_FAILED


def failure(training: Training) -> str:
    """Why a training has no result: the last line that it left.

    Args:
      training: one that `run` returned.

    Returns:
      One line.
    """
    path = training.workdir / LOG
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return f"{training.label}: {said[-1] if said else 'never started'} (see {path})"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line.

    Args:
      argv: the command line, program name first.

    Returns:
      config, workdir, sparsities, seeds and jobs.

    Raises:
      UsageError: for anything that is wrong with it.
    """
    parser = _Parser(prog="python -m experiments.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", default="experiments/all_digits.py")
    parser.add_argument("--sparsities", type=_list_of(float), default=[0.9, 0.98])
    parser.add_argument("--seeds", type=_list_of(int), default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    values = parser.parse_args(argv[1:])
    if values.jobs < 1:
        raise errors.UsageError(f"--jobs={values.jobs} must be at least 1.")
    return values


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(f"{message}; --help shows what there is.")


def _list_of(kind: type) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        found = [kind(word) for word in text.split(",")]
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text} names something twice")
        return found

    read.__name__ = f"comma-separated {kind.__name__}"
    return read


def main(argv: Sequence[str]) -> int:
    """Trains and compares.

    Args:
      argv: the command line, program name first.

    Returns:
      The exit status.
    """
    try:
        values = parse(argv)
        trainings = plan(values.config, values.workdir, values.sparsities, values.seeds)
        failed = run(trainings, values.workdir, values.jobs)
        return _report(trainings, failed, values.workdir)
    except errors.UsageError as error:
        return _fail(error, errors.EXIT_USAGE)
    except errors.InterruptedRun as error:
        return _fail(error, errors.EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues.", 130)
    except OSError as error:
        return _fail(f"{error}; the same command continues.", errors.EXIT_STORAGE)


def _report(
    trainings: Sequence[Training], failed: Sequence[Training], directory: Path
) -> int:
    from experiments.analysis import comparison

    results = [
        comparison.Result(t.method, t.variant, t.sparsity, t.seed, values)
        for t in trainings
        if (values := t.result()) is not None
    ]
    if results:
        print(comparison.save_all(results, directory))
    for training in failed:
        print(f"failed: {failure(training)}", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def _fail(error: Exception | str, status: int) -> int:
    text = errors.one_line(error) if isinstance(error, Exception) else error
    print(f"experiments.sweep: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
