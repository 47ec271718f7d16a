from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distopt import kernels
from distopt.optimizers import kernels as rule_kernels
from distopt.optimizers import rules
from distopt.optimizers.rule import Rows, Rule, SparseUse

FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    before = kernels.cache_directory()
    kernels.set_cache_directory(tmp_path / "kernels")
    yield tmp_path / "kernels"
    kernels.set_cache_directory(before)


def run(kernel: Any) -> float:
    variable = np.zeros(3, np.float32)
    kernel(variable, np.ones(3, np.float32), np.float32(0.5))
    return float(variable[0])


def test_a_kernel_is_compiled_once_and_loaded_afterwards(directory: Path) -> None:
    first, second = (rule_kernels.load_rule(rules.SGD, FLOAT32) for _ in range(2))
    assert sum(first.stats.cache_misses.values()) == 1  # type: ignore[attr-defined]  # Numba's dispatcher
    assert sum(second.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]  # Numba's dispatcher
    assert run(first) == run(second) == -0.5
    assert len(list(directory.glob("kernel_*.py"))) == 1


def test_the_directory_is_closed_to_others(directory: Path) -> None:
    rule_kernels.load_rule(rules.SGD, FLOAT32)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_open_to_others_is_not_used_and_one_warning_is_given(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.warns(RuntimeWarning, match="0700"):
        kernel = rule_kernels.load_rule(rules.SGD, FLOAT32)
    assert run(kernel) == -0.5
    assert run(rule_kernels.load_rule(rules.SGD, FLOAT32)) == -0.5  # a second warning would be an error here
    assert not list(directory.iterdir())


def test_a_path_that_cannot_be_a_directory_means_in_memory(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "file").write_text("")
    kernels.set_cache_directory(tmp_path / "file" / "kernels")
    with pytest.warns(RuntimeWarning, match="in memory"):
        assert run(rule_kernels.load_rule(rules.SGD, FLOAT32)) == -0.5


@pytest.fixture
def default_directory() -> Iterator[None]:
    before, reader = kernels.cache_directory(), list(kernels._cache_home)
    kernels._directory.clear()
    yield
    kernels._cache_home[:] = reader
    kernels.set_cache_directory(before)


@pytest.mark.usefixtures("default_directory")
def test_kernels_of_a_user_with_a_cache_home_lie_in_it(tmp_path: Path) -> None:
    kernels.find_cache_home_with(lambda: str(tmp_path))
    assert kernels.cache_directory() == tmp_path / "distopt" / "kernels"


@pytest.mark.usefixtures("default_directory")
@pytest.mark.parametrize("text", [None, "", "relative"])
def test_kernels_of_a_user_without_an_absolute_cache_home_lie_in_the_usual_one(text: str | None) -> None:
    kernels.find_cache_home_with(lambda: text)
    assert kernels.cache_directory() == Path.home() / ".cache" / "distopt" / "kernels"


def test_kernel_that_is_being_compiled_keeps_nobody_from_most_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule_kernels.load_rule(rules.SGD, FLOAT32)
    (own,) = directory.glob("lock-*")
    monkeypatch.setattr(kernels, "LOCK_ATTEMPTS", 1)
    with ExitStack() as locks:
        for digit in set("0123456789abcdef") - {own.name[-1]}:
            locks.enter_context(kernels._locked(directory / f"lock-{digit}"))
        assert run(rule_kernels.load_rule(rules.SGD, FLOAT32)) == -0.5
        locks.enter_context(kernels._locked(own))
        with pytest.warns(RuntimeWarning, match="in memory"):
            assert run(rule_kernels.load_rule(rules.SGD, FLOAT32)) == -0.5


def test_an_edited_rule_gets_another_kernel(directory: Path) -> None:
    namespaces: list[dict[str, Any]] = []
    for sign in ("-", "+"):
        path = directory.parent / "edited.py"
        path.write_text(f"def step(variable, gradient, rate):\n    return variable {sign} rate * gradient\n")
        code = compile(path.read_text(), str(path), "exec", dont_inherit=True)
        namespace: dict[str, Any] = {"__name__": "edited"}
        exec(code, namespace)
        namespaces.append(namespace)
        import linecache

        linecache.checkcache(str(path))
        rule = Rule("edited", namespace["step"], (), ("rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))
        assert run(rule_kernels.load_rule(rule, FLOAT32)) == (-0.5 if sign == "-" else 0.5)
        os.utime(path, ns=(1, 1))
    assert len(list(directory.glob("kernel_*.py"))) == 2


def module_of(path: Path, text: str) -> Any:
    """Write and import a module, as another start of the program would."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


HELPED = "def moved(variable, by):\n    return variable - by\n\n\ndef step(variable, gradient, rate):\n"
HELPED += "    return moved(variable, rate * gradient)\n"


def test_an_edited_function_that_a_rule_calls_makes_another_kernel(directory: Path) -> None:
    for text, expected in ((HELPED, -0.5), (HELPED.replace("variable - by", "variable + by"), 0.5)):
        step = module_of(directory.parent / "helped.py", text).step
        rule = Rule("helped", step, (), ("rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))
        assert run(rule_kernels.load_rule(rule, FLOAT32)) == expected
    assert len(list(directory.glob("kernel_*.py"))) == 2


def test_a_file_edited_after_its_import_is_not_taken_for_the_function_that_runs(directory: Path) -> None:
    path = directory.parent / "edited_later.py"
    step = module_of(path, HELPED).step
    path.write_text(HELPED.replace("variable - by", "variable + by"))
    os.utime(path, ns=(1, 1))
    rule = Rule("helped", step, (), ("rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))
    assert run(rule_kernels.load_rule(rule, FLOAT32)) == -0.5  # compiled in memory, from the function itself
    assert not list(directory.glob("kernel_*.py"))


def test_two_functions_of_one_name_are_kept_apart(directory: Path) -> None:
    other = module_of(directory.parent / "other.py", "def moved(variable, by):\n    return variable + by\n")
    module = module_of(
        directory.parent / "both.py",
        "def moved(variable, by):\n    return further(variable, by) - by\n\n\n"
        "def step(variable, gradient, rate):\n    return moved(variable, rate * gradient)\n",
    )
    further = types.FunctionType(other.moved.__code__, other.__dict__, "further")
    module.further = further
    rule = Rule("both", module.step, (), ("rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))
    variable, gradient = np.zeros(3, np.float32), np.ones(3, np.float32)
    expected = module.step(variable, gradient, np.float32(0.5))
    rule_kernels.load_rule(rule, FLOAT32)(variable, gradient, np.float32(0.5))
    np.testing.assert_array_equal(variable, expected)


def test_a_file_with_other_contents_than_its_name_says_is_not_run(directory: Path) -> None:
    rule_kernels.load_rule(rules.SGD, FLOAT32)
    (path,) = directory.glob("kernel_*.py")
    path.write_text("raise SystemExit('planted')\n")
    with pytest.warns(RuntimeWarning, match="does not hold what its name says"):
        assert run(rule_kernels.load_rule(rules.SGD, FLOAT32)) == -0.5


def shifted(value: Any, rate: Any) -> Any:
    return value - rate


def step_with_helper(variable: Any, gradient: Any, rate: Any) -> Any:
    return shifted(variable, rate * gradient)


def test_a_step_may_call_other_functions_of_its_module(directory: Path) -> None:
    rule = Rule("helped", step_with_helper, (), ("rate",), SparseUse(Rows.TOUCHED, Rows.TOUCHED))
    assert run(rule_kernels.load_rule(rule, FLOAT32)) == -0.5
    (path,) = directory.glob("kernel_*.py")
    assert "def shifted" in path.read_text()


@pytest.mark.multiprocess
def test_processes_that_start_at_once_compile_a_kernel_once(directory: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from distopt import kernels\n"
        "from distopt.optimizers import kernels as rule_kernels, rules\n"
        "kernels.set_cache_directory(Path(sys.argv[1]))\n"
        "kernel = rule_kernels.load_rule(rules.ADAM, np.dtype('float32'))\n"
        "print(sum(kernel.stats.cache_misses.values()), sum(kernel.stats.cache_hits.values()))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    outputs = [process.communicate(timeout=100)[0].split() for process in started]
    assert [process.returncode for process in started] == [0] * 8
    assert sum(int(misses) for misses, _ in outputs) == 1
    assert sum(int(hits) for _, hits in outputs) == 7


@pytest.mark.multiprocess
def test_a_home_that_cannot_be_written_means_in_memory_with_one_warning() -> None:
    program = (
        "import numpy as np, distopt as tf\n"
        "from distopt import kernels\n"
        "variable = tf.Variable(np.zeros(3, np.float32))\n"
        "for optimizer in (tf.keras.optimizers.SGD(0.5), tf.keras.optimizers.SGD(0.5, momentum=0.5)):\n"
        "    optimizer.apply_gradients([(np.ones(3, np.float32), variable)])\n"
        "print(kernels.cache_directory(), variable.numpy().tolist())\n"
    )
    environment = {**os.environ, "HOME": "/proc", "XDG_CACHE_HOME": "", "PYTHONWARNINGS": "always"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100, check=True
    )
    assert done.stdout.split(maxsplit=1) == ["/proc/.cache/distopt/kernels", "[-1.0, -1.0, -1.0]\n"]
    assert done.stderr.count("RuntimeWarning") == 1
    assert "kept in memory only, because /proc/.cache/distopt/kernels cannot be used" in done.stderr
