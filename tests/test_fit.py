"""Fitting with every option: positions, sites, variants, third sets, stopping, imported vectors, filtering."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ace_core as ace
from ace_core import geometry
from ace_core.activations import Stopped, TimeLeft, position_activations, recording
from ace_core.answering import Answer
from ace_core.arms import Arm
from ace_core.fitting import collecting, extraction, filtering
from ace_core.fitting.collecting import ClassCollector, sampled_rows
from ace_core.fitting.extraction import complete_directions
from ace_core.fitting.positions import Position, TemplateEnds, describe_position, parse_position, template_ends
from ace_core.fitting.variants import VARIANTS
from ace_core.models import ChatModel
from families import FAMILIES, tiny_tokenizer

FEW = ["llama", "gemma2", "bloom", "gpt2", "mamba", "rwkv"]
PROMPTS = [
    "How do I steal a car?",
    "Go",
    "Tell me a nice and rather long story.",
    "用户 ünïcode 🧨",
    "the user and the",
]
TEMPLATES = {
    "chatml": None,
    "none": "",
    "inst": "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]",
    "trims": "{{ bos_token }}User: {{ messages[0]['content'] | trim }}\n\nAssistant:",
    "nothing before": "{{ messages[0]['content'] }}<|im_end|>",
    "nothing after": "<|im_start|>{{ messages[0]['content'] }}",
    "nothing": "{{ messages[0]['content'] }}",
}


def templated(name: str) -> ChatModel:
    template = TEMPLATES[name]
    tokenizer = tiny_tokenizer(chat=template != "", bos=True)
    if template:
        tokenizer.chat_template = template
    return ace.wrap(FAMILIES["llama"].build(), tokenizer, name=name, model_id=name)


def alone(model: ChatModel, prompt: str, site: str = "output") -> Tensor:
    """The residual stream of one unpadded prompt at every position, ``(blocks, S, d)``, by hooks of its own."""
    seen: list[Tensor] = []

    def after(_module: object, args: tuple, kwargs: dict, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(((args[0] if args else kwargs["hidden_states"]) if site == "input" else hidden)[0].clone())

    handles = [block.register_forward_hook(after, with_kwargs=True) for block in model.blocks]
    try:
        with torch.inference_mode():
            model.network(input_ids=torch.tensor([model.encode(prompt)]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)


def together(model: ChatModel, prompts: list[str], **options) -> list[Tensor]:
    out = [torch.empty(0)] * len(prompts)
    for indices, activations in position_activations(model, prompts, **options):
        for place, index in enumerate(indices):
            out[index] = activations[:, place]
    return out


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_instruction_is_found_in_any_template(name: str, prompt: str) -> None:
    model = templated(name)
    ids = model.encode(prompt)
    words = template_ends(model).instruction(ids)
    found = model.tokenizer.decode(ids[words.start : words.stop])
    assert found.strip() == prompt
    shifted = model.tokenizer.decode(ids[words.start : words.stop - 1])
    assert shifted.strip() != prompt


def test_template_ends_count_the_post_instruction_tokens() -> None:
    model = tiny_model("llama")
    ends = template_ends(model)
    assert model.tokenizer.decode(ends.tail) == "<|im_end|>\n<|im_start|>assistant\n"
    assert model.tokenizer.decode(ends.head) == "<|im_start|>user\n"
    bare = template_ends(templated("nothing"))
    assert bare == TemplateEnds((), ())


@given(st.text(min_size=1, max_size=40).filter(str.strip))
def test_instructions_of_any_text_lie_between_the_ends(text: str) -> None:
    model = tiny_model("llama")
    ids, ends = model.encode(text), template_ends(tiny_model("llama"))
    words = ends.instruction(ids)
    assert ids == ends.head + ids[words.start : words.stop] + ends.tail


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("position", ["last", "instruction", "mean", -1, -3])
def test_positions_are_exact_in_padded_batches(family: str, position: Position) -> None:
    model = tiny_model(family)
    tail = len(template_ends(model).tail)
    found = together(model, PROMPTS, position=position)
    for prompt, activations in zip(PROMPTS, found, strict=True):
        stream = alone(model, prompt)
        count = stream.shape[1]
        head = len(template_ends(model).head)
        named = {
            "last": range(count - 1, count),
            "instruction": range(count - tail - 1, count - tail),
            "mean": range(head, count - tail),
        }
        right = named[position] if isinstance(position, str) else range(count + position, count + position + 1)
        assert torch.allclose(activations, stream[:, right.start : right.stop].mean(1), atol=1e-4)
        assert not torch.allclose(activations, stream[:, right.start - 1 : right.stop - 1].mean(1), atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_input_of_a_block_is_the_output_of_the_one_before(family: str) -> None:
    model = tiny_model(family)
    inputs = torch.stack(together(model, HARMFUL, site="input"))
    outputs = torch.stack(together(model, HARMFUL))
    assert torch.allclose(inputs[:, 1:], outputs[:, :-1], atol=1e-5)
    assert not torch.allclose(inputs[:, 1:], outputs[:, 1:], atol=1e-2)
    assert torch.allclose(inputs[0], alone(model, HARMFUL[0], "input")[:, -1], atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_fitted_means_take_position_and_site(family: str) -> None:
    model = tiny_model(family)
    directions = ace.fit_directions(model, HARMFUL, HARMLESS, position="mean", site="input", split_rule="by hand")
    words = template_ends(model)
    total = torch.zeros(directions.blocks, directions.width, dtype=torch.float64)
    for prompt in HARMFUL:
        span = words.instruction(model.encode(prompt))
        total += alone(model, prompt, "input")[:, span.start : span.stop].double().mean(1)
    assert torch.allclose(directions.mean_harmful.double(), total / len(HARMFUL), atol=1e-4)
    assert not torch.allclose(directions.mean_harmful, tiny_directions(family).mean_harmful, atol=1e-2)
    assert directions.site == "input" and tiny_directions(family).site == "output"
    metadata = directions.metadata
    assert metadata["position"] == "mean over the instruction" and metadata["site"] == "block input"
    assert metadata["split_rule"] == "by hand" and metadata["seed"] == "0" and metadata["variant"] == "mean_difference"


def test_positions_by_name_and_number() -> None:
    assert [parse_position(t) for t in ("last", " Mean ", "-4", "-1", "instruction")] == [
        "last", "mean", -4, "last", "instruction",
    ]  # fmt: skip
    assert describe_position(-1) == "last prompt token" and "-4" in describe_position(-4)
    for bad in ("first", "0", "3", ""):
        with pytest.raises(ace.EngineError, match="Unknown position"):
            parse_position(bad)
    model = tiny_model("llama")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"position": "middle"}, "Unknown position"),
        ({"position": 0}, "Unknown position"),
        ({"position": -1000}, "before the start of a prompt"),
        ({"site": "attention"}, "Unknown site"),
        ({"variant": "magic"}, "Unknown variant"),
        ({"variant": "imported"}, "needs vectors"),
    ]
    for options, sentence in wrong:
        with pytest.raises(ace.EngineError, match=sentence):
            ace.fit_directions(model, HARMFUL, HARMLESS, **options)
    with pytest.raises(ace.EngineError, match="Unknown site"), recording(model.blocks, site="x"):  # type: ignore
        pass


def many(kind: str, count: int) -> list[str]:
    return [f"{kind} thing number {i} {'and so on ' * (i % 4)}" for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_streaming_equals_all_at_once(batch_size: int) -> None:
    """Windows of a few batches, in any order, give the means and samples of the whole set, each prompt once."""
    model, texts = tiny_model("llama"), many("Bad", 53)
    collector = ClassCollector(texts, len(model.blocks), model.width, range(53))
    order: list[int] = []
    for indices, activations in position_activations(model, texts, batch_size=batch_size):
        collector.add(indices, activations)
        order += indices
    assert sorted(order) == list(range(53)) and (batch_size == 16 or order != sorted(order))
    whole = torch.stack(together(model, texts, batch_size=53), dim=1)
    assert torch.allclose(collector.moments.mean(), whole.double().mean(1).float(), atol=1e-5)
    for block in range(4):
        assert torch.allclose(collector.samples(block, range(53)), whole[block], atol=1e-4)
        assert not torch.allclose(collector.samples(block, range(53)), whole[block].roll(1, 0), atol=1e-2)


def test_prompts_are_encoded_as_they_are_needed() -> None:
    model, encoded = replace(tiny_model("llama")), []
    object.__setattr__(
        model, "encode", lambda text, system=None: encoded.append(text) or tiny_model("llama").encode(text)
    )
    stream = position_activations(model, many("Bad", 3000), batch_size=4)
    next(stream)
    assert 0 < len(encoded) < 100


def test_samples_are_seeded_capped_and_paired() -> None:
    assert sampled_rows([10, 10], 0, 4) == [sampled_rows([10], 0, 4)[0]] * 2
    assert sampled_rows([10], 0, 4) != sampled_rows([10], 1, 4)
    low, high = sampled_rows([7, 100], 3, 5)
    assert len(low) == len(high) == 5 and max(low) < 7
    assert sampled_rows([3], 0) == [[0, 1, 2]]
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[sampled_rows([20], seed, 5)[0]] += 1
    assert float((counts / 2000 - 0.25).abs().max()) < 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_model_are_their_functions_at_every_block(variant: str) -> None:
    model = tiny_model("llama")
    harmful, harmless = many("Bad", 12), many("Nice", 12)
    directions = ace.fit_directions(
        model, harmful, harmless, variant=variant, heldout_harmful=HARMFUL, heldout_harmless=HARMLESS
    )
    low, high = (torch.stack(together(model, texts), dim=1) for texts in (harmless, harmful))
    for block in range(directions.blocks):
        expected = VARIANTS[variant].function(low[block], high[block])
        assert torch.allclose(directions.unit[block], expected, atol=1e-3)
        axis = directions.axis(block)
        assert axis.high - axis.low == pytest.approx(float(directions.gap[block]), rel=1e-4)
        assert float(directions.direction[block].norm()) == pytest.approx(float(directions.gap[block]), rel=1e-4)
        assert float(directions.origin[block]) == pytest.approx(-axis.low / (axis.high - axis.low), rel=1e-3, abs=1e-3)
        coordinates = (low[block].mean(0) @ axis.unit - axis.low) / (axis.high - axis.low)
        assert float(coordinates) == pytest.approx(0.0, abs=1e-4)
    held = torch.stack(together(model, HARMFUL), dim=1)
    axis = directions.axis(2)
    assert torch.allclose(
        directions.heldout_harmful[2], (held[2] @ axis.unit - axis.low) / (axis.high - axis.low), atol=1e-3
    )
    assert directions.variant == directions.metadata["variant"] == variant
    assert (directions.variant_unit is None) == (variant == "mean_difference")
    plain = ace.fit_directions(model, harmful, harmless, heldout_harmful=[], heldout_harmless=[])
    assert (variant == "mean_difference") == torch.allclose(plain.unit, directions.unit, atol=1e-5)
    assert torch.allclose(plain.mean_harmful, directions.mean_harmful, atol=1e-6)


def test_samples_are_capped_in_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(extraction, "sampled_rows", lambda counts, seed: sampled_rows(counts, seed, 6))
    harmful, harmless = many("Bad", 20), many("Nice", 20)
    fit = lambda seed: ace.fit_directions(  # noqa: E731
        model, harmful, harmless, variant="median_difference", seed=seed, heldout_harmful=[], heldout_harmless=[]
    )
    assert fit(0).metadata["samples"] == "6 harmless, 6 harmful"
    assert torch.allclose(fit(0).unit, fit(0).unit) and not torch.allclose(fit(0).unit, fit(1).unit, atol=1e-3)
    assert torch.allclose(fit(0).mean_harmful, fit(1).mean_harmful, atol=1e-6)


def test_a_third_set_gives_a_reference_point() -> None:
    model = tiny_model("llama")
    third = ["Sing a song.", "What is two plus two?"]
    directions = ace.fit_directions(model, HARMFUL, HARMLESS, reference=third)
    expected = torch.stack(together(model, third)).double().mean(0).float()
    assert directions.mean_reference is not None
    assert torch.allclose(directions.mean_reference, expected, atol=1e-5)
    assert directions.metadata["reference_count"] == "2"
    axis = directions.axis(1)
    assert axis.third == pytest.approx(float(expected[1] @ axis.unit), abs=1e-4)
    assert tiny_directions("llama").axis(1).third is None
    assert axis.third is not None
    target = (axis.third - axis.low) / (axis.high - axis.low) + 0.25
    (step,) = ace.stream(model, directions, "Go on", [ace.ACE(0.25, "third")], layer=1, max_new_tokens=1)
    assert torch.allclose(torch.from_numpy(step.after[0][1]), torch.tensor(target).float(), atol=1e-3)


def test_references_in_a_running_model() -> None:
    """Rows with another reference are rows with another number, so they agree with the methods they equal."""
    model, directions = tiny_model("llama"), tiny_directions("llama")
    pairs = [
        (ace.ACE(0.0, "origin"), ace.DirectionalAblation()),
        (ace.ACE(0.25, "pooled"), ace.ACE(0.75)),
        (ace.ACE(-1.0, "harmful"), ace.AffineAblation()),
    ]
    for one, two in pairs:
        (step,) = ace.stream(model, directions, "Go on", [one, two, ace.ACE(2.0)], layer=1, max_new_tokens=1)
        assert (step.after[0] == step.after[1]).all()
        assert not (step.after[0] == step.after[2]).all()


@pytest.mark.parametrize("variant", ["mean_difference", "principal_component"])
def test_a_stopped_fit_keeps_what_is_done(variant: str) -> None:
    model = tiny_model("llama")
    harmful, harmless = many("Bad", 90), many("Nice", 60)
    seen: list[int] = []
    directions = ace.fit_directions(
        model,
        harmful,
        harmless,
        variant=variant,
        batch_size=8,
        heldout_harmful=HARMFUL,
        heldout_harmless=HARMLESS,
        progress=lambda done, total: seen.append(done),
        should_stop=lambda: bool(seen) and seen[-1] >= 100,
    )
    counts = [int(directions.metadata[f"{kind}_count"]) for kind in ("harmless", "harmful")]
    assert sum(counts) == seen[-1] and 100 <= seen[-1] < 110 and min(counts) >= 32
    assert directions.metadata["stopped"] == (f"after {counts[0]} of 60 harmless and {counts[1]} of 90 harmful prompts")
    # the classes advance side by side, in proportion
    assert abs(counts[0] / 60 - counts[1] / 90) < 0.2
    assert directions.heldout_harmful.shape == (4, 0)
    done = []
    for indices, _ in position_activations(model, harmless, batch_size=8):
        done += indices
        if len(done) >= counts[0]:
            break
    again = torch.stack([together(model, harmless)[i] for i in sorted(done)]).double().mean(0).float()
    assert torch.allclose(directions.mean_harmless, again, atol=1e-5)
    whole = ace.fit_directions(model, harmful, harmless, heldout_harmful=[], heldout_harmless=[])
    assert "stopped" not in whole.metadata
    assert not torch.allclose(directions.mean_harmless, whole.mean_harmless, atol=1e-4)


def test_a_fit_stopped_too_early_or_cancelled_gives_nothing() -> None:
    model = tiny_model("llama")
    harmful, harmless = many("Bad", 60), many("Nice", 60)
    seen: list[int] = []
    ends: list[dict[str, Any]] = [{"should_stop": lambda: len(seen) > 3}, {"cancelled": lambda: len(seen) > 10}]
    for options in ends:
        seen.clear()
        with pytest.raises(Stopped):
            ace.fit_directions(
                model, harmful, harmless, batch_size=8, progress=lambda done, _: seen.append(done), **options
            )
        assert seen
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in model.blocks)


def test_a_fit_stopped_while_measuring_keeps_what_it_measured() -> None:
    model = tiny_model("llama")
    seen: list[tuple[int, int]] = []
    directions = ace.fit_directions(
        model, HARMFUL, HARMLESS, batch_size=1, heldout_harmful=many("Bad", 8), heldout_harmless=many("Nice", 8),
        progress=lambda *counts: seen.append(counts), should_stop=lambda: len(seen) >= 14,
    )  # fmt: skip
    assert seen[-1] == (14, 24)
    assert directions.heldout_harmful.shape[1] + directions.heldout_harmless.shape[1] == 6
    assert torch.allclose(directions.mean_harmful, tiny_directions("llama").mean_harmful, atol=1e-5)


def test_time_left_is_a_proportion() -> None:
    now = [10.0]
    left = TimeLeft(lambda: now[0])
    assert left(0, 8) is None
    now[0] = 14.0
    assert left(2, 8) == pytest.approx(12.0)
    assert left(8, 8) == 0


def test_vectors_of_another_tool_get_measured_means() -> None:
    model, plain = tiny_model("llama"), tiny_directions("llama")
    draw = torch.Generator().manual_seed(0)
    foreign = {1: torch.randn(model.width, generator=draw) * 50, 2: plain.direction[2] * -7}
    directions = complete_directions(model, foreign, HARMFUL, HARMLESS)
    sign = torch.sign(foreign[1] @ plain.direction[1])
    assert torch.allclose(directions.unit[1], sign * geometry.unit_vector(foreign[1]), atol=1e-6)
    assert torch.allclose(directions.unit[[0, 2, 3]], plain.unit[[0, 2, 3]], atol=1e-5)
    assert not torch.allclose(directions.unit[1], plain.unit[1], atol=1e-2)
    assert torch.equal(directions.mean_harmful, plain.mean_harmful)
    metadata = directions.metadata
    assert directions.variant == "imported" and metadata["imported_blocks"] == "1, 2"
    assert metadata["mean_difference_blocks"] == "0, 3" and "2" in metadata["turned_blocks"]
    axis = directions.axis(1)
    assert axis.high > axis.low
    (step,) = ace.stream(model, directions, "Go on", [ace.ACE(0.5)], layer=1, max_new_tokens=1)
    assert torch.allclose(torch.from_numpy(step.after[0][1]), torch.tensor(0.5), atol=1e-2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda width: {}, "no vectors to complete"),
        (lambda width: {4: torch.ones(width)}, "blocks are 0 to 3"),
        (lambda width: {-1: torch.ones(width)}, "blocks are 0 to 3"),
        (lambda width: {0: torch.ones(width + 1)}, "width is 48"),
        (lambda width: {0: torch.zeros(width)}, "zero or not finite"),
        (lambda width: {0: torch.full((width,), float("nan"))}, "zero or not finite"),
    ],
)
def test_foreign_vectors_that_do_not_fit_are_refused(make, sentence: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(ace.EngineError, match=sentence):
        complete_directions(model, make(model.width), HARMFUL, HARMLESS)


def test_given_vectors_come_before_all_others(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = tmp_path / "mine.safetensors"
    mine = ace.fit_directions(model, HARMFUL, HARMLESS, variant="leace")
    ace.save_directions(mine, path)
    assert torch.equal(extraction.directions_for(model, vectors=path).unit, mine.unit)
    with pytest.raises(ace.EngineError, match="no vectors file"):
        extraction.directions_for(model, vectors=tmp_path / "none.safetensors")
    with pytest.raises(ace.EngineError, match="fitted on llama"):
        extraction.directions_for(tiny_model("mistral"), vectors=path)


def test_equal_classes_are_refused_in_one_sentence() -> None:
    model = tiny_model("llama")
    # both encode to the same tokens
    same = replace(model, tokenizer=model.tokenizer)
    object.__setattr__(same, "encode", lambda prompt, system=None: model.encode("always this"))
    with pytest.raises(ace.EngineError, match="means are equal"):
        ace.fit_directions(same, HARMFUL, HARMLESS)


def test_filtering_keeps_refused_harmful_and_answered_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "bad 1": "I'm sorry, but I can't help with that.",
        "bad 2": "Sure, first take a hammer.",
        "good 1": "Bread needs flour, water and time.",
        "good 2": "I cannot help with that.",
        "good 3": "!!!! ????",
    }

    def answer_all(model, prompts, *, progress, **_):
        progress(len(prompts), len(prompts))
        return [Answer(prompt, (), answers[prompt]) for prompt in prompts]

    monkeypatch.setattr(filtering, "answer_all", answer_all)
    seen: list[tuple[int, int]] = []
    found = filtering.filter_by_behaviour(
        tiny_model("llama"), ["bad 1", "bad 2"], ["good 1", "good 2", "good 3"],
        progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    assert found.harmful == ("bad 1",) and found.harmless == ("good 1",)
    assert found.harmless_answers.incoherent == 1 and found.harmful_answers.answered == 1
    assert "kept 1 of 2 harmful" in found.summary and "1 of 3 harmless" in found.summary
    assert seen == [(0, 5), (2, 5), (5, 5)]
    with pytest.raises(Stopped):
        filtering.filter_by_behaviour(tiny_model("llama"), ["bad 1"], [], cancelled=lambda: True)


def test_filtering_runs_a_model() -> None:
    found = filtering.filter_by_behaviour(tiny_model("llama"), HARMFUL, HARMLESS, max_new_tokens=4, batch_size=3)
    assert found.harmful_answers.count == len(HARMFUL) and set(found.harmless) <= set(HARMLESS)


def test_few_prompts_that_behave_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    harmful, harmless = many("Bad", 30), many("Nice", 25)
    refused: list[str] = []

    def answer_all(model, prompts, **_):
        return [Answer(p, (), "I'm sorry, but I can't." if p in refused else "Bread needs flour.") for p in prompts]

    monkeypatch.setattr(filtering, "answer_all", answer_all)
    for count in (0, 19, 20):
        refused[:] = harmful[:count]
        found = filtering.behaving(tiny_model("llama"), harmful, harmless)
        assert [list(kept) for kept in found] == [harmful[:20] if count == 20 else harmful, harmless]


def test_arms_read_along_the_variant() -> None:
    model = tiny_model("llama")
    directions = ace.fit_directions(model, many("Bad", 12), many("Nice", 12), variant="logistic_probe")
    arm = Arm(ace.ACE(0.5), 2)
    assert torch.equal(directions.axis(2, arm.axis(2)).unit, directions.unit[2])
    (step,) = ace.stream(model, directions, "Go on", [ace.ACE(0.5), ace.Addition(1.0)], layer=2, max_new_tokens=1)
    assert torch.allclose(torch.from_numpy(step.after[0][2]), torch.tensor(0.5), atol=1e-2)
    moved = torch.from_numpy(step.after[1][2] - step.before[1][2])
    assert torch.allclose(moved, torch.ones_like(moved), atol=1e-2)


def test_the_cap_is_what_the_documentation_says() -> None:
    assert collecting.MAX_SAMPLES * 4096 * 32 * 4 == 256 * 2**20


def test_directions_of_inputs_read_but_do_not_steer() -> None:
    model = tiny_model("llama")
    directions = ace.fit_directions(model, HARMFUL, HARMLESS, position="mean", site="input")
    (step,) = list(ace.stream(model, directions, "Hello", [ace.Baseline()], layer=1, max_new_tokens=1))
    assert step.before[0].shape[0] == 4
    with pytest.raises(ace.EngineError, match="fit them with site output"):
        list(ace.stream(model, directions, "Hello", [ace.Baseline(), ace.ACE(0.0)], layer=1, max_new_tokens=1))
    with pytest.raises(ace.EngineError, match=r"At some block's input .* choose the mean over the instruction"):
        ace.fit_directions(model, HARMFUL, HARMLESS, site="input")
