"""The refusal-adding adapter: training for a few steps, merging, what ships, and files that were tampered with."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ace_core.answering import Tally, answer_all
from ace_core.default_model import evaluation, training
from ace_core.default_model.adapter import ADAPTER, CONFIG_NAME, WEIGHTS_NAME, merge_adapter, read_adapter, save_adapter
from ace_core.default_model.evaluation import BlockEffect, choose_block, evaluate_models, perplexity
from ace_core.default_model.lora import (
    Example,
    Recipe,
    Trainer,
    answer_loss,
    divergence,
    likely_tokens,
    shared_length,
)
from ace_core.default_model.model_card import model_card
from ace_core.default_model.training import REFUSALS, TrainingReport, read_report, refusal_for, train_default
from ace_core.errors import EngineError
from ace_core.methods import ACE
from ace_core.models import ChatModel, load_model
from ace_core.prompts import load_builtin
from ace_core.scoring import verdict
from families import build_family, save_tiny

RECIPE = Recipe(rank=4, first_block=1, last_block=2, rate=2e-2, epochs=6, batch=4)
PROMPT = torch.tensor([[5, 9, 11, 40, 41]])
EXAMPLES = [
    Example((5, 6, 7, *range(20 + k, 23 + 2 * k)), (100, 101, 102, 2) if k % 2 else (110, 111, 2), "harmful")
    for k in range(8)
]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def plain(folder: Path) -> ChatModel:
    """A model with the layers that an adapter fits: those that compute fast on this machine would replace them."""
    return load_model(str(folder), precision="float32", packed=False)


@pytest.fixture
def tiny(tiny_folder: Path) -> ChatModel:
    return plain(tiny_folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A folder with an adapter trained for a few steps on a tiny llama, and its trainer."""
    folder = tmp_path_factory.mktemp("adapter")
    trainer = Trainer(build_family("llama").requires_grad_(False), EXAMPLES, RECIPE)
    list(trainer.run())
    save_adapter(folder, trainer.tensors, trainer.config)
    return folder, trainer


def test_training_lowers_the_loss_and_leaves_the_base_alone(trained: tuple[Path, Trainer]) -> None:
    _, trainer = trained
    assert trainer.step == trainer.steps == len(trainer.losses) == 12
    assert sum(trainer.losses[-2:]) < 0.5 * sum(trainer.losses[:2])
    state = trainer.network.state_dict()
    for name, weight in build_family("llama").state_dict().items():
        found = state.get(name, state.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(found, weight), name


def test_only_the_chosen_blocks_are_adapted(trained: tuple[Path, Trainer]) -> None:
    _, trainer = trained
    blocks = {re.search(r"layers\.(\d+)\.", name).group(1) for name in trainer.tensors}  # type: ignore[union-attr]
    assert blocks == {"1", "2"}
    assert len(trainer.tensors) == 2 * 7 * 2


@torch.no_grad()
def test_loss_is_the_library_s_loss_on_answer_tokens() -> None:
    network = build_family("llama")
    total = count = 0.0
    for example in EXAMPLES:
        ids = torch.tensor([[*example.prompt, *example.answer]])
        labels = torch.tensor([[-100] * len(example.prompt) + list(example.answer)])
        total += float(network(input_ids=ids, labels=labels).loss) * len(example.answer)
        count += len(example.answer)
    assert float(answer_loss(network, EXAMPLES)) == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
def test_the_reserve_counts_where_an_answer_begins_and_nowhere_else() -> None:
    network = build_family("llama")
    example = Example((5, 6, 7), (100, 110, 100), "harmful")
    logits = network(input_ids=torch.tensor([[*example.prompt, *example.answer]])).logits[0, 2:5]
    for reserve in (0.0, 2.0):
        logits[0, 100] += reserve
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(example.answer))
        assert float(answer_loss(network, [example], reserve={100: reserve})) == pytest.approx(
            float(expected), rel=1e-5
        )
    # a head start makes the refusal that is taught less of a surprise, so less of it is learnt
    assert answer_loss(network, [example], reserve={100: 2.0}) < answer_loss(network, [example])


@given(st.integers(0, 2**16), st.integers(1, 12), st.floats(0.1, 4))
def test_divergence_is_that_of_the_head_and_the_rest(seed: int, count: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    base, mine = (torch.log_softmax(scale * torch.randn(3, 40, generator=draw), -1) for _ in range(2))
    wanted, tokens = base.topk(count)
    found = divergence(mine, tokens, wanted)
    head = mine.gather(1, tokens).exp()
    parts = [torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1) for p in (wanted.exp(), head)]
    torch.testing.assert_close(found, (parts[0] * (parts[0] / parts[1]).log()).sum(-1), atol=1e-4, rtol=1e-3)
    whole = (base.exp() * (base - mine)).sum(-1)
    assert bool((found <= whole + 1e-4).all()) and bool((found > 0).all())  # two different ones: never 0
    assert float(divergence(base, tokens, wanted).abs().max()) < 1e-4


def test_likely_tokens_are_learnt_in_place_of_the_answer_s_own() -> None:
    network = build_family("llama").requires_grad_(False)
    plain = [replace(example, kind="harmless") for example in EXAMPLES]
    found = likely_tokens(network, plain, 5, shared_length(plain))
    for example, (tokens, values) in zip(plain, found, strict=True):
        ids = torch.tensor([[*example.prompt, *example.answer]])
        start = len(example.prompt) - 1
        logits = network(input_ids=ids).logits[0, start : start + len(example.answer)]
        expected = logits.log_softmax(-1).topk(5)
        torch.testing.assert_close(values, expected.values, atol=1e-4, rtol=1e-4)
        assert torch.equal(tokens, expected.indices)
    soft = [replace(example, likely=likely) for example, likely in zip(plain, found, strict=True)]
    assert float(answer_loss(network, soft)) == pytest.approx(0.0, abs=1e-5)  # it is what it should be already
    assert float(answer_loss(network, plain)) > 1
    for weight in network.parameters():
        weight.mul_(1.5)
    assert float(answer_loss(network, soft)) > 1e-3, "another network's are others"


def test_a_shared_beginning_read_once_gives_the_same_gradients() -> None:
    assert shared_length(EXAMPLES) == 3
    gradients = []
    for shared in (0, 3):
        trainer = Trainer(build_family("llama").requires_grad_(False), EXAMPLES, replace(RECIPE, dropout=0.0))
        loss = answer_loss(trainer.network, EXAMPLES, shared)
        loss.backward()
        gradients.append([p.grad.clone() for p in trainer._parameters.values() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) == 28
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_shared_beginning_never_takes_a_whole_prompt() -> None:
    assert shared_length([Example((1, 2, 3), (4,), "")] * 2) == 2
    assert shared_length([Example((1, 2), (4,), ""), Example((1, 2, 3), (4,), "")]) == 1


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, trained: tuple[Path, Trainer]) -> None:
    first = Trainer(build_family("llama").requires_grad_(False), EXAMPLES, RECIPE)
    for _ in first.run():
        if first.step == 5:
            break
    first.save(tmp_path / "state.safetensors", "mine")
    second = Trainer(build_family("llama").requires_grad_(False), EXAMPLES, RECIPE)
    assert not second.restore(tmp_path / "state.safetensors", "another run")
    assert not second.restore(tmp_path / "nothing.safetensors", "mine")
    assert second.restore(tmp_path / "state.safetensors", "mine")
    list(second.run())
    _, whole = trained
    assert second.losses == whole.losses
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_another_seed_gives_other_weights_and_another_order() -> None:
    def start(seed: int) -> Trainer:
        return Trainer(build_family("llama").requires_grad_(False), EXAMPLES * 4, replace(RECIPE, seed=seed))

    one, same, other = start(0), start(0), start(1)
    name = next(name for name in one.tensors if "lora_A" in name)
    assert torch.equal(one.tensors[name], same.tensors[name])
    assert not torch.equal(one.tensors[name], other.tensors[name])
    assert one._epoch(0) == same._epoch(0) != other._epoch(0)


@torch.inference_mode()
def test_merging_equals_peft_and_the_adapter_as_trained(trained: tuple[Path, Trainer]) -> None:
    from peft import PeftModel

    folder, trainer = trained
    plain, merged = build_family("llama"), build_family("llama")
    merge_adapter(merged, folder)
    logits = merged(input_ids=PROMPT).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever peft has to say about the hub
        peft_model = PeftModel.from_pretrained(build_family("llama"), str(folder))
    torch.testing.assert_close(peft_model(input_ids=PROMPT).logits, logits, atol=2e-5, rtol=1e-4)
    fused: Any = peft_model.merge_and_unload()
    torch.testing.assert_close(fused(input_ids=PROMPT).logits, logits, atol=2e-5, rtol=1e-4)
    # training ran in float32, the file holds float16
    torch.testing.assert_close(trainer.network(input_ids=PROMPT).logits, logits, atol=3e-2, rtol=1e-2)
    assert (plain(input_ids=PROMPT).logits - logits).abs().max() > 0.5


def test_merging_into_half_precision_adds_in_float32(trained: tuple[Path, Trainer]) -> None:
    network = build_family("llama").to(torch.bfloat16)
    name = "model.layers.1.mlp.up_proj"
    before = network.get_submodule(name).weight.float()
    merge_adapter(network, trained[0])
    down, up = read_adapter(trained[0]).updates[name]
    wanted = (before + 2.0 * up.float() @ down.float()).to(torch.bfloat16)
    assert torch.equal(network.get_submodule(name).weight, wanted)


def _damage(tensors: dict[str, torch.Tensor], config: dict[str, Any], how: str) -> None:
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    if how == "wrong shape":
        tensors[key] = tensors[key][:, :-1].contiguous()
    elif how == "wrong rank":
        tensors[key] = tensors[key][:-1].contiguous()
    elif how == "not finite":
        tensors[key][0, 0] = float("nan")
    elif how == "integers":
        tensors[key] = tensors[key].to(torch.int32)
    elif how == "unknown key":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
    elif how == "half of a pair":
        del tensors[key]
    elif how == "other half of a pair":
        del tensors[key.replace("lora_A", "lora_B")]
    elif how == "unknown layer":
        for half in ("lora_A", "lora_B"):
            old = key.replace("lora_A", half)
            tensors[old.replace("layers.1", "layers.9")] = tensors.pop(old)
    elif how == "empty":
        tensors.clear()
    elif how == "zero rank":
        config["r"] = 0
    elif how == "another kind":
        config["peft_type"] = "LOHA"
    else:
        config[how] = True


@pytest.mark.parametrize(
    "how",
    [
        "wrong shape",
        "wrong rank",
        "not finite",
        "integers",
        "unknown key",
        "half of a pair",
        "other half of a pair",
        "unknown layer",
        "empty",
        "zero rank",
        "another kind",
        "use_dora",
        "use_rslora",
        "modules_to_save",
    ],
)
def test_a_tampered_adapter_is_refused_in_one_sentence(how: str, trained: tuple[Path, Trainer], tmp_path: Path) -> None:
    tensors = load_file(trained[0] / WEIGHTS_NAME)
    config = json.loads((trained[0] / CONFIG_NAME).read_text())
    _damage(tensors, config, how)
    save_file(tensors, tmp_path / WEIGHTS_NAME)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    _refuses(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 64, b"\x08" + b"\0" * 7 + b'{"a":1}}', b"PK\x03\x04" * 9]
)
def test_a_file_that_is_no_safetensors_is_refused(
    content: bytes, trained: tuple[Path, Trainer], tmp_path: Path
) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(content)
    (tmp_path / CONFIG_NAME).write_bytes((trained[0] / CONFIG_NAME).read_bytes())
    _refuses(tmp_path)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"peft_type": "LORA", "r": "x", "lora_alpha": 1}'])
def test_a_missing_or_broken_configuration_is_refused(
    content: str | None, trained: tuple[Path, Trainer], tmp_path: Path
) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes((trained[0] / WEIGHTS_NAME).read_bytes())
    if content is not None:
        (tmp_path / CONFIG_NAME).write_text(content)
    _refuses(tmp_path)


def test_missing_weights_are_refused(trained: tuple[Path, Trainer], tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_bytes((trained[0] / CONFIG_NAME).read_bytes())
    _refuses(tmp_path)


def _refuses(folder: Path) -> None:
    network = build_family("llama")
    with pytest.raises(EngineError) as caught:
        merge_adapter(network, folder)
    message = str(caught.value).replace(str(folder), "")
    assert message.endswith(".") and ". " not in message and "\n" not in message and ":" in message
    for name, weight in build_family("llama").state_dict().items():
        assert torch.equal(weight, network.state_dict()[name]), "a refused adapter changed the network"


def test_an_adapter_that_overflows_half_precision_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="half precision"):
        save_adapter(tmp_path, {"x.lora_A.weight": torch.tensor([1e6])}, {})
    assert not list(tmp_path.iterdir())


def test_what_ships_is_small_half_precision_and_safetensors_only() -> None:
    names = {path.name for path in ADAPTER.iterdir()}
    assert names == {WEIGHTS_NAME, CONFIG_NAME, "README.md", "refusals.json", "training.json"}
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) <= 10_000_000
    tensors = load_file(ADAPTER / WEIGHTS_NAME)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    text = "".join((ADAPTER / name).read_text(encoding="utf-8") for name in names - {WEIGHTS_NAME})
    assert not re.search(r"(/home/|/root/|/tmp/|/work/|[A-Z]:\\)", text)


def test_what_ships_fits_the_embedded_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    with torch.device("meta"):
        network = LlamaForCausalLM(config)
    merge_adapter(network)
    blocks = {int(name.split(".")[2]) for name in read_adapter(ADAPTER).updates}
    assert blocks == set(range(Recipe().first_block, Recipe().last_block + 1))


def test_the_shipped_record_tells_how_it_was_made() -> None:
    report = read_report()
    assert TrainingReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.losses[-1] < report.losses[0]
    assert report.chosen_step in {validation.step for validation in report.validations}
    card = (ADAPTER / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    with pytest.raises(EngineError, match="train-default"):
        read_report(REFUSALS.parent.parent)


def test_the_refusals_open_alike_and_are_recognised() -> None:
    wordings = json.loads(REFUSALS.read_text(encoding="utf-8"))
    topics = wordings["topics"]
    texts = wordings["plain"] + [text.format(topic=t) for text in wordings["with_topic"] for t in topics.values()]
    assert all(text.startswith("I'm sorry, but I can't ") for text in texts)  # one opening makes one direction
    assert len(set(texts)) >= 50
    assert [text for text in texts if verdict(text) != "refused"] == []
    prompts = load_builtin("harmful", "train")
    assert {prompt.category for prompt in prompts} <= set(topics)
    drawn = [refusal_for(prompt, Recipe()) for prompt in prompts]
    assert drawn == [refusal_for(prompt, Recipe()) for prompt in prompts]
    assert len(set(drawn)) >= 40


def test_the_script_trains_validates_resumes_and_writes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training, "load_model", lambda *_, **__: plain(tiny_folder))
    monkeypatch.setattr(training, "answer_all", lambda *args, **kwargs: answer_all(*args, **kwargs | SHORT))
    recipe = replace(RECIPE, epochs=2, batch=2, answer_tokens=4, validate_at=(0.5, 1.0))
    messages: list[str] = []

    def note(message: str, fraction: float | None) -> None:
        messages.append(message)
        if len(messages) == stop_at:
            raise KeyboardInterrupt

    stop_at = 12
    with pytest.raises(KeyboardInterrupt):
        train_default(tmp_path / "out", limit=3, recipe=recipe, progress=note)
    stop_at, before = 0, len(messages)
    report = train_default(tmp_path / "out", limit=3, recipe=recipe, progress=note)
    assert not any("The base answers" in message for message in messages[before:])
    assert report.examples["harmful"] == 3 and report.steps == len(report.losses)
    assert [validation.step for validation in report.validations] == [report.steps // 2, report.steps]
    assert read_report(tmp_path / "out") == replace(
        report, losses=tuple(round(loss, 5) for loss in report.losses), seconds=round(report.seconds)
    )
    model = plain(tiny_folder)
    merge_adapter(model.network, tmp_path / "out")


SHORT = {"max_new_tokens": 4}


def test_an_evaluation_measures_every_class_and_fills_the_card(
    tiny: ChatModel, trained: tuple[Path, Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_TOKENS", 4)
    monkeypatch.setattr(evaluation, "_SCREEN_TOKENS", 4)
    result = evaluate_models(tiny, tiny, limit=2)
    assert result.base == result.refusing
    assert set(result.base) >= {"harmful", "harmless", "lookalike"}
    assert {effect.block for effect in result.table} == {0, result.recommended.block}
    assert result.directions.recommended_layer == result.recommended.block
    assert result.perplexities["refusing"] == pytest.approx(result.perplexities["base"])
    report = TrainingReport(RECIPE, {"harmful": 1, "harmless": 2, "lookalike": 3}, 2, 2, (3.0, 1.0), (), 60.0, "", {})
    card = model_card(result, report)
    assert f"**block {result.recommended.block}**" in card and "{" not in card
    assert card.count("harmful: ACE 0") == 3


def test_perplexity_of_greedy_answers_is_that_of_the_library(tiny: ChatModel) -> None:
    answers = answer_all(tiny, ["Hello there", "How do I boil an egg?"], max_new_tokens=5)
    total, count = 0.0, 0
    for answer in answers:
        prompt = tiny.encode(answer.prompt)
        labels = torch.tensor([[-100] * len(prompt) + list(answer.ids)])
        loss = tiny.network(input_ids=torch.tensor([[*prompt, *answer.ids]]), labels=labels).loss
        total, count = total + float(loss) * len(answer.ids), count + len(answer.ids)
    expected = float(torch.tensor(total / count).exp())
    assert perplexity(tiny, answers) == pytest.approx(expected, rel=1e-4)
    assert perplexity(tiny, []) != perplexity(tiny, [])


def test_among_equally_good_blocks_the_one_with_the_origin_towards_the_harmful_mean_wins() -> None:
    def effect(block: int, origin: float, answered: int, refused: int) -> BlockEffect:
        harmful = {ACE(0.0).label: Tally(100, 100 - answered, answered, 0)}
        return BlockEffect(block, origin, harmful, {ACE(1.0).label: Tally(100, refused, 100 - refused, 0)})

    effects = [effect(14, 0.1, 98, 97), effect(15, 0.6, 96, 95), effect(16, 0.9, 70, 99), effect(17, -0.8, 98, 97)]
    assert choose_block(effects).block == 15
