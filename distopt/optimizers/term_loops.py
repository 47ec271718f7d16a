"""Source text of the loops that read terms; :mod:`distopt.optimizers.kernels` puts them into modules.

One function, ``_gradient``, makes one number from one element of each input. Where there are more terms than one loop
should read, ``_sum_0``, ``_sum_1`` ... add groups of them up first: the inputs are then sums and terms, and the loops
run block after block, so that the sums stay in the cache.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from distopt import kernels
from distopt.arena import BLOCK
from distopt.kernels import CALLED_BY_KERNELS, INLINED
from distopt.optimizers.terms import PLAIN, Source, clip_value
from distopt.sum_loops import MOST_STREAMS, Additions

_BLOCK = 2048
"""Elements that are added up at a time where there are sums: 8 of them take half of a small second-level cache."""

_FUNCTION = f"\n\n{INLINED}\n{{definition}}\n"

_ADDING = (
    f"\n\n{CALLED_BY_KERNELS}"
    + """
def _add_{number}(total, {inputs}):
    for i in range(total.size):
        total[i] = _sum_{number}({elements})
"""
)

_IN_BLOCKS = """

{decorator}
def kernel({arguments}):
    {buffers}
    for start in range(0, variable.size, {block}):
        stop = min(start + {block}, variable.size)
        {additions}
        {update}({slices})
"""

_GATHERING = (
    f"\n\n{CALLED_BY_KERNELS}"
    + """
def _gather({gathered}, {inputs}):
    for i in range(values.size):
        value = {element}
        {store}


{decorator}
def kernel({outputs}, {arguments}):
    {buffers}
    for k in range(starts.size):
        start, stop = starts[k], stops[k]
        {additions}
        _gather({slices})
        sums[k] = _block_sum({values})
"""
)


class Loops:
    """The loops over the terms of ``source``, stored as ``element``s that the expression ``load`` makes numbers of.

    ``transform`` changes every function that computes, as :func:`distopt.kernels.functions_source` takes it.
    """

    def __init__(
        self,
        source: Source,
        element: str,
        load: str,
        transform: Callable[[ast.FunctionDef], ast.FunctionDef] | None,
    ) -> None:
        self._source = source
        self._number = "float32" if element == "uint16" else element
        self._load = load
        self._transform = transform
        self._groups: list[tuple[list[str], str]] = []
        self.inputs, self._expression = self._visit(source.additions)
        """The arrays that the last loop reads, beside those that the rule writes to."""

    @property
    def is_one(self) -> bool:
        """Whether one loop does it all."""
        return not self._groups

    @property
    def terms(self) -> list[str]:
        """The names of the terms."""
        return [f"term_{number}" for number in range(self._source.num_terms)]

    @property
    def element(self) -> str:
        """The expression of element ``i`` of the gradient."""
        loads = self._loads(self.inputs)
        return loads if self._source == PLAIN else f"_gradient({', '.join([loads, *self._source.scalars])})"

    @property
    def functions(self) -> str:
        """The functions that the loops call."""
        text = f"\n\n\n{kernels.functions_source(clip_value, self._transform)}" if self._source.is_clipped else ""
        for number, (inputs, expression) in enumerate(self._groups):
            text += self._function(f"_sum_{number}", inputs, [f"return {expression}"])
            text += _ADDING.format(number=number, inputs=", ".join(inputs), elements=self._loads(inputs))
        if self._source == PLAIN:
            return text
        body = [f"total = {self._expression}"]
        body += ["total = total / divisor"] if self._source.is_mean else []
        body += ["total = clip_value(total, low, high)"] if self._source.is_clipped else []
        body += ["total = total * factor"] if self._source.is_scaled else []
        return text + self._function("_gradient", [*self.inputs, *self._source.scalars], [*body, "return total"])

    def in_blocks(self, decorator: str, update: str, written: Sequence[str], scalars: Sequence[str]) -> str:
        """Return the kernel that calls ``update`` on each block of the arrays ``written`` and of the inputs."""
        own = [*self._source.scalars, *scalars]
        slices = [f"{name}[start:stop]" for name in written]
        return _IN_BLOCKS.format(
            decorator=decorator,
            arguments=", ".join([*written, *self.terms, *own]),
            buffers=self._buffers(_BLOCK),
            block=_BLOCK,
            additions=self._additions(),
            update=update,
            slices=", ".join([*slices, *map(self._slice, self.inputs), *own]),
        )

    def gathering(self, decorator: str, store: str | None) -> str:
        """Return the kernel that adds up squares of the gradient and stores it by ``store``; None: only adds up."""
        own = list(self._source.scalars)
        arrays = {"values": "out[start:stop]"} if store == "{}" else {"values": "numbers[: stop - start]"}
        numbers = [] if store == "{}" else ["numbers"]
        stores = "values[i] = value"
        if store not in ("{}", None):
            arrays["stored"] = "out[start:stop]"
            stores += f"; stored[i] = {store.format('value')}"
        return _GATHERING.format(
            decorator=decorator,
            gathered=", ".join(arrays),
            inputs=", ".join([*self.inputs, *own]),
            element=self.element,
            store=stores,
            outputs="sums, starts, stops" if store is None else "out, sums, starts, stops",
            arguments=", ".join([*self.terms, *own]),
            buffers=self._buffers(BLOCK, numbers),
            additions=self._additions(),
            slices=", ".join([*arrays.values(), *map(self._slice, self.inputs), *own]),
            values=arrays["values"],
        )

    def _visit(self, sum_of: Additions) -> tuple[list[str], str]:
        """Return the inputs of a sum and its expression; parts of what would have too many become groups."""
        if isinstance(sum_of, int):
            return [f"term_{sum_of}"], f"term_{sum_of}"
        parts = [self._visit(part) for part in sum_of]
        while sum(len(inputs) for inputs, _ in parts) > MOST_STREAMS:
            widest = max((0, 1), key=lambda side: len(parts[side][0]))
            name = f"sum_{len(self._groups)}"
            self._groups.append(parts[widest])
            parts[widest] = ([name], name)
        (left, first), (right, second) = parts
        return [*left, *right], f"({first} + {second})"

    def _function(self, name: str, arguments: Sequence[str], body: Sequence[str]) -> str:
        definition = kernels.parse(f"def {name}({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in body))
        function = definition.body[0]
        assert isinstance(function, ast.FunctionDef)
        return _FUNCTION.format(
            definition=ast.unparse(function if self._transform is None else self._transform(function))
        )

    def _loads(self, inputs: Sequence[str]) -> str:
        return ", ".join(
            f"{name}[i]" if name.startswith("sum_") else self._load.format(f"{name}[i]") for name in inputs
        )

    def _slice(self, name: str) -> str:
        return f"{name}[: stop - start]" if name.startswith("sum_") else f"{name}[start:stop]"

    def _buffers(self, length: int, more: Sequence[str] = ()) -> str:
        names = [*(f"sum_{number}" for number in range(len(self._groups))), *more]
        return "; ".join(f"{name} = np.empty({length}, np.{self._number})" for name in names) or "pass"

    def _additions(self) -> str:
        calls = [
            f"_add_{number}({', '.join(map(self._slice, [f'sum_{number}', *inputs]))})"
            for number, (inputs, _) in enumerate(self._groups)
        ]
        return "; ".join(calls) or "pass"
