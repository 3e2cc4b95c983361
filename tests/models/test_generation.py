"""Sampling: greedy equals transformers, a token depends on its own prompt and numbers alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from scipy import stats

from alignctl.models import attention, generation, kv_cache
from alignctl.models.drawing import uniforms
from alignctl.models.drawn_scores import DrawnScores
from alignctl.models.generation import sample
from alignctl.models.load import load_tokenizer, load_weights, locate_path
from alignctl.models.packing import SHORTEST_STEM
from alignctl.models.policy import Policy, autocast, plain_attention, set_attention
from alignctl.models.scoring import score

CPU = torch.device("cpu")
LENGTHS = [(7, 1), (1, 1), (23, 1), (12, 1), (3, 1), (12, 1)]
NO_STOP = (60,)


def policy_for(model, layout="shared", dtype=torch.float32):
    set_attention(model, layout)
    return Policy(model, layout, dtype, CPU)


def answers(policy, prompts, *, stop=NO_STOP, tokens=12, temperature=0.0, seed=0, step=0, **settings):
    found = sample(
        policy,
        prompts,
        stop=stop,
        max_new_tokens=tokens,
        temperature=temperature,
        seed=seed,
        step=step,
        **settings,
    )
    assert {answer.dtype for answer in found} <= {np.dtype(np.int32)}
    return [answer.tolist() for answer in found]


def prompts_of(make_rows, lengths=LENGTHS, seed=0):
    return [row.prompt for row in make_rows(lengths, seed=seed)]


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


@pytest.mark.parametrize("stem", [0, SHORTEST_STEM + 4, 40])
@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_greedy_equals_transformers(tiny, make_rows, layout, stem):
    """Rows end at different times, so finished ones leave the batch while others go on."""
    model = tiny(dtype=torch.float32, tied=False)
    prompts = [row.prompt for row in make_rows(LENGTHS, stem=stem)]
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
    "window longer than all": (hf.MistralForCausalLM, lambda: hf.MistralConfig(**SIZES, sliding_window=64)),
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


@pytest.mark.parametrize("stem", [0, SHORTEST_STEM + 3])
@pytest.mark.parametrize("name", OTHERS)
def test_greedy_equals_transformers_on_other_architectures(make_rows, name, stem):
    """Left padding must not move positions, and whatever a cache holds follows when rows leave the batch."""
    kind, config = OTHERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config()).eval()
    prompts = [row.prompt for row in make_rows(LENGTHS, stem=stem)]
    free = expected_answers(model, prompts, stop=NO_STOP, tokens=10)
    longest, other = sorted(free, key=len)[-2:]
    stop = (*NO_STOP, longest[2], other[4])
    expected = expected_answers(model, prompts, stop=stop, tokens=10)
    assert len({len(answer) for answer in expected}) >= 2
    assert answers(policy_for(model, "padded"), prompts, stop=stop, tokens=10) == expected
    twice = [answer for answer in expected for _ in range(2)]
    assert answers(policy_for(model, "padded"), prompts, stop=stop, tokens=10, samples=2) == twice


def test_greedy_equals_transformers_with_an_adapter(tiny, make_rows):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = get_peft_model(tiny(dtype=torch.float32, tied=False), config).eval()
    prompts = prompts_of(make_rows)
    with model.disable_adapter():
        without = expected_answers(model.get_base_model(), prompts, stop=NO_STOP, tokens=16)
    expected = expected_answers(model.get_base_model(), prompts, stop=NO_STOP, tokens=16)
    assert expected != without
    assert answers(policy_for(model.get_base_model()), prompts, tokens=16) == expected
    policy = Policy(model, "shared", torch.float32, CPU)
    assert answers(policy, prompts, tokens=16, samples=2) == [one for one in expected for _ in range(2)]


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


def test_prompts_asked_at_two_temperatures_are_answered_as_by_themselves(tiny, make_rows):
    """The same prompt at the same numbers twice, once at each: what else is asked changes neither."""
    policy, prompts = policy_for(tiny(), dtype=torch.float64), prompts_of(make_rows)
    stop = tuple(range(7, 13))
    cool, warm = (answers(policy, prompts, temperature=t, stop=stop) for t in (0.5, 1.0))
    assert cool != warm
    both = answers(
        policy,
        [*prompts, *prompts[:3]],
        temperature=[0.5] * len(prompts) + [1.0] * 3,
        sample_ids=[*range(len(prompts)), 0, 1, 2],
        stop=stop,
    )
    assert both == [*cool, *warm[:3]]


@pytest.mark.parametrize("stretch", [1, 5])
def test_scores_taken_while_drawing_are_those_of_the_finished_answers(monkeypatch, tiny, make_rows, stretch):
    """What is drawn behind an end, where ends are looked for rarely, does not count."""
    monkeypatch.setattr(generation, "STRETCH", (stretch, stretch))
    policy, rows = policy_for(tiny(), dtype=torch.float64), make_rows(LENGTHS)
    scored = [True, False, True, True, False, True]
    scores = DrawnScores(scored, 12)
    found = answers(
        policy,
        [row.prompt for row in rows],
        temperature=[1.0, 0.5] * 3,
        stop=tuple(range(7, 13)),
        scores=scores,
    )
    said = [np.array(answer, dtype=np.int32) for answer in found]
    assert len({len(answer) for answer in said}) > 2
    examples = [replace(row, branches=(one,)) for row, one, on in zip(rows, said, scored, strict=True) if on]
    expected = score(policy, examples, token_budget=100, with_top=True)
    taken = scores.of(said)
    assert torch.equal(taken.counts, expected.counts)
    pairs = [
        (taken.sums, expected.sums),
        (taken.top_entropy, expected.top_entropy),
        (taken.top_mass, expected.top_mass),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


WAYS = {
    "one at a time": {"BATCH": 1},
    "two at a time": {"BATCH": 2},
    "five, others following": {"BATCH": 5},
    "a pass for each length": {"PASS_COST": (0, 0)},
    "one pass": {"PASS_COST": (10**6, 10**6)},
    "passes of a few tokens": {"PASS_TOKENS": 30},
    "looking rarely": {"STRETCH": (5, 5)},
    "looking rarely, others following": {"STRETCH": (5, 5), "BATCH": 4},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("room", [2, 64])
def test_a_sample_does_not_depend_on_the_way_it_is_computed(monkeypatch, tiny, make_rows, way, room):
    policy = policy_for(tiny(), dtype=torch.float64)
    prompts = prompts_of(make_rows)
    settings = {"temperature": 1.0, "stop": tuple(range(7, 13)), "samples": 3}
    together = answers(policy, prompts, **settings)
    assert len({len(answer) for answer in together}) > 4
    monkeypatch.setattr(kv_cache, "ROOM", room)
    for name, value in WAYS[way].items():
        monkeypatch.setattr(generation, name, value)
    assert answers(policy, prompts, **settings) == together


def by_plain_loop(model, prompt, sample_id, *, stop, tokens, temperature, top_p):
    """One answer without cache, batch or blocks: whole passes, and the distribution inverted in numpy."""
    ids = prompt.tolist()
    for number in uniforms(4, 9, sample_id, tokens):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double() / temperature
        chances = logits.softmax(-1).detach().numpy()
        order = np.argsort(-chances) if top_p < 1 else np.arange(len(chances))
        reached = chances[order].cumsum()
        kept = int((reached < top_p).sum()) + 1 if top_p < 1 else len(order)
        ids.append(int(order[np.searchsorted(reached[:kept] / reached[kept - 1], number, side="right")]))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.5, 0.5)])
def test_samples_are_those_of_a_plain_loop(tiny, make_rows, temperature, top_p):
    """Prompt by prompt, k samples each; sample ids decide, also where a prompt stands in the list twice."""
    model = tiny()
    prompts = prompts_of(make_rows)
    prompts[3] = prompts[0]
    settings = {"temperature": temperature, "top_p": top_p, "stop": (5, 6, 7), "tokens": 9}
    set_attention(model, "padded")
    expected = [
        by_plain_loop(model, prompt, 2 * number + j, **settings)
        for number, prompt in enumerate(prompts)
        for j in range(2)
    ]
    assert answers(policy_for(model), prompts, samples=2, seed=4, step=9, **settings) == expected
    for answer in expected:
        assert not set(answer[:-1]) & {5, 6, 7}
        assert len(answer) == 9 or answer[-1] in {5, 6, 7}


def test_samples_are_laid_out_like_repeated_prompts(tiny, make_rows):
    policy = policy_for(tiny(), dtype=torch.float64)
    prompts = prompts_of(make_rows)
    found = answers(policy, prompts, temperature=1.0, samples=3)
    assert found == answers(policy, [prompt for prompt in prompts for _ in range(3)], temperature=1.0)
    assert found[:3] == answers(policy, prompts[:1], temperature=1.0, samples=3)
    assert found[0] != found[1]


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_first_tokens_have_their_frequencies(tiny, make_rows, top_p):
    model = tiny(dtype=torch.float32)
    (prompt,) = prompts_of(make_rows, [(9, 1)])
    n = 6000
    drawn = answers(policy_for(model), [prompt], temperature=1.0, top_p=top_p, tokens=1, samples=n)
    set_attention(model, "padded")
    logits = model(input_ids=torch.tensor(prompt[None].astype(np.int64))).logits[0, -1:].double()
    if top_p < 1:
        logits = hf.TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits)  # type: ignore[arg-type]
    check_frequencies([answer[0] for answer in drawn], logits[0].softmax(-1).detach().numpy())


def check_frequencies(drawn, chances):
    """Chi-square over the tokens expected at least five times, and all others together."""
    counts = np.bincount(drawn, minlength=len(chances))
    assert counts[chances == 0].sum() == 0
    common = chances * len(drawn) >= 5
    found = [*counts[common], counts[~common].sum()]
    expected = [*chances[common] * len(drawn), chances[~common].sum() * len(drawn)]
    kept = np.array(expected) > 0
    assert kept.sum() >= 4
    assert stats.chisquare(np.array(found)[kept], np.array(expected)[kept]).pvalue > 1e-3


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


def test_progress_counts_tokens_as_they_come_and_answers_as_they_end(tiny, make_rows):
    seen: list[tuple[int, int, int]] = []
    found = answers(
        policy_for(tiny(dtype=torch.float32)),
        prompts_of(make_rows),
        samples=2,
        temperature=1.0,
        stop=tuple(range(10, 20)),
        progress=lambda done, total, tokens: seen.append((done, total, tokens)),
    )
    lengths = list(map(len, found))
    # On a CPU every decode step is looked at.
    steps = range(max(lengths) + 1)
    by_step = {(sum(n <= at for n in lengths), 12, sum(min(n, at) for n in lengths)) for at in steps}
    assert by_step <= set(seen)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((0, 12, 0), (12, 12, sum(lengths)))


def test_no_prompts_have_no_answers(tiny):
    assert answers(policy_for(tiny()), [], samples=2) == []


# --- reading prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0, 3, 20, 1000])
def test_prompts_are_cut_into_the_cheapest_passes(cost):
    lengths = [1, 2, 2, 9, 10, 10, 40]

    def price(cuts):
        return sum(cost + (cut.stop - cut.start) * lengths[cut.stop - 1] for cut in cuts)

    def partitions(begin):
        if begin == len(lengths):
            yield []
        for end in range(begin + 1, len(lengths) + 1):
            for rest in partitions(end):
                yield [slice(begin, end), *rest]

    found = generation._passes(lengths, cost)
    assert [index for cut in found for index in range(cut.start, cut.stop)] == list(range(len(lengths)))
    assert price(found) == min(map(price, partitions(0)))


def test_a_pass_holds_no_more_tokens_than_it_may(monkeypatch):
    monkeypatch.setattr(generation, "PASS_TOKENS", 20)
    found = generation._passes([5, 5, 5, 5, 5, 30], 1000)
    assert [cut.stop - cut.start for cut in found] in ([4, 1, 1], [1, 4, 1])


def test_each_prompt_is_read_once(tiny, make_rows):
    """However many answers it has, and however often it stands in the list."""
    model = tiny(dtype=torch.float32)
    prompts = prompts_of(make_rows)
    read = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: read.append(ids[0].clone()))
    answers(policy_for(model), [*prompts, *prompts], samples=3, tokens=2)
    hook.remove()
    shapes = [tuple(ids.shape) for ids in read]
    assert shapes[-1] == (2 * 3 * len(prompts), 1)
    assert sum(rows for rows, _ in shapes[:-1]) == len(prompts)
    assert sum(int((ids > 0).sum()) for ids in read[:-1]) == sum(map(len, prompts))


@pytest.mark.parametrize("room", [128, 3])
def test_what_prompts_begin_with_is_read_once(monkeypatch, tiny, make_rows, room):
    """In every group that is taken in together; further answers take the places of those that ended."""
    monkeypatch.setattr(generation, "BATCH", room)
    model = tiny(dtype=torch.float32)
    prompts = [row.prompt for row in make_rows(LENGTHS, stem=20)]
    expected = expected_answers(model, prompts, stop=NO_STOP, tokens=9)
    read = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: read.append(ids[0].clone()))
    assert answers(policy_for(model), prompts, tokens=9) == expected
    hook.remove()
    whole = [ids for ids in read if ids.shape[1] > 1 and ids.shape[0] == 1 and ids.shape[1] == 20]
    groups = -(-len(prompts) // room)
    assert len(whole) == groups
    rests = sum(len(prompt) - 20 for prompt in prompts)
    tokens = sum(int((ids > 0).sum()) for ids in read)
    assert tokens == groups * 20 + rests + 8 * len(prompts)


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


def test_low_precision_products_are_autocast_s_own(tiny, make_rows):
    """Weights cast once give the very logits of weights cast at every step, and are put back."""
    model = tiny(dtype=torch.float32)  # its head shares the embedding's weight
    policy = policy_for(model, "padded", dtype=torch.bfloat16)
    before = dict(model.named_parameters())
    ids = torch.tensor(prompts_of(make_rows)[2][None].astype(np.int64))

    def inside_and_failing(logits):
        with generation._cast_once(policy):
            assert model.lm_head.weight.dtype == torch.bfloat16
            assert model.get_input_embeddings().weight.dtype == torch.float32
            logits.append(model(input_ids=ids).logits)
            raise KeyboardInterrupt

    with torch.inference_mode(), autocast(policy):
        found = []
        with pytest.raises(KeyboardInterrupt):
            inside_and_failing(found)
        assert torch.equal(found[0], model(input_ids=ids).logits)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_low_precision_answers_are_nearly_the_likeliest(tiny, make_rows):
    model = tiny(dtype=torch.float32, tied=False)
    prompts = prompts_of(make_rows)
    found = answers(policy_for(model, dtype=torch.bfloat16), prompts, samples=2, tokens=16)
    set_attention(model, "padded")
    for number, answer in enumerate(found):
        prompt = prompts[number // 2].tolist()
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].detach()
        gaps = logits.amax(-1) - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        assert len(answer) == 16
        assert float(gaps.max()) < 0.05 * float(logits.std())


# --- a real model --------------------------------------------------------------------------------------

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours, separated by commas, and nothing else.",
    "Write one short sentence about a dog that likes to swim in the cold sea at night.",
    "My neighbour plays loud music every night and I cannot sleep. I have already asked him twice to stop, "
    "politely, and he only laughs at me. What can I do about it without making an enemy of him for life?",
)


def real_model(directory):
    source = locate_path(str(directory))
    model, tokenizer = load_weights(source).eval(), load_tokenizer(source)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [
        np.array(
            tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"],
            np.int32,
        )
        for chat in chats
    ]
    return model, tokenizer, prompts


@pytest.mark.slow
def test_greedy_equals_transformers_on_smollm2(smollm2):
    model, tokenizer, prompts = real_model(smollm2)
    stop = (int(tokenizer.eos_token_id),)
    expected = expected_answers(model, prompts, stop=stop, tokens=40)
    found = answers(policy_for(model), prompts, stop=stop, tokens=40, samples=2)
    assert found == [answer for answer in expected for _ in range(2)]
    assert any(answer[-1] == stop[0] for answer in found)
    assert any(len(answer) == 40 for answer in found)
    assert "Paris" in tokenizer.decode(found[0])


@pytest.mark.long
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_first_tokens_of_smollm2_have_their_frequencies(smollm2, top_p):
    model, _, prompts = real_model(smollm2)
    policy = policy_for(model)
    drawn = answers(policy, prompts[:1], temperature=1.5, top_p=top_p, tokens=1, samples=1200)
    set_attention(model, "padded")
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(prompts[0][None].astype(np.int64))).logits[0, -1:] / 1.5
    if top_p < 1:
        logits = hf.TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits)  # type: ignore[arg-type]
    check_frequencies([answer[0] for answer in drawn], logits[0].double().softmax(-1).numpy())
