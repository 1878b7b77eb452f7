"""Formatting prompts: chat template for chat models, plain text for base models."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import Any

from ace_core.errors import EngineError
from ace_core.prompts import MAX_PROMPT_CHARACTERS

__all__ = [
    "EndOfTurn",
    "check_prompt",
    "encode_prompt",
    "end_of_turn",
    "template_digest",
    "token_texts",
]

_SENTINEL = "\u2063prompt\u2063"


@dataclass(frozen=True)
class EndOfTurn:
    """What ends an answer: special token ids, and strings where the template uses plain text."""

    ids: frozenset[int]
    strings: tuple[str, ...]


def template_digest(tokenizer: Any) -> str:
    """SHA-256 of the chat template, empty for a base model."""
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(str(template).encode()).hexdigest() if template else ""


def check_prompt(prompt: str) -> None:
    """Raise :class:`EngineError` if a prompt is empty or longer than :data:`MAX_PROMPT_CHARACTERS`."""
    if not prompt.strip():
        raise EngineError("The prompt is empty: type something first.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise EngineError(
            f"The prompt has {len(prompt):,} characters: shorten it to {MAX_PROMPT_CHARACTERS:,} or fewer."
        )


def encode_prompt(tokenizer: Any, prompt: str, system: str | None = None) -> tuple[int, ...]:
    """Token ids of ``prompt`` as the user's turn, up to and including the generation prompt.

    Control tokens in ``prompt`` are encoded as ordinary text, so a visitor can't write a turn of their own.

    Raises:
        EngineError: if the prompt is empty or too long.
    """
    check_prompt(prompt)
    if not getattr(tokenizer, "chat_template", None):
        text = prompt if system is None else f"{system}\n\n{prompt}"
        return tuple(_plain(tokenizer, text, add_special_tokens=True))
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, sanitize_control_tokens=True
        )
        return tuple(encoded["input_ids"])
    return _encode_sanitised(tokenizer, messages)


def _encode_sanitised(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """The same for transformers without ``sanitize_control_tokens``: template and prompt are encoded apart
    whenever the prompt contains a control token."""
    prompt = messages[-1]["content"]
    marks = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    render = _renderer(tokenizer)
    if not any(mark in prompt for mark in marks):
        return tuple(tokenizer(render(messages), add_special_tokens=False)["input_ids"])
    text = render([*messages[:-1], {"role": "user", "content": _SENTINEL}])
    head, _, tail = text.partition(_SENTINEL)
    ids = tokenizer(head, add_special_tokens=False)["input_ids"]
    ids += _plain(tokenizer, prompt, add_special_tokens=False)
    return tuple(ids + tokenizer(tail, add_special_tokens=False)["input_ids"])


def _plain(tokenizer: Any, text: str, add_special_tokens: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=add_special_tokens, split_special_tokens=True)["input_ids"]


def _renderer(tokenizer: Any) -> Any:
    return lambda messages: tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def end_of_turn(tokenizer: Any, network: Any) -> EndOfTurn:
    """Stop tokens of the model and the text its template writes after an assistant's turn."""
    ids: set[int] = set()
    for holder in (getattr(network, "generation_config", None), getattr(network, "config", None), tokenizer):
        eos = getattr(holder, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list) else [] if eos is None else [eos])
    strings: list[str] = []
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # some templates insist on a system turn or on tools; their eos token then has to do
            text = ""
        tail = text.rpartition(_SENTINEL)[2].strip() if _SENTINEL in text else ""
        tokens = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
        if tokens and tokens[0] in tokenizer.all_special_ids:
            ids.add(tokens[0])
        elif tail:
            strings.append(tail.splitlines()[0])
    return EndOfTurn(frozenset(ids), tuple(strings))


def token_texts(tokenizer: Any, ids: tuple[int, ...]) -> tuple[str, ...]:
    """Each token of a prompt as text, special tokens by name, for display."""
    return tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids)
