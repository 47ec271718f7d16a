"""Which graph records operations here, if any, and which run of a session computes them.

Code runs in one of three modes: *eager* (the usual one), *building* (a graph is the default one: variables that are
created belong to it, and operations on what belongs to it are recorded), and *evaluating* (a session computes recorded
operations with the eager functions, so nothing is recorded). Rules of this file: two context variables and one switch,
no graphs, no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_building: ContextVar[tuple[Any, ...]] = ContextVar("distopt_graphs", default=())
_evaluation: ContextVar[Any] = ContextVar("distopt_evaluation", default=None)
_without_eager: list[Any] = []

may_record = False
"""Whether a graph was ever made the default one: if not, :func:`building` need not be asked."""

variable_class: list[Any] = []
"""The class of variables that are created while a graph is being built; set by :mod:`distopt.graph`."""


def building() -> Any:
    """Return the graph that variables and operations are added to here, or ``None`` where things run eagerly."""
    if _evaluation.get() is not None:
        return None
    graphs = _building.get()
    if graphs:
        return graphs[-1]
    return _without_eager[-1] if _without_eager else None


def evaluation() -> Any:
    """Return the run of a session that is under way here, or ``None``."""
    return _evaluation.get()


@contextmanager
def build(graph: Any) -> Iterator[Any]:
    """Make ``graph`` the one that is added to, for the length of a ``with`` block; ``None``: run eagerly."""
    global may_record
    may_record = True
    token = _building.set((*_building.get(), graph))
    try:
        yield graph
    finally:
        _building.reset(token)


@contextmanager
def evaluate(run: Any) -> Iterator[None]:
    """Compute eagerly, on behalf of ``run``, for the length of a ``with`` block."""
    token = _evaluation.set(run)
    try:
        yield
    finally:
        _evaluation.reset(token)


def build_outside_of_contexts(graph: Any) -> None:
    """Record into ``graph`` wherever no other one is the default, in all threads; ``None``: run eagerly again."""
    global may_record
    may_record = True
    _without_eager[:] = [] if graph is None else [graph]
