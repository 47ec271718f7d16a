"""Facts about where compiled kernels are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distopt.kernels import cache_directory, set_cache_directory
from distopt.runtime.paths import keep_kernels_in_cache_home


@pytest.fixture(autouse=True)
def _cache_directory_as_before() -> Iterator[None]:
    before = cache_directory()
    yield
    set_cache_directory(before)


def test_kernel_directory_with_a_cache_home_lies_below_it(tmp_path: Path) -> None:
    keep_kernels_in_cache_home({"XDG_CACHE_HOME": str(tmp_path)})
    assert cache_directory() == tmp_path / "distopt" / "kernels"


@pytest.mark.parametrize("environ", [{}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}])
def test_kernel_directory_without_an_absolute_cache_home_stays(environ: dict[str, str], tmp_path: Path) -> None:
    set_cache_directory(tmp_path)
    keep_kernels_in_cache_home(environ)
    assert cache_directory() == tmp_path
