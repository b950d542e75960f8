"""The page on all methods, from what the code declares of them.

    python -m experiments.analysis.methods_table > docs/methods.md

What a method goes by is on its `neurrev_jax.Card`; when it updates the topology, what
gradients it needs, what a step costs and what it keeps are read from the record that
its factory returns; the paper is in the first line of its docstring. Procedures have no
record: theirs is `PROCEDURES`.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neurrev_jax
from experiments import method_options
from experiments.analysis import figures

# Config name, and the options of a row; the first of a name is its default.
DYNAMIC: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("neurrev", {}),
    ("set", {}),
    ("deep_r", {}),
    ("dsr", {}),
    ("snfs", {}),
    ("rigl", {}),
    ("itop", {}),
    ("itop", {"growth": "random"}),
    ("top_kast", {}),
    ("powerprop", {}),
    ("mest", {}),
    ("mest", {"memory": "soft"}),
    ("ac_dc", {}),
    ("granet", {}),
    ("chase", {}),
    ("gradual_magnitude", {}),
    ("static", {}),
)

ONE_SHOT = ("random", *method_options.ONE_SHOT)
"""Config names of masks that are drawn once; `"random"` are those of `static`."""


@dataclasses.dataclass(frozen=True)
class Procedure:
    """What a procedure around training is, in a few words each.

    Attributes:
      option: what switches it on in a config.
      does: what it does.
      chooses: what it goes by.
      costs: training FLOPs.
      keeps: what it remembers besides parameters, masks and optimizer.
      paper: where it comes from.
    """

    option: str
    does: str
    chooses: str
    costs: str
    keeps: str
    paper: str


PROCEDURES = (
    Procedure(
        option="method.name=lth",
        does="trains, prunes, rewinds the weights that are left, and so on",
        chooses="smallest |w| of the whole network",
        costs="a training per round, and one more",
        keeps="the parameters to rewind to",
        paper="Frankle and Carbin, 2019; Frankle et al., 2020",
    ),
    Procedure(
        option="method.name=spfde",
        does="freezes blocks front to back, and trains on a part of the examples",
        chooses="exchanges the examples that were forgotten least often",
        costs="no gradient through frozen blocks; fewer examples an epoch",
        keeps="order, last outcome and forgetting events of every example",
        paper="Yuan et al., 2022",
    ),
    Procedure(
        option="removal.easy_examples",
        does="leaves examples out for good, with any method that trains once",
        chooses="the examples that were forgotten least often",
        costs="fewer examples an epoch",
        keeps="order, last outcome and forgetting events of every example",
        paper="Yuan et al., 2021; Toneva et al., 2019",
    ),
)

_PAGE = """\
# Methods

<!-- Written by `python -m experiments.analysis.methods_table`; change the code. -->

Every method is a `Method` record from a function of `neurrev_jax`, and a word in a
config: `--config.method.name=rigl`. What its arguments are, and which of them the paper
leaves open, is in the docstring of the function. A new one takes under 30 lines:
[write your own method](write_your_own_method.md). All of them were trained on digits,
at 90 and 98 %: [the table](reproducing.md#every-method-on-digits).

## Masks that change in training

{dynamic}

- *Competes*: `layer` keeps the number of active weights of every layer, `global` their
  total, or a number that follows a schedule.
- *When* is the default of the function. Configs give it in epochs or steps:
  `experiments/method_options.py`.
- *Gradients*: those that the method itself needs. `gradient_masks(opt_state)` says it
  for every call; only kernels that skip inactive weights can save anything by it.
- *Cost* of training, in FLOPs per example: f_S is a forward pass with the active
  weights, f_D one with all, f_B one with those that are trained, and ΔT the number of
  steps between topology updates. Masked training with dense arithmetic costs 3 f_D,
  whatever the method.
  Where the number of active weights changes, f_S is the mean over training.
- *Keeps*: besides the masks and the active weights with their slots. What is kept of
  inactive weights is not zero and must be stored.
- Powerpropagation is a change of variables around a host; what is said of it here is
  said of its default host, Top-KAST.

## Masks that are drawn once

`sparse_transform(inner, static(), masks=...)` trains under them, at 3 f_S an example.
In a config they are methods like all others; `random` is called `static` there.

{one_shot}

FISH in its other mode (`mode="update"`) trains the chosen weights and holds all others
where they are: `static(inactive="hold")`.

## Procedures around training

{procedures}
"""


def page() -> str:
    """The whole page, in Markdown."""
    dynamic = [_dynamic_row(name, options) for name, options in DYNAMIC]
    one_shot = [_one_shot_row(name) for name in ONE_SHOT]
    procedures = [
        [f"`{p.option}`", p.does, p.chooses, p.costs, p.keeps, p.paper]
        for p in PROCEDURES
    ]
    return _PAGE.format(
        dynamic=_table(
            "method, function, prunes, grows, competes, when, gradients, cost, keeps, "
            "paper",
            dynamic,
        ),
        one_shot=_table("masks, function, removes, competes, needs, paper", one_shot),
        procedures=_table(
            "in a config, what it does, chooses, cost, keeps, paper", procedures
        ),
    )


def _table(header: str, rows: Sequence[Sequence[str]]) -> str:
    columns = header.split(", ")
    # A bar would end the cell.
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _dynamic_row(name: str, options: Mapping[str, str]) -> list[str]:
    factory = _factory(name)
    method = factory(**options)
    given = ", ".join(f'{key}="{value}"' for key, value in options.items())
    card = factory.card
    return [
        figures.label(name),
        f"`{factory.__name__}({given})`",
        card.prunes,
        card.grows,
        card.scope,
        _when(method.schedule),
        _gradients(method),
        f"`{cost_formula(method.cost)}`",
        _keeps(method),
        paper(factory),
    ]


def _one_shot_row(name: str) -> list[str]:
    function = getattr(neurrev_jax, f"{name}_masks")
    parameters = inspect.signature(function).parameters.values()
    # What has no default, besides the parameters of the network.
    needs = [p.name for p in parameters if p.default is p.empty and p.name != "params"]
    scope = inspect.signature(function).parameters["distribution"].default
    return [
        figures.label(name),
        f"`{function.__name__}`",
        function.card.prunes,
        "global" if scope == "global" else "layer",
        ", ".join(f"`{need}`" for need in needs) or "nothing",
        paper(function),
    ]


def _factory(name: str) -> Any:
    return getattr(neurrev_jax, "set_" if name == "set" else name)


def paper(function: Callable[..., Any]) -> str:
    """The paper that the first line of a docstring names.

    Args:
      function: of the library.

    Returns:
      Authors, year and section.

    Raises:
      ValueError: if it names none.

    >>> paper(neurrev_jax.rigl)
    'Evci et al., 2020, section 3'
    """
    summary = (function.__doc__ or "").split("\n\n")[0]
    named = re.search(r"\((?:[^();]*; )?([^();]*\d{4}[^();]*)\)", summary)
    if named is None:
        raise ValueError(
            f"the first line of {function.__name__}'s docstring, {summary!r}, names no "
            "paper; end it with (NAME; AUTHORS, YEAR, SECTION)."
        )
    return named[1]


def _when(schedule: Any) -> str:
    every = getattr(schedule, "every", None)
    if every is not None:
        return "every step" if every == 1 else f"every {every} steps"
    changes = getattr(schedule, "boundaries", None)
    return "never" if changes is None else f"{len(changes)} times, between phases"


def _gradients(method: neurrev_jax.Method) -> str:
    calls = jnp.arange(1, 10_001)
    dense = np.asarray(jax.vmap(method.dense_gradients)(calls)) | np.zeros(10_000, bool)
    updates = np.asarray(jax.vmap(method.schedule)(calls))
    if dense.all():
        return "dense, every step"
    if dense.any():
        assert (dense == updates).all(), method.name
        return "dense, at updates"
    return "trained weights" if method.cost.backward else "active weights"


def cost_formula(cost: neurrev_jax.Cost) -> str:
    """The FLOPs of an example as a formula.

    Args:
      cost: of a method.

    Returns:
      The mean over an update interval of ΔT steps.

    >>> cost_formula(neurrev_jax.Cost(update=(2.0, 1.0)))
    '(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1)'
    >>> cost_formula(neurrev_jax.Cost(sparse=1.0, backward=2.0))
    'f_S + 2 f_B'
    """
    step = _terms(f_S=cost.sparse, f_D=cost.dense, f_B=cost.backward)
    if cost.update is None:
        return step
    step = f"({step})" if "+" in step else step
    update = _terms(f_S=cost.update[0], f_D=cost.update[1])
    return f"({step} ΔT + {update}) / (ΔT + 1)"


def _terms(**passes: float) -> str:
    return " + ".join(
        name if number == 1 else f"{number:g} {name}"
        for name, number in passes.items()
        if number
    )


def _keeps(method: neurrev_jax.Method) -> str:
    """What the state of a method holds for every weight, and what is not zeroed."""
    tx = neurrev_jax.sparse_transform(optax.sgd(0.1), method, sparsity=0.75)
    kernel = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    state = jax.eval_shape(tx.init, {"kernel": kernel}).method_state
    kept = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.shape == kernel.shape:
            # The last attribute on the way: states may hold those of hosts.
            names = [entry.name for entry in path if hasattr(entry, "name")]
            kept.append(f"`{names[-1]}`, {leaf.dtype} per weight")
    if method.inactive == "hold":
        kept.append("values of inactive weights")
    if method.slots == "keep":
        kept.append("slots of inactive weights")
    return "; ".join(kept) or "nothing"


if __name__ == "__main__":
    sys.stdout.write(page())
