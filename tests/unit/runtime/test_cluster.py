"""Where a job runs, by what started it."""

from __future__ import annotations

import pytest

from distopt.errors import ConfigError
from distopt.runtime.cluster import choose_deployment, mpi_rank_and_size
from distopt.runtime.config import JobConfig
from distopt.runtime.config_file import parse_config

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "2"}


def _config(*overrides: str) -> JobConfig:
    text = """
        name = "d"
        task = {name = "digits"}
        data = {global_batch_size = 8, epochs = 1}
        optimizer = {name = "SGD", learning_rate = 0.1}
    """
    return parse_config(text, overrides)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (OPEN_MPI, (2, 4)),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, (0, 3)),
        ({"PMIX_RANK": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, None),
        ({"PMIX_RANK": "1"}, None),
        ({"PMI_RANK": "", "PMI_SIZE": "x"}, None),
    ],
)
def test_mpi_rank_and_size_of_each_launcher(environ: dict[str, str], expected: tuple[int, int] | None) -> None:
    assert mpi_rank_and_size(environ) == expected


@pytest.mark.parametrize(
    ("on", "environ", "expected"),
    [
        ("auto", {}, "cluster"),
        ("auto", OPEN_MPI, "mpi"),
        ("mpi", {}, "mpi"),
        ("mpi", OPEN_MPI, "mpi"),
        ("process", {}, "process"),
        ("cluster", {}, "cluster"),
        ("cluster", {"PMI_RANK": "0", "PMI_SIZE": "1"}, "cluster"),
    ],
)
def test_deployment_follows_the_configuration_then_the_launcher(
    on: str, environ: dict[str, str], expected: str
) -> None:
    assert choose_deployment(_config(f"deployment.on={on}"), environ) == expected


@pytest.mark.parametrize("on", ["process", "cluster"])
def test_deployment_of_one_process_or_cluster_in_every_rank_is_refused(on: str) -> None:
    message = f'deployment.on = "{on}" and an MPI launcher of 4 ranks exclude each other'
    with pytest.raises(ConfigError, match=message):
        choose_deployment(_config(f"deployment.on={on}"), OPEN_MPI)


def test_deployment_with_servers_under_an_mpi_launcher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'placement = "server" and an MPI launcher exclude each other'):
        choose_deployment(_config("deployment.placement=server"), OPEN_MPI)


def test_overlap_without_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'overlap = true is for the ranks of an MPI launcher, not for a "cluster"'):
        choose_deployment(_config("deployment.communication.overlap=true"), {})
    assert choose_deployment(_config("deployment.communication.overlap=true"), OPEN_MPI) == "mpi"


def test_placement_sharded_without_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'placement = "sharded" needs the ranks of an MPI launcher'):
        choose_deployment(_config("deployment.placement=sharded"), {})
