"""Command line of the experiments.

python -m experiments.main --config=experiments/rn_digits.py --workdir=DIR \
    [--config.sparsity=0.95 --config.method.name=rigl ...]

As one run of several processes (docs/pods.md), each of them with

    --coordinator_address=HOST:PORT --num_processes=N --process_id=I

or with what a launcher such as Slurm sets in the environment, or with --distributed
where JAX finds the others by itself, as on a TPU pod.

Exit status: 0 finished; 2 the command, the config, the data or the directory is not
usable (nothing has been touched); 3 the loss became infinite or NaN (the last good
checkpoint is kept); 74 something could not be read or written, for example on a full
disk (likewise); 75 stopped by SIGTERM with the state saved; 130 stopped by Ctrl-C.
After 74, 75, 130 or a kill, the same command continues where the run was.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments import config as config_lib
from experiments import errors, override_rules, rules


def main(argv: Sequence[str]) -> int:
    """Runs an experiment.

    Args:
      argv: the command line, program name first.

    Returns:
      The exit status.
    """
    try:
        parsed = parse(argv)
        if parsed is None:
            return 0
        _run(parsed)
    except errors.UsageError as error:
        return _fail(error, errors.EXIT_USAGE)
    except errors.DivergedError as error:
        return _fail(error, errors.EXIT_DIVERGED)
    except errors.StorageError as error:
        return _fail(error, errors.EXIT_STORAGE)
    except errors.InterruptedRun as error:
        return _fail(error, errors.EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command continues.", 130)
    return 0


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
      config: the validated config.
      workdir: the directory of the run.
      coordinator_address: host:port of process 0, or None.
      num_processes: number of processes, or None.
      process_id: number of this process, or None.
      distributed: whether JAX is to find the other processes by itself.
    """

    config: config_lib.Config
    workdir: Path
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    distributed: bool = False


def _run(command: Command) -> None:
    # A wrong flag should not have to wait for JAX to start.
    from experiments import distributed, runner, workdir
    from experiments.training import one_shot
    from experiments.training.progress import make_console

    distributed.initialize(
        command.coordinator_address,
        command.num_processes,
        command.process_id,
        command.distributed,
    )
    console = make_console(quiet=not distributed.is_primary())
    config, directory = command.config, command.workdir
    distributed.on_primary(lambda: workdir.check(directory, config))

    def prepare() -> runner.Experiment:
        experiment = runner.prepare(config)
        for arm_config, _ in experiment.arms:
            one_shot.check(arm_config, experiment.data)
        return experiment

    experiment = distributed.together(prepare)
    runner.run(experiment, directory, console)


def _fail(error: Exception | str, status: int) -> int:
    text = errors.one_line(error) if isinstance(error, Exception) else error
    print(f"experiments.main: {text}", file=sys.stderr)
    return status


def parse(argv: Sequence[str]) -> Command | None:
    """Reads and validates a command line.

    Args:
      argv: the command line, program name first.

    Returns:
      The command; None after showing the help.

    Raises:
      UsageError: for anything that is wrong with it.
    """
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__)
        print(f"fields: {', '.join(config_lib.flatten(config_lib.default_config()))}")
        return None
    # First the file alone: what may be overridden depends on it.
    chosen = _value_of("config", argv)
    if chosen is None:
        raise errors.UsageError(
            "--config is missing; give a config file, such as "
            "--config=experiments/rn_digits.py."
        )
    if not Path(chosen).is_file():
        raise errors.UsageError(
            f"--config={chosen}: there is no such file; {_nearby_configs(chosen)}"
        )
    config = _read_flags([argv[0], f"--config={chosen}"])["config"].value
    if not isinstance(config, ml_collections.ConfigDict):
        raise errors.UsageError(
            f"--config={chosen}: get_config() must return a ConfigDict, such as "
            "experiments.config.default_config()."
        )
    _require_known_fields(config, argv)

    values = _read_flags(argv)
    if values["workdir"].value in (None, ""):
        raise errors.UsageError(
            "--workdir is missing; give the directory the run is kept in."
        )
    config = values["config"].value
    rules.validate(config)
    changed = config_flags.get_override_values(values["config"])
    override_rules.check(config, changed)
    return Command(
        config=config,
        workdir=Path(values["workdir"].value),
        coordinator_address=values["coordinator_address"].value,
        num_processes=values["num_processes"].value,
        process_id=values["process_id"].value,
        distributed=bool(values["distributed"].value),
    )


def _read_flags(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, flag_values=values, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("coordinator_address", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    flags.DEFINE_bool("distributed", False, "", flag_values=values)
    try:
        rest = values(list(argv))
    # A config file is a program: it can raise anything.
    except Exception as error:
        raise errors.UsageError(_flag_problem(str(error))) from error
    if rest[1:]:
        raise errors.UsageError(
            f"unexpected argument {rest[1]!r}; options are written --name=value."
        )
    return values


def _flag_problem(message: str) -> str:
    """One sentence from what absl or ml_collections raised."""
    unknown = re.search(r'Key "(\w+)" does not exist', message)
    if unknown:
        known = config_lib.flatten(config_lib.default_config())
        hint = config_lib.close_match(unknown[1], known)
        return f"the config file sets an unknown field {unknown[1]!r}; {hint}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Where a config file raised, absl puts the whole traceback into the message.
    is_traceback = any(line.startswith("Traceback") for line in lines)
    text = f"{lines[0]} {lines[-1]}" if is_traceback else " ".join(lines)
    return text if text.endswith((".", "?")) else f"{text}."


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    """The last value of an option, written with = or as the next word."""
    value = None
    for i, arg in enumerate(argv):
        option, equals, text = arg.partition("=")
        if option in (f"--{name}", f"-{name}"):
            value = text if equals else (argv[i + 1] if i + 1 < len(argv) else None)
    return value


def _require_known_fields(config: config_lib.Config, argv: Sequence[str]) -> None:
    known = config_lib.flatten(config)
    for arg in argv[1:]:
        option = arg.partition("=")[0].lstrip("-")
        if not (arg.startswith("-") and option.startswith("config.")):
            continue
        field = option.removeprefix("config.")
        if field not in known:
            raise errors.UsageError(
                f"--{option}: the config has no field {field!r}; "
                f"{config_lib.close_match(field, known)}"
            )


def _nearby_configs(chosen: str) -> str:
    here = Path(__file__).parent
    configs = [
        path.name
        for path in sorted(here.glob("*.py"))
        if "def get_config(" in path.read_text(encoding="utf-8")
    ]
    return config_lib.close_match(Path(chosen).name, configs)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
