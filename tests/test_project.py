"""Facts about the project's own files that would otherwise rot unseen."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import distopt
from distopt.runtime.config_file import load_config, parse_config, resolved_toml

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
PROGRAMS = sorted(path for path in (ROOT / "workers").glob("*.py") if path.name != "__init__.py")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _package_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match is not None, requirement
    return match.group()


def test_version_of_the_package_is_that_of_the_project() -> None:
    assert distopt.__version__ == PROJECT["version"]


def test_extra_test_brings_everything_that_the_tests_need() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"mpi", "digits", "test"} <= set(extras)
    assert "distopt[mpi,digits]" in extras["test"]


def test_console_command_names_a_function_that_exists() -> None:
    module, _, function = PROJECT["scripts"]["distopt"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_folder_with_modules_is_a_package_and_so_is_shipped() -> None:
    folders = {path.parent for top in ("distopt", "workers") for path in (ROOT / top).rglob("*.py")}
    assert sorted(str(folder) for folder in folders if not (folder / "__init__.py").exists()) == []


def test_oldest_versions_to_test_with_are_those_that_may_be_installed() -> None:
    extras = PROJECT["optional-dependencies"]
    required = [
        line for group in (PROJECT["dependencies"], *(extras[e] for e in ("mpi", "digits", "test"))) for line in group
    ]
    bounds = dict(line.split(">=") for line in required if ">=" in line)
    oldest = dict(line.split("==") for line in _text("tests/oldest.txt").splitlines() if "==" in line)
    assert sorted(oldest) == sorted(bounds.keys() - {"mypy", "ruff"})  # which other versions find other faults
    for name, version in oldest.items():
        numbers = bounds[name].split(".")
        assert version.split(".") == numbers + ["0"] * (version.count(".") + 1 - len(numbers)), name


def test_every_dependency_has_its_sentence_of_reason_and_no_other_has() -> None:
    extras = PROJECT["optional-dependencies"].values()
    required = {_package_name(line) for group in (PROJECT["dependencies"], *extras) for line in group} - {"distopt"}
    _, _, table = _text("CONTRIBUTING.md").partition("## Dependencies")
    rows = re.findall(r"^\| (.+?) \| .{20,} \|$", table.partition("\n## ")[0], re.MULTILINE)
    explained = {name.strip() for row in rows for name in row.partition(" (extra")[0].split(",")}
    assert explained == required


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_named_job_loads_and_survives_being_written_out(path: Path) -> None:
    config = load_config(path)
    assert parse_config(resolved_toml(config)) == config


def test_named_jobs_cover_the_three_deployments() -> None:
    assert {"process", "mpi", "cluster"} <= {load_config(path).deployment.on for path in CONFIGS}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_program_has_fewer_than_25_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 25


def test_readme_first_commands_run_the_main_job_and_then_the_tests() -> None:
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", _text("README.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    assert "distopt train configs/digits.toml" in blocks[0]
    assert "python -m pytest" in blocks[1]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_document_links_to_files_that_exist(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "docker-compose.yml", ".ci/run", "docs/operations.md"])
def test_named_jobs_that_files_mention_exist(name: str) -> None:
    mentioned = set(re.findall(r"\bconfigs/[\w-]+\.toml", _text(name)))
    assert sorted(job for job in mentioned if not (ROOT / job).exists()) == []


def test_changelog_tells_of_this_version() -> None:
    assert re.search(rf"^## \[?(Unreleased\]?|{re.escape(distopt.__version__)})", _text("CHANGELOG.md"), re.MULTILINE)
    assert distopt.__version__ in _text("CHANGELOG.md")


def test_image_is_built_from_files_that_exist() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", _text("Dockerfile"), re.MULTILINE)
    assert copied
    assert [name for line in copied for name in line.split() if not (ROOT / name).exists()] == []
    kept_out = [name for line in copied for name in line.split() if f"!{name}\n" not in _text(".dockerignore")]
    assert kept_out == []
