"""What each family of algorithms does at a step and at an evaluation; the loop itself is the same for all."""

from __future__ import annotations

from alignctl.config import HypoConfig, PpoConfig, RewardModelConfig, SftConfig
from alignctl.runners.tasks.hypo import open_hypo_task
from alignctl.runners.tasks.pairs import open_pair_task
from alignctl.runners.tasks.ppo import open_ppo_task
from alignctl.runners.tasks.reward import open_reward_task
from alignctl.runners.tasks.sft import open_sft_task
from alignctl.runners.tasks.task import Setup, Task


def open_task(setup: Setup) -> Task:
    """The task of the configured algorithm, its reference scored or in memory."""
    match setup.config.algo:
        case SftConfig():
            return open_sft_task(setup)
        case RewardModelConfig():
            return open_reward_task(setup)
        case HypoConfig() as algo:
            return open_hypo_task(setup, algo)
        case PpoConfig() as algo:
            return open_ppo_task(setup, algo)
        case algo:
            return open_pair_task(setup, algo)[0]
