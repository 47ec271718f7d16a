"""The process that servers and workers join: `python workers/coordinator.py CONFIG --address tcp://0.0.0.0:5555`."""

from __future__ import annotations

import sys

from distopt.runtime.roles import run_role

if __name__ == "__main__":
    sys.exit(run_role("coordinator"))
