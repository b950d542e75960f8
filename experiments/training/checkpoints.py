"""Checkpoints that survive a kill and notice damage.

Orbax writes each one to a temporary name and commits it at the end. Beside the state
lies a digest of all its arrays, because a file that is damaged may still decode.
"""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from experiments.errors import StorageError, UsageError, one_line

_FORMAT = 1

# What a checkpoint raises that has lost files; other errors of the system say that it
# cannot be read now, not that there is nothing to read.
_LOST = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class Checkpoints:
    """The checkpoints of one method's directory.

    Args:
      directory: where they lie; created if missing. In a run of several processes
        only one of them may open it.
      keep: how many of the newest are kept, at least 2.
    """

    def __init__(self, directory: Path, keep: int):
        # What goes wrong is raised as well, and said in one sentence.
        absl_logging.set_verbosity(absl_logging.FATAL)
        logging.getLogger("orbax").setLevel(logging.CRITICAL)
        self._directory = directory.absolute()
        self._manager = self._open(keep)
        self._keep = keep

    def _open(self, keep: int) -> ocp.CheckpointManager:
        # One process alone has everything there is to save; the others are not to be
        # waited for.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        # Saving is not asynchronous: what comes after it may rely on it.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=alone,
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        handlers = {
            "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        }
        return ocp.CheckpointManager(
            self._directory, options=options, item_handlers=handlers
        )

    def save(self, step: int, state: Any) -> None:
        """Saves a state, unless this step has been saved.

        Args:
          step: steps so far.
          state: a pytree of NumPy arrays.
        """
        if step in self._manager.all_steps():
            return
        meta = {"format": _FORMAT, "step": step, "digest": digest(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, like: Any) -> tuple[Any | None, list[str]]:
        """The newest checkpoint that is whole.

        Damaged ones that are newer are renamed, so that their steps can be saved again.

        Args:
          like: a state of the same structure, shapes and types.

        Returns:
          (state, or None if there is no checkpoint at all; what was wrong with the
          newer ones, a sentence each).

        Raises:
          UsageError: if there are checkpoints and all of them are damaged; they stay as
            they are.
          StorageError: if one cannot be read for a reason that may pass.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._read_twice(step, like)
            except StorageError:
                raise
            # Whatever damage makes Orbax raise, the remedy is the same.
            except Exception as error:
                damaged[step] = one_line(error)[:200]
            else:
                return state, self._set_aside(damaged)
        if damaged:
            raise UsageError(
                f"all {len(damaged)} checkpoints in {self._directory} are damaged (the "
                f"newest: {damaged[max(damaged)]}); delete {self._directory.parent} to "
                "train this method anew."
            )
        return None, []

    def close(self) -> None:
        """Releases Orbax's resources."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _read_twice(self, step: int, like: Any) -> Any:
        try:
            return self._read(step, like)
        except Exception as error:
            self._require_readable(step, error)
        # TensorStore raises the same for damage as for a file that could not be opened
        # for a moment.
        return self._read(step, like)

    def _require_readable(self, step: int, error: Exception) -> None:
        """Raises StorageError if reading failed, rather than what was read."""
        try:
            if isinstance(error, OSError) and not isinstance(error, _LOST):
                raise error
            for path in (self._directory / str(step)).rglob("*"):
                if path.is_symlink() or path.is_file():
                    path.read_bytes()
        except _LOST:
            return
        except OSError as unreadable:
            raise StorageError(
                f"checkpoint {self._directory / str(step)} cannot be read "
                f"({one_line(unreadable)}); it is left as it is. Make it readable and "
                "give the same command."
            ) from unreadable

    def _read(self, step: int, like: Any) -> Any:
        restored: Any = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore()
            ),
        )
        if restored.meta["digest"] != digest(restored.state):
            raise ValueError("its contents do not match their digest")
        return restored.state

    def _set_aside(self, damaged: dict[int, str]) -> list[str]:
        """Renames checkpoints; says of each what was wrong with it."""
        said = []
        for step, reason in damaged.items():
            path = self._directory / str(step)
            aside = self._directory / f"damaged-{step}"
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)
            said.append(
                f"checkpoint {path} is damaged ({reason}); it is now called "
                f"{aside.name}"
            )
        if said:
            # The manager lists steps once; look again.
            self._manager.close()
            self._manager = self._open(self._keep)
        return said


def digest(state: Any) -> str:
    """SHA-256 over the names, types, shapes and bytes of all arrays.

    Args:
      state: a pytree of arrays.

    Returns:
      64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
