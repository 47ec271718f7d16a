"""Applying gradients in a graph: what is done at once where things run eagerly becomes one operation.

Theory of operation. Slots and counters are created when the operation is recorded, so that they are initialized with
the other variables. When a session runs it, gradients and hyperparameters have values, and the eager path runs
with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distopt import deferral
from distopt.graph import Deferred, Graph, GraphVariable, Operation, get_default_graph
from distopt.indexed_slices import IndexedSlices
from distopt.optimizers.pipeline import Pairs, check_gradients
from distopt.optimizers.update_methods import UpdateMethods
from distopt.tensor import Operand
from distopt.variable import Variable


class RecordedUpdates(UpdateMethods):
    """An optimizer whose updates can be operations of a graph."""

    _run: Any = None
    """The run of a session that the update is part of."""
    _prepared: dict[str, float] | None = None
    """The hypers of that run."""
    _home: Graph | None = None

    def _record(
        self, pairs: Sequence[Any], apply: Callable[[list[Any]], None], name: str, kind: str | None = None
    ) -> Operation:
        """Record ``apply(pairs)``, called with the gradients' values, and return the operation.

        Raises: NotImplementedError for something other than a variable; TypeError for a gradient that is no tensor;
            ValueError for one that does not fit, and for variables of another graph than before.
        """
        for gradient, variable in pairs:
            if not isinstance(variable, Variable):
                raise NotImplementedError(f"only variables can be updated, not {variable!r}")
            if not isinstance(gradient, Operand | IndexedSlices | np.ndarray | np.generic | int | float | list | tuple):
                raise TypeError(f"the gradient of {variable.name!r} is no tensor and cannot be made one: {gradient!r}")
        check_gradients((g, v) for g, v in pairs if not hasattr(g, "graph"))
        if self.updates_by_methods:
            self._check_methods([(None if hasattr(g, "graph") else g, v) for g, v in pairs])
        operands = [operand for pair in pairs for operand in pair if hasattr(operand, "graph")]
        graph = operands[0].graph if operands else get_default_graph()
        if self._home not in (None, graph):
            raise ValueError(f"{self._name} updates variables of another graph; make an optimizer for each graph")
        self._home = graph
        with deferral.build(graph):
            self.build([variable for _, variable in pairs])
            written = [*self._kept_in_graph(), *(variable for _, variable in pairs)]

        def update(scope: Any) -> None:
            check_initialized(written, scope)
            apply([(scope.value_of(g) if hasattr(g, "graph") else g, v) for g, v in pairs])

        deferred = [gradient for gradient, _ in pairs if hasattr(gradient, "graph")]
        inputs = [*deferred, *self._deferred_hypers()]
        return Operation(graph, kind or f"Apply{self._name}", update, inputs, name=name, writes=True)

    def _kept_in_graph(self) -> Sequence[Variable]:
        """Return the variables of this optimizer that must have been initialized before an update."""
        return self._weights

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep what is known in this replica's run of a session for the place where replicas meet: there is none there.

        That is the run itself, for methods that a user wrote, and the values of hypers that the graph computes.
        """
        run = deferral.evaluation()
        if run is None or self._run is not None:
            yield
            return
        self._run, self._prepared = run, self.step_hypers()
        try:
            yield
        finally:
            self._run = self._prepared = None

    def _run_methods(self, pairs: Pairs) -> None:
        if self._run is None:
            super()._run_methods(pairs)
            return
        with deferral.evaluate(self._run):
            super()._run_methods(pairs)

    def _deferred_hypers(self) -> list[Any]:
        values = [self._hypers.raw(name) for name in self._hypers]
        return [value for value in values if isinstance(value, Deferred | GraphVariable)]

    def step_hypers(self) -> dict[str, float]:
        """Return the hypers of the next step as plain numbers; functions are called, once each."""
        return super().step_hypers() if self._prepared is None else self._prepared

    @property
    def has_callable_hypers(self) -> bool:
        """Whether a hyper is a function or a deferred tensor, which another process may see differently."""
        if self._hypers.are_variables:
            return False
        return super().has_callable_hypers or bool(self._deferred_hypers())


def check_initialized(variables: Iterable[Any], scope: Any) -> None:
    """Do nothing if those of ``variables`` that belong to a graph have values in the session of ``scope``.

    Raises: UninitializedVariableError if not.
    """
    for variable in variables:
        if isinstance(variable, GraphVariable):
            variable.check_initialized(scope.session)
