"""How a run shows where it is: a bar on a terminal, a few lines elsewhere."""

from typing import Any

from rich import progress
from rich.console import Console

from experiments.config import Plan


def make_console(quiet: bool = False) -> Console:
    """A console; where the width is not known, wide enough for the tables.

    Args:
      quiet: whether it shows nothing at all.
    """
    console = Console(highlight=False, soft_wrap=False, quiet=quiet)
    if not console.is_terminal:
        console.width = 110
    return console


class Progress:
    """Progress of one method's training.

    Args:
      console: where to show it.
      name: the method.
      plan: durations in steps.
      step: steps trained before this process started.
    """

    def __init__(self, console: Console, name: str, plan: Plan, step: int):
        self._console, self._name, self._plan = console, name, plan
        self._every = max(1, plan.epochs // 8)
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
            name,
            total=plan.epochs,
            completed=plan.epoch_of(step),
            values="compiling",
        )

    def steps(self, line: dict[str, Any]) -> None:
        """Shows a line of the step log.

        Args:
          line: a line of `steps.jsonl`.
        """
        values = (
            f"step {line['step']}  loss {line['train_loss']:.4f}  "
            f"train accuracy {100 * line['train_accuracy']:5.2f} %"
        )
        if self._console.is_terminal:
            self._bar.update(self._task, values=values)
        else:
            total = self._plan.total_steps
            self._console.print(f"{self._name}: {values}  ({total} steps in all)")

    def epoch(self, metrics: dict[str, Any], seconds_left: float | None) -> None:
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
        elif epoch % self._every == 0 or epoch in (1, self._plan.epochs):
            left = "" if seconds_left is None else f"  {seconds_left:.0f} s left"
            self._console.print(
                f"{self._name}: epoch {epoch}/{self._plan.epochs}  {values}{left}"
            )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._bar.stop()
