"""What `sparse_transform` costs, as ratios to plain SGD with momentum.

Run it with

    python -m benchmarks.transform [--runs=15] [--csv=FILE]

on a quiet machine. The tree has the shapes of ResNet-50 (25.5 million weights), at
90 % sparsity, ERK. A step is `update` and `apply_updates` in one jitted function
with donated parameters and state. The arms take turns, one step each, so that a
slow moment of the machine hits all of them; a figure is the median over `--runs`
turns after a warm-up. Ordinary steps and topology updates are timed in two rounds,
each with its own plain SGD: what an update leaves behind in the memory system slows
whatever step comes next. JaxPruner's RigL runs beside them where it can be imported.
"""

import argparse
import csv
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import neurrev_jax

EVERY = 1000


def resnet50_params(key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters with the shapes of ResNet-50's kernels and norms."""
    shapes: dict[str, tuple[int, ...]] = {"conv_1/kernel": (7, 7, 3, 64)}
    inputs = 64
    for stage, (blocks, width) in enumerate(
        [(3, 64), (4, 128), (6, 256), (3, 512)], start=1
    ):
        for block in range(1, blocks + 1):
            name = f"stage_{stage}/block_{block}"
            shapes[f"{name}/conv_1/kernel"] = (1, 1, inputs, width)
            shapes[f"{name}/conv_2/kernel"] = (3, 3, width, width)
            shapes[f"{name}/conv_3/kernel"] = (1, 1, width, 4 * width)
            if block == 1:
                shapes[f"{name}/shortcut/kernel"] = (1, 1, inputs, 4 * width)
            inputs = 4 * width
    norms = {
        path.replace("kernel", part): (shape[-1],)
        for path, shape in shapes.items()
        for part in ("norm_scale", "norm_bias")
    }
    shapes["classifier/kernel"] = (2048, 1000)
    params = {}
    for i, (path, shape) in enumerate({**shapes, **norms}.items()):
        params[path] = 0.05 * jax.random.normal(jax.random.fold_in(key, i), shape)
    return params


@dataclasses.dataclass
class Arm:
    """One thing to time.

    Attributes:
      name: what it is called in the table.
      step: compiled `step(params, state, grads) -> (params, state)`.
      params: current parameters.
      state: current optimizer state.
      prepare: what to do to the state before each step, untimed.
      seconds: measured times.
    """

    name: str
    step: Callable[..., Any]
    params: Any
    state: Any
    prepare: Callable[[Any], Any] = lambda state: state
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self, grads: Any) -> None:
        """Takes one timed step."""
        state = jax.block_until_ready(self.prepare(self.state))
        start = time.perf_counter()
        self.params, self.state = jax.block_until_ready(
            self.step(self.params, state, grads)
        )
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        """Median time of a step in seconds, the first two steps left out."""
        return statistics.median(self.seconds[2:])


def copy(tree: Any) -> Any:
    """A copy that may be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def compile_step(tx: Any, params: Any, state: Any, grads: Any) -> tuple[Any, float]:
    """Compiles a training step of `tx`; returns it and the seconds that took."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    )
    return compiled, time.perf_counter() - start


def at_count(count: int) -> Callable[[Any], Any]:
    """Sets the call counter, so that the next call is number `count` + 1."""
    return lambda state: state._replace(count=jnp.int32(count))


def jaxpruner_arm(params: Any, grads: Any) -> Arm | None:
    """JaxPruner's RigL on the same tree, or None where it cannot run."""
    try:
        import ml_collections
        from jaxpruner import api  # pyright: ignore[reportMissingImports]

        config = ml_collections.ConfigDict(
            {
                "algorithm": "rigl", "sparsity": 0.9, "dist_type": "erk",
                "update_freq": 1, "update_start_step": 1, "update_end_step": 10**9,
                "drop_fraction": 0.3, "rng_seed": 8,
            }
        )  # fmt: skip
        updater = api.create_updater_from_config(config)
        tx = updater.wrap_optax(optax.sgd(0.1, momentum=0.9))
        state = tx.init(params)
        step, _ = compile_step(tx, params, state, grads)
        return Arm("JaxPruner rigl, topology update", step, copy(params), state)
    except Exception as error:
        print(f"JaxPruner left out: {type(error).__name__}: {error}")
        return None


def main() -> None:
    """Measures, prints the table and writes it where asked."""
    parser = argparse.ArgumentParser(description="Cost of sparse_transform.")
    parser.add_argument("--runs", type=int, default=15, help="timed steps per arm")
    parser.add_argument(
        "--methods", nargs="+", default=["neurrev", "set", "rigl", "static"]
    )
    parser.add_argument("--csv", help="also write the table to this file")
    arguments = parser.parse_args()

    params = resnet50_params(jax.random.key(0))
    grads = jax.tree.map(lambda x: 0.01 * x, resnet50_params(jax.random.key(1)))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    sgd = optax.sgd(0.1, momentum=0.9)
    methods = {
        "neurrev": neurrev_jax.neurrev(schedule=neurrev_jax.periodic(EVERY)),
        "set": neurrev_jax.set_(schedule=neurrev_jax.periodic(EVERY)),
        "rigl": neurrev_jax.rigl(schedule=neurrev_jax.periodic(EVERY)),
        "static": neurrev_jax.static(),
    }

    plain_state = sgd.init(params)
    step, seconds = compile_step(sgd, params, plain_state, grads)
    rounds = [
        [Arm("optax.sgd, momentum", step, copy(params), copy(plain_state))]
        for _ in range(2)
    ]
    notes = {rounds[0][0].name: {"compile_s": seconds}}
    for name in arguments.methods:
        tx = neurrev_jax.sparse_transform(sgd, methods[name], sparsity=0.9)
        start = time.perf_counter()
        init = jax.jit(tx.init).lower(params).compile()
        init_compile_seconds = time.perf_counter() - start
        jax.block_until_ready(init(params))
        start = time.perf_counter()
        state = jax.block_until_ready(init(params))
        init_seconds = time.perf_counter() - start
        step, compile_seconds = compile_step(tx, params, state, grads)
        ready = neurrev_jax.sparsify(params, state)
        note = {
            "compile_s": compile_seconds,
            "init_compile_s": init_compile_seconds,
            "init_s": init_seconds,
            "temp_copies": step.memory_analysis().temp_size_in_bytes / size,
            "state_copies": sum(x.nbytes for x in jax.tree.leaves(state)) / size,
        }
        ordinary = Arm(
            f"{name}, ordinary step", step, copy(ready), copy(state), at_count(0)
        )
        rounds[0].append(ordinary)
        notes[ordinary.name] = note
        if name != "static":
            update = Arm(
                f"{name}, topology update",
                step,
                copy(ready),
                state,
                at_count(EVERY - 1),
            )
            rounds[1].append(update)
    other = jaxpruner_arm(params, grads)
    rounds[1] += [other] if other else []

    for arms in rounds:
        for _ in range(arguments.runs + 2):
            for arm in arms:
                arm.run(grads)

    columns = [
        "arm",
        "ms",
        "ratio",
        "compile_s",
        "init_compile_s",
        "init_s",
        "temp_copies",
        "state_copies",
    ]
    rows = [
        {
            "arm": arm.name,
            "ms": f"{1e3 * arm.median:.1f}",
            "ratio": f"{arm.median / arms[0].median:.2f}",
            **{k: f"{v:.2f}" for k, v in notes.pop(arm.name, {}).items()},
        }
        for arms in rounds
        for arm in arms
    ]
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {arguments.runs} runs"
    )
    widths = {c: max(len(c), *(len(r.get(c, "")) for r in rows)) for c in columns}
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        print("  ".join(row.get(c, "").ljust(widths[c]) for c in columns).rstrip())
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
