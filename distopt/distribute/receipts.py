"""What a reduction leaves behind: who took part, how, of how many bytes, on which path.

Theory of operation. While a step runs, one small tuple a reduction is kept: no object for each gradient, and nothing
is looked up. Receipts are made of them when somebody asks, or at once where somebody observes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from distopt.aggregation import GradientAggregator, Mean, Sum
from distopt.comm.communicator import Communicator, Hosting, Traffic

MOST_RECEIPTS = 256
"""So many are kept of one ``strategy.run``; older ones are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One reduction over the replicas.

    Units: ``num_bytes`` are those of the contributions of the replicas hosted here, together; ``bytes_sent`` and
        ``bytes_received`` crossed the boundary of this process for it, both 0 where all replicas are in it.
    """

    what: str
    """``"gradients"`` of an apply call, ``"gradients (hook)"`` where an aggregator ran as a hook, ``"variables"``
    where local steps were averaged, or ``"value"``."""
    variables: tuple[str, ...]
    """The names of the variables whose gradients were reduced; empty for values."""
    participants: tuple[int, ...]
    """The replicas whose contributions are in the result."""
    operation: str
    """``"sum"``, ``"mean"`` or the name of an aggregator."""
    divisor: int | None
    """What the sum was divided by; None where the result is no sum."""
    weight: float | None
    """What each contribution was multiplied by, ``1 / divisor``; None where the result is no sum."""
    num_bytes: int
    bytes_sent: int
    bytes_received: int
    path: str
    """``"1 process"``, ``"all-reduce over 2 processes"``, ``"1 server for 2 workers"``."""
    step: int | None
    """The optimizer's ``iterations`` before the step; None for values."""
    skipped: bool
    """Whether the result was thrown away, because it was not finite."""


Note: TypeAlias = tuple[str, GradientAggregator, int, Sequence[Any], tuple[int, int], tuple[int, int], int | None, bool]
"""What is kept of one reduction until somebody asks: what, aggregator, bytes, variables, :meth:`ReceiptBook.traffic`
before and after it, step, skipped. A plain tuple, since one is made in every step."""


def path_name(hosting: Hosting, communicator: Any) -> str:
    """Return what receipts call the way between the processes of a strategy."""
    processes = len(hosting.hosted)
    servers = getattr(communicator, "num_servers", 0)
    if servers:
        return f"{servers} server{'s' if servers > 1 else ''} for {processes} worker{'s' if processes > 1 else ''}"
    return "1 process" if processes == 1 else f"all-reduce over {processes} processes"


class ReceiptBook:
    """The reductions of the latest ``strategy.run``, in their order."""

    def __init__(self, hosting: Hosting, communicator: Communicator | None, path: str) -> None:
        self.path = path
        self._hosting = hosting
        self._traffic = Traffic() if communicator is None else communicator.traffic
        self._notes: deque[Note] = deque(maxlen=MOST_RECEIPTS)
        self._observers: list[Callable[[Receipt], Any]] = []
        self.begin = self._notes.clear
        """Forget what is there: a new run begins."""

    def traffic(self) -> tuple[int, int]:
        """Return the bytes that this process has sent and received so far."""
        traffic = self._traffic
        return traffic.bytes_sent, traffic.bytes_received

    def add(
        self,
        what: str,
        aggregator: GradientAggregator,
        num_bytes: int,
        before: tuple[int, int],
        variables: Sequence[Any] = (),
        step: int | None = None,
        skipped: bool = False,
    ) -> None:
        """Keep a note of a reduction, which is done; ``before`` is what :meth:`traffic` returned before it."""
        traffic = self._traffic
        after = traffic.bytes_sent, traffic.bytes_received
        self._notes.append((what, aggregator, num_bytes, variables, before, after, step, skipped))
        if self._observers:
            for observer in self._observers:
                observer(self._receipt(self._notes[-1]))

    def observe(self, observer: Callable[[Receipt], Any]) -> Callable[[], None]:
        """Call ``observer`` with the receipt of each reduction from now on; return a function that ends it."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def receipts(self) -> tuple[Receipt, ...]:
        """Return the receipts of the latest run."""
        return tuple(map(self._receipt, self._notes))

    def _receipt(self, note: Note) -> Receipt:
        what, aggregator, num_bytes, variables, before, after, step, skipped = note
        replicas = self._hosting.num_replicas
        divisors: dict[type, int] = {Sum: 1, Mean: replicas}
        divisor = divisors.get(type(aggregator))
        return Receipt(
            what=what,
            variables=tuple(variable.name for variable in variables),
            participants=tuple(range(replicas)),
            operation=aggregator.full_name,
            divisor=divisor,
            weight=None if divisor is None else 1.0 / divisor,
            num_bytes=num_bytes,
            bytes_sent=after[0] - before[0],
            bytes_received=after[1] - before[1],
            path=self.path,
            step=step,
            skipped=skipped,
        )
