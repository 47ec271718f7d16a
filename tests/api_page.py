"""``docs/api.md``: which names of TensorFlow there are, and how they differ; ``python -m tests.api_page`` renews it.

The names come from the code, and from a list of those that TensorFlow has; what differs is written in the page's tables
by hand, and kept when it is renewed.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import textwrap
from pathlib import Path

from tests.public_names import offered, public_modules

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
REFERENCE: dict[str, list[str]] = json.loads((Path(__file__).parent / "reference_names.json").read_text("utf-8"))
"""By module, after ``tf.``: the names that TensorFlow 2.21 or tf_keras 2.21 has there."""

_ALIASES = {"losses": "keras.losses", "initializers": "keras.initializers", "ops": "math"}
"""Where the reference's names of a module of ours are, if not under the same name."""

Differences = dict[tuple[str, str], str]

_INTRODUCTION = """\
# The surface

The names of TensorFlow that distopt has, module by module: `import distopt as tf` finds them where TensorFlow has them.
Names that do the same as TensorFlow's are listed first, then those that differ, and how; last, names that only distopt
has. Some differences are not repeated. A dtype is a `numpy.dtype`, a shape is a tuple, and there are no devices.
Arguments about tracing, placement on devices or the name of an operation are taken and have no effect. Operands of
different dtypes are promoted by NumPy's rules, where TensorFlow refuses them, or casts an array to the tensor's dtype.
What TensorFlow reports by errors of its own is a Python error or one of `tf.errors`.

Shapes, dtypes, units, errors and sources of each are in its docstring (`help(tf.nn.conv2d)`). A name that is absent
raises an error that says what to use instead. [migration.md](migration.md) shows the names at work.

The lists are checked against the code by the tests; `python -m tests.api_page` renews them and keeps what is written in
the tables.
"""


def render(differences: Differences) -> str:
    """Return the page with these differences, by module (after ``distopt.``) and name."""
    parts = [_INTRODUCTION]
    for module_name in public_modules():
        prefix = module_name.partition(".")[2]
        names = sorted(offered(importlib.import_module(module_name)), key=lambda name: (name.lower(), name))
        theirs = set(REFERENCE.get(_ALIASES.get(prefix, prefix), ())) | set(REFERENCE.get(prefix, ()))
        differing = [name for name in names if (prefix, name) in differences]
        same = [name for name in names if name in theirs and name not in differing]
        own = [name for name in names if name not in theirs and name not in differing]
        parts.append(f"## `tf{'.' if prefix else ''}{prefix}`\n")
        if same:
            parts.append(_list("As in TensorFlow: ", same))
        if differing:
            rows = [f"| `{name}` | {differences[prefix, name]} |" for name in differing]
            parts.append("\n".join(["| differs | in |", "|---|---|", *rows]) + "\n")
        if own:
            parts.append(_list("Only here: ", own))
    return "\n".join(parts)


def parse(text: str) -> Differences:
    """Return the differences in the tables of the page."""
    found: Differences = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        prefix = re.match(r"`tf\.?([\w.]*)`", section).group(1)  # type: ignore[union-attr]  # render writes it so
        for name, difference in re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE):
            found[prefix, name] = difference
    return found


def _list(title: str, names: list[str]) -> str:
    text = title + ", ".join(f"`{name}`" for name in names) + "."
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(parse(PAGE.read_text("utf-8") if PAGE.exists() else "")), "utf-8")
    sys.stdout.write(f"{PAGE}\n")
