"""The example of docs/tensorflow1.md."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_code_of_the_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "tensorflow1.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/tensorflow1.md", "exec"), {})
