"""What a module imports and touches, and the rules it is held against; no file of the project is named here.

Theory of operation: each file becomes a list of ``Reference`` (what it imports or uses, at which line, for typing only
or not); the rules are functions from a file's references to complaints, so that tests can try them on synthetic
modules as well as on the real ones.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_BUILTINS_WITH_RULES = frozenset({"eval", "exec", "__import__"})
HANDED_OVER = "distopt.runtime.environment"  # what the facade takes from runtime, to give it to those who ask
FACADE = "distopt"  # distopt/__init__.py re-exports the public names; it stands between runtime and what it re-exports


# ---------------------------------------------------------------- the layers, as the document draws them


@dataclass(frozen=True)
class Layers:
    """``order``: layers from left to right, each a tuple of siblings' groups; ``foundation``: module names."""

    order: tuple[tuple[frozenset[str], ...], ...]
    foundation: frozenset[str]

    def unit_of(self, module: str) -> str:
        """The name under which the table knows ``module``: its package, or ``foundation``, ``cli``, ``workers``."""
        parts = module.split(".")
        if parts[0] != "distopt":
            return parts[0]
        if len(parts) == 1:
            return FACADE
        name = "cli" if parts[1] == "__main__" else parts[1]
        return "foundation" if name in self.foundation else name

    def names(self) -> frozenset[str]:
        return frozenset(name for layer in self.order for group in layer for name in group)

    def may_import(self, importer: str, imported: str) -> bool:
        """Whether unit ``importer`` may import unit ``imported``: itself, siblings of its group, all to the right."""
        if importer == imported:
            return True
        if imported == FACADE:  # programs and tests of users are outside; inside, names are imported where they live
            return importer in {"workers", "cli", "runtime"}
        if importer == FACADE:
            return imported not in {"workers", "cli", "runtime"}
        (left, own_group), (right, other_group) = self._place(importer), self._place(imported)
        if left == right:
            return own_group == other_group
        return left < right

    def _place(self, unit: str) -> tuple[int, int]:
        for index, layer in enumerate(self.order):
            for group_index, group in enumerate(layer):
                if unit in group:
                    return index, group_index
        raise KeyError(f"{unit} is not in the layers of docs/architecture.md")


def read_layers(document: str) -> Layers:
    """The table drawn in ``document``: the fenced line with ``->`` and the fenced line ``foundation = ...``."""
    drawing = re.search(r"^```\n(workers, cli -> .*)\n```$", document, re.MULTILINE)
    listing = re.search(r"^```\nfoundation = ((?:[^`]|\n)*?)\n```$", document, re.MULTILINE)
    assert drawing is not None, "docs/architecture.md draws no layers"
    assert listing is not None, "docs/architecture.md lists no foundation modules"
    order = tuple(
        tuple(frozenset(name.strip() for name in group.split(",")) for group in layer.split("|"))
        for layer in drawing.group(1).split("->")
    )
    return Layers(order, frozenset(listing.group(1).split()))


# ---------------------------------------------------------------- what a file refers to


@dataclass(frozen=True)
class Reference:
    """One import or use: ``name`` is the dotted thing, resolved through the file's own imports."""

    line: int
    name: str
    is_import: bool
    typing_only: bool = False


@dataclass(frozen=True)
class Source:
    """A module's dotted name, path as told in complaints, and syntax tree."""

    module: str
    path: str
    tree: ast.Module
    is_package: bool

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        parts = Path(path).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        return cls(".".join(parts[:-1] if is_package else parts), path, ast.parse(text, path), is_package)


def _is_type_checking(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING") or (
        isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"
    )


def _walk(node: ast.AST, typing_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below ``node``, with whether it stands under ``if TYPE_CHECKING:``."""
    yield node, typing_only
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        for child in node.body:
            yield from _walk(child, True)
        for child in node.orelse:
            yield from _walk(child, typing_only)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, typing_only)


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.module.split(".")
    package = package if source.is_package else package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


def references(source: Source, modules: frozenset[str] = frozenset()) -> list[Reference]:
    """Imports (wherever they stand, dynamic ones with a literal name too) and dotted uses, in order of lines.

    ``from a import b`` is an import of module ``a.b`` if that is one of ``modules`` or if ``a`` is not ours, of ``a``
    otherwise. Uses are told by what the file's imports make of them: after ``from os import environ as e``, ``e`` is
    ``os.environ``.
    """
    found: list[Reference] = []
    bound: dict[str, str] = {}
    nodes = list(_walk(source.tree))
    for node, typing_only in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Reference(node.lineno, alias.name, True, typing_only))
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(source, node)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                ours = base.split(".")[0] in {"distopt", "workers"}
                found.append(Reference(node.lineno, full if full in modules or not ours else base, True, typing_only))
                bound[alias.asname or alias.name] = full
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called, target = _dotted(node.func), node.args[0].value
            if called in {"__import__", "import_module", "importlib.import_module"} and isinstance(target, str):
                found.append(Reference(node.lineno, target, True, typing_only))
    inner = {id(node.value) for node, _ in nodes if isinstance(node, ast.Attribute)}
    for node, typing_only in nodes:
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            dotted = _dotted(node)
            head, _, rest = (dotted or "").partition(".")
            if head in bound or head in _BUILTINS_WITH_RULES:  # anything else is a local name that means nothing here
                name = bound.get(head, head) + (f".{rest}" if rest else "")
                found.append(Reference(node.lineno, name, False, typing_only))
    return sorted(found, key=lambda reference: reference.line)


# ---------------------------------------------------------------- the rules


def under(name: str, roots: Iterable[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def arrows_to_the_left(source: Source, found: list[Reference], layers: Layers, *, typing_only: bool) -> list[str]:
    """Imports of our own modules against the layers; those under ``TYPE_CHECKING`` are asked for separately."""
    importer = layers.unit_of(source.module)
    complaints = []
    for reference in found:
        if not reference.is_import or reference.typing_only is not typing_only:
            continue
        if reference.name.split(".")[0] not in {"distopt", "workers"}:
            continue
        imported = layers.unit_of(reference.name)
        try:
            allowed = layers.may_import(importer, imported)
        except KeyError as error:
            complaints.append(f"{source.path}:{reference.line}: {error.args[0]}")
            continue
        if not allowed and not (importer == FACADE and reference.name == HANDED_OVER):
            complaints.append(f"{source.path}:{reference.line}: {importer} must not import {imported}")
    return complaints


_NEVER = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
_FRAMEWORKS = ("torch", "jax", "jaxlib", "flax", "tensorflow", "keras")
_ENVIRONMENT_AND_CLOCK = (
    "os.environ",
    "os.environb",
    "os.getenv",
    "os.putenv",
    "sys.argv",
    "signal",
    "time.time",
    "time.time_ns",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
)


def out_of_home(source: Source, found: list[Reference], layers: Layers) -> list[str]:
    """What has one home and is used elsewhere; what has none and is used at all."""
    unit = layers.unit_of(source.module)
    serves = source.module.startswith("distopt.runtime.serve")
    homes: list[tuple[tuple[str, ...], bool, str]] = [
        (("mpi4py",), source.module.startswith("distopt.comm.mpi"), "mpi4py lives in distopt/comm/mpi*.py"),
        (
            ("zmq",),
            under(source.module, ["distopt.comm.zmq"]) or serves,
            "zmq lives in distopt/comm/zmq and runtime/serve*",
        ),
        (_FRAMEWORKS, unit == "interop", "other frameworks live in distopt/interop"),
        (
            _ENVIRONMENT_AND_CLOCK,
            unit in {"runtime", "cli", "workers"},
            "environment, argv, signals and the wall clock live in distopt/runtime",
        ),
        (_NEVER, False, "nothing executable crosses the wire or lies in a file"),
        (("eval", "builtins.eval"), False, "no eval"),
        (
            ("exec", "builtins.exec"),
            source.module == "distopt.kernels",
            "exec lives in distopt/kernels.py, for source that is generated there",
        ),
    ]
    return sorted(
        {
            f"{source.path}:{reference.line}: {reference.name}: {reason}"
            for reference in found
            for names, at_home, reason in homes
            if not at_home and under(reference.name, names)
        }
    )


def pickled_arrays(source: Source) -> list[str]:
    """``allow_pickle=`` anything but the literal False."""
    return [
        f"{source.path}:{node.value.lineno}: allow_pickle must be False"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]


_PICKLING_CALL = re.compile(
    r"i?([bs]?send|m?recv|sendrecv|bcast|gather|allgather|scatter|alltoall|reduce|allreduce|scan|exscan)"
)


def pickling_mpi_calls(source: Source) -> list[str]:
    """Lower-case methods of an MPI communicator: mpi4py pickles what they are given."""
    complaints = []
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and _PICKLING_CALL.fullmatch(node.func.attr)
        ):
            receiver = _dotted(node.func.value) or ""
            if receiver.split(".")[0] not in {"np", "functools"} and receiver != "self":
                complaints.append(f"{source.path}:{node.lineno}: {node.func.attr} pickles; use the buffer call")
    return complaints


def cycles(edges: dict[str, set[str]]) -> list[str]:
    """The units that reach themselves, each named with what it imports on the way."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(edges.get(start, ()))
        while todo:
            unit = todo.pop()
            if unit not in seen:
                seen.add(unit)
                todo.extend(edges.get(unit, ()))
        return seen

    return [f"{unit} -> {', '.join(sorted(edges[unit]))}" for unit in sorted(edges) if unit in reachable(unit)]
