"""Row-sparse gradients with placement ``sharded``: each process owns some rows of every table.

How the rows of an apply call go, in each process::

    meet      the rows of the hosted replicas go into this process's memory, and all tell how many they are
    collect   what the other hosts contribute to the rows of this process comes, added up as far as it may be
    update    the rows of all replicas are added in the canonical order, clipped, and variable and slots updated
    spread    the other hosts get the new rows

A row belongs to one process, whole. Tables are divided among hosts and then among the ranks of each in equal numbers of
rows, whatever the optimizer's other variables are; the slots of a row are then current on its owner's host alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distopt.aggregation import Sum
from distopt.canonical_sum import Node
from distopt.comm.communicator import Communicator, Hosting
from distopt.distribute.host_rows import HostRows, Met, Wish
from distopt.distribute.row_memory import Shape
from distopt.distribute.row_owner import (
    aggregated_occurrences,
    clipped_by_norm,
    sum_of_squares,
    total_of_rows,
    update_part,
)
from distopt.distribute.row_paths import Interval, RowPaths, divide_rows
from distopt.distribute.row_pushes import goes_by_rows
from distopt.distribute.variable_parts import VariablePart
from distopt.optimizers.features import Step
from distopt.optimizers.rule import Rows as TouchedRows
from distopt.optimizers.sparse import as_table, moves_all_rows
from distopt.row_lists import Rows, disjoint_sums, in_order, listed
from distopt.row_sums import RowSum
from distopt.types import Array


class ShardedRows:
    """Of the processes of ``communicator``; making it is a collective."""

    def __init__(self, hosting: Hosting, communicator: Communicator) -> None:
        self._hosting = hosting
        self._communicator = communicator
        self._rows = HostRows(hosting, communicator)
        self.arrays = self._rows.arrays
        self._paths = RowPaths(hosting, communicator)
        hosts = communicator.host_group.hosts
        self._division = functools.lru_cache(maxsize=1024)(lambda rank, num_rows: divide_rows(num_rows, hosts, rank))
        # In order where they travel, which takes less, or are more than two lists, which are added two at a time.
        crosses, num_lists = self._paths.crosses_hosts, sum(map(len, hosting.covers))
        self._wishes = {False: Wish(False, crosses), True: Wish(True, crosses or num_lists > 2)}
        self.num_bytes_told = 0
        """Of what the others of this host have read of this process's rows in the latest step."""

    def meet(
        self, path: Any, pairs_of: Sequence[Any], label: bytes, write_dense: Callable[[tuple[int, ...]], None]
    ) -> Met:
        """Write the rows of the hosted replicas, and tell of them; see :meth:`HostRows.meet`."""
        variables = pairs_of[0].variables
        columns = [[pairs[i][0] for pairs in pairs_of] for i in range(len(variables))]
        may_be_rows = [v.storage.size > 0 and goes_by_rows(path, v) for v in variables]
        squares = functools.partial(sum_of_squares, path, self._hosting.num_replicas)
        return self._rows.meet(
            columns,
            may_be_rows,
            self._wishes[path.may_sum_rows],
            label,
            sum_of_squares=squares if path.norms_are_owners else None,
            write_dense=write_dense,
            own_part=functools.partial(self._division, self._communicator.rank),
        )

    def totals(self, variables: Sequence[Any], met: Met) -> dict[int, Any]:
        """Return the sums of squares of the rows of all replicas, by position; none where no clip needs them."""
        return {i: total_of_rows(squares, variables[i].dtype) for i, squares in met.squares.items()}

    def update(
        self, path: Any, variables: Sequence[Any], met: Met, hypers: Mapping[str, float], totals: Any, total: Any
    ) -> None:
        """Aggregate, clip, and update the rows of this process; bring those of the other hosts here.

        ``totals``: sums of squares by variable, ``total`` that of all gradients, where a clip needs them.
        """
        optimizer = path.optimizer
        collected = self._paths.own_sums(met, self._division, summed=met.wish.summed)
        self.num_bytes_told, num_bytes_read = self._paths.local_traffic(
            met, self._rows.own_nodes(met.wish), collected, self._division
        )
        self._communicator.traffic.bytes_sent += self.num_bytes_told
        self._communicator.traffic.bytes_received += num_bytes_read
        step = Step(optimizer, hypers)
        made: dict[int, RowSum] = {}
        for i, of_nodes in collected.items():
            own = self._division(self._communicator.rank, met.shapes[i].num_rows)
            bits = self._rows.bits.of(met.shapes[i].num_rows)
            if met.wish.summed:
                lists = self._sums(path, of_nodes, bits)
            else:
                lists = self._occurrences(path, variables[i], of_nodes, totals.get(i), total, bits)
            update_part(optimizer, variables[i], _part_of(i, variables[i], own), lists, step)
            if self._paths.crosses_hosts:
                made[i] = _updated_rows(optimizer, variables[i], own, lists)
        shapes = {i: met.shapes[i] for i in met.with_rows}
        self._paths.spread(made, shapes, self._division, lambda i: as_table(variables[i].storage))

    def gather_slots(self, optimizer: Any, variables: Sequence[Any]) -> None:
        """Bring the slots of the rows of ``variables`` from their owners to all hosts; a collective."""
        arrays = [as_table(array) for variable in variables for array in optimizer.slots.of(variable).values()]
        shapes = {i: Shape(len(array), array.shape[1], array.dtype) for i, array in enumerate(arrays)}
        made: dict[int, RowSum] = {}
        for i, array in enumerate(arrays):
            own = self._division(self._communicator.rank, len(array))
            made[i] = _all_rows(array, own)
        self._paths.spread(made, shapes, self._division, arrays.__getitem__)

    def _sums(self, path: Any, of_nodes: Mapping[Node, Rows], bits: Array) -> Sequence[Rows]:
        """Return what the rule takes, from sums, which nothing looks at before."""
        lists = disjoint_sums(self._hosting.tree, of_nodes, bits)
        if leaves_as_they_are(path.aggregator):
            return lists
        finish, num_replicas = path.aggregator.finish, self._hosting.num_replicas
        return [RowSum(rows.indices, finish(listed(rows).values, num_replicas)) for rows in lists]

    def _occurrences(
        self, path: Any, variable: Any, of_nodes: Mapping[Node, Rows], own_total: Any, total: Any, bits: Array
    ) -> Sequence[Rows]:
        """Return what the rule takes, from the occurrences that each replica has stored."""
        clips = path.optimizer.clips
        takes_occurrences = path.optimizer.rule_of(variable).sparse.variable is TouchedRows.OCCURRENCES
        if takes_occurrences and leaves_as_they_are(path.aggregator) and not clips.active:
            return [of_nodes[node] for node in sorted(of_nodes)]
        clipped: dict[Node, RowSum] = {}
        for node in sorted(of_nodes):
            indices, values = listed(of_nodes[node])
            values = aggregated_occurrences(path.aggregator, clips, values, self._hosting.num_replicas)
            clipped[node] = RowSum(indices, clipped_by_norm(clips, values, own_total, total))
        if takes_occurrences:
            return list(clipped.values())
        sums = {node: in_order(rows, summed=True) for node, rows in clipped.items()}
        return disjoint_sums(self._hosting.tree, sums, bits)


def leaves_as_they_are(aggregator: Any) -> bool:
    """Return whether the aggregate of rows is their sum."""
    return type(aggregator).finish is Sum.finish


def _part_of(position: int, variable: Any, own: Interval) -> VariablePart:
    storage = variable.storage
    width = storage.size // len(storage)
    return VariablePart(position, own.start * width, own.stop * width, storage.shape, storage.dtype)


def _updated_rows(optimizer: Any, variable: Any, own: Interval, lists: Sequence[Rows]) -> RowSum:
    table = as_table(variable.storage)
    if moves_all_rows(optimizer, variable):
        return _all_rows(table, own)
    indices = np.unique(np.concatenate([rows.indices for rows in lists]))
    return RowSum(indices, table[indices])


def _all_rows(table: Array, own: Interval) -> RowSum:
    return RowSum(np.arange(*own), table[slice(*own)])
