"""Variables that replicas make in ``strategy.run``: one for all of them.

The replicas of a process run the same code, one after another. What the first makes is kept for the length of the run;
where another comes to the same point, it gets that variable and makes none, so its initial value is not used. The point
is known by the name, without the numbers that layers and optimizers count theirs with, and how often it has come. So a
replica that makes nothing, because the first one has filled an attribute, is right; one that makes a part of what the
first made is not, since nobody can tell which part. What is not trained may be a replica's own: an optimizer's hypers
are made by whoever reads one.

Between processes, each of which makes its own, :func:`share_value` has them begin alike.

Source: ``tf.distribute.MirroredStrategy`` (``shared_variable_creator``), which looks at names alone.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distopt.agreement import find_odd, stem_of
from distopt.comm.communicator import Communicator
from distopt.distribute.introduction import Call, exchange_calls
from distopt.errors import VariablePerReplicaError
from distopt.tensor import to_array
from distopt.types import Array
from distopt.variable import Variable, VariableSynchronization

LONG_BYTES = 1 << 16
"""Of a value that is sent by itself: what fits beside its description saves a message."""

SAME_VARIABLES = "make variables alike on every replica, or once, under `strategy.scope()`"


class Creations:
    """What the replicas ``replica_ids``, all of one process, have made in one run; the first of them goes first.

    True if they have made anything.
    """

    def __init__(self, replica_ids: Sequence[int]) -> None:
        self._replica_ids = replica_ids
        self._made: dict[str, list[Variable]] = {}
        self._taken: dict[int, Counter[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._made)

    def clear(self) -> None:
        """Forget it all: the run is over."""
        self._made.clear()
        self._taken.clear()

    def add(self, variable: Variable) -> None:
        """Note what the first replica has made."""
        self._made.setdefault(stem_of(variable.name), []).append(variable)

    def take(self, position: int, initializer: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Variable | None:
        """Return what the first replica made where the one at ``position`` makes a variable with these arguments.

        That may be nothing, for a variable that is not trained: then the replica has it alone.

        Raises: VariablePerReplicaError if it is nothing otherwise, or a variable of another shape, dtype or kind.
        """
        given = inspect.signature(initializer).bind(None, *args, **kwargs).arguments
        name = given.get("name") or "Variable"
        stem = stem_of(f"{name}:0")
        taken = self._taken.setdefault(position, Counter())
        made = self._made.get(stem, [])
        who, first = f"replica {self._replica_ids[position]}", f"replica {self._replica_ids[0]}"
        if taken[stem] >= len(made):
            if not _is_trained(given):
                return None
            raise VariablePerReplicaError(
                f"{who} makes a variable {name!r} in `strategy.run` where {first} makes none of that name; "
                f"{SAME_VARIABLES}"
            )
        variable = made[taken[stem]]
        for what, own, others in _compared(given, variable):
            if own != others:
                raise VariablePerReplicaError(
                    f"{who} makes the variable {name!r} with {what} {own}, {first} with {what} {others}; "
                    f"{SAME_VARIABLES}"
                )
        taken[stem] += 1
        return variable

    def check(self) -> None:
        """Refuse replicas that made a part of what the first has made.

        Raises: VariablePerReplicaError.
        """
        first = f"replica {self._replica_ids[0]}"
        for position, taken in self._taken.items():
            for stem, number in taken.items():
                if number != len(self._made[stem]):
                    raise VariablePerReplicaError(
                        f"replica {self._replica_ids[position]} made {number} of the {len(self._made[stem])} variables "
                        f"named {stem.partition(':')[0]!r} that {first} made in `strategy.run`, so which is which is "
                        f"not known; give them names of their own, or {SAME_VARIABLES}"
                    )


def share_value(variable: Variable, communicator: Communicator) -> None:
    """Give a new variable the value that it has on rank 0; a collective. A long one is not copied on its way.

    Raises: VariablePerReplicaError, the same on all ranks, that names the one that makes another variable than most;
        MergeOrderError if a rank makes none.
    """
    value = variable.storage
    name = stem_of(variable.name)
    is_long = value.nbytes > LONG_BYTES
    sends = communicator.rank == 0 and not is_long
    text = f"makes the variable {name} {value.dtype.name}{list(value.shape)}"
    calls = exchange_calls(communicator, Call("variable", text, value.tobytes() if sends else b""))
    if odd := find_odd({rank: told.text for rank, told in enumerate(calls)}):
        raise VariablePerReplicaError(
            f"{odd.most} {calls[odd.reference].text} where {odd.name} {calls[odd.rank].text}; {SAME_VARIABLES}"
        )
    if is_long:
        communicator.broadcast_array(value)
    elif not sends:
        value[...] = np.frombuffer(calls[0].body, value.dtype).reshape(value.shape)


def _is_trained(given: Mapping[str, Any]) -> bool:
    trainable = given.get("trainable")
    if trainable is None:
        return given.get("synchronization") is not VariableSynchronization.ON_READ
    return bool(trainable)


def _compared(given: Mapping[str, Any], variable: Variable) -> list[tuple[str, Any, Any]]:
    """Return what is known of the arguments, each with what the variable has; of a function's value nothing is."""
    value = given.get("initial_value")
    dtype, shape = given.get("dtype"), given.get("shape")
    if value is not None and not callable(value):
        array: Array = to_array(value, None if dtype is None else np.dtype(dtype))
        dtype, shape = array.dtype, array.shape
    found = [
        ("trainable", _is_trained(given), variable.trainable),
        ("synchronization", given.get("synchronization", variable.synchronization), variable.synchronization),
        ("aggregation", given.get("aggregation", variable.aggregation), variable.aggregation),
    ]
    if dtype is not None:
        found.append(("dtype", np.dtype(dtype), variable.dtype))
    if shape is not None and None not in shape:
        found.append(("shape", list(shape), list(variable.shape)))
    return found
