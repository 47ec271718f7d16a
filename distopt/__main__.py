"""`python -m distopt` is the `distopt` command."""

from __future__ import annotations

from distopt.cli import main

if __name__ == "__main__":
    main()
