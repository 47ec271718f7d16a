"""The state of a job from wherever it lies, and back to there.

With placement ``replica`` every process has all of it, except that copies of split variables lie where their replicas
are hosted. With placement ``server`` slots lie at the servers alone. Either way the chief (rank 0) ends up with the one
:class:`~distopt.checkpoint.TrainingState` that the same job in one process would have.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distopt import random
from distopt.aggregation.memory import PREFIX, of_replicas
from distopt.checkpoint import encoding
from distopt.checkpoint.state import DataPosition, TrainingState, VariableState, collapse, state_hash
from distopt.distribute import Strategy
from distopt.distribute.served import load_named_arrays
from distopt.errors import CheckpointError
from distopt.optimizers import pipeline
from distopt.optimizers.saved_state import OptimizerState
from distopt.types import Array
from distopt.variable import VariableAggregation, VariableSynchronization

_DRAWN = "random."
"""What the names begin with of how much was drawn, by domain, seed and replica."""

_COLLECT = "collecting the state of all"
"""What is waited for, as errors name it."""


class Trained(Protocol):
    """What has a state: variables, what trains them, and what it draws its random values from."""

    @property
    def variables(self) -> Sequence[Any]:
        """Those that are trained, in creation order."""
        ...

    @property
    def all_variables(self) -> Sequence[Any]:
        """Those that are part of the state, in creation order."""
        ...

    @property
    def optimizer(self) -> Any: ...

    @property
    def streams(self) -> random.Streams: ...

    @property
    def digest(self) -> str:
        """Of what is computed; two jobs with the same one can go on from each other's states."""
        ...


def collect_state(
    job: Trained, strategy: Strategy, position: DataPosition, *, everywhere: bool = False
) -> TrainingState | None:
    """Return the job's state on the chief, ``None`` on other ranks; every rank must call this at the same step.

    ``everywhere``: on all ranks, to go on from in memory; not for placement ``server``. Of a variable synchronized
    ON_READ it has the copies, whose sum or mean alone is in a checkpoint, as in TensorFlow's.
    """
    extended = strategy.extended
    communicator: Any = extended.communicator
    aggregated = {} if everywhere else _aggregated(job)
    remembered = _remembered(job, strategy)
    wanted = everywhere or extended.rank == 0
    if communicator is None:
        return _with_extras(local_state(job, position, aggregated), remembered)
    if strategy.placement == "server":
        if extended.rank != 0:
            return None
        layout = job.optimizer.layout(tuple(job.variables))
        for owned in communicator.fetch_state():
            named = dict(zip(owned.names, owned.arrays, strict=True))
            # What a server remembers that re-enacts replicas is newer than anything that workers were resumed with.
            remembered |= {name: named.pop(name) for name in list(named) if name.startswith(PREFIX)}
            load_named_arrays(job.optimizer, layout, owned.spans, named)
        return _with_extras(local_state(job, position, aggregated), remembered)
    own = _with_extras(local_state(job, position, aggregated), {})
    keeps_copies = everywhere and any(variable.is_split for variable in job.all_variables)
    if everywhere and strategy.placement == "sharded" and not keeps_copies:
        return _with_extras(own, remembered)  # the same memory on every rank
    split = any(len(copies) > 1 for v in own.variables for copies in (v.value, *v.slots.values())) or keeps_copies
    digest = b"split" if split else hashlib.sha256(state_hash(own).encode()).digest()
    digests = communicator.all_gather_bytes(digest if extended.hosted else b"", what=_COLLECT)
    if len({d for d in digests if d}) == 1 and b"split" not in digests:
        return _with_extras(own, remembered) if wanted else None
    parts = communicator.all_gather_bytes(encoding.to_bytes(own) if extended.hosted else b"", what=_COLLECT)
    if not wanted:
        return None
    states = [encoding.from_bytes(part, f"the state of rank {r}") if part else None for r, part in enumerate(parts)]
    return _with_extras(_merged(states, extended.hosting.hosted), remembered)


def state_everywhere(job: Trained, strategy: Strategy, position: DataPosition) -> TrainingState:
    """Return the job's state, on every process; a collective. Not for placement ``server``.

    What all processes have anyway is copied, and not compared.
    """
    communicator: Any = strategy.extended.communicator
    has_all = strategy.placement == "replica" and not has_state_of_replicas(job)
    if all(communicator.all_gather_bytes(b"1" if has_all else b"", what=_COLLECT)):
        return _with_extras(local_state(job, position), _drawn(job, {None}))
    state = collect_state(job, strategy, position, everywhere=True)
    assert state is not None, "asked for on every process"
    return state


def has_state_of_replicas(job: Trained) -> bool:
    """Return whether the replicas hosted here have state that belongs to them alone, or may come to have some."""
    return (
        not pipeline.GradientPath(job.optimizer, aggregate=True).runs_at_owners
        or getattr(job.optimizer.gradient_aggregator, "memory", None) is not None
        or any(variable.is_split for variable in job.all_variables)
        or any(replica is not None for _, _, replica in job.streams.taken())
    )


def _remembered(job: Trained, strategy: Strategy) -> dict[str, Array]:
    """Return what is remembered of all replicas, by name: by the job's aggregator, and of what was drawn; a collective.

    What was drawn outside of replicas is the same everywhere but for what a single process did; rank 0 says it.
    """
    extended = strategy.extended
    communicator: Any = extended.communicator
    own = {} if getattr(job.optimizer.gradient_aggregator, "memory", None) is None else job.optimizer.aggregator_state()
    own = of_replicas(own, extended.hosted) | _drawn(job, {*extended.hosted, *([None] if extended.rank == 0 else [])})
    if communicator is None:
        return own
    nowhere = DataPosition(epoch=0, step=0)
    payload = encoding.to_bytes(TrainingState(iterations=0, variables=(), extras=own, position=nowhere, job_digest=""))
    found: dict[str, Array] = {}
    for rank, part in enumerate(communicator.all_gather_bytes(payload, what=_COLLECT)):
        found |= encoding.from_bytes(part, f"what rank {rank} remembers").extras
    return found


def _drawn(job: Trained, of: Collection[int | None]) -> dict[str, Array]:
    """Return how many streams of random values were taken by these replicas, and outside of them (None)."""
    return {
        f"{_DRAWN}{domain}.{seed}.{'all' if replica is None else replica}": np.array(count, np.int64)
        for (domain, seed, replica), count in sorted(job.streams.taken().items(), key=str)
        if replica in of
    }


def _go_on_drawing(job: Trained, extras: Mapping[str, Array]) -> None:
    taken = {}
    for name, count in extras.items():
        if name.startswith(_DRAWN):
            domain, seed, replica = name.removeprefix(_DRAWN).split(".")
            taken[domain, int(seed), None if replica == "all" else int(replica)] = int(count)
    job.streams.go_on(taken)


def _with_extras(state: TrainingState, remembered: Mapping[str, Array]) -> TrainingState:
    """Return ``state`` with what is remembered on all processes, instead of on this one."""
    others = {name: array for name, array in state.extras.items() if not name.startswith(PREFIX)}
    return dataclasses.replace(state, extras=others | dict(sorted(remembered.items())))


def local_state(
    job: Trained, position: DataPosition, aggregated: Mapping[int, tuple[Array, ...]] | None = None
) -> TrainingState:
    """Return the state as this process holds it; copies are those of the hosted replicas.

    ``aggregated``: by position, the values that variables synchronized ON_READ have over all replicas.
    """
    state = job.optimizer.state()
    slots_of = {id(v): slots for v, slots in zip(job.variables, state.slots, strict=True)}
    variables = tuple(
        VariableState(
            position=i, name=v.name, value=(aggregated or {}).get(i, ()) or _copies(v), slots=slots_of.get(id(v), {})
        )
        for i, v in enumerate(job.all_variables)
    )
    return TrainingState(
        iterations=state.iterations,
        variables=variables,
        extras=state.extras,
        position=position,
        job_digest=job.digest,
    )


def restore_state(
    state: TrainingState, job: Trained, strategy: Strategy | None = None, *, by_name: bool = True
) -> None:
    """Make ``state`` the state of this process: all of it, and of split variables the copies hosted here.

    ``strategy`` is None on a server, which holds one value for all replicas. ``by_name``: whether variables must have
    the names that they had, not their order alone.

    Raises: CheckpointError, before anything changes, if variables differ in name, shape or dtype.
    """
    mine = list(job.all_variables)
    saved = sorted(state.variables, key=lambda v: v.position)
    if len(mine) != len(saved) or (by_name and [v.name for v in mine] != [v.name for v in saved]):
        raise CheckpointError(f"the checkpoint is of {[v.name for v in saved]}, the job of {[v.name for v in mine]}")
    for variable, entry in zip(mine, saved, strict=True):
        shape, dtype = entry.value[0].shape, entry.value[0].dtype
        if shape != tuple(variable.shape) or dtype != variable.dtype:
            raise CheckpointError(
                f"{variable.name} is {dtype}{list(shape)} in the checkpoint and "
                f"{variable.dtype}{list(variable.shape)} in the job"
            )
    hosted: Sequence[int] = (0,) if strategy is None else strategy.extended.hosted or (0,)
    for variable, entry in zip(mine, saved, strict=True):
        copies = _of_hosted(entry.value, hosted)
        if _is_on_read(variable) and len(entry.value) > 1:
            for replica in variable.replica_ids:  # of a process without replicas, that of its stand-in
                variable.write_copy(replica, "assign", entry.value[replica])
        elif _is_aggregated(variable):
            variable.assign(copies[0])  # of a sum each replica gets its share
        elif len(hosted) > 1 and any(len(each) > 1 for each in (entry.value, *entry.slots.values())):
            assert strategy is not None, "only a strategy hosts several replicas"
            strategy.extended.split((variable,))
            each_replica = copies if len(copies) > 1 else copies * len(hosted)
            for replica, copy in zip(hosted, each_replica, strict=True):
                variable.write_copy(replica, "assign", copy)
        else:
            variable.write_all("assign", copies[0])
    entries = {id(v): entry for v, entry in zip(mine, saved, strict=True)}
    slots = tuple(
        {name: _of_hosted(copies, hosted) for name, copies in entries[id(v)].slots.items()} for v in job.variables
    )
    # A server re-enacts all replicas; what it does not use of theirs does no harm.
    extras = state.extras if strategy is None else of_replicas(state.extras, strategy.extended.hosted)
    job.optimizer.load_state(OptimizerState(state.iterations, slots, extras))
    _go_on_drawing(job, state.extras)


def _aggregated(job: Trained) -> dict[int, tuple[Array, ...]]:
    """Return, by position, the variables of which the value over all replicas is kept, not the copies; a collective."""
    return {i: (v.numpy(),) for i, v in enumerate(job.all_variables) if _is_aggregated(v)}


def _is_aggregated(variable: Any) -> bool:
    return _is_on_read(variable) and variable.aggregation is not VariableAggregation.NONE


def _is_on_read(variable: Any) -> bool:
    return bool(variable.is_split and variable.synchronization is VariableSynchronization.ON_READ)


def _copies(variable: Any) -> tuple[Array, ...]:
    if not variable.is_split:
        return (variable.numpy(),)
    return tuple(variable.copy_of(replica).copy() for replica in variable.replica_ids)


def _of_hosted(copies: Sequence[Array], hosted: Sequence[int]) -> tuple[Array, ...]:
    return tuple(copies[replica] for replica in hosted) if len(copies) > 1 else tuple(copies)


def _merged(states: Sequence[TrainingState | None], hosted: Sequence[Sequence[int]]) -> TrainingState:
    """Return one state with a copy for each replica, in replica order."""
    present = [(state, len(replicas)) for state, replicas in zip(states, hosted, strict=True) if state is not None]
    first = present[0][0]

    def spread(copies_of: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
        each = [
            copies if len(copies) == count else copies * count
            for copies, (_, count) in zip(copies_of, present, strict=True)
        ]
        return collapse(tuple(copy for copies in each for copy in copies))

    variables = []
    for i, variable in enumerate(first.variables):
        entries = [state.variables[i] for state, _ in present]
        slots: Mapping[str, tuple[Array, ...]] = {
            name: spread([tuple(entry.slots[name]) for entry in entries]) for name in variable.slots
        }
        variables.append(
            VariableState(
                position=variable.position,
                name=variable.name,
                value=spread([tuple(entry.value) for entry in entries]),
                slots=slots,
            )
        )
    return TrainingState(
        iterations=first.iterations,
        variables=tuple(variables),
        extras=first.extras,
        position=first.position,
        job_digest=first.job_digest,
    )
