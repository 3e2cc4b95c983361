"""The records that flow from the data to the report, all frozen.

Legend used throughout: B pairs, R packed rows, K branches (answers) in a batch, T tokens, N scored
positions, V vocabulary, H hidden size; `logps` are float32 sums over completion tokens; `ref_` is always
the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its answers as text: a pair is (chosen, rejected), a bare prompt has none."""

    id: str
    """FILE:LINE of the source, or the demo task's id."""
    prompt: tuple[Message, ...]
    branches: tuple[str, ...]
    p_chosen: float = 1.0
    """Probability that the first branch is really the better one."""
    margin: float = 0.0
    """By how much a reward should tell the two apart."""
    weight: float = 1.0
    chat: bool = True
    """False when the source gave a bare prompt string: without a template it may be rendered plainly."""
    subset: str | None = None
    """The part of the data it belongs to, for figures by part."""


@dataclass(frozen=True, slots=True)
class GoldScore:
    """A verifiable score of one answer; every part lies in [0, 1]."""

    total: float
    form: float
    content: float


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row, named FILE:LINE, and why it cannot be used."""

    id: str
    field: str
    reason: str
    detail: str = ""
    hint: str = ""
    """What to type, where one setting mends every row like it."""

    @property
    def text(self) -> str:
        """`FILE:LINE field: reason (detail)`, the line a user reads."""
        return f"{self.id} {self.field}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """Rows that were made here, split, and their gold score."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    gold: Callable[[Row, str], GoldScore] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A row as token ids: the prompt once, then each branch with its end-of-turn token."""

    id: str
    prompt: np.ndarray
    """int32 [P], P >= 1."""
    branches: tuple[np.ndarray, ...]
    """int32 [C_k] each, C_k >= 1."""
    p_chosen: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    truncated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the packed row: prompt once plus every branch."""
        return len(self.prompt) + sum(len(branch) for branch in self.branches)


Layout = Literal["shared", "packed", "padded"]
"""How rows lie in a forward pass: one prompt for all its branches; one copy of the prompt per branch,
still end to end without padding; or one right-padded sequence per branch."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """Many rows in one forward pass. Branches are numbered row by row: a batch of pairs has K = 2B,
    chosen at the even places."""

    layout: Layout
    ids: Tensor
    """int64 [1, T], or [K, L] when padded."""
    positions: Tensor
    """int64, shape of ids; every branch goes on from its prompt's end."""
    stem: int
    """How many tokens, the first of ids, every prompt begins with and none repeats; 0 unless shared."""
    trees: tuple[tuple[int, ...], ...]
    """Lengths of (prompt without stem, branch, branch, ...) in the order they lie in ids."""
    padding_mask: Tensor | None
    """bool [K, L], True on tokens; only when padded."""
    score_index: Tensor
    """int64 [N]: where, in the flattened ids, the hidden state lies that predicts a completion token."""
    targets: Tensor
    """int64 [N]: the completion tokens."""
    branch: Tensor
    """int64 [N]: which branch each completion token belongs to."""
    counts: Tensor
    """int64 [K]: completion tokens per branch."""

    @property
    def tokens(self) -> int:
        """Tokens the model has to read, padding not counted."""
        return self.stem + sum(map(sum, self.trees))

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            ids=self.ids.to(device),
            positions=self.positions.to(device),
            padding_mask=None if self.padding_mask is None else self.padding_mask.to(device),
            score_index=self.score_index.to(device),
            targets=self.targets.to(device),
            branch=self.branch.to(device),
            counts=self.counts.to(device),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PairLogps:
    """What a pairwise loss may look at: policy and reference on B pairs, and the pair's label."""

    chosen: Tensor
    """float [B]: log pi(y_w | x), summed over completion tokens."""
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    """int64 [B]: completion tokens of the chosen side."""
    rejected_tokens: Tensor
    p_chosen: Tensor
    """float [B]: probability that chosen is really better."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What a policy answered to B prompts, k times each, at temperature 1: K = B k answers."""

    examples: tuple[Example, ...]
    """B rows: the prompt with its k answers as branches, stop tokens included."""
    rows: tuple[Row, ...]
    """B rows: the prompts as text."""
    texts: tuple[str, ...]
    """K answers as text, without special tokens."""
    ended: tuple[bool, ...]
    """K: whether the answer came to its stop token."""


@dataclass(frozen=True, slots=True, eq=False)
class OnlineTokens:
    """Tokens of K sampled answers under policy and reference; answers of one prompt stand together."""

    logps: Tensor
    """float [N], differentiable: log pi of the sampled token."""
    ref_logps: Tensor | None
    """float [N]: log ref of it. An estimator reads either this or `kl`; the other is None."""
    kl: Tensor | None
    """float [N], differentiable: KL(pi || ref) over the whole vocabulary at that position."""
    branch: Tensor
    """int64 [N]: which answer a token belongs to, in rising order."""
    counts: Tensor
    """int64 [K]: tokens per answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """K sampled answers, padded on the right to L tokens, as a policy-gradient update looks at them."""

    mask: Tensor
    """bool [K, L]: True on the answer's tokens, its stop token included."""
    logps: Tensor
    """float [K, L]: log pi of each token before the update, from the training forward pass."""
    values: Tensor
    """float [K, L]: the critic's value before each token; zeros without a critic."""
    advantages: Tensor
    """float [K, L]."""
    returns: Tensor
    """float [K, L]: what the critic is regressed on."""


@dataclass(frozen=True, slots=True, eq=False)
class LossOut:
    """One loss per pair and the rewards behind it; nothing is reduced here."""

    losses: Tensor
    """float [B], differentiable."""
    reward_chosen: Tensor
    """float [B], detached: beta (or tau) times the log-ratio in the loss's own reduction."""
    reward_rejected: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Per-branch results of a pass without gradients over n rows of K branches each, on the CPU."""

    sums: Tensor
    """float [n, K]: log-probability of each branch, summed over its tokens."""
    counts: Tensor
    """int64 [n, K]: tokens of each branch."""
    top_entropy: Tensor | None = None
    """float [n, K]: sum over tokens of the renormalised entropy (bits) of the ten likeliest tokens."""
    top_mass: Tensor | None = None
    """float [n, K]: sum over tokens of the raw probability of those ten."""
