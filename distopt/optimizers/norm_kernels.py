"""Source text of the loops that add up squares; :mod:`distopt.optimizers.kernels` puts them into modules.

The order of additions is that of :mod:`distopt.norms`, which a compiler must keep; so the lanes are one vector here.
The sum of a few terms is squared where it is added up, in registers: such a loop waits for nothing but the memory.
"""

from __future__ import annotations

import itertools

from distopt.optimizers.terms import PLAIN, Source
from distopt.sum_loops import MOST_STREAMS, Additions

_BLOCK_SUM = '''
@intrinsic
def {name}(typing_context, {arguments}):
    """Return the sum of squares of each of {blocks} blocks of one size: eight lanes left to right, then a tree."""

    def generate(context, builder, signature, arguments):
        types_of_terms, scalars = signature.args[:{count} * {blocks}], arguments[{count} * {blocks} :]
        terms = [context.make_array(kind)(context, builder, term) for kind, term in zip(types_of_terms, arguments)]
        number, size = context.get_value_type(types_of_terms[0].dtype), terms[0].nitems
        lanes, index, position = ir.VectorType(number, 8), size.type, ir.IntType(32)

        def squared(load, spread):
            total = {total}
            return builder.fmul(total, total)

        def spread(scalar):
            vector = ir.Constant(lanes, ir.Undefined)
            for lane in range(8):
                vector = builder.insert_element(vector, scalar, position(lane))
            return vector

        rows = builder.lshr(size, index(3))
        found = [
            (cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * 8)), terms[start : start + {count}])
            for start in range(0, {count} * {blocks}, {count})
        ]
        with cgutils.for_range(builder, rows) as loop:
            start = builder.shl(loop.index, index(3))
            for total, own in found:

                def load_row(term):
                    place = builder.gep(own[term].data, [start])
                    return builder.load(builder.bitcast(place, lanes.as_pointer()), align={itemsize})

                builder.store(builder.fadd(builder.load(total), squared(load_row, spread)), total)
        with cgutils.for_range(builder, builder.and_(size, index(7))) as loop:
            at = builder.add(builder.shl(rows, index(3)), loop.index)
            for total, own in found:
                square = squared(lambda term: builder.load(builder.gep(own[term].data, [at])), lambda scalar: scalar)
                before = builder.load(total)
                lane = builder.fadd(builder.extract_element(before, loop.index), square)
                builder.store(builder.insert_element(before, lane, loop.index), total)
        results = []
        for total, _ in found:
            ended = builder.load(total)
            sums = [builder.extract_element(ended, position(lane)) for lane in range(8)]
            while len(sums) > 1:
                sums = [builder.fadd(left, right) for left, right in zip(sums[::2], sums[1::2])]
            results += sums
        return results[0] if {blocks} == 1 else context.make_tuple(builder, signature.return_type, results)

    dtype = term_0.dtype
    return (dtype if {blocks} == 1 else types.UniTuple(dtype, {blocks}))({arguments}), generate
'''

_BLOCK_SUMS = """

_read_only = types.Array(types.{dtype}, 1, "C", readonly=True)


@compiled(types.void(_read_only, types.{dtype}[::1], types.int64), cache={cache})
def kernel(values, sums, block):
    for index in range(sums.size):
        sums[index] = _block_sum(values[index * block : min(index * block + block, values.size)])
"""

_SQUARES = """

{decorator}
def kernel(sums, starts, stops, {arguments}):
    k = 0
    while k < starts.size:
        size = stops[k] - starts[k]
        is_alone = k + {together} > starts.size
        for other in range(k, min(k + {together}, starts.size)):
            is_alone |= stops[other] - starts[other] != size
        if is_alone:
            sums[k] = _block_sum({slices})
            k += 1
        else:
            {targets} = _block_sums({slices_together})
            k += {together}
"""

_TOGETHER = 4
"""Blocks that are added up at a time: more lanes, and more of the memory is asked for at once. 0.8 of the time of one
after another (two terms of 2.9e6 float32, two processes); 2 were slower, 8 no faster than one."""

_RANGE_SUMS = """

@compiled(types.void(types.{dtype}[::1], types.int64[::1], types.int64[::1], types.{dtype}[::1]), cache={cache})
def kernel(values, starts, stops, sums):
    for index in range(starts.size):
        own = values[starts[index] : stops[index]]
        left = own.size
        while left > 1:
            pairs = left // 2
            for at in range(pairs):
                own[at] = own[2 * at] + own[2 * at + 1]
            if left % 2:
                own[pairs] = own[left - 1]
            left -= pairs
        if own.size:
            sums[index] = own[0]
"""


def adds_squares(source: Source) -> bool:
    """Return whether :func:`block_sum` takes the terms of ``source``: few of them, which are at most divided."""
    return source.num_terms <= MOST_STREAMS and not (source.is_clipped or source.is_scaled)


def block_sum(itemsize: int, source: Source = PLAIN) -> str:
    """Return the function ``_block_sum(*terms, *scalars)``: the sum of squares of what ``source`` makes of one block.

    The terms are float32 or float64, by ``itemsize``; for which sources, says :func:`adds_squares`.
    """
    return _function("_block_sum", itemsize, source, 1)


def _function(name: str, itemsize: int, source: Source, blocks: int) -> str:
    total = _total(source.additions)
    if source.is_mean:
        total = f"builder.fdiv({total}, spread(scalars[0]))"
    count = source.num_terms
    arguments = ", ".join([*(f"term_{number}" for number in range(blocks * count)), *source.scalars])
    return _BLOCK_SUM.format(name=name, arguments=arguments, count=count, blocks=blocks, total=total, itemsize=itemsize)


def block_sums_loop(dtype: str, cache: bool | str) -> str:
    """Return the kernel that calls :func:`block_sum` on the blocks of one array."""
    return _BLOCK_SUMS.format(dtype=dtype, cache=cache)


def range_sums_loop(dtype: str, cache: bool | str) -> str:
    """Return the kernel that adds up ranges of an array, each as :func:`distopt.norms.add_sums` does."""
    return _RANGE_SUMS.format(dtype=dtype, cache=cache)


def squares_loop(source: Source, itemsize: int, decorator: str) -> str:
    """Return the kernel that adds up the squares of blocks of terms, some blocks of one size at a time."""
    arguments = ", ".join([*_terms(source), *source.scalars])
    slices = [
        [f"{term}[starts[k + {block}] : stops[k + {block}]]" for term in _terms(source)] for block in range(_TOGETHER)
    ]
    return _function("_block_sums", itemsize, source, _TOGETHER) + _SQUARES.format(
        decorator=decorator,
        arguments=arguments,
        together=_TOGETHER,
        targets=", ".join(f"sums[k + {block}]" for block in range(_TOGETHER)),
        slices=", ".join([*slices[0], *source.scalars]),
        slices_together=", ".join([*itertools.chain(*slices), *source.scalars]),
    )


def _terms(source: Source) -> list[str]:
    return [f"term_{number}" for number in range(source.num_terms)]


def _total(sum_of: Additions) -> str:
    if isinstance(sum_of, int):
        return f"load({sum_of})"
    left, right = sum_of
    return f"builder.fadd({_total(left)}, {_total(right)})"
