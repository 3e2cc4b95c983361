"""`model=tiny`: a small random Llama over bytes, for tests and smoke runs. It learns, but knows nothing.

It is made once into a plain model directory in the cache, so everything after that treats it as any model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignctl.config import TinyModel
from alignctl.errors import storage_faults
from alignctl.models.machine import cache_root
from alignctl.models.pinned import publish

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 2048


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, three special tokens and a ChatML template: 259 tokens in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
    )


def tiny_model(config: TinyModel) -> LlamaForCausalLM:
    """Weights drawn from `config.seed`, without touching the process's random state."""
    heads = config.hidden // 16
    llama = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(llama)


def tiny_directory(config: TinyModel) -> Path:
    """The model directory in the cache, made on first use."""
    name = f"tiny-{config.layers}x{config.hidden}-seed{config.seed}"
    target = cache_root() / "models" / name
    if (target / "model.safetensors").is_file():
        return target
    with storage_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as scratch:
            made = Path(scratch) / "model"
            tiny_model(config).save_pretrained(made)
            tiny_tokenizer().save_pretrained(made)
            publish(made, target)
    return target
