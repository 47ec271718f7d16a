"""What processes of one job must agree on."""

from __future__ import annotations

import msgspec
import pytest

from distopt.protocol.manifest import Manifest, VariableSpec, differences, numeric_differences, odd_ones

JOB = """
seed = 1
[optimizer]
name = "sgd"
learning_rate = 0.1
"""
REFERENCE = Manifest(
    job=JOB,
    variables=(VariableSpec("w:0", (64, 10), "float32"), VariableSpec("b:0", (10,), "float32")),
    optimizer={"name": "SGD"},
    hooks=("clip",),
    versions={"distopt": "1"},
    numerics={"numpy": "2.0", "blas": "a"},
)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"job": JOB.replace("0.1", "0.2")}, "configuration optimizer.learning_rate: 0.1 against 0.2"),
        ({"job": "seed = 1"}, 'configuration optimizer.name: "sgd" against (absent)'),
        ({"variables": REFERENCE.variables[:1]}, "variable 1: b:0 float32[10] against (absent)"),
        ({"variables": REFERENCE.variables[::-1]}, "variable 0: w:0 float32[64, 10] against b:0 float32[10]"),
        ({"optimizer": {"name": "Adam"}}, "optimizer name: SGD against Adam"),
        ({"hooks": ("clip", "mean")}, "hook 1: (absent) against mean"),
        ({"versions": {"distopt": "2"}}, "version of distopt: 1 against 2"),
    ],
)
def test_difference_names_what_and_both_values(changed: dict[str, object], line: str) -> None:
    assert line in differences(REFERENCE, msgspec.structs.replace(REFERENCE, **changed))


def test_equal_manifests_have_no_differences() -> None:
    assert differences(REFERENCE, msgspec.structs.replace(REFERENCE, numerics={})) == []
    assert numeric_differences(REFERENCE, REFERENCE) == []


def test_numeric_difference_names_key_and_both_values() -> None:
    other = msgspec.structs.replace(REFERENCE, numerics={"numpy": "2.0", "blas": "b", "simd": "avx2"})
    assert numeric_differences(REFERENCE, other) == [
        "numerics blas: a against b",
        "numerics simd: (absent) against avx2",
    ]


def test_many_differences_are_counted_instead_of_listed() -> None:
    lines = differences(Manifest(job="\n".join(f"k{i} = 1" for i in range(20))), Manifest())
    assert len(lines) == 9
    assert lines[-1] == "and 12 more differences"


@pytest.mark.parametrize(
    ("values", "reference", "odd"),
    [("aab", 0, (2,)), ("baa", 1, (0,)), ("ab", 0, (1,)), ("abc", 0, (1, 2)), ("aaa", 0, ()), ("", None, ())],
)
def test_odd_ones_are_those_outside_of_the_largest_group(
    values: str, reference: int | None, odd: tuple[int, ...]
) -> None:
    manifests = {i: Manifest(numerics={"blas": value}) for i, value in enumerate(values)}
    assert odd_ones(manifests) == (reference, odd)


def test_default_dictionaries_are_not_shared() -> None:
    assert Manifest().numerics is not Manifest().numerics
