"""The tiny models behave as the rest of the suite assumes: finite, decisive, repeatable and cacheable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from families import BLOCKS, FAMILIES, HIDDEN, Family, build_family, save_tiny, tiny_tokenizer

PROMPT = "How does the wind blow? é"

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def chat_ids(text: str = PROMPT) -> torch.Tensor:
    """Templated `text` as input ids, shape (1, tokens)."""
    chat = [{"role": "user", "content": text}]
    encoded = tiny_tokenizer().apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    return encoded["input_ids"]


def block_outputs(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
    """Logits of the last position and whatever each decoder block returned."""
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == BLOCKS)
    outputs: list[Any] = []
    handles = [block.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for block in blocks]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits, outputs


@every_family
def test_blocks_return_what_the_family_declares(family: Family) -> None:
    ids = chat_ids()
    logits, outputs = block_outputs(family.build(), ids)
    assert len(outputs) == BLOCKS
    assert {isinstance(output, tuple) for output in outputs} == {family.tuple_output}
    for output in outputs:
        residual = output[0] if isinstance(output, tuple) else output
        assert isinstance(residual, torch.Tensor)
        assert residual.shape == (1, ids.shape[1], HIDDEN)
        assert residual.dtype == torch.float32
        norms = residual.norm(dim=-1)
        assert torch.isfinite(norms).all() and 1 < norms.mean() < 100
    assert torch.isfinite(logits).all()
    assert logits.std() > 1


@every_family
def test_cached_generation_equals_recomputation(family: Family) -> None:
    model = family.build()
    ids = chat_ids()
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 12,
        "do_sample": False,
        "eos_token_id": None,
    }
    cached = model.generate(ids, use_cache=True, **options)
    recomputed = model.generate(ids, use_cache=False, **options)
    assert torch.equal(cached, recomputed)
    # a model that repeats one token would hide most faults of a decode loop
    assert len(set(cached[0, ids.shape[1] :].tolist())) > 1


@every_family
def test_equal_weights_at_every_build(family: Family) -> None:
    first, second = family.build().state_dict(), family.build().state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build_family("llama")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("text", ["plain words", "  spaces\n\nand lines ", "héllo 日本語 🎉", "x<|im_end|>y", ""])
def test_tokenizer_gives_text_back(text: str) -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert all(0 <= i < len(tokenizer) for i in ids)


def test_tokenizer_splits_characters_outside_ascii() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("🎉", add_special_tokens=False)
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]).endswith("\ufffd")


def test_template_marks_turns_with_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = chat_ids("Hi")[0].tolist()
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids[0] == start and ids.count(start) == 2 and ids.count(end) == 1
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tiny_tokenizer(chat=False).chat_template is None


def test_bos_variant_puts_it_in_the_template_and_in_plain_encoding() -> None:
    tokenizer = tiny_tokenizer(bos=True)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert isinstance(text, str) and text.startswith("<|bos|><|im_start|>")
    assert tokenizer.encode(text).count(tokenizer.bos_token_id) == 2
    assert tokenizer.encode(text, add_special_tokens=False).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mamba"])
def test_saved_folder_loads_to_the_same_model(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / name, name)
    assert (folder / "config.json").exists() and list(folder.glob("*.safetensors"))
    ids = chat_ids()
    with torch.inference_mode():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
        built = build_family(name)(input_ids=ids).logits
    assert torch.equal(loaded, built)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": PROMPT}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == tiny_tokenizer().apply_chat_template(
        chat, tokenize=False
    )
