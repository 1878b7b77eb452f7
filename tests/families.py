"""Tiny seeded language models, one per architecture family, and a tokenizer to go with them.

Everything is built from configuration classes, so no test needs a download. The weights are random but drawn
wide enough that logits differ clearly: the library's default of 0.02 gives near-ties, under which a broken
hook and a correct one sample the same token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.pytorch_utils import Conv1D

__all__ = [
    "BLOCKS",
    "FAMILIES",
    "HIDDEN",
    "WINDOW",
    "Family",
    "build_family",
    "save_tiny",
    "tiny_tokenizer",
]

BLOCKS = 4
HIDDEN = 48
HEADS = 4
MLP = 96
WINDOW = 8
"""Sliding-window length of the families that have one: shorter than any chat prompt."""

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|im_end|>", "<|im_start|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "r e", "o n", "Ġ a", "e r", "n d", "Ġa nd", "s e", "u s", "us er")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        name: key in `FAMILIES`.
        build: returns a fresh float32 model in eval mode; equal weights at every call.
        recurrent: the decode state is not a key/value cache (state-space and RWKV models).
        tuple_output: a decoder block returns a tuple whose first entry is the residual stream.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    recurrent: bool = False
    tuple_output: bool = False


@cache
def _byte_level_tokenizer(bos: bool) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in (merge.split() for merge in MERGES)]
    pieces = [*SPECIAL_TOKENS, *alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A",
            pair="<|bos|> $A $B",
            special_tokens=[("<|bos|>", SPECIAL_TOKENS.index("<|bos|>"))],
        )
    return tokenizer


def tiny_tokenizer(chat: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 273 tokens that needs no file.

    Args:
        chat: give it a ChatML template.
        bos: both the template and plain encoding put `<|bos|>` in front, so that encoding templated text once
            more with special tokens doubles it, as it does for Llama and Gemma.

    Padding is on the right, the library's default. Single bytes are tokens, so a character outside ASCII
    spans several tokens and a decoded prefix may end in U+FFFD.
    """
    template = ("{{ bos_token }}" if bos else "") + CHAT_TEMPLATE
    return PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(_byte_level_tokenizer(bos)),
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template if chat else None,
        clean_up_tokenization_spaces=False,
    )


VOCAB = len(SPECIAL_TOKENS) + 256 + len(MERGES)
# a tied output head makes a random model repeat its last token for ever
_DEFAULTS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def _reinitialise(model: nn.Module, seed: int) -> None:
    """Draw every projection and embedding anew, in place.

    A projection keeps the scale of its input (standard deviation 1/√fan-in); embeddings and the output head
    get 0.5, hence logits with a standard deviation of a few units. Norm gains and zero biases are moved off
    their trivial values. Parameters with a structured initialisation (decays, convolutions) stay.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float, shift: bool = False) -> None:
        noise = torch.randn(parameter.shape, generator=generator) * std
        parameter.copy_(parameter + noise if shift else noise)

    seen: set[int] = set()
    with torch.no_grad():
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                if "Norm" in type(module).__name__:
                    normal(parameter, 0.1, shift=True)
                elif key == "weight" and (isinstance(module, nn.Embedding) or name in {"lm_head", "head"}):
                    normal(parameter, 0.5)
                elif key == "weight" and isinstance(module, Conv1D):
                    normal(parameter, parameter.shape[0] ** -0.5)
                elif (key == "weight" and isinstance(module, nn.Linear)) or name.endswith(("experts", "gate")):
                    normal(parameter, parameter.shape[-1] ** -0.5)
                elif key == "bias" and not parameter.any():
                    normal(parameter, 0.1)


def _build(model_type: str, settings: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **{**_DEFAULTS, **settings})
    with torch.random.fork_rng(devices=[]):
        # the seed fixes what `_reinitialise` leaves alone
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _reinitialise(model, seed=0)
    model.generation_config.pad_token_id = _DEFAULTS["pad_token_id"]
    return model.eval()


_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_HEAD_DIM = {"head_dim": 16}
_GEMMA = {
    **_LLAMA_LIKE,
    **_HEAD_DIM,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2),
}
_MOE = {"num_experts_per_tok": 2}


def _family(
    name: str,
    settings: dict[str, Any],
    *,
    model_type: str | None = None,
    recurrent: bool = False,
    tuple_output: bool = False,
) -> Family:
    return Family(name, partial(_build, model_type or name, settings), recurrent, tuple_output)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("llama", _LLAMA_LIKE),
        _family("mistral", {**_LLAMA_LIKE, "sliding_window": None}),
        _family("mistral_sliding", {**_LLAMA_LIKE, "sliding_window": WINDOW}, model_type="mistral"),
        # more rows in the embedding than the tokenizer knows, as in the published checkpoints
        _family("qwen2", {**_LLAMA_LIKE, "vocab_size": 288}),
        _family("qwen3", {**_LLAMA_LIKE, **_HEAD_DIM}),
        _family("gemma2", _GEMMA),
        _family("gemma3", _GEMMA, model_type="gemma3_text"),
        _family("phi3", _LLAMA_LIKE),
        _family("olmo2", _LLAMA_LIKE),
        _family("gpt2", {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": 512}),
        _family("gpt_neox", {**_LLAMA_LIKE, "num_key_value_heads": HEADS}),
        _family(
            "falcon",
            {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS},
            tuple_output=True,
        ),
        _family(
            "bloom",
            {"hidden_size": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS},
            tuple_output=True,
        ),
        _family(
            "gpt_neo",
            {
                "hidden_size": HIDDEN,
                "num_layers": BLOCKS,
                "num_heads": HEADS,
                "max_position_embeddings": 512,
                "attention_types": [[["global", "local"], BLOCKS // 2]],
                "window_size": WINDOW,
            },
            tuple_output=True,
        ),
        _family(
            "mpt",
            {
                "d_model": HIDDEN,
                "n_layers": BLOCKS,
                "n_heads": HEADS,
                "expansion_ratio": 2,
                "max_seq_len": 512,
            },
            tuple_output=True,
        ),
        _family("mixtral", {**_LLAMA_LIKE, **_MOE, "num_local_experts": 4}),
        _family("qwen3_moe", {**_LLAMA_LIKE, **_HEAD_DIM, **_MOE, "num_experts": 4, "moe_intermediate_size": 32}),
        _family(
            "mamba",
            {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS, "state_size": 8},
            recurrent=True,
        ),
        _family(
            "mamba2",
            {
                "hidden_size": HIDDEN,
                "num_hidden_layers": BLOCKS,
                "state_size": 8,
                "num_heads": 6,
                "head_dim": 16,
                "n_groups": 2,
                "chunk_size": 8,
            },
            recurrent=True,
        ),
        _family(
            "rwkv",
            {
                "hidden_size": HIDDEN,
                "num_hidden_layers": BLOCKS,
                "intermediate_size": MLP,
                "context_length": 512,
            },
            recurrent=True,
            tuple_output=True,
        ),
    )
}


def build_family(name: str) -> PreTrainedModel:
    """A fresh model of the family called `name`: hidden size `HIDDEN`, `BLOCKS` decoder blocks."""
    return FAMILIES[name].build()


def save_tiny(path: str | Path, family: str | Family = "llama", *, chat: bool = True, bos: bool = False) -> Path:
    """Write a model folder (config, safetensors, tokenizer) like a hub checkout; return its path."""
    folder = Path(path)
    family = FAMILIES[family] if isinstance(family, str) else family
    family.build().save_pretrained(folder)
    tiny_tokenizer(chat=chat, bos=bos).save_pretrained(folder)
    return folder
