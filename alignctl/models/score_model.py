"""A trained reward model as it is read: any sequence classifier of transformers with one score per text.

The score is read at the last token that is no padding, so padding must be a token of its own: where it is
also the end token, transformers reads the score one token too early, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignctl.errors import SetupError
from alignctl.models.foreign import read_config, refuse_made_up, translated
from alignctl.models.load import Source, is_classifier

TOKENS = 8192
"""Per forward pass, padding counted."""
NEEDED = "a reward model is a sequence classifier with num_labels = 1 in safetensors, without remote code"

Progress = Callable[[int, int], None]
"""Called with (texts done, texts in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreModel:
    """A model with one score per sequence."""

    model: PreTrainedModel
    pad: int
    device: torch.device

    @torch.inference_mode()
    def scores(self, texts: Sequence[Sequence[int]], progress: Progress | None = None) -> list[float]:
        """The score of each text, given as token ids; texts of like length together."""
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        found = [0.0] * len(texts)
        while order:
            rows = max(1, TOKENS // len(texts[order[0]]))
            places, order = order[:rows], order[rows:]
            for place, value in zip(places, self._batch([texts[p] for p in places]), strict=True):
                found[place] = value
            if progress:
                progress(len(texts) - len(order), len(texts))
        return found

    def _batch(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.pad] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        logits = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        return logits[:, 0].double().tolist()


def score_config(setting: str, source: Source) -> PretrainedConfig:
    """The config of the reward model that `setting` (KEY=VALUE, as typed) names.

    Raises SetupError unless it can be read and has one score.
    """
    if source.adapter is not None:
        raise SetupError(
            f"{setting} is an adapter", "merge it into its base and name the merged reward model"
        )
    with translated(setting, NEEDED):
        config = read_config(source.base, source.revision)
    if config.num_labels != 1:
        found = f"{config.num_labels} scores instead of one" if is_classifier(config) else "no score"
        raise SetupError(f"{setting} is no reward model: it has {found}", NEEDED)
    return config


def padding_token(
    setting: str, tokenizer: PreTrainedTokenizerBase, end: int, config: PretrainedConfig
) -> int:
    """The padding token, from the config or else the tokenizer. Raises SetupError unless it is only that.

    `end` is the token that ends a turn.
    """
    text = config.get_text_config()
    pad = text.pad_token_id if text.pad_token_id is not None else tokenizer.pad_token_id
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    if not isinstance(pad, int) or pad in (*ends, end, tokenizer.eos_token_id):
        found = "no padding token" if not isinstance(pad, int) else f"the end token {pad} as padding"
        raise SetupError(
            f"{setting} has {found}",
            "its score is read at the last token that is no padding, so padding must be a token of its own",
            "set pad_token_id in its config.json to one that ends nothing",
        )
    return pad


def load_score_model(
    setting: str,
    source: Source,
    config: PretrainedConfig,
    pad: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> ScoreModel:
    """The weights, in `dtype`. Raises SetupError when they cannot be loaded or are not all there."""
    config.get_text_config().pad_token_id = pad  # where transformers looks for the last token to score
    refuse_made_up(source.base, lambda: AutoModelForSequenceClassification.from_config(config, dtype=dtype))
    with translated(setting, NEEDED):
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            source.base,
            config=config,
            revision=source.revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, info = loaded
    if lost := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
        raise SetupError(
            f"{setting} does not hold a reward model's weights: {', '.join(lost[:3])} missing",
            "they would be filled with made-up numbers; name a trained reward model",
        )
    return ScoreModel(model.eval().requires_grad_(False).to(device), pad, device)
