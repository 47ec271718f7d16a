"""Tools for unit tests of code that runs on several replicas: in one process, in milliseconds, never hanging."""

from __future__ import annotations

from distopt.testing.fake_clock import FakeClock
from distopt.testing.fault_plan import FaultPlan
from distopt.testing.replicas import run_replicas
from distopt.testing.strategies import run_strategy

__all__ = ["FakeClock", "FaultPlan", "run_replicas", "run_strategy"]
