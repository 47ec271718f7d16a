"""``tf.function``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

_Function = TypeVar("_Function", bound=Callable[..., Any])


@overload
def function(func: _Function, **options: Any) -> _Function: ...
@overload
def function(func: None = None, **options: Any) -> Callable[[_Function], _Function]: ...
def function(func: Any = None, **options: Any) -> Any:
    """Return ``func`` itself, or a decorator that does: everything runs eagerly.

    ``input_signature``, ``jit_compile``, ``reduce_retracing`` and the other options of TensorFlow have no effect. What
    tracing would change is not imitated: Python code runs at every call, and retracing does not exist.

    Raises: TypeError for an option that TensorFlow does not have.

    >>> @function(input_signature=None)
    ... def double(x):
    ...     return 2 * x
    >>> double(3)
    6
    """
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise TypeError(f"function takes no option {unknown[0]}; known are {', '.join(sorted(_OPTIONS))}")
    return func if func is not None else lambda wrapped: wrapped


_OPTIONS = frozenset(
    {
        "autograph",
        "experimental_attributes",
        "experimental_autograph_options",
        "experimental_compile",
        "experimental_follow_type_hints",
        "experimental_implements",
        "experimental_relax_shapes",
        "input_signature",
        "jit_compile",
        "reduce_retracing",
    }
)
