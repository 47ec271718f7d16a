"""The stages between a replica's gradients and the update, as named functions, and which of them run where.

The stages of one apply call, in order::

    filter_empty_gradients
    prepare: divide by loss_scale_factor; with Keras 3's classes clip
    transform_unaggregated_gradients, gradient_aggregator     skipped if experimental_aggregate_gradients is false
    clipvalue, clipnorm, global_clipnorm
    gradient_transformers
    rule and constraint of each variable, iterations += 1
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter, eq, is_, itemgetter
from typing import Any

import numpy as np

from distopt.aggregation import Aggregator, GradientAggregator, LocalSteps, Sum
from distopt.errors import DistoptError, GradientDtypeError, GradientShapeError
from distopt.indexed_slices import IndexedSlices
from distopt.tensor import Tensor
from distopt.types import Array
from distopt.variable import Variable

logger = logging.getLogger(__name__)
_ARRAYS = {np.ndarray}
_TUPLES = {tuple}
_shape, _dtype = attrgetter("shape"), attrgetter("dtype")
_variable = itemgetter(1)

Pair = tuple[Any, Variable]


class Pairs:
    """One replica's ``[(gradient, variable)]``, as one leaf: a strategy regroups replicas around it, not inside it.

    The gradients have been through :func:`check_gradients`, which makes these.
    """

    __slots__ = ("_pairs", "arrays", "has_rows", "key", "variables")

    def __init__(
        self,
        pairs: list[Pair],
        variables: tuple[Variable, ...],
        arrays: Sequence[Array | None],
        key: tuple[int, ...],
        has_rows: bool = False,
    ) -> None:
        self._pairs = pairs
        self.variables = variables
        self.arrays = arrays
        """The gradients as arrays; None for one that is row-sparse."""
        self.key = key
        """The identities of the variables: equal for the same ones in the same order."""
        self.has_rows = has_rows
        """Whether a gradient is row-sparse."""

    def are(self, pairs: Sequence[Pair]) -> bool:
        """Return whether these are the very same pairs."""
        own = self._pairs
        return len(pairs) == len(own) and all(map(is_, pairs, own))

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        return self._pairs[index]

    def __repr__(self) -> str:
        return f"Pairs({', '.join(variable.name for variable in self.variables)})"


def filter_empty_gradients(grads_and_vars: Iterable[tuple[Any, Any]]) -> list[Pair]:
    """Return the pairs that have a gradient; a warning is logged that names the variables without one.

    Raises: ValueError if there were pairs and none has a gradient, or a pair is not one.
    """
    pairs = list(grads_and_vars)
    kept = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    if len(kept) == len(pairs):
        return pairs
    names = [variable.name for gradient, variable in pairs if gradient is None]
    if not kept:
        raise ValueError(f"no variable has a gradient: {names}; does the loss depend on them?")
    logger.warning("Gradients do not exist for variables %s when minimizing the loss.", names)
    return kept


class _Fit:
    """What dense gradients of some variables are like, and the variables."""

    __slots__ = ("dtypes", "in_place", "key", "places", "shapes", "variables")

    def __init__(self, variables: tuple[Variable, ...], key: tuple[int, ...]) -> None:
        self.variables = variables
        self.key = key
        self.dtypes: list[Any] = list(map(_dtype, variables))
        self.shapes: list[Any] = list(map(_shape, variables))
        self.places: list[Array] | None = None
        self.in_place: Pairs | None = None
        """The latest pairs whose arrays are the places."""


class Fits:
    """The lists of variables that an optimizer has been built for, so that pairs are checked all at once.

    Rule of this class: each variable is looked at by one comprehension, and by loops that are NumPy's or Python's own.
    With a thousand small variables anything else is most of a step.
    """

    def __init__(self) -> None:
        self._fits: dict[tuple[int, ...], _Fit] = {}
        self._latest: _Fit | None = None

    def __contains__(self, key: tuple[int, ...]) -> bool:
        return key in self._fits

    def is_latest(self, pairs: Pairs) -> bool:
        """Return whether :meth:`known` has returned ``pairs``, or others of these variables, just before."""
        return self._latest is not None and pairs.key is self._latest.key

    def add(self, variables: Iterable[Variable], places: list[Array] | None = None) -> None:
        """Note variables that are kept; ``places``, if there are any, are arrays of their shapes and dtypes.

        Gradients in these very arrays need no look at shapes and dtypes.
        """
        listed = tuple(variables)
        key = tuple(map(id, listed))
        fit = self._fits.get(key)
        if fit is None:
            fit = self._fits[key] = _Fit(listed, key)
        fit.places = places
        fit.in_place = None

    def known(self, pairs: list[Pair]) -> Pairs | None:
        """Return :func:`check_gradients` of pairs that can be checked all at once, else None.

        Variables and key of what is returned are the same objects in every step, as are the arrays that are places.
        """
        fit = self._latest
        if fit is not None and fit.in_place is not None and fit.in_place.are(pairs):
            return fit.in_place
        arrays = None if fit is None else _arrays_of(pairs, fit.variables)
        if fit is None or arrays is None:
            other = self._fits.get(tuple(map(id, map(_variable, pairs))))
            arrays = None if other is None or other is fit else _arrays_of(pairs, other.variables)
            if other is None or arrays is None:
                return None
            self._latest = fit = other
        places = fit.places
        if places is not None and all(map(is_, arrays, places)):
            found = Pairs(pairs, fit.variables, places, fit.key)
            # These very pairs will be known, since tuples do not change and no tensor over a place gets another array.
            fit.in_place = found if _TUPLES.issuperset(map(type, pairs)) else None
            return found
        if set(map(type, arrays)) != _ARRAYS or list(map(_dtype, arrays)) != fit.dtypes:
            return None
        # No list of shapes: a thousand new tuples at a time wake the garbage collector.
        return Pairs(pairs, fit.variables, arrays, fit.key) if all(map(eq, map(_shape, arrays), fit.shapes)) else None


def _arrays_of(pairs: list[Pair], variables: tuple[Variable, ...]) -> list[Any] | None:
    """Return what is in the tensors of ``pairs``; None if a gradient is no tensor, or other variables are updated."""
    if len(pairs) != len(variables):
        return None
    kind = Tensor
    found = [
        g._value for (g, own), variable in zip(pairs, variables, strict=True) if own is variable and type(g) is kind
    ]
    return found if len(found) == len(pairs) else None


def check_gradients(pairs: Iterable[Pair]) -> Pairs:
    """Return the pairs with every gradient as a Tensor or IndexedSlices that fits its variable.

    Python numbers and lists of them get the variable's dtype.

    Raises: GradientDtypeError, GradientShapeError (ValueErrors), the latter also for a missing row; RuntimeError
    for a row-sparse gradient of a variable with a constraint; NotImplementedError for a pair without a variable.
    """
    if type(pairs) is Pairs:
        return pairs
    checked = [(_checked(gradient, variable), variable) for gradient, variable in pairs]
    variables = tuple([variable for _, variable in checked])
    arrays = [None if isinstance(gradient, IndexedSlices) else gradient.numpy() for gradient, _ in checked]
    has_rows = any(array is None for array in arrays)
    return Pairs(checked, variables, arrays, tuple(map(id, variables)), has_rows)


def _checked(gradient: Any, variable: Any) -> Any:
    if not isinstance(variable, Variable):
        raise NotImplementedError(
            f"only variables can be updated, not a {type(variable).__name__}; is a pair the wrong way round?"
        )
    if isinstance(gradient, IndexedSlices):
        _check_slices(gradient, variable)
        return gradient if gradient.dense_shape is not None else gradient.with_shape(variable.storage.shape)
    storage = variable.storage
    try:
        if isinstance(gradient, Tensor | Variable):
            array = gradient.numpy()
        else:  # an array of any library has a dtype, which is not changed
            array = np.asarray(gradient, None if hasattr(gradient, "__array__") else storage.dtype)
    except DistoptError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise GradientDtypeError(
            f"the gradient of variable {variable.name!r}, a {type(gradient).__name__}, is no array of numbers: {error}"
        ) from error
    if array.dtype != storage.dtype:
        raise _other_dtype(variable, array.dtype)
    if array.shape != storage.shape:
        raise GradientShapeError(
            f"the gradient of variable {variable.name!r} has shape {list(array.shape)}, "
            f"the variable {list(storage.shape)}"
        )
    return gradient if isinstance(gradient, Tensor) else Tensor(array)


def _other_dtype(variable: Variable, dtype: np.dtype[Any]) -> GradientDtypeError:
    own = variable.storage.dtype
    return GradientDtypeError(
        f"the gradient of variable {variable.name!r} has dtype {dtype}, the variable {own}; cast it, as by "
        f"gradient.astype({own.name!r})"
    )


def _check_slices(gradient: IndexedSlices, variable: Variable) -> None:
    name, storage, values = variable.name, variable.storage, gradient.values.numpy()
    shape = storage.shape
    if variable.constraint is not None:
        raise RuntimeError(f"variable {name!r} has a constraint, so it cannot take a row-sparse gradient")
    if values.dtype != storage.dtype:
        raise _other_dtype(variable, values.dtype)
    if not shape or values.shape[1:] != shape[1:]:
        raise GradientShapeError(
            f"the rows of the gradient of variable {name!r} have shape {list(values.shape[1:])}, "
            f"those of the variable {list(shape[1:])}"
        )
    if gradient.dense_shape not in (None, shape):
        raise GradientShapeError(
            f"the gradient of variable {name!r} is of shape {list(gradient.dense_shape or ())}, "
            f"the variable {list(shape)}"
        )
    indices = gradient.indices
    if indices.size and (np.minimum.reduce(indices) < 0 or np.maximum.reduce(indices) >= shape[0]):
        wrong = indices[(indices < 0) | (indices >= shape[0])]
        raise GradientShapeError(
            f"the gradient of variable {name!r} has row {wrong[0]}; the variable has rows 0..{shape[0] - 1}"
        )


class GradientPath:
    """What becomes of the pairs of one apply call of ``optimizer``; ``aggregate``: stages 4 and 5 are run."""

    def __init__(self, optimizer: Any, aggregate: bool) -> None:
        self.optimizer = optimizer
        self.aggregate = aggregate
        self._hooks: tuple[str, ...] | None = None

    @property
    def aggregator(self) -> Any:
        """The gradient aggregator: an ``Aggregator``, or a function over one replica's pairs."""
        return self.optimizer.gradient_aggregator

    @property
    def runs_at_owners(self) -> bool:
        """Whether everything after the gradients can run where they are combined, span by span."""
        return self.aggregate and not self.whole_gradient_hooks()

    @property
    def local_steps(self) -> LocalSteps | None:
        """The aggregator, if it leaves gradients to the replicas and averages their variables."""
        aggregator = self.optimizer.gradient_aggregator
        return aggregator if self.aggregate and isinstance(aggregator, LocalSteps) else None

    @property
    def has_contributions(self) -> bool:
        """Whether what the replicas contribute is not their gradients as they are, and is to be found before owners."""
        return getattr(self.optimizer.gradient_aggregator, "contributes", False) and self.runs_at_owners

    @property
    def may_sum_rows(self) -> bool:
        """Whether rows may be summed before they are brought together: nothing after that looks at single occurrences.

        Clips are of rows as they were stored; transformers, hooks and some rules see these, too.
        """
        optimizer = self.optimizer
        return self.runs_at_owners and not optimizer.clips.active and not optimizer.takes_occurrences

    @property
    def norms_are_owners(self) -> bool:
        """Whether owners, each with a part of every gradient, clip by norm."""
        return self.runs_at_owners and bool(self.optimizer.clips.needs_norms)

    def whole_gradient_hooks(self) -> tuple[str, ...]:
        """Return the names of what has to see whole gradients, on each replica."""
        if self._hooks is None:
            self._hooks = self._find_hooks()
        return self._hooks

    def _find_hooks(self) -> tuple[str, ...]:
        optimizer = self.optimizer
        optimizer_class: Any = type(optimizer)
        hooks = overridden(optimizer_class)
        aggregator = optimizer.gradient_aggregator
        if type(aggregator) is not Sum and not isinstance(aggregator, Aggregator):
            hooks += (name_of(aggregator),)
        if optimizer.gradient_transformers:
            hooks += tuple(map(name_of, optimizer.gradient_transformers))
        if optimizer.needs_whole_gradients:
            hooks += ("clipnorm with global_clipnorm" if optimizer.clips.chained else "a clip of a rule after norms",)
        return hooks

    def run(self, replica: Any, pairs: Pairs) -> None:
        """Carry out all stages; called by each replica, in its context, with its own pairs.

        Raises: PlacementError for what the owners cannot do, and what stages and owners raise.
        """
        extended = replica.strategy.extended
        extended.check(self)
        if self.runs_at_owners:
            replica.merge_call(_apply_at_owners, (self, self.optimizer.prepare(pairs)))
        elif extended.owners_re_enact_replicas:
            replica.merge_call(_apply_at_owners, (self, pairs))  # prepared where the replicas are re-enacted
        else:
            replica.merge_call(_update_copies, (self, self.on_replica(self.optimizer.prepare(pairs))))

    def on_replica(self, pairs: Pairs) -> Pairs:
        """Return the pairs to be applied, after the stages up to the transformers, in this replica's context."""
        optimizer = self.optimizer
        remaining: Iterable[Pair] = list(pairs)
        if self.aggregate:
            remaining = optimizer._transform_unaggregated_gradients(remaining)
            remaining = optimizer._aggregate_gradients(remaining)
        remaining = optimizer._transform_gradients(remaining)
        return check_gradients(remaining)


def _apply_at_owners(strategy: Any, path: GradientPath, pairs: Any) -> None:
    strategy.extended.apply_at_owners(path, pairs)


def _update_copies(strategy: Any, path: GradientPath, pairs: Any) -> None:
    strategy.extended.update_copies(path, pairs)


_STAGES = ("_transform_unaggregated_gradients", "_aggregate_gradients", "_transform_gradients")
_UPDATES = (
    "_resource_apply_dense",
    "_resource_apply_sparse",
    "_resource_apply_sparse_duplicate_indices",
    "_apply_dense",
    "_apply_sparse",
    "_prepare",
    "_finish",
)


@functools.cache
def overridden(optimizer_class: Any) -> tuple[str, ...]:
    """Return the stages, and the methods that update, which a class of the user's defines, as ``Class.method``."""
    return _overridden(optimizer_class, (*_STAGES, *_UPDATES))


@functools.cache
def overridden_updates(optimizer_class: type) -> tuple[str, ...]:
    """Return the methods that update a variable which a class of the user's defines itself, as ``Class.method``."""
    return _overridden(optimizer_class, _UPDATES)


def _overridden(optimizer_class: type, methods: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        f"{definer.__name__}.{method}"
        for method in methods
        for definer in [next((base for base in optimizer_class.__mro__ if method in base.__dict__), None)]
        if definer is not None and not definer.__module__.startswith("distopt.optimizers.")
    )


def name_of(hook: Any) -> str:
    """Return what a message calls an aggregator, or a function of the user's."""
    if isinstance(hook, GradientAggregator):
        return hook.full_name
    return str(getattr(hook, "__qualname__", None) or type(hook).__qualname__)
