"""Golden values from TRL's own code: writes tests/golden/trl-losses.json, which the tests read without TRL.

Run by hand, in an environment of its own (alignctl does not depend on TRL), and again only to follow another
release of TRL; a change of the file needs a reason:

    python -m venv trl-env
    trl-env/bin/pip install torch==2.13.0
    trl-env/bin/pip install trl==1.16.0
    trl-env/bin/python scripts/golden_trl.py

Decisions. The losses are what a real DPOTrainer's `compute_loss` returns, in float64, for log-probabilities
that are given: TRL's own vocabulary head works in float32 only, so a module that hands out its output record
stands in for the model. One pair at a time, because TRL returns the mean over a batch. Label smoothing: TRL
1.16 does not read `label_smoothing` in its `sigmoid` loss, but in `aot_unpaired`, which for a single pair is
the smoothed sigmoid loss. Apart from that, log-probabilities of a real model, in float32, with TRL's head and
collator; its weights are a closed form, so no file and no random state is needed to have it again.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "trl-losses.json"
WORDS = ("<pad>", "<eos>", "ask", "good", "bad")


@dataclass(frozen=True, slots=True)
class Pair:
    """Log-probabilities of one pair; multiples of 1/64, so that no sum of them is rounded."""

    chosen: float
    rejected: float
    ref_chosen: float
    ref_rejected: float
    chosen_tokens: int
    rejected_tokens: int


PAIRS = (
    Pair(-10.0, -14.0, -12.0, -13.0, 4, 8),
    Pair(-30.0, -20.0, -25.0, -22.0, 10, 5),
    Pair(-17.25, -17.25, -17.25, -17.25, 6, 6),
    Pair(-101.515625, -88.125, -99.75, -90.0625, 61, 47),
    Pair(-3.015625, -250.5, -5.5, -240.25, 1, 120),
    Pair(-640.0, -2.0, -12.0, -600.0, 30, 3),
    Pair(-2.0, -640.0, -600.0, -12.0, 3, 30),
)

CASES = (
    ("sigmoid", 0.1, 0.0),
    ("sigmoid", 0.5, 0.0),
    ("sigmoid_norm", 0.1, 0.0),
    ("sigmoid_norm", 2.0, 0.0),
    ("aot_unpaired", 0.1, 0.1),
    ("aot_unpaired", 0.5, 0.3),
    ("ipo", 0.1, 0.0),
    ("ipo", 0.5, 0.0),
    ("hinge", 0.1, 0.0),
    ("hinge", 0.5, 0.0),
)

ROWS = (
    {"prompt": [5, 9, 3, 14, 7], "chosen": [8, 4, 11, 2], "rejected": [6, 13, 10]},
    {"prompt": [1], "chosen": [30], "rejected": [12, 12, 12, 12, 29, 0, 31]},
    {"prompt": [2, 2, 17, 21, 8, 8, 19, 4, 26], "chosen": [3, 25, 16, 16, 9, 1], "rejected": [3, 25, 16, 18]},
)


def closed_form_model() -> LlamaForCausalLM:
    """Two layers of a Llama whose weights are sines: the same on every machine and with every release."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(model.named_parameters())):
            places = torch.arange(parameter.numel(), dtype=torch.float64)
            waves = torch.sin(places * 12.9898 + number) + torch.sin(places * 78.233 + 2 * number)
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_((centre + 0.3 * waves).view(parameter.shape))
    return model


class GivenLogps(nn.Module):
    """In the place of a model: its output is TRL's record, with the log-probabilities of one pair in it."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, *, labels: Tensor, **_: Any) -> Any:
        """A side's whole log-probability on its last token, so that summing tokens rounds nothing."""
        from trl.trainer.utils import FusedCausalLMOutput  # pyright: ignore[reportMissingImports]

        scored = labels[:, 1:] != -100
        logps = torch.zeros(scored.shape, dtype=torch.float64)
        for side, total in enumerate((self.pair.chosen, self.pair.rejected)):
            logps[side, int(scored[side].nonzero()[-1])] = total
        zeros = torch.zeros_like(logps)
        return FusedCausalLMOutput(
            loss=zeros.sum(), log_probs=logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def tokenizer() -> Any:
    """A word-level tokenizer of five words, which the trainer asks for and the values do not depend on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="ask"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def trainer(directory: str, loss_type: str, beta: float, label_smoothing: float) -> Any:
    """TRL's DPOTrainer with the closed-form model, taking reference log-probabilities from the batch."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]

    arguments = DPOConfig(
        output_dir=directory,
        loss_type=[loss_type],
        beta=beta,
        label_smoothing=label_smoothing,
        precompute_ref_log_probs=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = Dataset.from_list([{"prompt": "ask", "chosen": "good", "rejected": "bad"}])
    return DPOTrainer(closed_form_model(), args=arguments, train_dataset=rows, processing_class=tokenizer())


def batch_of(pair: Pair) -> dict[str, Tensor]:
    """What TRL's collator makes of one pair of these lengths; the token ids themselves are never read."""
    lengths = (pair.chosen_tokens, pair.rejected_tokens)
    longest = 1 + max(lengths)
    completion = torch.tensor([[0] + [1] * n + [0] * (longest - 1 - n) for n in lengths])
    attention = torch.tensor([[1] * (n + 1) + [0] * (longest - 1 - n) for n in lengths])
    return {
        "input_ids": torch.full_like(completion, 3),
        "attention_mask": attention,
        "completion_mask": completion,
        "ref_chosen_logps": torch.tensor([pair.ref_chosen], dtype=torch.float64),
        "ref_rejected_logps": torch.tensor([pair.ref_rejected], dtype=torch.float64),
    }


def case(directory: str, loss_type: str, beta: float, label_smoothing: float) -> dict[str, Any]:
    """Loss and rewards of every pair as this TRL configuration computes them."""
    made = trainer(directory, loss_type, beta, label_smoothing)
    made.model.train()
    losses = [made.compute_loss(GivenLogps(pair), batch_of(pair)) for pair in PAIRS]
    assert all(loss.dtype == torch.float64 and math.isfinite(loss) for loss in losses)
    metrics = made._metrics["train"]
    return {
        "loss_type": loss_type,
        "beta": beta,
        "label_smoothing": label_smoothing,
        "losses": [float(loss) for loss in losses],
        "reward_chosen": metrics["rewards/chosen"],
        "reward_rejected": metrics["rewards/rejected"],
    }


def model_logps(directory: str) -> list[list[float]]:
    """TRL's log-probabilities [chosen, rejected] of ROWS under the closed-form model, in float32."""
    made = trainer(directory, "sigmoid", 0.1, 0.0)
    examples = [{f"{name}_ids": ids for name, ids in row.items()} for row in ROWS]
    chosen, rejected = made.compute_ref_log_probs(made.model, made.data_collator(examples))
    return [list(pair) for pair in zip(chosen.tolist(), rejected.tolist(), strict=True)]


def main() -> None:
    """Write the golden file."""
    import trl  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as directory:
        golden = {
            "made_by": f"scripts/golden_trl.py with trl {trl.__version__}",
            "pairs": [asdict(pair) for pair in PAIRS],
            "cases": [case(directory, *settings) for settings in CASES],
            "model": {"rows": list(ROWS), "logps": model_logps(directory)},
        }
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
