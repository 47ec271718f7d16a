"""A parameter server: `python workers/server.py CONFIG --coordinator tcp://HOST:5555 --index 0`."""

from __future__ import annotations

import sys

from distopt.runtime.roles import run_role

if __name__ == "__main__":
    sys.exit(run_role("server"))
