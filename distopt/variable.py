"""``Variable``: a named value that training changes.

Rules of this file: this is where stored values are written. A writer first asks :meth:`Variable.check_writable`,
because a tape may hold a view. One stored value, until an unaggregated write in a replica context splits it.
"""

# ruff: noqa: ARG002  (TensorFlow's arguments, in its order, some of which have no meaning here)
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from distopt import deferral, replica_context
from distopt.assignments import OPERATIONS, operand
from distopt.autodiff.nodes import Recording, recordings, state
from distopt.errors import TapeError
from distopt.nans import same_bits
from distopt.tensor import Operand, Tensor, to_array
from distopt.types import Array, Shape

if TYPE_CHECKING:
    from distopt.arena import Segment

_is_split = attrgetter("is_split")


class VariableSynchronization(Enum):
    """When the copies of a variable are brought together. Source: TensorFlow's enumeration."""

    AUTO = 0
    NONE = 1
    ON_WRITE = 2
    ON_READ = 3


class VariableAggregation(Enum):
    """How the values that replicas assign, or hold, become one. Source: TensorFlow's enumeration."""

    NONE = 0
    SUM = 1
    MEAN = 2
    ONLY_FIRST_REPLICA = 3


class SharedStorage(Protocol):
    """Writes to storage that several processes map, so that each write is made once and nobody reads meanwhile."""

    def write(self, stored: Array, write: Callable[[Array], Any]) -> None:
        """Carry out ``write(stored)`` in one process, while all are in this call."""
        ...

    def before_read(self) -> None:
        """See to it that the value is current here; where it is not, a collective."""
        ...


class _OneForAllReplicas(type):
    """Makes variables; where several replicas come to the same point, the first one's is that of all."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = replica_context.current().access.made_before(cls.__init__, args, kwargs)  # type: ignore[misc]  # its own
        return super().__call__(*args, **kwargs) if made is None else made


class Variable(Operand, metaclass=_OneForAllReplicas):
    """A stored value with a name, that tapes follow if it is ``trainable`` and optimizers update.

    ``initial_value`` is an array, number, tensor, list, or a function without arguments that returns one; Python
    floats become float32. ``trainable=None`` means True, unless ``synchronization`` is ON_READ. ``constraint`` is
    applied by optimizers after an update. Made by the replicas of a strategy, it is one variable for all of them, with
    the first one's value. ``validate_shape``, ``caching_device`` and ``import_scope`` have no effect.

    Raises: ValueError for a shape that ``initial_value`` does not have, for MEAN with integers, for ``trainable=True``
        with ON_READ, for a ``variable_def``; VariablePerReplicaError where replicas make different ones.

    Source: ``tf.Variable``.
    """

    __slots__ = (
        "__weakref__",
        "_copies",
        "_trainable",
        "aggregation",
        "constraint",
        "is_followed",
        "is_split",
        "may_differ",
        "name",
        "placement",
        "readers",
        "shared",
        "storage",
        "strategy",
        "synchronization",
    )

    some_were_split: ClassVar[bool] = False
    """Whether a variable of this process was ever split; where none was, nobody has to look for one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Variable:  # noqa: ARG004 - they are __init__'s
        """Return a new variable; one that belongs to a graph while that is being built."""
        in_graph = cls is Variable and deferral.building() is not None
        new: Variable = object.__new__(deferral.variable_class[0] if in_graph else cls)
        return new

    def __init__(
        self,
        initial_value: Any = None,
        trainable: bool | None = None,
        validate_shape: bool = True,
        caching_device: Any = None,
        name: str | None = None,
        variable_def: Any = None,
        dtype: Any = None,
        import_scope: Any = None,
        constraint: Callable[[Any], Any] | None = None,
        synchronization: VariableSynchronization = VariableSynchronization.AUTO,
        aggregation: VariableAggregation = VariableAggregation.NONE,
        shape: Sequence[int | None] | None = None,
    ) -> None:
        if variable_def is not None:
            raise ValueError("variable_def is not offered; create the variable from its value")
        if initial_value is None:
            raise ValueError("a variable needs an initial value")
        if constraint is not None and not callable(constraint):
            raise ValueError("a constraint must be a function of the variable's value")
        on_read = synchronization is VariableSynchronization.ON_READ
        if on_read and trainable:
            raise ValueError("a variable synchronized ON_READ cannot be trainable")
        value = to_array(initial_value() if callable(initial_value) else initial_value, _numpy_dtype(dtype))
        if aggregation is VariableAggregation.MEAN and value.dtype.kind in "biu":
            raise ValueError(f"a variable of dtype {value.dtype} cannot be aggregated by MEAN")
        if shape is not None and not _fits(value.shape, shape):
            raise ValueError(f"the initial value has shape {value.shape}, not {tuple(shape)}")
        self.storage: Array = np.array(value, order="C", copy=True)
        """The live array, C-contiguous; the first copy's, if the variable is split. Only :meth:`rebind` replaces it."""
        self._trainable = not on_read if trainable is None else bool(trainable)
        self.is_followed = self._trainable and value.dtype.kind not in "biu"
        """Whether tapes watch the variable when they read it."""
        self._copies: dict[int, Array] | None = None
        self.is_split = False
        """Whether the replicas hosted here have copies of their own."""
        self.may_differ = False
        """Whether single replicas have written to it, so that another process may rightly hold another value."""
        self.readers: list[Recording] = []
        """The recordings of ordinary tapes that hold a view of the value; each takes itself out when it ends."""
        self.name = f"{name or 'Variable'}:0"
        self.constraint = constraint
        self.synchronization = synchronization
        self.aggregation = aggregation
        self.placement: tuple[Segment, int] | None = None
        """Where the arena keeps the value: the segment, and the offset in elements."""
        self.shared: SharedStorage | None = None
        """Whoever carries out writes, where other processes map the same storage; None: it is this process's own."""
        context = replica_context.current()
        self.strategy: Any = None if context.is_default else context.strategy
        """The strategy in whose scope the variable was made, or which gave it one copy a replica; None: neither."""
        context.access.created(self)

    @property
    def trainable(self) -> bool:
        """Whether tapes follow the variable by themselves."""
        return self._trainable

    @property
    def shape(self) -> Shape:
        shape: Shape = self.storage.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.storage.dtype

    @property
    def device(self) -> str:
        """Where the value is; the same for all: TensorFlow's optimizers key their apply state by it."""
        return "/device:CPU:0"

    # Reading.

    def read_operand(self) -> Any:
        tape = state.sole
        if tape is not None:
            return tape.read_box(self)
        if not state.active:
            return self.storage if self._copies is None else self.local_array()
        value: Any = self.local_array().copy()
        for active in state.active:
            value = active.box_copy(self, value)
        return value

    def local_array(self) -> Array:
        """Return the array that a read here sees: the one value, this replica's copy, or what the copies come to.

        Not to be written to.
        """
        if self._copies is None:
            if self.shared is not None:
                self.shared.before_read()
            return self.storage
        value: Array = replica_context.current().access.read(self)
        return value

    def numpy(self) -> Array:
        """Return a copy of the value."""
        return self.local_array().copy()

    def value(self) -> Tensor:
        """Return the value as a tensor that later writes do not change."""
        tape = state.sole
        if tape is None:
            return Tensor(self.read_operand() if state.active else self.local_array().copy())
        return _copied(tape.read_box(self))

    def read_value(self) -> Tensor:
        """Return :meth:`value`."""
        return self.value()

    # Writing.

    def assign(self, value: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True) -> Any:
        """Replace the value, and return the variable.

        Raises: ValueError for another shape; TypeError for a dtype that cannot be cast; TapeError as
            :meth:`check_writable`.
        """
        replica_context.current().access.assign(self, "assign", value)
        return self

    def assign_add(
        self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True
    ) -> Any:
        """Add ``delta`` to the value, and return the variable; errors as :meth:`assign`."""
        replica_context.current().access.assign(self, "assign_add", delta)
        return self

    def assign_sub(
        self, delta: Any, use_locking: bool = False, name: str | None = None, read_value: bool = True
    ) -> Any:
        """Subtract ``delta`` from the value, and return the variable; errors as :meth:`assign`."""
        replica_context.current().access.assign(self, "assign_sub", delta)
        return self

    def scatter_add(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Add each of the slices to the row that it names, and return the variable.

        Raises: as :func:`distopt.assignments.operand`; under a strategy NotImplementedError for a variable synchronized
        ON_READ, and for ``scatter_min``, ``scatter_max``, ``scatter_update`` where the aggregation is SUM or MEAN.
        """
        replica_context.current().access.assign(self, "scatter_add", sparse_delta)
        return self

    def scatter_sub(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Subtract each of the slices from the row that it names; see :meth:`scatter_add`."""
        replica_context.current().access.assign(self, "scatter_sub", sparse_delta)
        return self

    def scatter_mul(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Multiply each row by the slices that name it; see :meth:`scatter_add`."""
        replica_context.current().access.assign(self, "scatter_mul", sparse_delta)
        return self

    def scatter_div(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Divide each row by the slices that name it; see :meth:`scatter_add`."""
        replica_context.current().access.assign(self, "scatter_div", sparse_delta)
        return self

    def scatter_min(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Replace each row by the smaller of it and the slices that name it; see :meth:`scatter_add`."""
        replica_context.current().access.assign(self, "scatter_min", sparse_delta)
        return self

    def scatter_max(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Replace each row by the larger of it and the slices that name it; see :meth:`scatter_add`."""
        replica_context.current().access.assign(self, "scatter_max", sparse_delta)
        return self

    def scatter_update(self, sparse_delta: Any, use_locking: bool = False, name: str | None = None) -> Any:
        """Replace each row by the last of the slices that name it; see :meth:`scatter_add`."""
        replica_context.current().access.assign(self, "scatter_update", sparse_delta)
        return self

    def check_writable(self) -> None:
        """Do nothing if the stored value may be changed now.

        Raises: TapeError if an ordinary tape has read the variable and may still be asked for gradients.
        """
        if self.readers:
            raise TapeError(
                f"{self.name} cannot be written to: GradientTape number {self.readers[0].number} has read it and may "
                "still be asked for gradients; take the gradients first, drop the tape, or make it persistent"
            )

    def write_all(self, operation: str, value: Any) -> None:
        """Carry out ``operation``, the name of an assigning method, on the stored value and on every copy."""
        prepared = self.operand(operation, value)
        self.check_writable()
        write = OPERATIONS[operation]
        if self.shared is not None:
            self.shared.write(self.storage, lambda stored: write(stored, prepared))
            return
        for stored in self._copies.values() if self._copies is not None else (self.storage,):
            write(stored, prepared)

    # For the arena and for strategies.

    def rebind(self, view: Array, *, copy: bool = True) -> None:
        """Copy the value into ``view``, of the same shape and dtype, and keep it there from now on.

        Without ``copy`` the value is what ``view`` holds.

        Raises: ValueError if ``view`` differs in shape or dtype, or is not C-contiguous.
        """
        if view.shape != self.shape or view.dtype != self.dtype or not view.flags.c_contiguous:
            raise ValueError(f"{self.name}: {self.dtype}{self.shape} cannot live in {view.dtype}{view.shape}")
        if copy:
            np.copyto(view, self.storage)
        if self._copies is not None:
            self._copies = {r: view if a is self.storage else a for r, a in self._copies.items()}
        self.storage = view

    @property
    def replica_ids(self) -> tuple[int, ...]:
        """The replicas that have copies here, in order; empty if the variable is not split."""
        return () if self._copies is None else tuple(self._copies)

    def split(self, replica_ids: Sequence[int]) -> None:
        """Give each of ``replica_ids`` a copy; the first keeps ``storage``. Repeating it changes nothing.

        Raises: ValueError if the variable is split among other replicas.
        """
        if self._copies is not None:
            if tuple(self._copies) != tuple(replica_ids):
                raise ValueError(f"{self.name} is split among replicas {tuple(self._copies)}, not {tuple(replica_ids)}")
            return
        first, *others = replica_ids
        Variable.some_were_split = True
        self._copies = {first: self.storage, **{replica: self.storage.copy() for replica in others}}
        self.is_split = True

    def copy_of(self, replica_id: int) -> Array:
        """Return the live array of one replica; the one value if the variable is not split."""
        return self.storage if self._copies is None else self._copies[replica_id]

    def write_copy(self, replica_id: int, operation: str, value: Any) -> None:
        """Carry out ``operation`` on the copy of one replica."""
        prepared = self.operand(operation, value)
        self.check_writable()
        write = OPERATIONS[operation]
        if self.shared is not None:
            self.shared.write(self.storage, lambda stored: write(stored, prepared))
        else:
            write(self.copy_of(replica_id), prepared)

    def operand(self, operation: str, value: Any) -> Any:
        """Return ``value`` as the method ``operation`` writes it; errors as :func:`distopt.assignments.operand`."""
        return operand(operation, value, self.name, self.shape, self.dtype)

    def merge_equal_copies(self) -> None:
        """Forget the copies if all have the same bits; else they stay."""
        copies = list((self._copies or {}).values())
        if all(same_bits(self.storage, copy) for copy in copies):
            self.merge()

    def merge(self) -> None:
        """Forget the copies; the first one's value stays."""
        self._copies = None
        self.is_split = False

    # The rest.

    def ref(self) -> Variable:
        """Return a key for dictionaries; the variable is one."""
        return self

    def deref(self) -> Variable:
        """Return the variable that :meth:`ref` is a key for: itself."""
        return self

    def __repr__(self) -> str:
        value = self.storage
        shown = value.item() if value.ndim == 0 else value
        held = f"numpy={shown!r}"
        if self._copies is not None:  # no read: what copies of several processes come to is asked of all of them
            held = f"copies={self._copies!r}"
        return f"<tf.Variable '{self.name}' shape={self.shape} dtype={self.dtype}, {held}>"

    def __iter__(self) -> Any:
        raise TypeError(f"{self.name} is a variable, which cannot be iterated over; take its value() first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Variable:
        twin = Variable(
            self.storage,
            trainable=self._trainable,
            constraint=self.constraint,
            synchronization=self.synchronization,
            aggregation=self.aggregation,
        )
        twin.name = self.name
        twin.strategy = self.strategy
        if self._copies is None:
            twin.merge()
        else:
            twin.split(tuple(self._copies))
            for replica_id, copy in self._copies.items():
                np.copyto(twin.copy_of(replica_id), copy)
        memo[id(self)] = twin
        return twin


def are_split(variables: Iterable[Variable]) -> bool:
    """Return whether any of the variables is split into copies."""
    return Variable.some_were_split and any(map(_is_split, variables))


def check_all_writable(variables: Iterable[Variable], readers: Iterable[Any]) -> None:
    """Refuse to have ``variables``, whose ``readers`` these are, written to if a live tape has read one.

    Raises: TapeError, as :meth:`Variable.check_writable`.
    """
    if recordings and any(readers):
        for variable in variables:
            variable.check_writable()


def _copied(value: Any) -> Tensor:
    # The box keeps its node, so the tape still knows it; only the memory is the reader's own.
    if isinstance(value, np.ndarray):
        return Tensor(value)
    return Tensor(type(value)(value._value.copy(), value._trace, value._node))


def _numpy_dtype(dtype: Any) -> np.dtype[Any] | None:
    return None if dtype is None else np.dtype(dtype)


def _fits(shape: Shape, wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))
