"""TRL's DPOTrainer on given batches: the sides trl, trl-tuned and trl-grouped.

Runs under TRL's own environment, made by environment.py, and imports nothing of alignctl.
Decisions. The rows are token ids already, so the trainer's own tokenising is passed over; its collator, its
losses, its reference and its loop are its own. What has to agree with the other sides is set (batch, rate,
clip, precision, optimiser, order, no weight decay), evaluation, logging and saving are off, and everything
else stays at TRL's default, activation checkpointing and a reference run at every step among it. `trl-tuned`
precomputes the reference and keeps its activations; `trl-grouped` is that on batches grouped by length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]
from worker import (
    BETA,
    CLIP,
    LORA_ALPHA,
    LORA_RANK,
    MICRO_PAIRS,
    SEED,
    Job,
    Pair,
    Timeline,
    main,
    now,
    padded_positions,
    same_adapter,
)


class Clock(TrainerCallback):
    """When training began and when each step was done."""

    def __init__(self) -> None:
        self.training = 0.0
        self.ends: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is ready, the first batch is not yet collated."""
        self.training = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimiser has moved."""
        self.ends.append(now())


class Watched(DPOTrainer):
    """DPOTrainer on rows of token ids, with an eye on what it computes.

    Loss and norm are kept as tensors: reading them would make the accelerator wait.
    """

    def __init__(self, **arguments: Any) -> None:
        self.losses: list[torch.Tensor] = []
        self.norms: list[torch.Tensor | float] = []
        self.reference = 0.0
        super().__init__(**arguments)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *arguments: Any) -> Dataset:
        # Warm-up, as for steps: the first rows once, so that what is timed is what an epoch consists of.
        warm = min(len(dataset), self.args.train_batch_size)
        super()._precompute_ref_logps(dataset.select(range(warm)), *arguments)
        begin = now()
        scored = super()._precompute_ref_logps(dataset, *arguments)
        self.reference = now() - begin
        return scored

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """The trainer's own, its loss kept; of an accumulated batch it is the part's share."""
        loss = super().training_step(*arguments, **named)
        self.losses.append(loss.detach())
        return loss

    def _get_grad_norm(self, *arguments: Any, **named: Any) -> torch.Tensor | float:
        norm = super()._get_grad_norm(*arguments, **named)
        self.norms.append(norm)
        return norm


def settings(job: Job, directory: str) -> DPOConfig:
    """What has to agree, what the side tunes, and nothing else."""
    tuned = job.side != "trl"
    micro = min(job.case.batch, MICRO_PAIRS)
    options: dict[str, Any] = {"gradient_checkpointing": False} if tuned else {}
    return DPOConfig(
        output_dir=directory,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=job.case.batch // micro,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=job.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=CLIP,
        beta=BETA,
        max_length=None,
        bf16=job.case.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        precompute_ref_log_probs=tuned,
        seed=SEED,
        eval_strategy="no",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )


def train(job: Job, batches: Sequence[Sequence[Pair]]) -> Timeline:
    """One pass over the batches, in their order."""
    pairs = [pair for batch in batches for pair in batch]
    rows = {
        "prompt_ids": [pair.prompt.tolist() for pair in pairs],
        "chosen_ids": [pair.chosen.tolist() for pair in pairs],
        "rejected_ids": [pair.rejected.tolist() for pair in pairs],
    }
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Watched(
            model=job.model,
            args=settings(job, directory),
            train_dataset=Dataset.from_dict(rows),
            peft_config=lora if job.case.adapter == "lora" else None,
            callbacks=[clock],
        )
        same_adapter(dict(trainer.model.named_parameters()))
        trainer.train()
    parts = torch.stack(trainer.losses).view(len(batches), -1).sum(1)
    return Timeline(
        training=clock.training,
        reference=trainer.reference,
        ends=tuple(clock.ends),
        loss=tuple(parts.tolist()),
        grad_norm=tuple(map(float, trainer.norms)),
        padded=tuple(map(padded_positions, batches)),
    )


if __name__ == "__main__":
    main(train)
