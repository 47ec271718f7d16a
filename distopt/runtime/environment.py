"""The environment variables that code outside of the runtime asks for.

``distopt/__init__.py`` hands :func:`tf_config` to ``distopt.distribute.cluster_resolver``, which only parses its text,
and :func:`cache_home` to ``distopt.kernels``.
"""

from __future__ import annotations

import os


def tf_config() -> str | None:
    """Return the value of ``TF_CONFIG``, or None where it is not set."""
    return os.environ.get("TF_CONFIG")


def cache_home() -> str | None:
    """Return the value of ``XDG_CACHE_HOME``, or None where it is not set."""
    return os.environ.get("XDG_CACHE_HOME")
