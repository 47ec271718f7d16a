"""A training loop of the user's, and the state that it goes on from; see :mod:`distopt.elastic`."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from distopt import random
from distopt.checkpoint import DataPosition, TrainingState, from_bytes, state_hash, to_bytes
from distopt.checkpoint.collect import restore_state, state_everywhere
from distopt.comm.communicator import Communicator
from distopt.distribute import MultiWorkerMirroredStrategy, Strategy
from distopt.elastic.survival import carry_out, furthest
from distopt.errors import LocalProtocolError, PeerLostError
from distopt.variable import Variable

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass
class _Followed:
    """What :meth:`State.follow` was given; see :class:`distopt.checkpoint.collect.Trained`."""

    optimizer: Any
    variables: Sequence[Any]
    all_variables: Sequence[Any]
    strategy: Strategy
    streams: random.Streams = field(default_factory=random.current_streams)
    digest: str = ""

    def state(self, step: int) -> TrainingState:
        """Return a copy of the state, the same on all processes; a collective."""
        return state_everywhere(self, self.strategy, DataPosition(epoch=0, step=step))


class State:
    """What a training loop goes on from; :func:`run` makes it, for the function that it calls.

    ``step`` counts the commits: so many steps are done.
    """

    def __init__(self, keep_every_steps: int) -> None:
        self.step = 0
        self._keep_every_steps = keep_every_steps
        self._kept: TrainingState | None = None
        self._strategy: Strategy | None = None
        self._followed: _Followed | None = None

    def follow(self, optimizer: Any, variables: Any) -> None:
        """Take these as the state, and, after a loss, give them the state to go on from; a collective.

        ``optimizer``: the one that makes the steps; its slots, hypers and count of steps are part of the state.
        ``variables``: a model, a variable, or a list of such. Those that are trainable, in this order, are the
        optimizer's; all others are kept as well. To be called once, before the first step, with variables made in the
        scope of the strategy.

        Raises: LocalProtocolError for a second call; CheckpointError for other variables than before the loss.
        """
        if self._followed is not None or self._strategy is None:
            raise LocalProtocolError("state.follow was called twice; give one call all variables")
        every = _variables_of(variables)
        trained = [variable for variable in every if variable.trainable]
        optimizer.build(trained)
        self._followed = _Followed(optimizer, trained, every, self._strategy)
        if self._kept is not None:
            # Layers without a name of their own are numbered through, over all calls.
            restore_state(self._kept, self._followed, self._strategy, by_name=False)
            self.step = self._kept.position.step

    def commit(self) -> None:
        """Say that one more step is done; every process does, after each step.

        Raises: LocalProtocolError before :meth:`follow`; what a wait for the others raises.
        """
        followed = self._following("commit")
        self.step += 1
        communicator: Any = followed.strategy.extended.communicator
        communicator.step = self.step
        if communicator.survives_losses and self.step % self._keep_every_steps == 0:
            self._kept = followed.state(self.step)

    def hash(self) -> str:
        """Return the hash of the state as it is, the same for the same bits; a collective.

        Raises: LocalProtocolError before :meth:`follow`; what a wait for the others raises.
        """
        return state_hash(self._following("hash").state(self.step))

    def _following(self, asked: str) -> _Followed:
        if self._followed is None:
            raise LocalProtocolError(f"state.{asked} was called before state.follow, which says what the state is")
        return self._followed

    def _begin(self, strategy: Strategy) -> None:
        """Begin an attempt with ``strategy``; a collective, which finds what to go on from."""
        self._strategy, self._followed, self.step = strategy, None, 0
        communicator: Any = strategy.extended.communicator
        own = self._kept
        found = furthest(communicator, () if own is None else (own.position.step,))
        if found is None:
            return
        root, _ = found
        payload = to_bytes(own) if own is not None and communicator.rank == root else None
        self._kept = from_bytes(communicator.broadcast_bytes(payload, root), "the state of the survivors")

    def _forget(self) -> None:
        """Let go of what belongs to an attempt that has ended."""
        self._strategy = self._followed = None


def _variables_of(given: Any) -> list[Any]:
    if isinstance(given, list | tuple):
        return [variable for each in given for variable in _variables_of(each)]
    return [given] if isinstance(given, Variable) else list(given.variables)


def run(
    train: Callable[[Strategy, State], Result],
    *,
    replicas: int | None = None,
    placement: str = "replica",
    keep_every_steps: int = 10,
    timeout_s: float = 60.0,
    communicator: Communicator | None = None,
) -> Result:
    """Return ``train(strategy, state)``, called again by the processes that are left whenever one is lost.

    Every process of an MPI job calls this, with the same arguments. ``replicas``: how many make a step, whatever the
    number of processes; default as many as there are processes at the start. ``placement``: see
    ``MultiWorkerMirroredStrategy``. ``keep_every_steps``: every so many commits all processes copy the state, and at
    most so many steps are made again; a copy takes as much memory as variables and slots. ``communicator``: default is
    MPI's world.

    A loss is survived under ``mpirun --with-ft ulfm``; elsewhere it raises PeerLostError, in every process. ``train``
    must let that error pass, and may not use a strategy, variables or an optimizer of its earlier call. This returns
    when ``train`` has returned everywhere; the strategy cannot be used any more.

    Units: ``timeout_s`` limits every wait for other processes; it is not used where there is a ``communicator``.
    Raises: ValueError for a number below one; PeerLostError where losses are not survived; whatever ``train`` raises.

    >>> import numpy as np
    >>> from distopt.keras.optimizers import SGD
    >>> from distopt.testing import run_replicas
    >>> def train(strategy, state):
    ...     with strategy.scope():
    ...         weight, optimizer = Variable(np.zeros(2)), SGD(0.5)
    ...     state.follow(optimizer, weight)
    ...     for step in range(state.step, 3):
    ...         strategy.run(lambda: optimizer.apply_gradients([(np.ones(2), weight)]))
    ...         state.commit()
    ...     return weight.numpy().tolist()
    >>> run_replicas(lambda communicator: run(train, replicas=4, communicator=communicator), 2)
    [[-6.0, -6.0], [-6.0, -6.0]]
    """
    if keep_every_steps < 1:
        raise ValueError(f"keep_every_steps must be 1 or more, not {keep_every_steps}")
    if communicator is None:
        communicator = _world(timeout_s)
    count = communicator.size_at_start if replicas is None else replicas
    state = State(keep_every_steps)
    streams = random.current_streams()
    drawn = streams.taken()

    def attempt(of: Communicator) -> Result:
        streams.go_on(drawn)
        strategy = MultiWorkerMirroredStrategy(replicas=count, placement=placement, communicator=of)
        state._begin(strategy)
        return train(strategy, state)

    def lost(error: PeerLostError) -> None:
        logger.warning("%s", error)

    def survived(by: Communicator) -> None:
        state._forget()
        gc.collect()  # what ``train`` had made: memory that processes share, above all
        logger.warning("%d processes are left, and go on", by.size)

    return carry_out(attempt, communicator, lost=lost, survived=survived)


_launcher: list[tuple[Callable[[], bool], Callable[[int], object]]] = []


def launched_as(lets_survivors_live: Callable[[], bool], end_process: Callable[[int], object]) -> None:
    """Set how it is found out whether a loss can be survived, and how a process that is stopped is ended."""
    _launcher[:] = [(lets_survivors_live, end_process)]


def _world(timeout_s: float) -> Communicator:
    from distopt.comm.mpi import MpiCommunicator

    ((lets_survivors_live, end_process),) = _launcher
    survives = lets_survivors_live()
    return MpiCommunicator(timeout_s=timeout_s, survives_losses=survives, end_process=end_process if survives else None)
