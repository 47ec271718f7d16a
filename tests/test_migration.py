"""The examples of docs/migration.md run, from top to bottom, a section at a time, with distopt in TensorFlow's place.

The reader sees the fenced blocks; what an example takes for granted, and what it must lead to, stands in HTML comments
that begin with ``set-up`` and ``check``. A block with prompts is held against the output that it shows.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import distopt

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "migration.md"


class Block(NamedTuple):
    """``kind`` is ``python``, ``set-up`` or ``check``; ``line`` is where the code begins."""

    kind: str
    code: str
    line: int


def sections(text: str) -> dict[str, list[Block]]:
    """Return the blocks of each section of ``text``, by its heading."""
    found: dict[str, list[Block]] = {}
    headings = [
        (match.start(), match.group(1)) for match in re.finditer(r"^#+ (.+)$", _without_code(text), re.MULTILINE)
    ]
    pattern = re.compile(r"^```(python)\n(.*?)^```$|^<!-- (set-up|check)\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
    for match in pattern.finditer(text):
        heading = [title for start, title in headings if start < match.start()][-1]
        kind, code = match.group(1) or match.group(3), match.group(2) or match.group(4)
        found.setdefault(heading, []).append(Block(kind, code, text.count("\n", 0, match.start()) + 2))
    return found


def _without_code(text: str) -> str:
    """Return ``text`` with code blanked out, at the same places: a comment in code is no heading."""
    return re.sub(r"^```.*?^```$|^<!--.*?-->$", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.M | re.S)


def run(block: Block, names: dict[str, Any]) -> None:
    """Run one block in the namespace ``names``; failures point to the line of the document."""
    if block.code.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(block.code, names, DOCUMENT.name, str(DOCUMENT), block.line - 1)
        test.globs = names
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=options)
        runner.run(test, out=report.append, clear_globs=False)
        assert not runner.failures, "".join(report)
    else:
        exec(compile("\n" * (block.line - 1) + block.code, str(DOCUMENT), "exec"), names)


SECTIONS = sections(DOCUMENT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("heading", SECTIONS)
def test_section_of_the_migration_page_runs(heading: str) -> None:
    names: dict[str, Any] = {"tf": distopt, "np": np, "__name__": "__main__"}
    distopt.random.set_seed(0)
    for block in SECTIONS[heading]:
        run(block, names)


def test_every_fenced_block_of_the_page_is_one_that_runs() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    fences = len(re.findall(r"^```", text, re.MULTILINE))
    run_ones = sum(block.kind == "python" for blocks in SECTIONS.values() for block in blocks)
    assert fences == 2 * run_ones
    assert run_ones > 30


def test_a_block_whose_output_differs_fails() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        run(Block("python", ">>> 1 + 1\n3\n", 1), {})
