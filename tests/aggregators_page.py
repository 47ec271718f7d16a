"""The tables of ``docs/aggregators.md``, found by trying: ``python -m tests.aggregators_page`` renews them.

Every cell is a short training of five replicas. It *works* if the variables have the bits of one process; else the
words of the error are listed. Two choices are tried at a time, the others being the plain ones: ``sum``, no
compression, placement ``replica``, nothing else on the path.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import distopt as tf
from distopt.aggregation import GradientAggregator, LocalSteps, Sum, note_samples
from distopt.aggregation.named import AGGREGATORS, COMPRESSIONS
from distopt.comm.communicator import Communicator
from distopt.distribute import MirroredStrategy, MultiWorkerMirroredStrategy, Strategy, SyncParameterServerStrategy
from distopt.errors import DistoptError
from distopt.tasks.digits import Digits
from distopt.testing import run_replicas
from tests.loopback_servers import LoopbackServers

PAGE = Path(__file__).resolve().parent.parent / "docs" / "aggregators.md"
REPLICAS = 5
STEPS = 2

NONE, LOCAL = "none", "local_steps"
COMPRESSING = (NONE, *COMPRESSIONS, LOCAL)
PLACEMENTS = ("replica", "sharded", "1 server", "2 servers")


def _halved(pairs: Any) -> list[Any]:
    return [(gradient * 0.5, variable) for gradient, variable in pairs]


FEATURES: dict[str, dict[str, Any]] = {
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
    "row-sparse": {},
    "transformer": {"gradient_transformers": [_halved]},
}
_BEGIN, _END = "<!-- found by trying: begin -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Cell:
    """One combination."""

    aggregator: str = Sum.name
    compression: str = NONE
    placement: str = "replica"
    feature: str = ""

    def make(self) -> tuple[Any, list[Any]]:
        """Return an optimizer and its variables, as one process makes them."""
        shapes = ((30, 20), (20,), (6, 4))
        variables = [tf.Variable(np.full(shape, 0.5, np.float32), name=f"v{i}") for i, shape in enumerate(shapes)]
        aggregator = aggregator_of(self.aggregator, self.compression)
        optimizer = tf.keras.optimizers.SGD(0.1, 0.9, gradient_aggregator=aggregator, **FEATURES.get(self.feature, {}))
        return optimizer, variables


def aggregator_of(name: str, compression: str) -> GradientAggregator:
    """Return a named aggregator with a compression, or of local steps.

    Raises: ValueError for what does not go together.
    """
    aggregator = AGGREGATORS[name]()
    if compression == LOCAL:
        return LocalSteps(aggregator, 2)
    kind: Any = COMPRESSIONS.get(compression)
    return aggregator if kind is None else aggregator.compressed(kind())


@functools.cache
def outcome(cell: Cell) -> str:
    """Return ``"works"``, or the words with which a cell is refused.

    Raises: AssertionError for other bits than those of one process.
    """
    try:
        expected = _expected(replace(cell, placement="replica"))
        results = _run(cell)
    except (DistoptError, ValueError) as error:
        name = "" if cell.compression == LOCAL else cell.aggregator
        return re.sub(rf"\b{name}( of \w+)?\b", "NAME", str(error)) if name else str(error)
    assert all(result == expected for result in results), f"{cell} has other bits than in one process"
    return "works"


@functools.cache
def _expected(cell: Cell) -> list[bytes]:
    return train_cell(MirroredStrategy(REPLICAS), cell)


def _run(cell: Cell) -> list[list[bytes]]:
    if cell.placement.endswith(("server", "servers")):
        servers = LoopbackServers(cell.make, REPLICAS, int(cell.placement[0]))
        return [train_cell(SyncParameterServerStrategy(servers, replicas=REPLICAS), cell)]

    def worker(comm: Communicator) -> list[bytes]:
        strategy = MultiWorkerMirroredStrategy(replicas=REPLICAS, communicator=comm, placement=cell.placement)
        return train_cell(strategy, cell)

    return run_replicas(worker, 2)


def train_cell(strategy: Strategy, cell: Cell) -> list[bytes]:
    """Return the bytes of the variables after some steps with gradients that differ by step and replica."""
    with strategy.scope():
        optimizer, variables = cell.make()

    def step(number: int) -> None:
        context = tf.distribute.get_replica_context()
        assert context is not None
        replica = context.replica_id_in_sync_group
        note_samples(replica + 1)
        rng = np.random.default_rng([number, replica])
        gradients: list[Any] = [rng.standard_normal(variable.shape).astype(np.float32) for variable in variables]
        if cell.feature == "row-sparse":
            rows = rng.integers(0, 6, 3)
            gradients[2] = tf.IndexedSlices(gradients[2][:3], rows, (6, 4))
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for number in range(STEPS):
        strategy.run(step, args=(number,))
    return [variable.numpy().tobytes() for variable in variables]


# -------------------------------------------------------------------------------------------------------- the tables


def tables() -> str:
    """Return all tables, with the words of what is refused below them."""
    words: list[str] = []
    parts = [
        _table("aggregator", AGGREGATORS, COMPRESSING, lambda a, c: Cell(aggregator=a, compression=c), words),
        _table("aggregator", AGGREGATORS, PLACEMENTS, lambda a, p: Cell(aggregator=a, placement=p), words),
        _table("aggregator", AGGREGATORS, FEATURES, lambda a, f: Cell(aggregator=a, feature=f), words),
        _table("compression", COMPRESSING[1:], PLACEMENTS, _compressed_at, words),
        _table("compression", COMPRESSING[1:], FEATURES, _compressed_with, words),
        _table("placement", PLACEMENTS, FEATURES, lambda p, f: Cell(placement=p, feature=f), words),
    ]
    listed = "\n".join(f"{number}. {text}" for number, text in enumerate(words, start=1))
    return "\n".join(parts) + f"\nRefused with these words (`NAME`: the row's aggregator):\n\n{listed}\n\n" + traffic()


def _compressed_at(compression: str, placement: str) -> Cell:
    return Cell("mean" if compression == LOCAL else "sum", compression, placement)


def _compressed_with(compression: str, feature: str) -> Cell:
    return Cell("mean" if compression == LOCAL else "sum", compression, feature=feature)


def _table(corner: str, rows: Any, columns: Any, cell_of: Callable[[str, str], Cell], words: list[str]) -> str:
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in rows:
        cells = []
        for column in columns:
            found = outcome(cell_of(row, column))
            if found != "works" and found not in words:
                words.append(found)
            cells.append(found if found == "works" else f"no ({words.index(found) + 1})")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def traffic() -> str:
    """Return the table of the bytes that the gradients of the digits' perceptron take to cross a boundary."""
    lines = [
        "| contributions | 1 replica each | 4 replicas each | pushed by 1 replica | pushed by 4 replicas |",
        "|---|---|---|---|---|",
    ]
    for compression in (NONE, *COMPRESSIONS):
        received = [_bytes_received(compression, 2), _bytes_received(compression, 8)]
        figures = [*received, _bytes_pushed(compression, 1), _bytes_pushed(compression, 4)]
        lines.append(f"| {compression} | {' | '.join(f'{figure:,}' for figure in figures)} |")
    krum = _bytes_received(NONE, 8, "krum")
    lines.append(f"| none, to krum | – | {krum:,} | – | – |")
    return "\n".join(lines) + "\n"


def _digits(aggregator: str, compression: str) -> tuple[Any, list[Any]]:
    variables = list(Digits().build(1).trainable_variables)
    return tf.keras.optimizers.SGD(0.1, gradient_aggregator=aggregator_of(aggregator, compression)), variables


def _bytes_received(compression: str, num_replicas: int, aggregator: str = "sum") -> int:
    def worker(comm: Communicator) -> int:
        strategy = MultiWorkerMirroredStrategy(replicas=num_replicas, communicator=comm)
        with strategy.scope():
            optimizer, variables = _digits(aggregator, compression)
        for _ in range(2):
            strategy.run(lambda: optimizer.apply_gradients([(np.ones(v.shape, np.float32), v) for v in variables]))
        return sum(receipt.bytes_received for receipt in strategy.extended.last_receipts)

    return run_replicas(worker, 2)[0]


def _bytes_pushed(compression: str, num_replicas: int) -> int:
    servers = LoopbackServers(lambda: _digits("sum", compression), num_replicas, 1)
    strategy = SyncParameterServerStrategy(servers, replicas=num_replicas)
    optimizer, variables = _digits("sum", compression)
    strategy.run(lambda: optimizer.apply_gradients([(np.ones(v.shape, np.float32), v) for v in variables]))
    return servers.traffic.bytes_sent


def render(text: str) -> str:
    """Return a page with its tables renewed."""
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{tables()}\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"renewed {PAGE}\n")
