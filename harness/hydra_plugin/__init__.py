"""The Hydra launcher that takes a whole sweep at once.

Imported as `hydra_plugins.sievebench`, the only namespace Hydra 1.3 accepts plug-ins from.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class LauncherSchema:
    """Nothing to set here: how a sweep runs is in the run's own configuration."""

    _target_: str = "hydra_plugins.sievebench.SievebenchLauncher"


class SievebenchLauncher(Launcher):
    """Plans all jobs of a sweep together, so that what they share is done once."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives; the task function is for launchers that run jobs one by one."""
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells of all jobs and return a status for each."""
        from harness.main import run_cells

        assert self.context is not None
        assert self.config is not None
        configs = [
            self._compose(list(overrides), initial_job_idx + i) for i, overrides in enumerate(job_overrides)
        ]
        command = shlex.join(["python", "-m", "harness", *sys.argv[1:]])
        errors = run_cells(configs, command=command, baselines=True)
        return [
            _returned(overrides, cfg, error)
            for overrides, cfg, error in zip(job_overrides, configs, errors, strict=True)
        ]

    def _compose(self, overrides: list[str], number: int) -> DictConfig:
        assert self.context is not None
        assert self.config is not None
        cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.num = number
        return cfg


class SweepJobReturn(JobReturn):
    """A job's result whose error is raised as it is; Hydra's own would announce it in its words first."""

    @property
    def return_value(self) -> Any:
        """The job's value; raises the error of a failed job."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def _returned(overrides: Sequence[str], cfg: DictConfig, error: Exception | None) -> JobReturn:
    status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
    result: Any = 0 if error is None else error
    return SweepJobReturn(overrides=overrides, cfg=cfg, status=status, _return_value=result)


def register() -> None:
    """Make the launcher known to Hydra in this process (idempotent).

    Modern editable installs hide namespace packages from Hydra's own scan.
    """
    plugins = Plugins.instance()
    name = f"{SievebenchLauncher.__module__}.{SievebenchLauncher.__qualname__}"
    if name not in plugins.class_name_to_class:
        plugins.register(SievebenchLauncher)
    ConfigStore.instance().store(group="hydra/launcher", name="sievebench", node=LauncherSchema)
