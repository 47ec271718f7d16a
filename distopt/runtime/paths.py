"""Where user code is found, and where compiled kernels are kept."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from distopt.kernels import set_cache_directory


def find_tasks_in_working_directory() -> None:
    """Let ``task.name = "module:Class"`` name modules of the working directory, as ``python -m`` does.

    It comes last, so that a file there cannot take the place of an installed module.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def keep_kernels_in_cache_home(environ: Mapping[str, str]) -> None:
    """Keep compiled kernels below ``XDG_CACHE_HOME`` if that is set; the default is ``~/.cache``.

    Source: XDG Base Directory Specification, which has relative paths ignored.
    """
    cache_home = Path(environ.get("XDG_CACHE_HOME", ""))
    if cache_home.is_absolute():
        set_cache_directory(cache_home / "distopt" / "kernels")
