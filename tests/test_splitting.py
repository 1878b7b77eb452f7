"""Tests of the split into fit, validation and test."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.errors import EngineError
from ace_core.prompts import Prompt, duplicates_across, load_builtin
from ace_core.prompts import splitting as module
from ace_core.prompts.splitting import PromptSplit, split_both, split_prompts

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=12, max_size=60)
SHARES = st.sampled_from([(0.6, 0.2, 0.2), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)])
NUMBERED = [Prompt(f"Prompt {number}") for number in range(100)]


def parts_of(split: PromptSplit) -> tuple[tuple[Prompt, ...], ...]:
    return split.fit, split.validation, split.test


def place_of(split: PromptSplit) -> dict[str, int]:
    return {prompt.text: place for place, part in enumerate(parts_of(split)) for prompt in part}


def distinct(texts: list[str]) -> list[Prompt]:
    """Prompts of different, non-empty texts, at least six."""
    by_key = {" ".join(text.casefold().split()): text for text in texts}
    by_key.pop("", None)
    return [Prompt(text) for text in by_key.values()] + [Prompt(f"extra-{number}-prompt") for number in range(6)]


@settings(max_examples=100)
@given(texts=TEXTS, seed=st.integers(), shares=SHARES, data=st.data())
def test_a_partition_that_order_does_not_change(
    texts: list[str], seed: int, shares: tuple[float, float, float], data: st.DataObject
) -> None:
    prompts = distinct(texts)
    split = split_prompts(prompts, seed=seed, shares=shares)
    parts = parts_of(split)
    assert sorted(p.text for part in parts for p in part) == sorted(p.text for p in prompts)
    assert not any(duplicates_across(a, b) for a, b in zip(parts, parts[1:] + parts[:1], strict=True))
    for part, share in zip(parts, shares, strict=True):
        assert bool(part) == (share > 0)
        # a part is at most one prompt off, but for the prompt that a tiny share is promised
        assert abs(len(part) - share * len(prompts)) <= 2
    assert split_prompts(data.draw(st.permutations(prompts)), seed=seed, shares=shares) == split


@settings(max_examples=100)
@given(texts=TEXTS, seed=st.integers(0, 9), shares=SHARES)
def test_an_added_prompt_moves_one_across_each_cut_at_most(
    texts: list[str], seed: int, shares: tuple[float, float, float]
) -> None:
    prompts = distinct(texts)
    before = place_of(split_prompts(prompts[1:], seed=seed, shares=shares))
    after = place_of(split_prompts(prompts, seed=seed, shares=shares))
    for cut in (0, 1):
        crossed = [text for text, place in before.items() if (place > cut) != (after[text] > cut)]
        assert len(crossed) <= 1


@settings(max_examples=50)
@given(texts=TEXTS, data=st.data())
def test_repeated_and_empty_prompts_are_dropped(texts: list[str], data: st.DataObject) -> None:
    prompts = distinct(texts)
    ascii_only = [prompt for prompt in prompts if prompt.text.isascii()]
    repeats = [Prompt(f"  {prompt.text.upper()}\n ") for prompt in data.draw(st.lists(st.sampled_from(ascii_only)))]
    mixed = data.draw(st.permutations([*prompts, *repeats, Prompt(" \t")]))
    split = split_prompts(mixed)
    assert split.dropped == len(repeats) + 1
    assert f"{split.dropped} empty or repeated prompts dropped" in split.rule
    assert sum(map(len, parts_of(split))) == len(prompts)
    assert split == split_prompts(mixed[::-1])


def test_the_rule_reproduces_the_split() -> None:
    split = split_prompts(NUMBERED, seed=7)
    keys = sorted(f"prompt {number}" for number in range(100))
    keys.sort(key=lambda key: hashlib.sha256(f"7\n{key}".encode()).hexdigest())
    assert [prompt.text.lower() for part in parts_of(split) for prompt in part] == keys
    assert [len(part) for part in parts_of(split)] == [60, 20, 20]
    for words in ("SHA-256 of '7'", "of 100 the first 60 to fit", "the next 20 to validate", "the last 20 to test"):
        assert words in split.rule
    assert split.dropped == split.left_out == 0


def test_seeds_differ_and_parts_are_no_slices_of_the_set() -> None:
    splits = [split_prompts(NUMBERED, seed=seed) for seed in range(4)]
    assert len({split.test for split in splits}) == 4
    shared = {prompt.text for prompt in splits[0].test} & {prompt.text for prompt in splits[1].test}
    assert len(shared) < 12  # 4 expected of 20
    assert all(set(split.fit) != set(NUMBERED[:60]) for split in splits)


def test_sizes_of_small_sets() -> None:
    sizes = {count: [len(part) for part in parts_of(split_prompts(NUMBERED[:count]))] for count in (5, 6, 7, 8, 11)}
    assert sizes == {5: [3, 1, 1], 6: [4, 1, 1], 7: [4, 2, 1], 8: [5, 1, 2], 11: [7, 2, 2]}


@pytest.mark.parametrize("name", ["harmful", "harmless"])
def test_the_own_field_of_built_in_sets_is_respected(name: str) -> None:
    split = split_prompts(load_builtin(name), seed=3)
    for part, place in zip(parts_of(split), ("fit", "validation", "test"), strict=True):
        assert part == load_builtin(name, place)
    assert split.left_out == len(load_builtin(name, "train"))
    assert "own field 'split'" in split.rule and f"{split.left_out} prompts of other splits" in split.rule
    assert "SHA-256" not in split.rule


def test_a_repeat_across_own_splits_is_kept_once() -> None:
    places = ["fit"] * 3 + ["validation"] * 2 + ["Test"] * 2
    prompts = [Prompt(f"p{number}", split=place) for number, place in enumerate(places)]
    split = split_prompts([Prompt("P0 ", split="test"), *prompts])
    assert [len(part) for part in parts_of(split)] == [3, 2, 2]
    assert split.dropped == 1
    assert [len(part) for part in parts_of(split_prompts(prompts * 2))] == [3, 2, 2]


@pytest.mark.parametrize("change", [{"split": ""}, {"split": "train"}])
def test_a_field_that_does_not_cover_the_set_is_not_used(change: dict[str, str]) -> None:
    places = ["fit"] * 4 + ["validation"] * 3 + ["test"]
    prompts = [Prompt(f"p{number}", split=place) for number, place in enumerate(places)]
    assert "own field 'split' (" in split_prompts(prompts).rule
    split = split_prompts([*prompts[:-1], replace(prompts[-1], **change)])
    assert "SHA-256" in split.rule and "own field 'split' not used" in split.rule
    assert sum(map(len, parts_of(split))) == 8


@pytest.mark.parametrize("texts", [[], ["a", "b", "c", "d"], ["a", "b", "c", "d", " A", "", "B  "]])
def test_sets_that_are_too_small(texts: list[str]) -> None:
    with pytest.raises(EngineError) as caught:
        split_prompts([Prompt(text) for text in texts])
    expected = 4 if texts else 0
    assert str(caught.value) == f"The set has {expected} different prompts: add some, 5 are the least to split."


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5)])
def test_shares_that_make_no_sense(shares: tuple[float, float, float]) -> None:
    with pytest.raises(EngineError, match=r"The shares .* don't fit: give three from 0 to 1 that sum to 1"):
        split_prompts(NUMBERED, shares=shares)


def test_both_sets_are_split_by_the_same_rule() -> None:
    other = [Prompt(f"Other {number}") for number in range(50)]
    assert split_both(NUMBERED, other, seed=2) == (split_prompts(NUMBERED, seed=2), split_prompts(other, seed=2))


def test_a_prompt_in_both_sets_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        split_both(NUMBERED, [Prompt(" prompt  3"), *NUMBERED[50:52]])
    sentence = "The prompt 'Prompt 3' and 2 more are in both sets: remove it from one of them."
    assert str(caught.value) == sentence
    with pytest.raises(EngineError, match=r"'x{79}…' is in both sets"):
        split_both([Prompt("x" * 500)], [Prompt("X" * 500)])


def test_the_set_that_is_too_small_is_named() -> None:
    with pytest.raises(EngineError, match=r"^The harmless set has 1 different prompts"):
        split_both(NUMBERED, [Prompt("one")])


def test_public_names_exist() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
