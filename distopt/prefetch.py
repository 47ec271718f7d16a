"""How compiled loops ask for rows of a table before they need them.

Rows that are few and far apart come from memory one after another: a processor looks some hundred instructions ahead,
which is less than one row. A loop that knows which rows come next asks for them, and they arrive while it works on
others. On a table of 128 MB an update of 10,000 rows took a third to a half of the time (256 bytes a row, one thread).
A hint changes no value, and one for a row that does not exist does nothing.

:data:`SOURCE` goes into generated modules, see :mod:`distopt.kernels`, after :data:`IMPORTS`. It defines
``_ask_to_read(table, row, lines)`` and ``_ask_to_write``, with ``lines`` from :func:`lines_of`, to be called
:data:`AHEAD` rows ahead. What another process has written stays where it is for one that only reads it.
"""

from __future__ import annotations

from typing import Final

from distopt.types import Array

AHEAD: Final = 4
"""Of 1 to 12, with one table and two of rows of 64, 256 and 1024 bytes, in two processes: never far from the best,
where 6 took up to 2.5 times as long and 2 up to 1.4 times."""

MOST_LINES: Final = 16
"""What follows in a long row, the processor fetches by itself."""

IMPORTS: Final = """from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
"""

_FORM: Final = """
@intrinsic
def {name}(typing_context, table, row, lines):
    def generate(context, builder, signature, arguments):
        array = make_array(signature.args[0])(context, builder, arguments[0])
        first = context.get_constant(types.intp, 0)
        place = cgutils.get_item_pointer(context, builder, signature.args[0], array, [arguments[1], first])
        byte, number = ir.IntType(8), ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), number, number, number])
        function = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0i8")
        place = builder.bitcast(place, byte.as_pointer())
        with cgutils.for_range(builder, arguments[2]) as loop:
            line = builder.gep(place, [builder.mul(loop.index, loop.index.type(64))])
            builder.call(function, [line, number({writes}), number(3), number(1)])  # in all caches; data
        return context.get_dummy_value()

    return types.void(table, types.intp, types.intp), generate
"""

SOURCE: Final = _FORM.format(name="_ask_to_read", writes=0) + "\n" + _FORM.format(name="_ask_to_write", writes=1)


def lines_of(row: Array) -> int:
    """Return how many cache lines of a row to ask for."""
    return min(MOST_LINES, -(-row.nbytes // 64))
