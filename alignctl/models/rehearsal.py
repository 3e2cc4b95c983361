"""What a step takes in memory, counted before it runs: its very functions on tensors without bytes.

PyTorch's fake tensors (torch._subclasses.fake_tensor) have shapes, types and a device, but no content.
On them the forward and the backward pass of a micro-batch are run as they will be, autocast, recomputation
and chunks included, and every storage is counted from its making to its end. So there is no formula to fit,
and what the engine changes is counted the next time. Decision: where all layers are alike only two are run;
each further one adds what the second kept in the forward pass, or what its gradients left in the backward
pass. What is small is computed on real tensors, since shapes may depend on it (indices, lengths, masks of
short rows). Not seen: memory that a kernel takes within one operation.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from alignctl.models.policy import Policy, causal_lm, head_parameters
from alignctl.records import Example

Pass = Callable[[Policy, Sequence[Example]], Tensor]
"""One micro-batch as training runs it, up to what is differentiated."""
SMALL_BYTES = 2**20
"""Results of at most this size that depend on no weight are computed."""
RUN_LAYERS = 2

# It logs the traceback of what we catch and tell.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


class NotRehearsed(Exception):
    """The model's code does not run on tensors without bytes, or not in the way asked for."""


# --- counting ------------------------------------------------------------------------------------------


class Ledger(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within it, and the most there are at one time."""

    def __init__(self, fake: FakeTensorMode, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._fake = fake
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._watched: dict[int, weakref.ref[Any]] = {}

    def turn(self) -> int:
        """Close a phase: returns its peak, and the next one's begins with what is alive."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = self._run(func, args, kwargs or {})
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._enter(leaf.untyped_storage())
        return made

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            run = _grouped if func is torch.ops.aten._grouped_mm.default else func
            return run(*args, **kwargs)
        try:
            with self._fake:
                made = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
            return func(*args, **kwargs)
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        return made if sum(sizes) > SMALL_BYTES else func(*args, **kwargs)

    def _enter(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size
        self._watched[key] = weakref.ref(storage, lambda _: self._leave(key))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _leave(self, key: int) -> None:
        del self._watched[key]
        self.live -= self._sizes.pop(key)


def _grouped(one: Tensor, other: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
    """Products of experts: the rule for shapes knows bfloat16 alone, the kernel more."""
    made = torch.ops.aten._grouped_mm.default(one.bfloat16(), other.bfloat16(), *rest, **kwargs)
    return torch.empty_like(made, dtype=one.dtype)


# --- a policy without bytes ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Ghost:
    """A policy of fake weights, cut to a few layers where all are alike."""

    policy: Policy
    fake: FakeTensorMode
    layers: Sequence[nn.Module]
    """The layers that are run; none where the model's cannot be told or differ."""
    left_out: int
    """How many more of the same the model has."""
    trained_bytes: int
    """Of the parameters that are trained, those of the layers left out among them."""


def ghost_of(policy: Policy, *, head_trained: bool = True) -> Ghost:
    """`policy` may lie on any device, the meta device too; its fake weights are on `policy.device`.

    Without `head_trained` a vocabulary head of its own is frozen, as a reward model's is.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    stack = _stack(policy.causal_lm)
    left_out = stack[RUN_LAYERS:] if stack is not None and _alike(stack) else []
    skipped = {id(tensor) for layer in left_out for tensor in (*layer.parameters(), *layer.buffers())}
    with fake:
        for tensor in (*policy.model.parameters(), *policy.model.buffers()):
            if id(tensor) not in skipped:
                memo[id(tensor)] = _without_bytes(tensor, policy.device)
    if stack is not None and left_out:
        memo[id(stack)] = copy.deepcopy(nn.ModuleList(stack[:RUN_LAYERS]), memo)
    # What the memo holds is not copied, so a copy of a model takes no memory.
    model = copy.deepcopy(policy.model, memo).train()
    frozen = 0 if head_trained else own_head_bytes(policy.causal_lm)
    if not head_trained:
        _freeze_head(causal_lm(model))
    return Ghost(
        policy=Policy(model, policy.layout, policy.compute_dtype, policy.device),
        fake=fake,
        layers=list(memo[id(stack)]) if left_out else [],
        left_out=len(left_out),
        trained_bytes=weight_bytes(policy.model, trained=True) - frozen,
    )


def _freeze_head(lm: PreTrainedModel) -> None:
    for parameter in _own_head(lm):
        parameter.requires_grad_(False)


def own_head_bytes(lm: PreTrainedModel) -> int:
    """What is trained of a vocabulary head that is not the embedding."""
    return sum(p.numel() * p.element_size() for p in _own_head(lm) if p.requires_grad)


def _own_head(lm: PreTrainedModel) -> list[Tensor]:
    embedding = lm.get_input_embeddings().weight
    return [p for p in head_parameters(lm) if p is not None and p is not embedding]


def weight_bytes(model: nn.Module, *, trained: bool = False) -> int:
    """Of all parameters, or of those that are trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not trained)


def _without_bytes(tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _stack(lm: PreTrainedModel) -> nn.ModuleList | None:
    """The list of the model's layers, found by its length."""
    layers = lm.config.get_text_config().num_hidden_layers
    found = [m for m in lm.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    return found[0] if found else None


def _alike(layers: Iterable[nn.Module]) -> bool:
    kinds = {
        (type(layer), *((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()))
        for layer in layers
    }
    return len(kinds) == 1


# --- passes --------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Watch:
    """Notes what is alive where layers end in the forward pass and begin in the backward pass."""

    ledger: Ledger
    layers: int
    kept: list[int] = field(default_factory=list)
    """Bytes alive after each layer's forward pass."""
    forward_peak: int = 0
    """Most bytes up to the end of the decoder's forward pass."""
    turns: list[tuple[int, int]] = field(default_factory=list)
    """Where each layer's backward pass begins, the last's first: bytes alive, peak since the turn before."""

    def after_layer(self, layer: nn.Module, args: Any, output: Any) -> None:
        """Forward hook. A layer that is recomputed comes by again and is let pass."""
        if len(self.kept) == self.layers:
            return
        hidden = output if isinstance(output, Tensor) else output[0]
        # What came into a layer is still there; without gradients it goes after the next one.
        passing = 0 if hidden.requires_grad else len(self.kept) * hidden.untyped_storage().nbytes()
        self.kept.append(self.ledger.live - passing)
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.turns.append((self.ledger.live, self.ledger.turn())))

    def after_decoder(self, decoder: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: afterwards autocast lets its copies of the weights go."""
        self.forward_peak = self.ledger.turn()

    def whole(self, left_out: int, layer_gradients: int) -> int:
        """The peak with the layers that were left out, of which each leaves `layer_gradients` bytes.

        Until the backward pass of the last layer ends, all others keep what their forward pass kept; from
        that of the first on, they have left their gradients instead; in between both change evenly, so no
        peak lies there.
        """
        peak, forward = self.ledger.peak, self.forward_peak
        if len(self.kept) < RUN_LAYERS:
            return max(peak, forward, *(turn for _, turn in self.turns))
        forward += left_out * (self.kept[-1] - self.kept[-2])
        if len(self.turns) < RUN_LAYERS:
            return max(peak, forward)
        (last, head_peak), (first, last_peak) = self.turns
        kept = last - first + layer_gradients
        early = max(head_peak, last_peak) + left_out * kept
        return max(forward, early, peak + left_out * layer_gradients)


def training_bytes(
    ghost: Ghost, rows: Sequence[Example], forward: Pass, *, checkpointing: bool, accumulates: bool
) -> int:
    """Most bytes at one time in a micro-batch of `rows`, gradients included, without weights and moments.

    `accumulates` says that an earlier micro-batch of the step has left its gradients.
    """
    with _checkpointing(ghost, checkpointing), _gradients(ghost, accumulates):
        watch = _watched(ghost, lambda: forward(ghost.policy, rows).sum().backward())
    if accumulates:
        return ghost.trained_bytes + watch.whole(ghost.left_out, 0)
    own = weight_bytes(ghost.layers[0], trained=True) if ghost.left_out else 0
    return watch.whole(ghost.left_out, own)


@torch.no_grad()
def scoring_bytes(ghost: Ghost, rows: Sequence[Example], forward: Pass) -> int:
    """Most bytes at one time in a pass without gradients, without the weights."""
    return _watched(ghost, lambda: forward(ghost.policy, rows)).whole(ghost.left_out, 0)


@contextmanager
def _checkpointing(ghost: Ghost, wanted: bool) -> Iterator[None]:
    lm = ghost.policy.causal_lm
    if not wanted:
        yield
        return
    try:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise NotRehearsed(f"{type(lm).__name__} cannot recompute its activations") from error
    try:
        yield
    finally:
        lm.gradient_checkpointing_disable()


@contextmanager
def _gradients(ghost: Ghost, left: bool) -> Iterator[None]:
    """Within it every trained weight has a gradient, if asked for; afterwards none has."""
    trained = [p for p in ghost.policy.model.parameters() if p.requires_grad]
    if left:
        with ghost.fake:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.grad = None


def _watched(ghost: Ghost, work: Callable[[], object]) -> _Watch:
    """Raises NotRehearsed."""
    model = ghost.policy.model
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    ledger = Ledger(ghost.fake, [*model.parameters(), *model.buffers(), *gradients])
    watch = _Watch(ledger, len(ghost.layers))
    hooks = [layer.register_forward_hook(watch.after_layer) for layer in ghost.layers]
    hooks.append(ghost.policy.causal_lm.get_decoder().register_forward_hook(watch.after_decoder))
    try:
        with ledger:
            work()
    except Exception as error:  # any model code may run here
        name, text = type(ghost.policy.causal_lm).__name__, " ".join(str(error).split())[:120]
        raise NotRehearsed(f"{name}: {type(error).__name__}: {text}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return watch
