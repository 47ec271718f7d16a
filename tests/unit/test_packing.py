from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distopt.arena import padded_size
from distopt.packing import BATCH_BYTES, MANY, SMALL_BYTES, Packing, Place
from distopt.types import Array, Shape

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def places_of(shapes: list[Shape], dtype: np.dtype[Any]) -> tuple[list[Place], int]:
    """Return places in the order of the arena, of arrays in the reverse order, and the length of the flat array."""
    places, start = [], 0
    for position, shape in reversed(list(enumerate(shapes))):
        size = int(np.prod(shape))
        places.append(Place(position, start, start + size, shape))
        start += padded_size(size, dtype)
    return places, start


def one_by_one(arrays: list[Array], places: list[Place], length: int, dtype: np.dtype[Any]) -> Array:
    flat = np.zeros(length, dtype)
    for place in places:
        flat[place.start : place.stop] = arrays[place.position].reshape(-1)
    return flat


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [MANY - 1, MANY, 700])
def test_packing_gives_the_bytes_of_copies_one_by_one(dtype: Any, number: int) -> None:
    dtype = np.dtype(dtype)
    some: list[Shape] = [(3, 5), (), (7,), (0,), (1,), (2, 3, 4), (100,)]
    shapes = [some[i % len(some)] for i in range(number)]
    shapes[number // 2] = (SMALL_BYTES // dtype.itemsize + 1,)  # a large one between them
    rng = np.random.default_rng(number)
    arrays = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    arrays[0] = np.asarray(rng.standard_normal(shapes[0][::-1]), dtype).T  # not in C order
    places, length = places_of(shapes, dtype)
    flat = np.zeros(length, dtype)
    Packing(places, dtype).write(arrays, flat)
    assert flat.tobytes() == one_by_one(arrays, places, length, dtype).tobytes()


def test_many_small_arrays_are_written_in_parts_that_stay_in_the_cache_and_few_or_large_ones_alone() -> None:
    dtype = np.dtype(np.float32)
    each = 4096 // dtype.itemsize
    number = 3 * BATCH_BYTES // 4096
    small = Packing(places_of([(each,)] * number, dtype)[0], dtype)
    assert not small.alone
    assert [joined.num_bytes for joined in small.joined] == [BATCH_BYTES] * 3
    few = Packing(places_of([(each,)] * (MANY - 1), dtype)[0], dtype)
    assert len(few.alone) == MANY - 1
    large = Packing(places_of([(SMALL_BYTES,)] * MANY, dtype)[0], dtype)
    assert len(large.alone) == MANY


def test_small_arrays_are_written_without_those_that_are_copied_alone() -> None:
    dtype = np.dtype(np.float32)
    shapes: list[Shape] = [(2,)] * MANY + [(SMALL_BYTES,)]
    places, length = places_of(shapes, dtype)
    packing, flat = Packing(places, dtype), np.zeros(length, dtype)
    packing.write_small([np.ones(shape, dtype) for shape in shapes], flat)
    assert flat.sum() == 2 * MANY
    assert [place.position for place in packing.alone] == [MANY]
