"""Which release this is; other processes of a job must run the same one."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
