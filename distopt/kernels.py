"""Compiled kernels: generated source, kept in a private directory of the user.

Theory of operation. A kernel is a module generated from the source of a pure function: that function, compiled, and
one in-place loop that calls it. The module is written to the cache directory under a name that holds the SHA-256 of
all that decides its machine code (its text, the Numba, llvmlite and Python versions, the CPU and its features), and
Numba keeps the machine code beside it. A name is never written with other contents, so a stale kernel cannot be
served. A file lock makes processes that need a kernel at once wait for the first one: that compiles, the others load.
Processes that need different kernels seldom share one of the locks, so they compile side by side.

The files are executed when they are loaded. They are trusted because the directory belongs to the user and is closed
to others; a directory that is not so, or cannot be written, is not used: kernels are then compiled in memory, with
one warning.

Numba is imported here, on first use, because the import takes longer than many programs run.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import os
import platform
import stat
import sys
import tempfile
import textwrap
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # a platform without it: Numba's own writes are atomic, so processes only compile more than once
    fcntl = None  # type: ignore[assignment]

LOCK_ATTEMPTS = 1200
LOCK_INTERVAL_S = 0.05


class UnprintableFunctionError(ValueError):
    """A step function whose source cannot stand alone: a closure, a lambda, or one typed at a prompt."""


CALLED_BY_KERNELS = '@njit(error_model="numpy", nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)'
"""Decorates a function of a generated module that only compiled code calls. What would let Python or C call it as well
takes a quarter of the time of a compilation."""
INLINED = CALLED_BY_KERNELS.replace("nogil=True", "nogil=True, forceinline=True")
"""Decorates one that becomes a part of what calls it."""

_substitutes: dict[Callable[..., Any], types.FunctionType] = {}
_directory: list[Path | None] = []
_cache_home: list[Callable[[], str | None]] = []
loops_compiled = True
"""Whether operations run their loops compiled; :func:`use_compiled_loops` decides."""
_loading = threading.Lock()
_parsing = threading.Lock()
_warned: list[str] = []


def set_cache_directory(directory: Path | None) -> None:
    """Keep compiled kernels in ``directory`` from now on; ``None``: only in memory."""
    _directory[:] = [directory]
    _warned.clear()


def find_cache_home_with(reader: Callable[[], str | None]) -> None:
    """Set how the text of ``XDG_CACHE_HOME`` is found; the package's entry point does."""
    _cache_home[:] = [reader]


def cache_directory() -> Path | None:
    """Return where compiled kernels are kept; unless set, ``distopt/kernels`` in the user's cache home.

    That is ``XDG_CACHE_HOME``, or ``~/.cache`` where it is not set, or not absolute.

    Source: XDG Base Directory Specification.
    """
    if not _directory:
        home = Path((_cache_home[0]() if _cache_home else None) or "")
        try:
            _directory[:] = [(home if home.is_absolute() else Path.home() / ".cache") / "distopt" / "kernels"]
        except RuntimeError:  # a user without a home
            _directory[:] = [None]
    return _directory[0]


def use_compiled_loops(use: bool) -> None:
    """Run the loops of operations (:mod:`distopt.ops.loops`) compiled, or as NumPy calls that give the same bits."""
    global loops_compiled
    loops_compiled = use


def compile_as(function: Callable[..., Any], substitute: Callable[..., Any]) -> None:
    """In compiled code, put ``substitute``, a plain function of single elements, where ``function`` is called.

    For what is fast on arrays and slow on elements; both must give the same bits.
    """
    assert isinstance(substitute, types.FunctionType)
    _substitutes[function] = substitute


def functions_source(
    step: Callable[..., Any], transform: Callable[[ast.FunctionDef], ast.FunctionDef] | None = None
) -> str:
    """Return source that defines ``step``, compiled, and every function that it calls, each changed by ``transform``.

    Raises: UnprintableFunctionError if it is no plain module-level function, or refers to a global that is neither such
    a function nor NumPy as ``np``, or its file has been edited since it was imported.
    """
    texts: dict[Callable[..., Any], str] = {}
    _collect_sources(step, texts, transform or _unchanged)
    if len({function.__name__ for function in texts}) < len(texts):
        raise UnprintableFunctionError(f"{step.__name__} calls two functions of one name")
    return "\n\n".join(texts.values())


def _unchanged(function: ast.FunctionDef) -> ast.FunctionDef:
    return function


def _collect_sources(
    function: Any, texts: dict[Callable[..., Any], str], transform: Callable[[ast.FunctionDef], ast.FunctionDef]
) -> None:
    if (
        not isinstance(function, types.FunctionType)
        or function.__closure__
        or function.__qualname__ != function.__name__
    ):
        raise UnprintableFunctionError(f"{function!r} is not a plain function of a module")
    if function.__name__ == "<lambda>":
        raise UnprintableFunctionError("a lambda has no source of its own")
    if function in texts:
        return
    called, own_name = function, function.__name__
    function = _substitutes.get(function, function)
    for name in function.__code__.co_names:
        used = function.__globals__.get(name)
        if used is None or used is np:
            continue
        if name not in function.__globals__ or used.__class__ is not types.FunctionType or used.__name__ != name:
            raise UnprintableFunctionError(f"{function.__name__} refers to {name!r}, which is not a plain function")
        _collect_sources(used, texts, transform)
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise UnprintableFunctionError(f"{function.__name__} has no source") from error
    if not source.startswith("def "):
        raise UnprintableFunctionError(f"{function.__name__} is decorated")
    if not _is_unedited(function):
        raise UnprintableFunctionError(f"the file of {function.__name__} has been edited since it was imported")
    # Annotations may name anything, so they are not evaluated.
    texts[called] = f"{INLINED}\n{ast.unparse(transform(_bare(source, own_name)))}"


def _is_unedited(function: types.FunctionType) -> bool:
    """Return whether the file of ``function``, as it is now, defines that very function."""
    lines, _ = inspect.findsource(function)
    try:
        # The whole file: how an attribute is looked up depends on whether the file imports the name before it.
        compiled = compile("".join(lines), function.__code__.co_filename, "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return function.__code__ in compiled.co_consts


def parse(source: str) -> ast.Module:
    """Return ``ast.parse(source)``, in one thread at a time: CPython counts the depth for all threads together."""
    with _parsing:
        return ast.parse(source)


def _bare(source: str, name: str) -> ast.FunctionDef:
    """Return the function that ``source`` defines under ``name``, without docstring and annotations."""
    definition = parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.name = name
    definition.returns = None
    for argument in [*definition.args.posonlyargs, *definition.args.args]:
        argument.annotation = None
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:] or [ast.Pass()]
    return definition


def compiled_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` compiled as it runs, with the functions that it calls: for one whose source cannot be had."""
    compiled: Callable[..., Any] = _compiled_function(function, {})
    return compiled


def _compiled_function(function: Any, done: dict[Any, Any]) -> Any:
    import numba

    if function not in done:
        own = _substitutes.get(function, function)
        names = dict(own.__globals__)
        for name in own.__code__.co_names:
            if type(names.get(name)) is types.FunctionType:
                names[name] = _compiled_function(names[name], done)
        cells = tuple(
            types.CellType(_compiled_function(value, done) if type(value) is types.FunctionType else value)
            for value in (cell.cell_contents for cell in own.__closure__ or ())
        )
        twin = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, cells)
        done[function] = numba.njit(error_model="numpy", nogil=True, forceinline=True)(twin)
    return done[function]


def compiled(*signatures: Any, cache: bool) -> Callable[[Any], Any]:
    """Decorate a function of a generated module: it is compiled for ``signatures``, and for nothing else.

    With ``cache``, machine code that is kept beside the module is loaded without what only a compilation needs: the
    declarations of all that Numba can compile, which take several times as long as the rest.
    """
    import numba
    from numba.core import caching

    def decorate(function: Any) -> Any:
        njit: Any = numba.njit  # whose types leave out the last of these
        kernel = njit(error_model="numpy", nogil=True, no_cfunc_wrapper=True)(function)
        if cache:
            kept: Any = caching.FunctionCache(function)  # type: ignore[no-untyped-call, unused-ignore]
            kept.load_overload = functools.partial(_load_machine_code, kept)
            kernel._cache = kept
        for signature in signatures:
            kernel.compile(signature)
        kernel.disable_compile()
        return kernel

    return decorate


def entry_point(kernel: Any) -> Callable[..., Any]:
    """Return what ``kernel``, compiled for one signature, comes to, without the search for one that fits.

    It takes half the time to call, and trusts the caller: arrays must have the dtype, the order and the writability of
    the signature. Numbers of axes and bytes of an element are checked still.
    """
    (signature,) = kernel.signatures
    found: Callable[..., Any] = kernel.get_overload(signature)
    return found


def _load_machine_code(kept: Any, signature: Any, target: Any) -> Any:
    """Return what Numba's cache ``kept`` has for ``signature``, or None, as its own method but for one thing.

    That refreshes ``target``, which imports and installs the declarations. Loaded code needs the runtime alone.
    """
    from numba.core.runtime import nrt

    nrt.rtsys.initialize(target)
    with kept._guard_against_spurious_io_errors():
        return kept._load_overload(signature, target)


def has_processor_feature(name: str) -> bool:
    """Return whether the processor has the feature that LLVM calls ``name``.

    >>> has_processor_feature("no such thing")
    False
    """
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get(name, False))


def load(source: Callable[[bool], str]) -> Callable[..., None]:
    """Return the function ``kernel`` of the module whose text is ``source(cache)``, from the directory if it is there.

    ``cache`` says whether Numba is to keep the machine code beside the module.
    """
    with _loading:
        directory = cache_directory()
        if directory is not None:
            try:
                _make_private(directory)
                return _load_from(directory, source(True))
            except OSError as error:
                _warn_once(f"compiled kernels are kept in memory only, because {directory} cannot be used: {error}")
        return execute(source(False))


def _load_from(directory: Path, source: str) -> Callable[..., None]:
    key = _key(source)
    name = f"kernel_{key}"
    path = directory / f"{name}.py"
    with _locked(directory / f"lock-{key[0]}"):
        if not path.exists():
            _write_atomically(path, source)
        elif path.read_text(encoding="utf-8") != source:
            raise OSError(f"{path.name} does not hold what its name says; remove it")
        spec = importlib.util.spec_from_file_location(f"distopt_{name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        _without_bytecode(spec.loader, module)
    kernel: Callable[..., None] = module.kernel
    return kernel


def _without_bytecode(loader: Any, module: types.ModuleType) -> None:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before


def execute(source: str, names: Mapping[str, Any] | None = None) -> Callable[..., None]:
    """Return ``kernel`` of a generated module that is kept in memory; ``names`` are what it may refer to."""
    namespace: dict[str, Any] = {"__name__": f"distopt_kernel_{hashlib.sha256(source.encode()).hexdigest()[:16]}"}
    namespace |= names or {}
    exec(compile(source, "<distopt kernel>", "exec"), namespace)
    kernel: Callable[..., None] = namespace["kernel"]
    return kernel


def _key(source: str) -> str:
    """Return the digest of everything that decides the machine code of ``source``."""
    import llvmlite
    import llvmlite.binding
    import numba

    decisive = (
        source,
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
        platform.python_version(),
        platform.machine(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
    )
    return hashlib.sha256("\0".join(decisive).encode()).hexdigest()


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "getuid"):
        return
    status = directory.stat()
    if status.st_uid != os.getuid():
        raise PermissionError("it belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError("others may enter it; its mode must be 0700")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError("it is not writable")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    with path.open("a") as file:
        for attempt in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == LOCK_ATTEMPTS - 1:
                    raise
                time.sleep(LOCK_INTERVAL_S)
        yield  # closing the file gives the lock back, also when the process dies


def _write_atomically(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.append(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
