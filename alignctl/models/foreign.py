"""Reading what others saved, through transformers: the config, and what becomes of every error on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file

from alignctl.errors import ASK_THE_HUB, AlignctlError, SetupError, is_of_the_hub
from alignctl.models.claims import CONFIG, check_claims, check_config, check_size
from alignctl.models.exhaustion import is_out_of_memory

NEEDED = "alignctl loads causal language models in safetensors, without remote code"


def read_config(base: str, revision: str | None) -> PretrainedConfig:
    """The config of a model directory or hub id, once its claims are found credible.

    Raises SetupError where they are not, and whatever transformers does (see `translated`).
    """
    directory = Path(base)
    if directory.is_dir():
        check_claims(directory)
    elif file := cached_file(base, CONFIG, revision=revision):
        check_config(Path(file))
    config = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    # How attention is computed is the engine's choice. What a directory would have instead need not be
    # installed here, and transformers would fetch it.
    config._attn_implementation = config._experts_implementation = None
    return config


def refuse_made_up(base: str, build: Callable[[], nn.Module]) -> None:
    """Refuse a model most of whose weights would be made up: transformers gives them memory before it tells.

    It is built without bytes for that. What lies on the hub is not here to be held against.
    """
    directory = Path(base)
    if directory.is_dir():
        with translated(base), torch.device("meta"):
            model = build()
        check_size(directory, sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers())))


@contextmanager
def translated(name: str, hint: str = NEEDED) -> Iterator[None]:
    """Turn whatever transformers and PEFT raise on an unfit model into one line.

    They raise anything on files that are not what they should be, and tokenizers' Rust panics, which Python
    sees as no ordinary exception. Memory that ran out is no fault of the model's: it goes through.
    """
    try:
        yield
    except AlignctlError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _unloadable(name, error, hint) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _unloadable(name, error, hint) from error


def _unloadable(name: str, error: BaseException, hint: str) -> SetupError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return SetupError(f"{name} cannot be loaded: {first}", ASK_THE_HUB if is_of_the_hub(error) else hint)
