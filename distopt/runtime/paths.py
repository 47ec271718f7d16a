"""Where user code is found."""

from __future__ import annotations

import sys
from pathlib import Path


def find_tasks_in_working_directory() -> None:
    """Let ``task.name = "module:Class"`` name modules of the working directory, as ``python -m`` does.

    It comes last, so that a file there cannot take the place of an installed module.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
