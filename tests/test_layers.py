"""The imports of every module, held against the layers that docs/architecture.md draws.

The document is the table: its line of layers and its list of foundation modules are read by the test, so that the
picture a newcomer sees is the one that is enforced. The rules themselves are in ``import_rules``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.import_rules import (
    FACADE,
    HANDED_OVER,
    Layers,
    Reference,
    Source,
    arrows_to_the_left,
    cycles,
    out_of_home,
    pickled_arrays,
    pickling_mpi_calls,
    read_layers,
    references,
    under,
)

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"

# ---------------------------------------------------------------- the project as it is


def _sources() -> list[Source]:
    paths = sorted(path for folder in ("distopt", "workers") for path in (ROOT / folder).rglob("*.py"))
    return [Source.parse(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


SOURCES = _sources()
MODULES = frozenset(source.module for source in SOURCES)
LAYERS = read_layers(ARCHITECTURE.read_text(encoding="utf-8"))
REFERENCES = {source.path: references(source, MODULES) for source in SOURCES}


def test_layers_every_import_points_right() -> None:
    complaints = [
        complaint
        for source in SOURCES
        for complaint in arrows_to_the_left(source, REFERENCES[source.path], LAYERS, typing_only=False)
    ]
    assert not complaints, "\n".join(complaints)


def test_layers_imports_for_typing_only_point_right_too() -> None:
    complaints = [
        complaint
        for source in SOURCES
        for complaint in arrows_to_the_left(source, REFERENCES[source.path], LAYERS, typing_only=True)
    ]
    assert not complaints, "\n".join(complaints)


def test_layers_packages_import_each_other_in_one_direction() -> None:
    edges: dict[str, set[str]] = {}
    for source in SOURCES:
        unit = LAYERS.unit_of(source.module)
        for reference in REFERENCES[source.path]:
            if reference.is_import and not reference.typing_only and under(reference.name, ["distopt", "workers"]):
                imported = LAYERS.unit_of(reference.name)
                if imported != unit and not (unit == FACADE and reference.name == HANDED_OVER):
                    edges.setdefault(unit, set()).add(imported)
    assert cycles(edges) == []


def test_layers_everything_with_a_home_stays_there() -> None:
    complaints = [complaint for source in SOURCES for complaint in out_of_home(source, REFERENCES[source.path], LAYERS)]
    complaints += [complaint for source in SOURCES for complaint in pickled_arrays(source)]
    assert not complaints, "\n".join(complaints)


def test_mpi_transport_calls_buffer_methods_only() -> None:
    complaints = [
        complaint
        for source in SOURCES
        if source.path.startswith("distopt/comm/mpi")
        for complaint in pickling_mpi_calls(source)
    ]
    assert not complaints, "\n".join(complaints)


# ---------------------------------------------------------------- the document is true


def _packages() -> set[str]:
    return {path.relative_to(ROOT / "distopt").parts[0] for path in (ROOT / "distopt").glob("*/**/*.py")}


def test_architecture_layers_name_every_package_and_no_other() -> None:
    assert LAYERS.names() - {"workers", "cli", "foundation"} == _packages() - LAYERS.foundation


def test_architecture_foundation_names_every_other_module_and_no_other() -> None:
    modules = {path.stem for path in (ROOT / "distopt").glob("*.py")} - {"__init__", "__main__", "cli"}
    assert modules | (_packages() - LAYERS.names()) == LAYERS.foundation


def test_architecture_paths_it_mentions_exist() -> None:
    text, _, _ = ARCHITECTURE.read_text(encoding="utf-8").partition("\n## 7. Not built yet")
    mentioned = set(re.findall(r"`((?:distopt|workers|tests|docs|configs|benchmarks|\.ci)/[\w./-]*)`", text))
    assert mentioned, "the document names no file"
    assert sorted(path for path in mentioned if not (ROOT / path).exists()) == []


# ---------------------------------------------------------------- the rules catch what they are for

_DRAWN = """
```
workers, cli -> runtime -> testing, tasks -> distribute -> comm -> protocol | aggregation, optimizers -> foundation
```

```
foundation = errors types tensor
  replica_context
```
"""


def _module(path: str, text: str) -> tuple[Source, list[Reference], Layers]:
    source = Source.parse(path, text)
    return (
        source,
        references(source, frozenset({"distopt.errors", "distopt.optimizers.base", "distopt.runtime.environment"})),
        read_layers(_DRAWN),
    )


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("distopt/comm/x.py", "import distopt.distribute.values", "comm must not import distribute"),
        ("distopt/comm/x.py", "from distopt.runtime import config", "comm must not import runtime"),
        ("distopt/comm/x.py", "from .. import runtime", "comm must not import distopt"),
        ("distopt/comm/x.py", "from ..optimizers import base\nfrom ..distribute import y", "import distribute"),
        ("distopt/comm/x.py", "def f():\n    from distopt.tasks import digits", "comm must not import tasks"),
        ("distopt/protocol/x.py", "import distopt.optimizers", "protocol must not import optimizers"),
        ("distopt/optimizers/x.py", "import distopt.protocol", "optimizers must not import protocol"),
        ("distopt/tensor.py", "from distopt.aggregation import Sum", "foundation must not import aggregation"),
        ("distopt/tasks/x.py", "from distopt import GradientTape", "tasks must not import distopt"),
        ("distopt/__init__.py", "from distopt.runtime import config", "distopt must not import runtime"),
        ("distopt/runtime/x.py", "import workers.server", "runtime must not import workers"),
        ("distopt/comm/x.py", "__import__('distopt.runtime')", "comm must not import runtime"),
        ("distopt/new/x.py", "import distopt.errors", "new is not in the layers"),
    ],
)
def test_arrow_check_on_a_wrong_import_names_both_ends(path: str, text: str, complaint: str) -> None:
    source, found, layers = _module(path, text)
    complaints = arrows_to_the_left(source, found, layers, typing_only=False)
    assert len(complaints) == 1
    assert complaint in complaints[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("distopt/comm/x.py", "from distopt import errors\nfrom distopt.protocol import wire\nimport numpy as np"),
        ("distopt/comm/zmq/x.py", "from . import y\nfrom .. import communicator\nfrom ...errors import DistoptError"),
        ("distopt/optimizers/x.py", "from distopt.aggregation import Sum"),
        ("distopt/testing/x.py", "from distopt.tasks import digits"),
        ("distopt/__init__.py", "from distopt.distribute import MirroredStrategy"),
        ("distopt/__init__.py", "from distopt.runtime import environment"),
        ("workers/server.py", "from distopt.cli import main"),
    ],
)
def test_arrow_check_on_imports_to_the_right_is_silent(path: str, text: str) -> None:
    source, found, layers = _module(path, text)
    assert arrows_to_the_left(source, found, layers, typing_only=False) == []


def test_arrow_check_under_type_checking_is_reported_separately() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from distopt.distribute import values\n"
    source, found, layers = _module("distopt/comm/x.py", text)
    assert arrows_to_the_left(source, found, layers, typing_only=False) == []
    (complaint,) = arrows_to_the_left(source, found, layers, typing_only=True)
    assert complaint == "distopt/comm/x.py:3: comm must not import distribute"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("distopt/distribute/x.py", "from mpi4py import MPI"),
        ("distopt/comm/x.py", "import importlib\nimportlib.import_module('mpi4py.MPI')"),
        ("distopt/runtime/launch.py", "import zmq"),
        ("distopt/comm/zmq_like.py", "import zmq.asyncio"),
        ("distopt/optimizers/x.py", "import os\nprint(os.environ['HOME'])"),
        ("distopt/optimizers/x.py", "from os import environ as e\nx = e.get('HOME')"),
        ("distopt/comm/x.py", "import os\nos.getenv('X')"),
        ("distopt/comm/x.py", "import sys\nx = sys.argv[1:]"),
        ("distopt/comm/x.py", "import signal"),
        ("distopt/comm/x.py", "import time\nnow = time.time()"),
        ("distopt/comm/x.py", "from time import time"),
        ("distopt/tasks/x.py", "from datetime import datetime\nd = datetime.now()"),
        ("distopt/tasks/x.py", "import datetime as dt\nd = dt.datetime.now()"),
        ("distopt/tasks/x.py", "def f():\n    import torch"),
        ("distopt/runtime/x.py", "import pickle"),
        ("distopt/runtime/x.py", "from joblib import dump"),
        ("distopt/runtime/x.py", "def f(text):\n    return eval(text)"),
        ("distopt/runtime/x.py", "exec('x = 1')"),
    ],
)
def test_home_check_on_a_use_elsewhere_complains(path: str, text: str) -> None:
    source, found, layers = _module(path, text)
    assert out_of_home(source, found, layers) != []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("distopt/comm/mpi.py", "from mpi4py import MPI"),
        ("distopt/comm/zmq/client.py", "import zmq"),
        ("distopt/runtime/serve_server.py", "import zmq"),
        ("distopt/runtime/x.py", "import os, signal, sys, time\nx = os.environ, sys.argv, time.time()"),
        ("distopt/comm/x.py", "import time\nnow = time.monotonic() + time.perf_counter()"),
        ("distopt/tasks/x.py", "class A:\n    def eval(self):\n        return self.model.eval()"),
        ("distopt/tasks/x.py", "import distopt.keras"),
        ("distopt/kernels.py", "exec(compile(source, 'kernel', 'exec'), {})"),
    ],
)
def test_home_check_at_home_is_silent(path: str, text: str) -> None:
    source, found, layers = _module(path, text)
    assert out_of_home(source, found, layers) == []


def test_pickle_check_on_numpy_load_with_pickles_complains() -> None:
    source, _, _ = _module("distopt/data/x.py", "import numpy as np\nnp.load(f, allow_pickle=True)\n")
    assert pickled_arrays(source) == ["distopt/data/x.py:2: allow_pickle must be False"]


@pytest.mark.parametrize("method", ["send", "recv", "bcast", "gather", "allreduce", "irecv"])
def test_mpi_check_on_a_pickling_call_complains(method: str) -> None:
    source, _, _ = _module("distopt/comm/mpi.py", f"def f(comm, x):\n    return comm.{method}(x)\n")
    assert pickling_mpi_calls(source) == [f"distopt/comm/mpi.py:2: {method} pickles; use the buffer call"]


def test_mpi_check_on_buffer_calls_is_silent() -> None:
    source, _, _ = _module("distopt/comm/mpi.py", "comm.Isend(x)\ncomm.Irecv(y)\nnp.add.reduce(x)\n")
    assert pickling_mpi_calls(source) == []


def test_cycle_check_on_siblings_importing_each_other_names_both() -> None:
    assert cycles({"data": {"tasks"}, "tasks": {"data", "foundation"}, "runtime": {"tasks"}}) == [
        "data -> tasks",
        "tasks -> data, foundation",
    ]
