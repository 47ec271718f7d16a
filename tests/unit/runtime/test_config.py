"""Configuration: what is accepted, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from distopt.errors import ConfigError
from distopt.runtime.config import JobConfig
from distopt.runtime.config_file import (
    differences,
    job_digest,
    load_config,
    override,
    parse_config,
    resolved_toml,
)

SMALLEST = """
name = "d"
[task]
name = "digits"
[data]
global_batch_size = 128
epochs = 3
[optimizer]
name = "SGD"
learning_rate = 0.1
"""


def _refused(*overrides: str, text: str = SMALLEST) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, source="job.toml")
    return str(caught.value)


def test_config_of_the_smallest_file_has_the_documented_defaults() -> None:
    config = parse_config(SMALLEST)
    assert (config.seed, config.task.hidden, config.strategy.replicas) == (0, (256,), 1)
    assert (config.numerics.engine, config.numerics.blas_threads) == ("compiled", 1)
    assert (config.deployment.on, config.deployment.workers, config.deployment.servers) == ("auto", 2, 1)
    assert config.optimizer.momentum is None
    assert config.run.directory == "runs"


def test_config_is_immutable() -> None:
    with pytest.raises(AttributeError):
        parse_config(SMALLEST).seed = 3  # type: ignore[misc]  # the point of the test


def test_config_rejects_positional_arguments_and_unknown_fields() -> None:
    with pytest.raises(TypeError):
        JobConfig("d")  # type: ignore[misc]  # the point of the test
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "d", "x": 1}, JobConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "strategy.replica=4",
            "unknown key strategy.replica; did you mean strategy.replicas? (allowed here: replicas)",
        ),
        (
            "replicas=4",
            "unknown key replicas; did you mean strategy.replicas? (allowed here: aggregation, data, deployment,",
        ),
        ("optimizer.nesterv=true", "unknown key optimizer.nesterv; did you mean optimizer.nesterov?"),
        ("deployment.adress='x'", "unknown key deployment.adress; did you mean deployment.address?"),
        (
            "optimizer.gradient_aggregator=mean",
            "unknown key optimizer.gradient_aggregator; did you mean aggregation.name?",
        ),
        ("qqq.zzz=1", "unknown key qqq (allowed here: aggregation, data,"),
        (
            "optimizer.schedule={name='CosineDecay', decay_step=3}",
            "unknown key optimizer.schedule.decay_step; did you mean optimizer.schedule.decay_steps? "
            "(allowed here: alpha, decay_steps, name)",
        ),
    ],
)
def test_config_with_an_unknown_key_names_it_the_nearest_and_all(override: str, message: str) -> None:
    assert f"job.toml: {message}" in _refused(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.replicas=two", 'strategy.replicas = "two" is refused; allowed: an integer >= 1'),
        ("strategy.replicas=1.5", "strategy.replicas = 1.5 is refused; allowed: an integer >= 1"),
        ("strategy.replicas=true", "strategy.replicas = true is refused; allowed: an integer >= 1"),
        ("strategy=3", "strategy = 3 is refused; allowed: a table"),
        ("task.hidden=3", "task.hidden = 3 is refused; allowed: a list, each item an integer >= 1"),
        ("task.hidden=[8, 'a']", 'task.hidden[1] = "a" is refused; allowed: an integer >= 1'),
        ("seed.x=1", "seed = {x = 1} is refused; allowed: an integer >= 0"),
        ("optimizer.nesterov=1", "optimizer.nesterov = 1 is refused; allowed: true or false"),
        ("optimizer.schedule=3", "optimizer.schedule = 3 is refused; allowed: a table"),
        ("name=3", "name = 3 is refused; allowed: 1 to 64 letters"),
    ],
)
def test_config_with_a_wrong_type_names_key_value_and_type(override: str, message: str) -> None:
    assert f"job.toml: {message}" in _refused(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.replicas=0", "strategy.replicas = 0 is refused; allowed: an integer >= 1"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0 is refused; allowed: a number > 0"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate = inf is refused; allowed: a finite number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate = nan is refused; allowed: a number > 0"),
        ("optimizer.momentum=2", "optimizer.momentum = 2 is refused; allowed: a number >= 0 and <= 1"),
        ("optimizer.name=Adm", 'optimizer.name = "Adm" is refused; did you mean "Adam"?; allowed: "SGD", "Adam", '),
        ("deployment.on=clusters", 'deployment.on = "clusters" is refused; did you mean "cluster"?'),
        ("deployment.address=x", 'deployment.address = "x" is refused; allowed: "tcp://HOST:PORT"'),
        ("deployment.peer_timeout_s=-1", "deployment.peer_timeout_s = -1 is refused; allowed: a number of seconds > 0"),
        ("task.name=digit", 'task.name = "digit" is refused; did you mean "digits"?; allowed: "digits" or "package'),
        (
            "optimizer.schedule.name=Cosine",
            'optimizer.schedule.name = "Cosine" is refused; did you mean "CosineDecay"?',
        ),
        ("run.directory=", 'run.directory = "" is refused; allowed: a string that is not empty'),
        ("name=../x", 'name = "../x" is refused; allowed: 1 to 64 letters'),
    ],
)
def test_config_with_a_value_out_of_range_names_key_value_and_range(override: str, message: str) -> None:
    assert f"job.toml: {message}" in _refused(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["optimizer.clipnorm=1", "optimizer.global_clipnorm=2"],
            "optimizer.clipnorm = 1.0 and optimizer.global_clipnorm = 2.0 exclude each other",
        ),
        (
            ["optimizer.name=Adam", "optimizer.momentum=0.9"],
            'optimizer.name = "Adam" and optimizer.momentum = 0.9 exclude each other: momentum is an argument of SGD',
        ),
        (
            ["optimizer.options={rate=1}"],
            "optimizer.options.rate = 1 is refused; allowed with SGD: ema_momentum, ema_overwrite_frequency, ",
        ),
        (
            ["optimizer.name=Adagrad", "optimizer.options={initial_acumulator_value=1.0}"],
            "optimizer.options.initial_acumulator_value = 1.0 is refused; did you mean initial_accumulator_value?",
        ),
        (
            ["aggregation.name=trimmed_mean", "aggregation.options={trimm=1}"],
            "aggregation.options.trimm = 1 is refused; did you mean trim?; allowed with trimmed_mean: trim",
        ),
        (
            ["aggregation.name=trimmed_mean", "aggregation.options.trim=1.5"],
            "aggregation.options.trim = 1.5 is refused; allowed: an integer",
        ),
        (
            ["aggregation.name=trimmed_mean", "aggregation.options.trim=-1"],
            "aggregation.options = {trim = -1} is refused: trim must be at least 0, but is -1",
        ),
        (
            ["aggregation.name=trimmed_mean", "aggregation.options.trim=4", "strategy.replicas=8"],
            'aggregation = {name = "trimmed_mean", trim = 4} and strategy.replicas = 8 exclude each other: '
            "trim = 4 leaves nothing of 8 replicas",
        ),
        (
            ["aggregation.name=a.b:c", "aggregation.options={trim=1}"],
            'aggregation.name = "a.b:c" and aggregation.options = {trim = 1} exclude each other',
        ),
        (
            ["aggregation.compression={name='top_k', options={ration=0.1}}"],
            "aggregation.compression.options.ration = 0.1 is refused; did you mean ratio?; allowed with top_k: ratio",
        ),
        (
            ["aggregation.compression={name='top_k', options={ratio=2}}"],
            "aggregation.compression.options = {ratio = 2} is refused: ratio must be greater than 0",
        ),
        (
            ["aggregation.compression.name=topk"],
            'aggregation.compression.name = "topk" is refused; did you mean "top_k"?',
        ),
        (
            ["aggregation.name=a.b:c", "aggregation.compression.name=int8"],
            'aggregation.name = "a.b:c" and aggregation.compression.name = "int8" exclude each other',
        ),
        (
            ["aggregation.name=median", "aggregation.compression.name=power_sgd"],
            'aggregation.name = "median" and aggregation.compression.name = "power_sgd" exclude each other: '
            "power_sgd compresses the sum",
        ),
        (
            ["aggregation.local_steps=4"],
            'aggregation.name = "sum" and aggregation.local_steps = 4 exclude each other: local steps average',
        ),
        (
            ["aggregation.name=mean", "aggregation.local_steps=4", "aggregation.compression.name=int8"],
            'aggregation.name = "mean" and aggregation.local_steps = 4 exclude each other: local steps average '
            "variables, and mean of int8 compresses",
        ),
        (["optimizer.amsgrad=true"], 'optimizer.name = "SGD" and optimizer.amsgrad = true exclude each other'),
        (
            ["optimizer.clipvalue=1", "optimizer.gradient_transformers=['a.b:c']"],
            'optimizer.clipvalue = 1.0 and optimizer.gradient_transformers = ["a.b:c"] exclude each other',
        ),
        (
            ["deployment.on=mpi", "deployment.placement=server"],
            'deployment.on = "mpi" and deployment.placement = "server" exclude each other',
        ),
        (
            ["deployment.on=process", "deployment.placement=sharded"],
            'deployment.on = "process" and deployment.placement = "sharded" exclude each other',
        ),
        (
            ["deployment.on=cluster", "deployment.communication.overlap=true"],
            'deployment.on = "cluster" and deployment.communication.overlap = true exclude each other',
        ),
        (
            ["deployment.communication.bytes_per_pack=-1"],
            "deployment.communication.bytes_per_pack = -1 is refused; allowed: an integer >= 0",
        ),
        (
            ["deployment.communication.overlaps=true"],
            "unknown key deployment.communication.overlaps; did you mean deployment.communication.overlap?",
        ),
        (
            ["deployment.heartbeat_interval_s=9"],
            "deployment.heartbeat_interval_s = 9.0 and deployment.peer_timeout_s = 5.0 exclude each other",
        ),
        (
            ["optimizer.schedule={name='PiecewiseConstantDecay', boundaries=[1, 2], values=[0.1]}"],
            "optimizer.schedule.boundaries = [1, 2] and optimizer.schedule.values = [0.1] exclude each other",
        ),
    ],
)
def test_config_with_values_that_exclude_each_other_names_both(overrides: list[str], message: str) -> None:
    assert message in _refused(*overrides)


def test_config_with_descending_boundaries_is_refused() -> None:
    schedule = "optimizer.schedule={name='PiecewiseConstantDecay', boundaries=[2, 1], values=[0.1, 0.2]}"
    assert "optimizer.schedule.boundaries = [2, 1] is refused; allowed: steps in ascending order" in _refused(schedule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing key name; it needs 1 to 64 letters"),
        ('name = "d"\n[task]\nname = "digits"\n[data]\nepochs = 1', "missing key data.global_batch_size"),
        ('seed = 1\nseed = 2\n\nname = "e"', "not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        ("name = 1\nseed =", "not valid TOML: Invalid value (at line 2, the last)"),
    ],
)
def test_config_that_lacks_a_key_or_is_not_toml_says_where(text: str, message: str) -> None:
    assert f"job.toml: {message}" in _refused(text=text)


def test_load_config_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: there is no such configuration file"):
        load_config(tmp_path / "gone.toml")


def test_load_config_of_bytes_that_are_no_text_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"a\.toml: cannot be read"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["strategy.replicas", "=4", "a b=4", "a..b=1", ""])
def test_override_that_is_not_key_and_value_says_the_form(text: str) -> None:
    assert "allowed: KEY=VALUE, for example strategy.replicas=4" in _refused(text)


def test_overrides_are_toml_values_or_bare_strings_and_the_last_wins() -> None:
    config = parse_config(
        SMALLEST,
        [
            "optimizer.name=Adam",
            "strategy.replicas = 4",
            "strategy.replicas=8",
            "task.hidden=[16, 8]",
            "task.options.note=a b",
            "task.options.deep.depth=2",
            "numerics.allow_different_fingerprints=true",
            'name="quoted"',
        ],
    )
    assert config.optimizer.name == "Adam"
    assert config.strategy.replicas == 8
    assert config.task.hidden == (16, 8)
    assert config.task.options == {"note": "a b", "deep": {"depth": 2}}
    assert config.numerics.allow_different_fingerprints
    assert config.name == "quoted"


def test_override_of_a_config_leaves_the_rest() -> None:
    config = parse_config(SMALLEST, ["strategy.replicas=8"])
    changed = override(config, ["deployment.workers=3"])
    assert changed.deployment.workers == 3
    assert override(changed, ["deployment.workers=2"]) == config


def test_resolved_toml_reads_back_to_an_equal_config() -> None:
    config = parse_config(
        SMALLEST,
        [
            "task.options.quote='say \"hi\" \\ é'",
            "task.options.day=2024-05-17",
            "task.options.nested.x=[1.5, {a=1}]",
            "optimizer.schedule={name='CosineDecay', decay_steps=10}",
            "optimizer.gradient_transformers=['a.b:c']",
            "optimizer.momentum=0.9",
            "optimizer.learning_rate=1e-07",
        ],
    )
    text = resolved_toml(config)
    assert parse_config(text) == config
    assert "learning_rate = 1e-07\n" in text
    assert "clipnorm" not in text


def test_job_digest_changes_with_the_mathematics_only() -> None:
    config = parse_config(SMALLEST)
    same = ["name=other", "deployment.on=process", "deployment.workers=5", "numerics.engine=numpy", "run.directory=x"]
    others = ["seed=1", "task.hidden=[8]", "data.epochs=4", "optimizer.momentum=0.9", "strategy.replicas=2"]
    assert {job_digest(override(config, [text])) for text in same} == {job_digest(config)}
    assert len({job_digest(config), *(job_digest(override(config, [text])) for text in others)}) == 1 + len(others)


def test_differences_of_two_jobs_names_the_values_of_both() -> None:
    config = parse_config(SMALLEST)
    other = override(config, ["seed=1", "optimizer.momentum=0.9", "deployment.workers=3"])
    assert differences(config, other) == ["seed: 0, 1", "optimizer.momentum: not set, 0.9"]


def test_optimizer_arguments_are_those_that_were_given() -> None:
    optimizer = parse_config(SMALLEST, ["optimizer.momentum=0.9", "optimizer.clipnorm=1"]).optimizer
    assert optimizer.arguments() == {"momentum": 0.9, "clipnorm": 1.0}
    assert optimizer.schedule_arguments() is None


def test_schedule_arguments_start_from_the_learning_rate() -> None:
    cosine = parse_config(SMALLEST, ["optimizer.schedule={name='CosineDecay', decay_steps=10}"]).optimizer
    assert cosine.schedule_arguments() == (
        "CosineDecay",
        {"initial_learning_rate": 0.1, "decay_steps": 10, "alpha": 0.0},
    )
    steps = "optimizer.schedule={name='PiecewiseConstantDecay', boundaries=[5], values=[0.01]}"
    assert parse_config(SMALLEST, [steps]).optimizer.schedule_arguments() == (
        "PiecewiseConstantDecay",
        {"boundaries": [5], "values": [0.1, 0.01]},
    )
