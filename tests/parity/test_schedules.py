"""The reference's schedules at recorded steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt.keras.optimizers import schedules

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
SCHEDULES = [entry for entry in GOLDEN["schedules"] if entry["api"] == "keras"]


@pytest.mark.parametrize("entry", SCHEDULES, ids=[f"{i}-{entry['class']}" for i, entry in enumerate(SCHEDULES)])
def test_schedule_follows_the_reference_at_every_recorded_step(entry: dict[str, Any]) -> None:
    schedule = getattr(schedules, entry["class"])(**entry["kwargs"])
    rates = [schedule(np.dtype(entry["step_dtype"]).type(step)) for step in entry["steps"]]
    assert all(rate.dtype == np.float32 for rate in rates)
    np.testing.assert_allclose(rates, entry["values"], rtol=1e-5, atol=1e-6)
    rebuilt = schedules.deserialize(schedules.serialize(schedule))
    assert [rebuilt(step) for step in entry["steps"]] == rates
