"""How a run shows where it is: a bar on a terminal, a few lines elsewhere."""

from typing import Any

from rich import progress
from rich.console import Console


def make_console() -> Console:
    """A console; where the width is not known, wide enough for the tables."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 110
    return console


class Progress:
    """Progress of one method's training.

    Args:
      console: where to show it.
      name: the method.
      epochs: epochs of the run.
      done: epochs trained before this process started.
    """

    def __init__(self, console: Console, name: str, epochs: int, done: int):
        self._console, self._name, self._epochs = console, name, epochs
        self._every = max(1, epochs // 8)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:<8}"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[values]}"),
            progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            name, total=epochs, completed=done, values="compiling"
        )

    def update(self, metrics: dict[str, Any], seconds_left: float | None) -> None:
        """Shows one epoch's values.

        Args:
          metrics: a line of `metrics.jsonl`.
          seconds_left: estimate until the end of this method's training, or None.
        """
        epoch = metrics["epoch"]
        values = (
            f"loss {metrics['train_loss']:.4f}  "
            f"test accuracy {100 * metrics['test_accuracy']:5.2f} %  "
            f"sparsity {100 * metrics['sparsity']:.1f} %"
        )
        if self._console.is_terminal:
            self._bar.update(self._task, completed=epoch, values=values)
        elif epoch % self._every == 0 or epoch in (1, self._epochs):
            left = "" if seconds_left is None else f"  {seconds_left:.0f} s left"
            self._console.print(
                f"{self._name}: epoch {epoch}/{self._epochs}  {values}{left}"
            )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._bar.stop()
