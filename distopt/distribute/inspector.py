"""Looks at what replicas are about to apply, and refuses what :class:`Checks` says.

Rules of this file: nothing is looked at twice in a step, and one replica that is alone is not looked at, but for what
was asked for: whether its gradients are finite, or were applied before. What several processes are asked, all of them
are asked, because they come to it with the same bits.
"""

from __future__ import annotations

import hashlib
import logging
import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from distopt.aggregation import GradientAggregator, Mean, Sum
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.checks import Action, Checks
from distopt.distribute.loss_origin import AVERAGED, LOCAL_MEAN, Origin, is_of
from distopt.distribute.receipts import ReceiptBook
from distopt.errors import (
    AggregatedTwiceError,
    AppliedTwiceError,
    LocalMeanLossError,
    MeanTakenTwiceError,
    MistakeError,
    NeverReducedError,
    NonFiniteGradientError,
    ReducedByHandError,
    TwoStrategiesError,
)
from distopt.indexed_slices import IndexedSlices
from distopt.marks import mark, mark_of, marked
from distopt.nans import with_one_nan
from distopt.types import Array

logger = logging.getLogger(__name__)
_UNLIKE = b"unlike"
_CHECKS = "apply_gradients: checks of the gradients"

LOOKS_AT_LOSSES = 17
"""In so many runs of a strategy, from its first on, it is looked at how losses are scaled; then in every 17th, a prime,
so that of functions that are run by turns none is left out."""


class Inspector:
    """Of one process of a strategy; ``contexts`` are the replica contexts that it hosts."""

    def __init__(
        self,
        strategy: Any,
        hosting: Hosting,
        contexts: Sequence[Any],
        communicator: Communicator | None,
        book: ReceiptBook,
        rank: int,
    ) -> None:
        self.book = book
        self.several = hosting.num_replicas > 1
        """Whether there is more than one replica, so that reductions mean something."""
        self.checks = Checks()
        self._strategy = strategy
        self.is_default = False
        """Whether this is the default strategy, which any optimizer may make steps under."""
        self._num_replicas = hosting.num_replicas
        self._hosts_replicas = bool(hosting.hosted[rank])
        self._contexts = contexts
        self._communicator = communicator
        self._runs = 0
        self._looks_at_losses = False
        self._told: set[type[MistakeError]] = set()
        self._compared: set[tuple[int, tuple[int, ...]]] = set()
        self._user: Any = None
        self._applied: weakref.WeakKeyDictionary[Any, dict[int, weakref.ref[Any]]] = weakref.WeakKeyDictionary()

    @property
    def checks(self) -> Checks:
        """What is checked, and what is done about it."""
        return self._checks

    @checks.setter
    def checks(self, checks: Checks) -> None:
        self._checks = checks
        self.looks_at_applies = self.several or checks.applied_twice != "ignore"
        self.looks_for_non_finite = checks.non_finite != "ignore"

    # ------------------------------------------------------------ whose optimizer

    def adopt(self, optimizer: Any) -> None:
        """Note that ``optimizer`` belongs to this strategy from its first step on.

        Raises: TwoStrategiesError if it belongs to another one.
        """
        if optimizer is self._user or self.is_default:
            return
        if optimizer.used_by is None:
            optimizer.used_by = weakref.ref(self._strategy)
        elif optimizer.used_by() is not self._strategy:
            owner = optimizer.used_by() or "a strategy that is gone"
            raise TwoStrategiesError(
                f"an optimizer that made steps under {owner} is used under {self._strategy!r}: its slots are held as "
                "the first one placed them; make an optimizer for each strategy"
            )
        self._user = optimizer

    # ------------------------------------------------------------ before an apply call

    def begin_run(self) -> bool:
        """Return whether to look at how losses are scaled in the run that begins, if there are several replicas.

        A program seldom changes that, so it is looked at in the first runs, and in every so-manyth after them.
        """
        runs = self._runs = self._runs + 1
        self._looks_at_losses = looks = runs <= LOOKS_AT_LOSSES or runs % LOOKS_AT_LOSSES == 0
        return looks

    def mark_reduced(self, value: Any, operation: str) -> None:
        """Mark what a reduction by hand returned to the user."""
        if not self.several:
            return
        array = _array_of(value)
        if array is not None:
            mark(array, operation)

    def before_hook(self, aggregator: GradientAggregator, gradients: Sequence[Any]) -> None:
        """Look at gradients that an aggregator is given as a hook; refuses those that were reduced already."""
        if not self.several or self.checks.aggregated_twice == "ignore":
            return
        for gradient in gradients:
            operation = mark_of(_array_of(gradient))
            if operation is not None:
                self._act(
                    self.checks.aggregated_twice,
                    AggregatedTwiceError(
                        f"the aggregator {aggregator.name!r} is given gradients that all_reduce({operation}) returned: "
                        "a stage before it has reduced them; reduce in one place, in the `gradient_aggregator`"
                    ),
                )
                return

    def before_apply(self, path: Any, pairs_of: Sequence[Any]) -> None:
        """Look at gradients that are about to be aggregated."""
        checks = self._checks
        if self.several:
            if marked and checks.reduced_by_hand != "ignore":
                self._refuse_reduced(pairs_of[0])
            if self._looks_at_losses:
                aggregator = path.optimizer.gradient_aggregator
                for i, context in enumerate(self._contexts):
                    origin = context.origin
                    if origin is None or (origin[0] is AVERAGED and type(aggregator) is Sum):
                        continue  # as it should be, which is soon seen
                    if origin[0] not in _kinds_for(aggregator):
                        self._refuse_scaling(aggregator, origin, pairs_of[i])
        if checks.applied_twice != "ignore":
            self._refuse_repeated(path.optimizer, pairs_of)

    def before_update(self, path: Any, pairs_of: Sequence[Any], alike: bool) -> None:
        """Look at gradients that are about to be applied as they are; ``alike``: those of the hosted replicas are."""
        checks = self.checks
        if checks.applied_twice != "ignore":
            self._refuse_repeated(path.optimizer, pairs_of)
        if not self.several:
            return
        if self._looks_at_losses and not path.aggregate:
            for context, pairs in zip(self._contexts, pairs_of, strict=True):
                origin = context.origin
                if origin is not None and origin[0] is AVERAGED and _mean_by_hand(pairs):
                    self._act(checks.mean_taken_twice, _mean_twice("all_reduce(MEAN)"))
        if path.local_steps:
            return
        if checks.never_reduced != "ignore" and not self._alike_everywhere(path.optimizer, pairs_of[0], alike):
            self._act(
                checks.never_reduced,
                NeverReducedError(
                    "the replicas apply unequal gradients that nobody has reduced, so their copies of "
                    f"{', '.join(v.name for _, v in pairs_of[0])} drift apart: reduce them, with "
                    "get_replica_context().all_reduce, or leave experimental_aggregate_gradients on"
                ),
            )

    def refuse_unlike_accumulation(self, path: Any, pairs: Any, alike: bool) -> None:
        """Refuse to add up gradients that replicas apply as they are, where these differ; arguments as above.

        Raises: ValueError.
        """
        unlike = self.several if path.local_steps else not self._alike_everywhere(path.optimizer, pairs, alike)
        if unlike:
            raise ValueError(
                f"gradient_accumulation_steps={path.optimizer.features.accumulation_steps} adds up one gradient for "
                "all replicas, but they apply different ones without aggregating them"
            )

    def _refuse_reduced(self, pairs: Any) -> None:
        for (gradient, variable), array in zip(pairs, pairs.arrays, strict=True):
            operation = mark_of(_array_of(gradient) if array is None else array)
            if operation is not None:
                self._act(
                    self.checks.reduced_by_hand,
                    ReducedByHandError(
                        f"the gradient of {variable.name} is what all_reduce({operation}) returned, and "
                        "apply_gradients would reduce it once more; leave the reduction to it, or pass "
                        "experimental_aggregate_gradients=False"
                    ),
                )
                return

    def _refuse_scaling(self, aggregator: Any, origin: Origin, pairs: Any) -> None:
        if not is_of(origin, pairs):
            return
        if origin[0] is LOCAL_MEAN:
            self._act(
                self.checks.local_mean_loss,
                LocalMeanLossError(
                    f"the loss is a mean over a replica's own examples, and gradients are added up over "
                    f"{self._num_replicas} replicas, so the step is as many times too large; divide "
                    "by the global batch (distopt.nn.compute_average_loss), or aggregate with distopt.aggregation.Mean"
                ),
            )
        else:
            self._act(self.checks.mean_taken_twice, _mean_twice(f"the aggregator {aggregator.name!r}"))

    def _refuse_repeated(self, optimizer: Any, pairs_of: Sequence[Any]) -> None:
        before = self._applied.get(optimizer, {})
        now: dict[int, weakref.ref[Any]] = {}
        for pairs in pairs_of:
            for gradient, variable in pairs:
                array = _array_of(gradient)
                # A tensor of a NumPy number makes an array anew whenever it is asked: then the tensor counts.
                known = gradient if array is None or array is not _array_of(gradient) else array
                earlier = before.get(id(known))
                if earlier is not None and earlier() is known:
                    self._act(
                        self.checks.applied_twice,
                        AppliedTwiceError(
                            f"the gradient of {variable.name} is the very one of the step before: take gradients anew "
                            "for each step, or set strategy.extended.checks = Checks(applied_twice='ignore')"
                        ),
                    )
                now[id(known)] = weakref.ref(known)
        self._applied[optimizer] = now

    def _alike_everywhere(self, optimizer: Any, pairs: Any, alike: bool) -> bool:
        """Return whether all processes apply the same bits; they are asked once for each list of variables.

        ``alike``: whether the replicas of this process do.
        """
        key = (id(optimizer), pairs.key)
        communicator = self._communicator
        if communicator is None or communicator.size == 1 or key in self._compared:
            return alike
        self._compared.add(key)
        digest = hashlib.sha256()
        for gradient, _ in pairs:
            for array in (_array_of(gradient), getattr(gradient, "indices", ())):
                digest.update(np.ascontiguousarray(with_one_nan(np.asarray(array))).view(np.uint8).data)
        # A process without replicas has a stand-in, whose gradients say nothing. All take part, also those that know.
        own = digest.digest() if alike else _UNLIKE
        digests = {d for d in communicator.all_gather_bytes(own if self._hosts_replicas else b"", what=_CHECKS) if d}
        return _UNLIKE not in digests and len(digests) <= 1

    # ------------------------------------------------------------ after the aggregation

    def note_gradients(
        self,
        path: Any,
        num_bytes: int,
        variables: Sequence[Any],
        traffic_before: tuple[int, int],
        *,
        skipped: bool = False,
    ) -> None:
        """Leave the receipt of the reduction of an apply call, if there are several replicas."""
        if self.several:
            optimizer = path.optimizer
            step = optimizer.iterations.storage.item()
            aggregator = optimizer.gradient_aggregator
            self.book.add("gradients", aggregator, num_bytes, traffic_before, variables, step, skipped)

    def lets_pass(self, gradients: Sequence[Any], pairs_of: Sequence[Any], step: int) -> bool:
        """Return whether aggregated ``gradients`` may be applied: false for a step that is to be skipped.

        ``pairs_of`` are what they were made of here, to say where it began.

        Raises: NonFiniteGradientError where the checks say so; the same one on every process.
        """
        if are_finite(gradients):
            return True
        found = [
            f"{variable.name} on replica {context.replica_id_in_sync_group}"
            for context, pairs in zip(self._contexts, pairs_of, strict=True)
            for gradient, variable in pairs
            if not are_finite([gradient])
        ]
        communicator = self._communicator
        if communicator is not None and communicator.size > 1:
            reports = communicator.all_gather_bytes(
                msgspec.json.encode(found if self._hosts_replicas else []), what=_CHECKS
            )
            found = [line for report in reports for line in msgspec.json.decode(report, type=list[str])]
        where = ", ".join(found) or "the sum over the replicas alone, whose terms are all finite"
        if self.checks.non_finite == "raise":
            raise NonFiniteGradientError(f"a gradient is infinite or not a number at step {step}: {where}")
        logger.warning("step %d is skipped: a gradient is infinite or not a number: %s", step, where)
        return False

    def lets_copies_pass(self, path: Any, pairs_of: Sequence[Any]) -> bool:
        """Return :meth:`lets_pass` of gradients that are applied as they are, the same answer on every process."""
        step = int(path.optimizer.iterations.storage)
        communicator = self._communicator
        found = not are_finite(gradient for pairs in pairs_of for gradient, _ in pairs)
        if communicator is not None and communicator.size > 1:
            # What is not aggregated differs between processes, so they have to ask each other.
            found = any(map(any, communicator.all_gather_bytes(bytes([found]), what=_CHECKS)))
        return not found or self.lets_pass([np.array(np.nan)], pairs_of, step)

    def refuse_non_finite_here(self, pairs_of: Sequence[Any], step: int) -> None:
        """Refuse what the replicas of this process hold, where the aggregate is out of sight.

        Raises: NonFiniteGradientError.
        """
        for context, pairs in zip(self._contexts, pairs_of, strict=True):
            if not pairs.has_rows and are_finite(pairs.arrays):
                continue
            for gradient, variable in pairs:
                if not are_finite([gradient]):
                    replica = context.replica_id_in_sync_group
                    raise NonFiniteGradientError(
                        f"a gradient is infinite or not a number at step {step}: {variable.name} on replica {replica}"
                    )

    def _act(self, action: Action, error: MistakeError) -> None:
        if action == "raise":
            raise error
        if action == "log" and type(error) not in self._told:
            self._told.add(type(error))
            logger.warning("%s: %s", type(error).__name__, error)


def _kinds_for(aggregator: Any) -> tuple[Any, ...]:
    """Return which origins of a loss fit an aggregator; shares of the global batch are alike, so only smaller.

    Of a function, which a server runs that re-enacts the replicas, nothing is known: it is taken to sum.
    """
    if type(aggregator) is Mean:
        return (LOCAL_MEAN,)
    takes_means = isinstance(aggregator, GradientAggregator) and aggregator.of_means
    return (AVERAGED, LOCAL_MEAN) if takes_means else (AVERAGED,)


def are_finite(gradients: Iterable[Any]) -> bool:
    """Return whether all numbers of all gradients are finite.

    The sum of numbers, or of their squares, is finite only if all are: one pass over memory, and a second look only
    where it is not, because it may have overflowed.

    >>> are_finite([np.ones(3)]), are_finite([np.ones(3), np.array([1.0, np.nan])])
    (True, False)
    """
    with np.errstate(all="ignore"):
        return all(map(_is_finite, gradients))


def _is_finite(gradient: Any) -> bool:
    array = gradient if type(gradient) is np.ndarray else _array_of(gradient)
    if array is None or array.dtype.kind in "biu":
        return True
    flat = array if array.ndim == 1 else array.reshape(-1)
    total = np.dot(flat, flat) if array.dtype.char in "fd" else np.add.reduce(flat)
    return math.isfinite(total) or bool(np.isfinite(array).all())


def _array_of(gradient: Any) -> Array | None:
    """Return the numbers of a gradient without copying them; None where there are none to look at."""
    if type(gradient) is np.ndarray:
        return gradient
    if isinstance(gradient, IndexedSlices):
        gradient = gradient.values
    values = getattr(gradient, "values", None)
    if isinstance(values, tuple) and values:  # one value a replica: the first one's
        return _array_of(values[0])
    numpy = getattr(gradient, "numpy", None)
    array = numpy() if numpy is not None else gradient
    return array if isinstance(array, np.ndarray) else None


def _mean_by_hand(pairs: Iterable[tuple[Any, Any]]) -> bool:
    return any(mark_of(_array_of(gradient)) == "MEAN" for gradient, _ in pairs)


def _mean_twice(who: str) -> MeanTakenTwiceError:
    return MeanTakenTwiceError(
        f"{who} divides gradients by the number of replicas that are already those of a mean over the global batch "
        "(compute_average_loss): the step would be as many times too small; add them up"
    )
