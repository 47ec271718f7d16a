"""The reference's clip functions on recorded arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt import clipping

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden.json").read_text())
BY_NORM = [entry for entry in GOLDEN["clipping"] if entry["op"] == "clip_by_norm"]
BY_GLOBAL_NORM = [entry for entry in GOLDEN["clipping"] if entry["op"] == "clip_by_global_norm"]


@pytest.mark.parametrize("entry", BY_NORM, ids=str)
def test_clip_by_norm_follows_the_reference(entry: dict[str, Any]) -> None:
    found = clipping.clip_by_norm(np.array(entry["x"], np.float32), entry["clip"])
    expected = np.full(len(entry["x"]), np.nan) if entry["y"] == "nan" else entry["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("entry", BY_GLOBAL_NORM, ids=str)
def test_clip_by_global_norm_follows_the_reference(entry: dict[str, Any]) -> None:
    found, norm = clipping.clip_by_global_norm([np.array(x, np.float32) for x in entry["x"]], entry["clip"])
    assert float(norm) == pytest.approx(entry["norm"], rel=1e-6)
    for array, expected in zip(found, entry["y"], strict=True):
        np.testing.assert_allclose(array, np.array(expected), rtol=1e-6)


def test_recorded_clip_functions_are_all_covered() -> None:
    assert len(BY_NORM) + len(BY_GLOBAL_NORM) == len(GOLDEN["clipping"])
