"""What a job makes of its configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distopt.aggregation import Mean
from distopt.errors import ConfigError
from distopt.runtime.config import OPTIMIZERS
from distopt.runtime.config_file import load_config
from distopt.runtime.job import build_job, manifest

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "digits.toml"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_built_in_optimizer_can_be_named_in_a_job(name: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    text = CONFIG.read_text()
    path.write_text(
        re.sub(r"(?sm)^\[optimizer\].*?\n\n", f'[optimizer]\nname = "{name}"\nlearning_rate = 0.25\n\n', text)
    )
    optimizer = build_job(load_config(path, ("optimizer.options={ema_momentum=0.5,use_ema=true}",))).optimizer
    assert type(optimizer).__name__ == name
    assert float(optimizer.learning_rate.numpy()) == 0.25
    assert optimizer.ema_momentum == 0.5


def test_an_optimizer_of_tensorflow_1_can_be_named_in_a_job() -> None:
    chosen = ("optimizer.name=distopt.compat.v1.train:MomentumOptimizer", "optimizer.options={use_nesterov=true}")
    job = build_job(load_config(CONFIG, (*chosen, "aggregation.name=mean")))
    assert job.optimizer.get_slot_names() == ["momentum"]
    assert isinstance(job.optimizer.gradient_aggregator, Mean)
    assert "use_nesterov = true" in manifest(job).job
    transformers = 'optimizer.gradient_transformers=["tests.hooks:unit_length_before_sum"]'
    for refused in ("optimizer.clipnorm=1.0", transformers):
        with pytest.raises(ConfigError, match=r"MomentumOptimizer.*unexpected keyword"):
            build_job(load_config(CONFIG, (*chosen, refused)))


def test_job_that_a_process_makes_again_is_the_same_as_that_of_others() -> None:
    config = load_config(CONFIG, ("optimizer={name='Lamb', learning_rate=0.01}",))
    assert manifest(build_job(config)) == manifest(build_job(config))
