"""What a step has to compute, and how fast this machine multiplies matrices: their ratio is utilisation.

Useful FLOPs of full fine-tuning: 6 x weights of the layers x unique tokens (each prompt once), 6 x weights of
the head x completion tokens, and causal attention, whose products count three times too; a reference scored
in that time adds its forward pass, a third of it. Under LoRA the frozen layers and the head need no gradient
of their weights, which leaves 4 of the 6; the adapters' own products count 6 times. Norms, softmax,
recomputation, padding and repeated prompts are not useful work, however well they run.
Decisions. The peak is measured, not looked up: the best rate of `torch.mm` over products that the model makes
and a large square. Under bfloat16 it is the bfloat16 rate, for head and attention as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROWS = 2048
"""Tokens in the products that are timed: a micro-batch of about eight short pairs."""
SQUARE = {"cpu": 4096, "cuda": 8192}
SECONDS = 1.5
"""Per product."""
BLOCK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes that FLOPs follow from."""

    body: int
    """Weights of the linear layers, head and embedding not among them."""
    head: int
    """Vocabulary times hidden size."""
    attention: int
    """Heads times head size, summed over the layers."""
    adapter: int
    """Weights of LoRA on every linear layer of the body, at the benchmark's rank."""


@dataclass(frozen=True, slots=True)
class Work:
    """Sizes that the data decides."""

    unique: int
    """Tokens, each prompt once."""
    completion: int
    """Chosen and rejected tokens."""
    attended: int
    """Pairs of a token and one it may read, itself included."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.unique + other.unique, self.completion + other.completion, self.attended + other.attended
        )


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a run is held against."""

    shape: ModelShape
    peaks: dict[str, float]
    """FLOP/s by dtype."""
    products: dict[str, dict[str, float]]
    """FLOP/s by dtype and product, the largest of which is the peak."""


def work_of(trees: Iterable[Sequence[int]]) -> Work:
    """From the lengths of (prompt, branch, branch, ...) of each row."""
    total = Work(0, 0, 0)
    for prompt, *branches in trees:
        causal = prompt * (prompt + 1) // 2
        causal += sum(prompt * length + length * (length + 1) // 2 for length in branches)
        total += Work(prompt + sum(branches), sum(branches), causal)
    return total


def useful_flops(shape: ModelShape, work: Work, *, adapter: str) -> float:
    """FLOPs of forward and backward pass; `adapter` is "full" or "lora"."""
    attention = 3 * 4 * shape.attention * work.attended
    if adapter == "full":
        return 6 * shape.body * work.unique + 6 * shape.head * work.completion + attention
    frozen = 4 * shape.body * work.unique + 4 * shape.head * work.completion
    return frozen + 6 * shape.adapter * work.unique + attention


def reference_flops(shape: ModelShape, work: Work) -> float:
    """FLOPs of scoring the reference once."""
    # Attention multiplies twice per pair of tokens, queries with keys and weights with values.
    return (
        2 * shape.body * work.unique + 2 * shape.head * work.completion + 4 * shape.attention * work.attended
    )


# --- measured ------------------------------------------------------------------------------------------


def shape_of(config: PretrainedConfig, rank: int) -> ModelShape:
    """Counted on the model's modules, without memory for their weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    layers = {
        name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head
    }
    return ModelShape(
        body=sum(layer.weight.numel() for layer in layers.values()),
        head=head.weight.numel(),
        attention=sum(layer.out_features for name, layer in layers.items() if name.endswith("q_proj")),
        adapter=sum(rank * (layer.in_features + layer.out_features) for layer in layers.values()),
    )


def measure_yardstick(config: PretrainedConfig, dtypes: Iterable[str], *, rank: int) -> Yardstick:
    """Shape of a model and peak of this machine, with the threads that torch is set to; seconds per dtype."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {
        dtype: {
            name: measured_rate(*operands(sizes, DTYPES[dtype], device))
            for name, sizes in products(config, SQUARE[device.type]).items()
        }
        for dtype in dtypes
    }
    peaks = {dtype: max(of_product.values()) for dtype, of_product in rates.items()}
    return Yardstick(shape_of(config, rank), peaks, rates)


def products(config: PretrainedConfig, square: int) -> dict[str, tuple[int, int, int]]:
    """(rows, inner, columns) of the products that are timed."""
    text = config.get_text_config()
    hidden, wide, vocabulary = text.hidden_size, text.intermediate_size, text.vocab_size
    return {
        "square": (square, square, square),
        "mlp in": (ROWS, hidden, wide),
        "mlp out": (ROWS, wide, hidden),
        "mlp weight gradient": (wide, ROWS, hidden),
        "attention projection": (ROWS, hidden, hidden),
        "head": (ROWS // 4, hidden, vocabulary),
    }


def operands(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random factors, the right one transposed as a linear layer's weight is."""
    rows, inner, columns = sizes
    draw = torch.Generator(device).manual_seed(0)
    left = torch.randn(rows, inner, generator=draw, device=device).to(dtype)
    return left, torch.randn(columns, inner, generator=draw, device=device).to(dtype).T


def measured_rate(left: Tensor, right: Tensor, seconds: float = SECONDS) -> float:
    """FLOP/s of the best block of products; a block takes a tenth of a second at least: no burst."""
    flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
    out = torch.mm(left, right)
    best, calls, end = 0.0, 1, time.perf_counter() + seconds
    while time.perf_counter() < end or best == 0.0:
        _wait(left.device)
        begin = time.perf_counter()
        for _ in range(calls):
            torch.mm(left, right, out=out)
        _wait(left.device)
        took = time.perf_counter() - begin
        if took < BLOCK_SECONDS:
            calls *= 2
        else:
            best = max(best, calls * flops / took)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
