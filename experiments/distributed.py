"""Several processes as one run.

All processes compute the same; only the primary one, number 0, touches the run's
directory and speaks. What it finds there, errors included, it tells the others, so
that all of them go on, or stop, together.
"""

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import UsageError, one_line

T = TypeVar("T")

# Variables that a launcher sets, and how to read the number of processes from them.
_LAUNCHERS: dict[str, Callable[[str], int]] = {
    "JAX_COORDINATOR_ADDRESS": lambda _: 2,
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda names: len(names.split(",")),
    "MEGASCALE_NUM_SLICES": int,
}


def initialize(
    coordinator: str | None, processes: int | None, process: int | None, auto: bool
) -> None:
    """Joins the other processes of the run, if there are any.

    Call it before anything asks JAX for devices.

    Args:
      coordinator: host:port of process 0; with it go the next two.
      processes: number of processes.
      process: number of this one.
      auto: whether to join even if no variable of the environment tells of more
        than one process; JAX then has to find out by itself, as on a TPU pod.

    Raises:
      UsageError: if only some of the three are given, or joining fails.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UsageError(
                f"--coordinator_address={coordinator}, --num_processes={processes} and "
                f"--process_id={process} go together; give all three or none."
            )
        if processes is not None and not 0 <= (process or 0) < processes:
            raise UsageError(
                f"--process_id={process} must lie in [0, --num_processes={processes})."
            )
        if processes == 1:
            return
    elif not auto and not launched_as_several(dict(os.environ)):
        return
    try:
        jax.distributed.initialize(coordinator, processes, process)
    # Which exception it is depends on what JAX found, and on the platform.
    except Exception as error:
        raise UsageError(
            f"this process could not join the others ({one_line(error)}); check "
            "--coordinator_address, --num_processes and --process_id, or the "
            "variables that the launcher sets (see docs/pods.md)."
        ) from error


def launched_as_several(environment: dict[str, str]) -> bool:
    """Whether the environment tells of more than one process.

    >>> launched_as_several({"SLURM_STEP_NUM_TASKS": "4"})
    True
    >>> launched_as_several({"SLURM_STEP_NUM_TASKS": "1"})
    False
    """
    for name, count in _LAUNCHERS.items():
        value = environment.get(name, "")
        try:
            if value and count(value) > 1:
                return True
        except ValueError:
            continue
    return False


def is_primary() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def on_primary(act: Callable[..., T], *args: Any) -> T:
    """Does something in the primary process alone and tells all what came of it.

    Args:
      act: what to do; what it returns has to survive pickling.
      *args: its arguments.

    Returns:
      What it returned, in every process.

    Raises:
      Exception: what it raised, in every process.
    """
    if jax.process_count() == 1:
        return act(*args)
    outcome: tuple[bool, Any] = (True, None)
    if is_primary():
        try:
            outcome = (True, act(*args))
        # The others wait: whatever went wrong, they have to hear of it.
        except Exception as error:
            outcome = (False, error)
    succeeded, value = pickle.loads(_broadcast(_pickled(outcome)))
    if not succeeded:
        raise value
    return value


def on_primary_only(act: Callable[[], T]) -> Any:
    """Does something in the primary process; its result stays there.

    Args:
      act: what to do.

    Returns:
      What it returned, and None in the other processes.

    Raises:
      Exception: what it raised, in every process.
    """
    kept: list[Any] = [None]

    def keep() -> None:
        kept[0] = act()

    on_primary(keep)
    return kept[0]


def together(act: Callable[[], T]) -> T:
    """Does something in every process, and goes on only if all of them could.

    Args:
      act: what to do.

    Returns:
      What it returned in this process.

    Raises:
      UsageError: if it raised one in any process; this process's own, if it has one.
    """
    problem, value = None, None
    try:
        value = act()
    except UsageError as error:
        problem = error
    if any_process(problem is not None):
        raise problem or UsageError(
            "another process of this run cannot start and says why."
        )
    return value  # pyright: ignore[reportReturnType]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def _pickled(outcome: tuple[bool, Any]) -> bytes:
    try:
        return pickle.dumps(outcome)
    # Some exceptions cannot be pickled; their message can.
    except Exception:
        return pickle.dumps((False, RuntimeError(one_line(outcome[1]))))


def _broadcast(data: bytes) -> bytes:
    """Process 0's bytes, in every process."""
    size = multihost_utils.broadcast_one_to_all(np.array(len(data), np.int32))
    buffer = np.zeros(int(size), np.uint8)
    if is_primary():
        buffer[:] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()
