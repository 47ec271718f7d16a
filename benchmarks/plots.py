"""Plots of the measurements, as files; for programs that are given ``--plot FOLDER``. Drawn by matplotlib."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a program be told where plots go."""
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="write plots there; needs distopt[bench]")


def check(folder: Path | None) -> None:
    """End the program, before it has measured anything, if plots are wanted and cannot be drawn."""
    if folder is None:
        return
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit("--plot needs matplotlib; pip install 'distopt[bench]'")
    folder.mkdir(parents=True, exist_ok=True)


def lines(
    file: Path,
    title: str,
    x_title: str,
    y_title: str,
    curves: Mapping[str, Mapping[float, float]],
    *,
    logarithmic: bool,
) -> None:
    """Draw ``curves``, each from x to y, into ``file``; both axes logarithmic, or both from 0."""
    figure, axes = _axes(title)
    for (name, curve), marker in zip(curves.items(), "osv^D*Px+<>" * 3, strict=False):
        axes.plot(list(curve), list(curve.values()), marker=marker, label=name)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_xticks(sorted({x for curve in curves.values() for x in curve}))
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, file)


def bars(
    file: Path, title: str, y_title: str, groups: Sequence[str], heights_of: Mapping[str, Sequence[float]]
) -> None:
    """Draw a bar for each of ``groups`` and each name of ``heights_of``, each with one height a group."""
    figure, axes = _axes(title)
    width = 0.8 / len(heights_of)
    for index, (name, heights) in enumerate(heights_of.items()):
        places = [group - 0.4 + width * (index + 0.5) for group in range(len(groups))]
        drawn = axes.bar(places, heights, width, label=name)
        axes.bar_label(drawn, fmt="%.3g", fontsize=6)
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylabel(y_title)
    if len(heights_of) > 1:
        axes.legend(fontsize=8)
    _save(figure, file)


def _axes(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    return figure, axes


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=120)
    print(f"wrote {file}")
