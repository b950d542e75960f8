"""The directory of a run: whether it may be used, and taking possession of it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from experiments import config as config_lib
from experiments.errors import UsageError
from experiments.training.metrics import write_atomically

CONFIG = "config.json"


def check(workdir: Path, config: config_lib.Config) -> None:
    """Checks that a run of this config may use the directory; only reads.

    Args:
      workdir: the directory; it need not exist.
      config: a validated config.

    Raises:
      UsageError: if it is not a directory, not writable, or holds another run.
    """
    existing = workdir
    while not (existing.exists() or existing.is_symlink()):
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(
            f"--workdir={workdir}: {existing} is not a directory; choose another path."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"--workdir={workdir}: no permission to write in {existing}; choose "
            "another path."
        )
    if existing is not workdir:
        return
    saved = workdir / CONFIG
    if not saved.exists():
        foreign = [name for name in config_lib.METHODS if (workdir / name).exists()]
        if foreign:
            raise UsageError(
                f"--workdir={workdir} holds {foreign[0]}/ but no {CONFIG} that says "
                "what was trained; choose another directory or empty this one."
            )
        return
    try:
        old = json.loads(saved.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{saved} cannot be read ({error}); choose another --workdir or restore "
            "the file."
        ) from error
    changed = config_lib.differences(old, json.loads(config_lib.to_json(config)))
    if changed:
        raise UsageError(
            f"--workdir={workdir} holds a run of another config ({'; '.join(changed)});"
            " choose another --workdir, or give the old values to continue that run."
        )


@contextlib.contextmanager
def claim(workdir: Path, config: config_lib.Config) -> Iterator[None]:
    """Creates the directory, notes the config in it and locks it.

    Args:
      workdir: a directory that `check` accepted.
      config: a validated config.

    Yields:
      Nothing; the lock is held meanwhile, and the system drops it with the process.

    Raises:
      UsageError: if the directory cannot be made or another process is using it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"--workdir={workdir} cannot be written ({error.strerror}); choose another "
            "path."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"--workdir={workdir} is in use by another process; wait for it or "
                "choose another directory."
            ) from error
        # Again, now that nobody else can be writing it.
        check(workdir, config)
        try:
            if not (workdir / CONFIG).exists():
                write_atomically(workdir / CONFIG, config_lib.to_json(config))
        except OSError as error:
            raise UsageError(
                f"--workdir={workdir} cannot be written ({error.strerror}); make room "
                "or choose another path."
            ) from error
        yield
