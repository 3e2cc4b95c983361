"""Reward models: scores in every layout against plain forward passes, and what is saved as others read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from alignctl.errors import SetupError
from alignctl.models.load import Source, load_weights
from alignctl.models.packing import branch_ends, pack
from alignctl.models.policy import Policy, set_attention
from alignctl.models.reward_model import (
    RewardModel,
    branch_rewards,
    prove_classifier,
    row_rewards,
    save_reward_model,
    start_reward_model,
    with_padding,
)
from alignctl.models.tiny import tiny_tokenizer
from alignctl.records import Example, Layout
from alignctl.train.optimiser import trained_parameters

CPU = torch.device("cpu")
LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")
TREES = [(5, 3, 6), (1, 4, 2), (9, 1, 1), (1, 1, 1), (3, 8, 1)]
Tiny = Callable[..., LlamaForCausalLM]
Rows = Callable[..., list[Example]]


def policy_of(model, layout: Layout = "shared", dtype: torch.dtype = torch.float64) -> Policy:
    policy = Policy(model, layout, dtype, CPU)
    set_attention(policy.causal_lm, layout)
    return policy


def plain_rewards(model: LlamaForCausalLM, score: nn.Linear, rows: Sequence[Example]) -> Tensor:
    """One sequence at a time through the model's own decoder: no packing, no helper."""
    found = []
    for row in rows:
        for branch in row.branches:
            ids = torch.tensor([[*row.prompt.tolist(), *branch.tolist()]])
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            found.append((hidden[0, -1] * score.weight[0]).sum())
    return torch.stack(found)


def weighted(rewards: Tensor) -> Tensor:
    """A sum in which no two branches count alike."""
    return (rewards * torch.arange(1, len(rewards) + 1, dtype=rewards.dtype)).sum()


def gradients(reward_model: RewardModel) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in reward_model.named_parameters() if p.grad is not None}
    reward_model.zero_grad(set_to_none=True)
    return found


# --- scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trees", [[(4, 3), (1, 5), (1, 1)], TREES, [(6, 2, 5, 1), (1, 3, 1, 7)]])
@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_scores_the_last_token(tiny: Tiny, make_rows: Rows, trees, tied: bool) -> None:
    model, rows = tiny(tied=tied), make_rows(trees)
    made = start_reward_model(policy_of(model), seed=3)
    set_attention(model, "padded")
    expected = plain_rewards(model, made.score, rows)
    weighted(expected).backward()
    slopes = gradients(made)
    assert float(expected.detach().std()) > 0.1
    for layout in LAYOUTS:
        found = branch_rewards(made, policy_of(model, layout), pack(rows, layout))
        weighted(found).backward()
        assert found.tolist() == pytest.approx(expected.tolist(), rel=0, abs=1e-10)
        ours = gradients(made)
        assert ours.keys() == slopes.keys()
        assert max(float((ours[name] - slopes[name]).abs().max()) for name in slopes) < 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_branch_ends_are_the_last_tokens(make_rows: Rows, layout: Layout) -> None:
    rows = make_rows([(5, 3, 6), (2, 1, 4), (7, 2, 2)])
    batch = pack(rows, layout)
    last = [int(branch[-1]) for row in rows for branch in row.branches]
    assert batch.ids.flatten()[branch_ends(batch)].tolist() == last


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_rows_keep_their_places_whatever_the_budget(tiny: Tiny, make_rows: Rows, budget: int) -> None:
    model, rows = tiny(), make_rows(TREES)
    policy = policy_of(model)
    made = start_reward_model(policy, seed=3)
    made.train()
    steps: list[tuple[int, int]] = []
    found = row_rewards(
        made, policy, rows, token_budget=budget, progress=lambda done, n: steps.append((done, n))
    )
    assert steps[-1] == (len(rows), len(rows))
    assert model.training, "it trains on after an evaluation"
    set_attention(model, "padded")
    expected = plain_rewards(model, made.score, rows).detach().view(-1, 2)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=0, abs=1e-10)


def test_scores_are_not_rounded_to_the_compute_type(tiny: Tiny, make_rows: Rows) -> None:
    model, rows = tiny(dtype=torch.float32), make_rows(TREES)
    policy = policy_of(model, dtype=torch.bfloat16)
    made = start_reward_model(policy, seed=3)
    found = branch_rewards(made, policy, pack(rows, "shared"))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())


# --- what is trained -----------------------------------------------------------------------------------


def test_a_vocabulary_head_of_its_own_is_not_trained(tiny: Tiny) -> None:
    made = start_reward_model(policy_of(tiny(tied=False)), seed=0)
    names = set(trained_parameters(made))
    assert "score.weight" in names
    assert "model.model.embed_tokens.weight" in names
    assert not any("lm_head" in name for name in names)


def test_a_tied_embedding_is_trained(tiny: Tiny, make_rows: Rows) -> None:
    policy = policy_of(tiny(tied=True))
    made = start_reward_model(policy, seed=0)
    branch_rewards(made, policy, pack(make_rows(TREES), "shared")).sum().backward()
    assert gradients(made).keys() == trained_parameters(made).keys()


def test_the_score_is_drawn_from_the_seed_alone(tiny: Tiny) -> None:
    def drawn(seed: int) -> Tensor:
        return start_reward_model(policy_of(tiny()), seed=seed).score.weight.detach()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn(5), first)
    assert not torch.equal(drawn(6), first)
    many = torch.cat([drawn(seed) for seed in range(40)])
    assert float(many.std()) == pytest.approx((32 + 1) ** -0.5, rel=0.1)


# --- padding -------------------------------------------------------------------------------------------


def tokenizer_with(pad: str | None, *extra: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    if extra:
        tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    tokenizer.pad_token = pad
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (tokenizer_with("<|pad|>"), "<|pad|>"),
        (tokenizer_with("<|im_end|>"), "<|pad|>"),
        (tokenizer_with(None, "<|a|>", "<|right_pad|>"), "<|pad|>"),
    ],
    ids=["its own", "the end of a turn", "none"],
)
def test_the_padding_token_ends_nothing(tokenizer: PreTrainedTokenizerFast, expected: str) -> None:
    before = tokenizer.pad_token
    found = with_padding(tokenizer, {2})
    assert found.pad_token == expected
    assert tokenizer.pad_token == before, "the tokenizer that was given stays as it was"


def test_a_spare_token_is_taken_before_a_new_one_is_made() -> None:
    def given(*extra: str) -> PreTrainedTokenizerFast:
        # Ids 0 to 2 are in use: 0 ends texts, 1 opens and 2 ends turns.
        return tokenizer_with("<|im_end|>", *extra)

    assert with_padding(given("<|a|>", "<|b|>"), {0, 2}).pad_token == "<|a|>"
    assert with_padding(given("<|a|>", "<|right_pad|>"), {0, 2}).pad_token == "<|right_pad|>"
    used = given("<|a|>", "<|b|>")
    used.chat_template = str(used.chat_template) + "<|a|>"
    assert with_padding(used, {0, 2}).pad_token == "<|b|>"


def test_where_nothing_is_spare_a_token_is_added() -> None:
    tokenizer = tokenizer_with("<|im_end|>")
    size = len(tokenizer)
    tokenizer.chat_template = str(tokenizer.chat_template) + "<|pad|>"
    found = with_padding(tokenizer, {0, 2})
    assert found.pad_token_id == size
    assert len(tokenizer) == size, "the tokenizer that was given stays as it was"
    text = "Some words, and <some> markup."
    assert found(text)["input_ids"] == tokenizer(text)["input_ids"]


# --- saved ---------------------------------------------------------------------------------------------

TALKS = (
    ("Say hello.", ("Hello!", "Go away, please, I am busy.")),
    ("2 + 2?", ("4", "It is four, as anybody knows, and has been for long.")),
)


def talks(tokenizer: PreTrainedTokenizerFast) -> tuple[list[Example], list[str]]:
    """Rows of prompt and two answers, and the same conversations as text, from the template alone."""
    rows, texts = [], []
    for question, answers in TALKS:
        asked = {"role": "user", "content": question}
        prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
        whole = [
            tokenizer.apply_chat_template([asked, {"role": "assistant", "content": answer}], tokenize=False)
            for answer in answers
        ]
        start = len(tokenizer(prompt)["input_ids"])
        ids = [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in whole]
        rows.append(Example(question, ids[0][:start], tuple(one[start:] for one in ids)))
        texts += whole
    return rows, texts


def read_back(directory: Path, texts: Sequence[str]) -> Tensor:
    """Scores of the texts as anybody would get them from the directory, in one padded batch."""
    model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.num_labels == 1
    with torch.no_grad():
        return model.eval()(**tokenizer(list(texts), return_tensors="pt", padding=True)).logits[:, 0]


@pytest.fixture
def byte_llama(tiny: Tiny) -> Callable[..., LlamaForCausalLM]:
    """A small Llama with an embedding row per byte and control token."""

    def make(*, tied: bool = True) -> LlamaForCausalLM:
        model = tiny(tied=tied, dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model.resize_token_embeddings(259, mean_resizing=False)
            nn.init.normal_(model.get_input_embeddings().weight, std=0.5)
        return model

    return make


def adapted(model: LlamaForCausalLM):
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(8)
        made = get_peft_model(model, config)
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return made


@pytest.mark.parametrize("padding", ["<|pad|>", "<|im_end|>"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["tied", "untied", "adapter"])
def test_transformers_reads_the_scores_that_were_trained(
    byte_llama, tmp_path: Path, kind: str, layout: Layout, padding: str
) -> None:
    model = byte_llama(tied=kind != "untied")
    model = adapted(model) if kind == "adapter" else model
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = padding
    padded = with_padding(tokenizer, {2})
    policy = policy_of(model, layout, torch.float32)
    made = start_reward_model(policy, seed=3)
    prove_classifier(made, policy, padded)
    rows, texts = talks(tokenizer)
    expected = row_rewards(made, policy, rows, token_budget=500)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    save_reward_model(made, padded, tmp_path / "model")
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    found = read_back(tmp_path / "model", texts)
    assert float(expected.std()) > 0.1
    assert found.numpy() == pytest.approx(expected.flatten().numpy(), rel=0, abs=1e-5)
    assert row_rewards(made, policy, rows, token_budget=500).numpy() == pytest.approx(expected.numpy())


@pytest.mark.parametrize("kind", ["tied", "untied", "adapter"])
def test_a_padding_token_without_a_row_gets_one(byte_llama, tmp_path: Path, kind: str) -> None:
    model = byte_llama(tied=kind != "untied")
    model = adapted(model) if kind == "adapter" else model
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|none|>"})
    assert tokenizer.pad_token_id == 259
    policy = policy_of(model, dtype=torch.float32)
    made = start_reward_model(policy, seed=3)
    rows, texts = talks(tokenizer)
    save_reward_model(made, tokenizer, tmp_path / "model")
    found = read_back(tmp_path / "model", texts)
    expected = row_rewards(made, policy, rows, token_budget=500).flatten()
    assert found.numpy() == pytest.approx(expected.numpy(), rel=0, abs=1e-5)
    assert policy.causal_lm.get_input_embeddings().weight.shape[0] == 259, "the model itself did not grow"


@pytest.mark.slow
def test_a_real_model_is_scored_as_transformers_would(smollm2: Path) -> None:
    """SmolLM2 pads with its end token; its scores would be read at the token before."""
    source = Source(str(smollm2), None)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.pad_token == tokenizer.eos_token
    padded = with_padding(tokenizer, {tokenizer.eos_token_id})
    assert padded.pad_token == "<repo_name>"
    for layout in LAYOUTS:
        policy = policy_of(load_weights(source), layout, torch.float32)
        prove_classifier(start_reward_model(policy, seed=0), policy, padded)


def test_a_saved_reward_model_is_no_language_model(byte_llama, tmp_path: Path) -> None:
    policy = policy_of(byte_llama(), dtype=torch.float32)
    save_reward_model(start_reward_model(policy, seed=0), tiny_tokenizer(), tmp_path / "model")
    with pytest.raises(SetupError, match="is a sequence classifier, such as a reward model") as caught:
        load_weights(Source(str(tmp_path / "model"), None))
    assert len(caught.value.render().splitlines()) == 2


def test_an_architecture_without_a_classifier_is_refused() -> None:
    config = CohereConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    policy = policy_of(CohereForCausalLM(config), "padded", torch.float32)
    made = start_reward_model(policy, seed=0)
    with pytest.raises(
        SetupError, match="no sequence classifier with one linear score for CohereForCausalLM"
    ):
        prove_classifier(made, policy, tiny_tokenizer())


def test_scores_that_the_classifier_would_not_give_are_found_out(byte_llama) -> None:
    """A model whose attention was not set up reads the other answer of a shared prompt, too."""
    model = byte_llama()
    model.set_attn_implementation("sdpa")
    policy = Policy(model, "shared", torch.float32, CPU)
    made = start_reward_model(policy, seed=0)
    with pytest.raises(SetupError, match="does not score by the last token's hidden state alone"):
        prove_classifier(made, policy, tiny_tokenizer())
