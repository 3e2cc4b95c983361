"""Sampling: greedy equals transformers, a token depends on its own prompt and numbers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from alignctl.models import attention, generation
from alignctl.models.generation import sample
from alignctl.models.load import load_tokenizer, load_weights, locate_path
from alignctl.models.policy import Policy, plain_attention, set_attention

CPU = torch.device("cpu")
LENGTHS = [(7, 1), (1, 1), (23, 1), (12, 1), (3, 1), (12, 1)]
NO_STOP = (60,)


def policy_for(model, layout="shared", dtype=torch.float32):
    set_attention(model, layout)
    return Policy(model, layout, dtype, CPU)


def answers(policy, prompts, *, stop=NO_STOP, tokens=12, temperature=0.0, seed=0, step=0):
    found = sample(
        policy, prompts, stop=stop, max_new_tokens=tokens, temperature=temperature, seed=seed, step=step
    )
    return [answer.tolist() for answer in found]


def by_transformers(model, prompt, *, stop, tokens):
    """One prompt at a time, so without any padding."""
    ids = torch.tensor(np.asarray(prompt, dtype=np.int64))[None]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=list(stop),
        pad_token_id=0,
    )
    return out[0, ids.shape[1] :].tolist()


def expected_answers(model, prompts, *, stop, tokens):
    set_attention(model, "padded")
    return [by_transformers(model, prompt, stop=stop, tokens=tokens) for prompt in prompts]


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_greedy_equals_transformers(tiny, make_rows, layout):
    """Rows end at different times, so finished ones leave the batch while others go on."""
    model = tiny(dtype=torch.float32, tied=False)
    prompts = [row.prompt for row in make_rows(LENGTHS)]
    free = expected_answers(model, prompts, stop=NO_STOP, tokens=24)
    stop = (free[0][4], free[1][9])
    expected = expected_answers(model, prompts, stop=stop, tokens=24)
    assert len({len(answer) for answer in expected}) >= 3
    assert {len(answer) for answer in expected} & set(range(1, 24))
    found = answers(policy_for(model, layout), prompts, stop=stop, tokens=24)
    assert found == expected
    for answer in found:
        assert not set(answer[:-1]) & set(stop)
        assert len(answer) == 24 or answer[-1] in stop


SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 1}
OTHERS = {
    "learned absolute positions": (
        hf.GPT2LMHeadModel,
        lambda: hf.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    ),
    "window shorter than the prompts": (
        hf.MistralForCausalLM,
        lambda: hf.MistralConfig(**SIZES, sliding_window=6),
    ),
    "convolutions": (
        hf.Lfm2ForCausalLM,
        lambda: hf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    ),
    "recurrent and attention layers": (
        hf.BambaForCausalLM,
        lambda: hf.BambaConfig(**SIZES, **MAMBA, attn_layer_indices=[1], mamba_d_head=16),
    ),
    "both in one layer": (
        hf.FalconH1ForCausalLM,
        lambda: hf.FalconH1Config(**SIZES, **MAMBA, mamba_d_ssm=32, mamba_d_head=8, head_dim=8),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_greedy_equals_transformers_on_other_architectures(make_rows, name):
    """Left padding must not move positions, and whatever a cache holds follows when rows leave the batch."""
    kind, config = OTHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config()).eval()
    prompts = [row.prompt for row in make_rows(LENGTHS)]
    free = expected_answers(model, prompts, stop=NO_STOP, tokens=10)
    longest, other = sorted(free, key=len)[-2:]
    stop = (*NO_STOP, longest[2], other[4])
    expected = expected_answers(model, prompts, stop=stop, tokens=10)
    assert len({len(answer) for answer in expected}) >= 2
    assert answers(policy_for(model, "padded"), prompts, stop=stop, tokens=10) == expected


# --- drawing -------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_neighbours(tiny, make_rows):
    policy = policy_for(tiny(), dtype=torch.float64)
    first, second = make_rows(LENGTHS), make_rows(LENGTHS, seed=5)
    kept = [first[0], second[1], first[2], second[3], second[4], first[5]]
    one = answers(policy, [row.prompt for row in first], temperature=1.0)
    other = answers(policy, [row.prompt for row in kept], temperature=1.0)
    assert [one[index] for index in (0, 2, 5)] == [other[index] for index in (0, 2, 5)]
    assert one[1] != other[1]
    assert answers(policy, [first[0].prompt], temperature=1.0) == [one[0]]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_sample_does_not_depend_on_how_many_are_in_flight(monkeypatch, tiny, make_rows, batch):
    policy = policy_for(tiny(), dtype=torch.float64)
    prompts = [row.prompt for row in make_rows(LENGTHS)]
    together = answers(policy, prompts, temperature=1.0, stop=(7, 8, 9))
    monkeypatch.setattr(generation, "BATCH", batch)
    assert answers(policy, prompts, temperature=1.0, stop=(7, 8, 9)) == together


def test_seed_step_and_sample_id_each_draw_anew(tiny, make_rows):
    policy = policy_for(tiny(), dtype=torch.float64)
    prompt = make_rows([(6, 1)])[0].prompt
    base, twin = answers(policy, [prompt, prompt], temperature=1.0)
    assert base != twin
    assert answers(policy, [prompt], temperature=1.0, step=1)[0] not in (base, twin)
    assert answers(policy, [prompt], temperature=1.0, seed=1)[0] not in (base, twin)
    assert answers(policy, [prompt], temperature=1.0)[0] == base


def test_process_random_state_is_neither_read_nor_moved(tiny, make_rows):
    policy = policy_for(tiny(), dtype=torch.float64)
    prompts = [row.prompt for row in make_rows(LENGTHS)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = answers(policy, prompts, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(3)
    assert answers(policy, prompts, temperature=1.0) == one


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([0.3, -1.2, 2.0, 0.0, float("-inf"), 1.1])
    n = 40_000
    uniform = torch.from_numpy(np.random.Generator(np.random.Philox(11)).random(n))
    drawn = generation._draw(logits.expand(n, -1), temperature, uniform)
    expected = (logits.double() / temperature).softmax(-1) * n
    counts = torch.bincount(drawn, minlength=6).double()
    possible = expected > 0
    statistic = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
    assert statistic < 18.47  # chi-square with 4 degrees of freedom, 99.9 %
    assert counts[4] == 0


def test_draws_at_the_ends_of_the_unit_interval_are_possible_tokens():
    logits = torch.tensor([float("-inf"), 0.0, 1.0, float("-inf")]).expand(2, -1)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert generation._draw(logits, 1.0, ends).tolist() == [1, 2]


def test_temperature_zero_is_the_likeliest_whatever_the_number():
    logits = torch.tensor([[0.1, 5.0, 2.0]] * 3)
    ends = torch.tensor([0.0, 0.5, 0.999], dtype=torch.float64)
    assert generation._draw(logits, 0.0, ends).tolist() == [1, 1, 1]
    assert generation._draw(logits, 1e-6, ends).tolist() == [1, 1, 1]


def test_every_prompt_is_counted(tiny, make_rows, monkeypatch):
    monkeypatch.setattr(generation, "BATCH", 4)
    seen: list[tuple[int, int]] = []
    sample(
        policy_for(tiny(dtype=torch.float32)),
        [row.prompt for row in make_rows(LENGTHS)],
        stop=NO_STOP,
        max_new_tokens=2,
        temperature=0.0,
        seed=0,
        step=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 6), (6, 6)]


# --- the policy afterwards -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("training", [True, False])
def test_attention_and_mode_come_back(tiny, layout, training):
    policy = policy_for(tiny(), layout)
    before = policy.model.config._attn_implementation
    policy.model.train(training)

    def inside_and_failing():
        with plain_attention(policy):
            assert not policy.model.training
            assert policy.model.config._attn_implementation == "sdpa"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inside_and_failing()
    assert policy.model.training is training
    assert policy.model.config._attn_implementation == before
    assert before == (attention.NAME if layout == "shared" else "sdpa")


def test_checkpointed_policy_samples_the_same(tiny, make_rows):
    """Activation checkpointing must not switch the key-value cache off."""
    prompts = [row.prompt for row in make_rows(LENGTHS)]
    expected = answers(policy_for(tiny()), prompts)
    model = tiny()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert answers(policy_for(model), prompts) == expected


# --- a real model --------------------------------------------------------------------------------------

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours, separated by commas, and nothing else.",
    "Write one short sentence about a dog that likes to swim in the cold sea at night.",
)


@pytest.mark.slow
def test_greedy_equals_transformers_on_smollm2(smollm2):
    source = locate_path(str(smollm2))
    model, tokenizer = load_weights(source).eval(), load_tokenizer(source)
    prompts = [
        np.array(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
            )["input_ids"],
            np.int32,
        )
        for question in QUESTIONS
    ]
    stop = (int(tokenizer.eos_token_id),)
    expected = expected_answers(model, prompts, stop=stop, tokens=24)
    found = answers(policy_for(model), prompts, stop=stop, tokens=24)
    assert found == expected
    assert any(answer[-1] == stop[0] for answer in found)
    assert "Paris" in tokenizer.decode(found[0])
