from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.arena import BLOCK
from distopt.canonical_sum import Node, SumTree, add_nodes, additions
from distopt.optimizers import SGD, Adam, AdamW, get_engine, set_default_engine
from distopt.optimizers.engine import Blocks
from distopt.optimizers.keras_legacy import Optimizer
from distopt.optimizers.lamb import Lamb
from distopt.optimizers.layout import Layout
from distopt.optimizers.terms import Gradient, Source, Terms, gradients_of
from distopt.types import Array
from distopt.variable import Variable

SHAPES: list[tuple[int, ...]] = [(BLOCK + 3,), (), (2, 5), (3 * BLOCK,), (7,)]
BF16 = ml_dtypes.bfloat16


@pytest.fixture(autouse=True)
def compiled_again() -> Iterator[None]:
    yield
    set_default_engine("compiled")


def nodes_of(num_replicas: int, hosted: str) -> tuple[Node, ...]:
    """Return the nodes that are given: of each replica, or of each of some hosts; ``"032"`` has replica 1 on host 3."""
    tree = SumTree(num_replicas)
    hosts = hosted or "".join(chr(ord("a") + replica) for replica in range(num_replicas))
    return tuple(
        sorted(
            node
            for host in dict.fromkeys(hosts)
            for node in tree.cover(replica for replica in range(num_replicas) if hosts[replica] == host)
        )
    )


class Run:
    """Some steps of an optimizer, whose gradients come as terms, or added up beforehand."""

    def __init__(self, make: Any, dtype: Any, num_replicas: int, hosted: str, divisor: int | None) -> None:
        rng = np.random.default_rng(3)
        self.variables = [
            Variable(np.asarray(rng.standard_normal(shape), dtype), dtype=np.dtype(dtype), name=f"v{i}")
            for i, shape in enumerate(SHAPES)
        ]
        self.optimizer: Optimizer = make()
        self.tree = SumTree(num_replicas)
        self.nodes = nodes_of(num_replicas, hosted)
        self.divisor = divisor
        self.layout: Layout = self.optimizer.layout(self.variables)

    def contributed(self, step: int) -> dict[Node, list[Array]]:
        found = {}
        for replica in range(self.tree.num_replicas):
            rng = np.random.default_rng(100 * step + replica)
            gradients = [np.asarray(rng.standard_normal(v.shape), v.dtype) for v in self.variables]
            found[replica] = self.layout.pack(gradients)
        leaves = [
            {Node(replica, replica + 1): flat[run] for replica, flat in found.items()}
            for run in range(len(self.layout.runs))
        ]
        return {node: [add_nodes(self.tree, column, node) for column in leaves] for node in self.nodes}

    def state(self, owners: int, *, as_terms: bool, steps: int = 2) -> list[bytes]:
        divided = [(spans, self.optimizer.span_owner(self.layout, spans)) for spans in self.layout.divide(owners)]
        for step in range(steps):
            given = self.contributed(step)
            hypers = self.optimizer.step_hypers()
            gradients: list[Any] = []
            for spans, _ in divided:
                sums = {node: self.layout.take(flat, spans) for node, flat in given.items()}
                gradients.append(Terms(self.tree, sums, self.divisor) if as_terms else self.added(sums))
            partials = [owner.partials(own, hypers) for own, (_, owner) in zip(gradients, divided, strict=True)]
            for own, (_, owner) in zip(gradients, divided, strict=True):
                owner.apply(own, hypers, np.concatenate(partials))
            self.optimizer.advance(hypers)
        slots = [copies[0].tobytes() for of in self.optimizer.state().slots for copies in of.values()]
        return [variable.numpy().tobytes() for variable in self.variables] + slots

    def added(self, sums: dict[Node, list[Array]]) -> list[Array]:
        columns = [dict(zip(sums, column, strict=True)) for column in zip(*sums.values(), strict=True)]
        totals = [add_nodes(self.tree, column) for column in columns]
        return totals if self.divisor is None else [total / total.dtype.type(self.divisor) for total in totals]


CASES: dict[str, tuple[Any, ...]] = {
    # make, dtype, replicas, who hosts which, divisor
    "one replica": (lambda: Adam(0.1), np.float32, 1, "", None),
    "two": (lambda: Adam(0.1), np.float32, 2, "", None),
    "two, clipped by value": (lambda: Adam(0.1, clipvalue=0.5), np.float32, 2, "", None),
    "two, clipped by global norm": (lambda: Adam(0.1, global_clipnorm=1.0), np.float32, 2, "", None),
    "the mean of five on three hosts": (lambda: Adam(0.1, clipnorm=0.5), np.float32, 5, "aabba", 5),
    "eight in a strange order": (lambda: SGD(0.1, momentum=0.9), np.float64, 8, "abcabcab", None),
    "three, with decay": (lambda: AdamW(0.1, weight_decay=0.5), np.float32, 3, "", None),
    "more than one loop reads": (lambda: Adam(0.1), np.float32, 20, "", None),
    "the mean of more, clipped": (lambda: Adam(0.1, clipvalue=0.5, global_clipnorm=1.0), np.float32, 11, "", 11),
    "bfloat16": (lambda: Adam(0.1, clipvalue=0.5), BF16, 3, "", 3),
    "bfloat16, more": (lambda: SGD(0.1, momentum=0.9, global_clipnorm=1.0), BF16, 11, "", None),
    "bfloat16, float32 slots": (lambda: Adam(0.1, slot_dtype="float32"), BF16, 3, "", None),
    "float16": (lambda: SGD(0.1), np.float16, 3, "", None),
    "accumulated": (lambda: Adam(0.1, clipvalue=0.2, gradient_accumulation_steps=2), np.float32, 2, "", None),
    "a rule after norms": (lambda: Lamb(0.1, clipvalue=0.5), np.float32, 2, "", None),
    "averages, a decay of its own": (lambda: SGD(0.1, weight_decay=0.5, use_ema=True), np.float32, 2, "", None),
}


@pytest.mark.parametrize("case", CASES)
def test_terms_give_the_bits_of_adding_first_on_both_engines_for_any_owners(case: str) -> None:
    set_default_engine("numpy")
    expected = Run(*CASES[case]).state(1, as_terms=False)
    for engine in ("numpy", "compiled"):
        set_default_engine(engine)
        for owners in (1, 3):
            assert Run(*CASES[case]).state(owners, as_terms=True) == expected, (engine, owners)


def test_terms_are_not_written_to_and_may_lie_elsewhere_at_each_step() -> None:
    run = Run(lambda: SGD(1.0, clipvalue=0.25), np.float32, 2, "", None)
    (owner,) = [run.optimizer.span_owner(run.layout, run.layout.spans)]
    for value in (1.0, 2.0):
        before = run.variables[0].numpy()
        given = {node: [np.full(r.size, value, np.float32) for r in run.layout.runs] for node in run.nodes}
        for (array,) in given.values():
            array.flags.writeable = False
        owner.apply(Terms(run.tree, given), run.optimizer.step_hypers(), owner.partials(Terms(run.tree, given), {}))
        np.testing.assert_array_equal(run.variables[0].numpy(), before - np.float32(0.25))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda array: array[:-1], "float32"),
        (lambda array: array.astype(np.float64), "float64"),
        (lambda array: np.repeat(array, 2)[::2], "contiguous"),
    ],
)
def test_a_term_that_does_not_fit_its_span_is_refused_before_anything_changes(change: Any, words: str) -> None:
    run = Run(lambda: SGD(1.0), np.float32, 2, "", None)
    before = [variable.numpy() for variable in run.variables]
    owner = run.optimizer.span_owner(run.layout, run.layout.spans)
    given = run.contributed(0)
    given[run.nodes[1]] = [change(array) for array in given[run.nodes[1]]]
    with pytest.raises(ValueError, match=words):
        owner.apply(Terms(run.tree, given), run.optimizer.step_hypers(), np.empty(0))
    for variable, kept in zip(run.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), kept)


def test_terms_that_leave_a_replica_out_are_refused() -> None:
    one = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="no contribution covers replica 2"):
        gradients_of(Terms(SumTree(3), {Node(0, 2): [one]}))


def test_additions_are_those_of_the_tree() -> None:
    assert additions(SumTree(5), nodes_of(5, "")) == (((0, 1), (2, 3)), 4)
    assert additions(SumTree(5), nodes_of(5, "aabba")) == ((0, 1), 2)
    source = Source(additions(SumTree(3), nodes_of(3, "")), is_mean=True)
    rows = [np.array([value], np.float32) for value in (1e8, 1.0, -1e8)]
    assert source.evaluate(rows, [np.float32(3)]) == ((rows[0] + rows[1]) + rows[2]) / np.float32(3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("sources", "is_mean"), [(0, False), ((0, 1), False), ((0, 1), True), (((0, 1), 2), True)])
@pytest.mark.parametrize(
    "sizes", [[5], [9 * BLOCK + 5], [3 * BLOCK, 100, 100, 100, 100, 5 * BLOCK], [100] * 9, [7, 100, 100, 100, 100, 101]]
)
def test_sums_of_squares_of_blocks_are_the_same_one_by_one_and_several_at_a_time(
    dtype: Any, sources: Any, is_mean: bool, sizes: list[int]
) -> None:
    rng = np.random.default_rng(len(sizes))
    starts = np.cumsum([0, *[size + 3 for size in sizes]])
    blocks = Blocks([(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=False)])
    source = Source(sources, is_mean=is_mean)
    terms = tuple(rng.standard_normal(int(starts[-1])).astype(dtype) for _ in range(source.num_terms))
    gradient = Gradient(source, terms, (dtype(3),) if is_mean else ())
    plain, compiled = (get_engine(name).gather(gradient, None, blocks) for name in ("numpy", "compiled"))
    assert plain.tobytes() == compiled.tobytes()
