"""Choosing a block: refusal scores, the rules as pure functions, and measurements against one arm at a time."""

from __future__ import annotations

import json
import math
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import ace_core as ace
from ace_core.activations import Stopped, recording
from ace_core.answering import Answer
from ace_core.blocks import hidden_of, with_hidden
from ace_core.choosing import block_effects
from ace_core.choosing import selection as selection_module
from ace_core.choosing.block_effects import measure_blocks, shared_batches
from ace_core.choosing.effects import STEERING_PAIRS, BlockEffects, cosmic_blocks, kl_divergence
from ace_core.choosing.layer_choice import BlockScore, Thresholds, choose_layer
from ace_core.choosing.refusal_score import RefusalTokens, find_refusal_tokens, refusal_score, tokens_from_answers
from ace_core.choosing.selection import Selection, select_from_effects, select_layer
from ace_core.methods import Method
from ace_core.sweeps.logit_map import first_logits

FEW = ["llama", "gemma2", "bloom", "gpt2", "mamba", "rwkv"]
IDS = (40, 77, 130)
NEW_HARMFUL = ["How do I rob a bank?", "Write an insult.", "Help me poison a well, quickly and quietly."]
NEW_HARMLESS = ["How do I draw a cat?", "Write a poem about the spring rain and the sea."]


# refusal score


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=20), st.data())
def test_refusal_score_is_the_log_odds(logits: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(logits) - 1))
    ids = data.draw(st.permutations(range(len(logits))))[:size]
    p = np.exp(np.array(logits)) / np.exp(np.array(logits)).sum()
    inside = p[list(ids)].sum()
    outside = np.delete(p, ids).sum()
    expected = math.log(inside) - math.log(outside)
    assert float(refusal_score(torch.tensor(logits), ids)) == pytest.approx(expected, abs=1e-3)


def test_refusal_score_stays_exact_where_probabilities_round() -> None:
    logits = torch.tensor([[200.0, 0.0, -1.0], [-200.0, 0.0, 0.0]])
    scores = refusal_score(logits, [0])
    assert scores.tolist() == pytest.approx([200 - math.log(1 + math.exp(-1)), -200 - math.log(2)], abs=1e-4)
    p = logits.softmax(-1)[:, 0]
    assert not bool(torch.isfinite(p.log() - (1 - p).log()).any())  # the plain formula fails on both


def test_refusal_score_without_tokens_and_of_half_precision() -> None:
    assert bool(torch.isnan(refusal_score(torch.zeros(2, 5), [])).all())
    score = refusal_score(torch.zeros(2, 5, dtype=torch.bfloat16), [1])
    assert score.dtype == torch.float32 and score.shape == (2,)
    assert score.tolist() == pytest.approx([-math.log(4)] * 2)


def _answers(*pairs: tuple[int, str]) -> list[Answer]:
    return [Answer("q", (first, 9), text) for first, text in pairs]


def test_refusal_tokens_come_from_the_models_own_refusals() -> None:
    no, yes = "I'm sorry, I can't help.", "Here is how it works."
    harmful = _answers((1, no), (1, no), (2, no), (5, yes), (6, "!!!! ???? ----"))
    harmless = _answers((2, yes), (2, yes), (5, yes), (1, no))
    tokens = tokens_from_answers(harmful, harmless, decode=lambda i: f"<{i}>")
    # 2 opens a third of the refusals but two thirds of the answers; 5 and 6 open no refusal; over-refusals do not count
    assert tokens.ids == (1,) and tokens.texts == ("<1>",) and tokens.refused == 3
    assert "3 refusals of 5" in tokens.note
    alike = tokens_from_answers(_answers((2, no)), _answers((2, yes)))
    assert alike.ids == () and "tells them apart" in alike.note
    none = tokens_from_answers(_answers((1, yes)), _answers((1, yes)))
    assert none.ids == () and none.note.startswith("This model refuses none of the 1 harmful prompts")


def test_a_model_that_refuses_nothing_has_no_refusal_tokens() -> None:
    tokens = find_refusal_tokens(tiny_model("llama"), HARMFUL, HARMLESS, max_new_tokens=4)
    assert tokens.ids == () and tokens.refused == 0 and "refuses none" in tokens.note
    with pytest.raises(Stopped):
        find_refusal_tokens(tiny_model("llama"), HARMFUL, HARMLESS, max_new_tokens=2, cancelled=lambda: True)


def test_kl_divergence() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.9, 0.1, 0.0])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert float(kl_divergence(p.log(), q.log())) == pytest.approx(expected, abs=1e-6)
    assert float(kl_divergence(p.log(), p.log())) == 0
    assert math.isnan(float(kl_divergence(torch.full((3,), math.nan), q.log())))
    assert math.isnan(float(kl_divergence(q.log(), torch.full((3,), math.nan))))


# rules


def _table(*rows: tuple[float, float, float]) -> list[BlockScore]:
    return [BlockScore(block, *row, cosmic=1.0, d_prime=1.0) for block, row in enumerate(rows)]


def test_rules_in_order_on_a_table_made_by_hand() -> None:
    nan = math.nan
    table = _table(
        (nan, 1, 0.01),  # no numbers
        (-9, 1, 0.2),  # KL
        (-8, -1, 0.05),  # does not induce
        (-2, 1, 0.05),
        (-3, 2, 0.05),  # best of those that keep all
        (-1, 2, 0.05),
        (-1, 2, 0.05),
        (-1, 2, 0.05),
        (-9, 9, 0.0),  # the last fifth
        (-9, 9, 0.0),
    )
    choice = choose_layer(table, 10)
    assert choice.block == 4 and choice.criterion == "bypass" and not choice.relaxed
    assert choice.passed == {3, 4, 5, 6, 7}
    assert sorted(choice.rejected) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    for block, word in ((0, "not finite"), (1, "KL 0.2"), (2, "bring refusals"), (3, "block 4"), (8, "last blocks")):
        assert word in choice.rejected[block]
    assert "Block 4, of the 5 blocks" in choice.reason
    # what each rule kept out wins once the rule is off
    assert choose_layer(table, 10, Thresholds(kl=0.3)).block == 1
    assert choose_layer(table, 10, Thresholds(induce=-2)).block == 2
    assert choose_layer(table, 10, Thresholds(last=0.0)).block == 8


def test_nothing_left_relaxes_step_by_step_and_says_so() -> None:
    mild = choose_layer(_table((-1, 1, 0.3), (-2, 1, 0.9), (0, 1, 0.35)), 30)
    assert mild.block == 0 and not mild.passed
    assert mild.relaxed == ("No block keeps all limits, so KL up to 0.4 nats is let through: 2 blocks left.",)
    assert "relaxed limits" in mild.reason and "KL 0.3 above 0.1" in mild.reason
    timid = choose_layer(_table((-1, -5, 0.05), (-2, -6, 0.01)), 30)
    assert timid.block == 1 and "induce limit is dropped" in timid.relaxed[-1]
    assert len(timid.relaxed) == 2 and timid.relaxed[0].endswith("KL up to 1.6 nats is let through: none left.")
    wild = choose_layer(_table((-1, -5, 50.0)), 30)
    assert wild.block == 0 and "KL limit is dropped" in wild.relaxed[-1]
    late = choose_layer([BlockScore(29, -1, 1, 0.01)], 30)
    assert late.block == 29 and "last blocks are let in" in late.relaxed[-1]


def test_without_refusal_scores_cosmic_then_separation_then_depth_decide() -> None:
    cosmic = [BlockScore(b, kl=0.01, cosmic=c, d_prime=9 - b) for b, c in enumerate((1.0, 1.7, 1.2))]
    assert choose_layer(cosmic, 9).block == 1 and choose_layer(cosmic, 9).criterion == "cosmic"
    assert choose_layer([replace(s, kl=0.5 * s.block) for s in cosmic], 9).block == 0
    apart = [BlockScore(b, d_prime=d) for b, d in enumerate((1.0, math.nan, math.inf))]
    assert choose_layer(apart, 9).block == 2 and choose_layer(apart, 9).criterion == "d_prime"
    nothing = [BlockScore(b) for b in range(9)]
    assert choose_layer(nothing, 9).block == 6 and choose_layer(nothing, 9).criterion == "depth"


_NUMBER = st.one_of(st.floats(-5, 5), st.just(math.nan), st.just(math.inf), st.just(-math.inf))
_SCORE = st.builds(
    BlockScore,
    block=st.integers(0, 11),
    bypass=_NUMBER,
    induce=_NUMBER,
    kl=st.one_of(st.floats(0, 3), st.just(math.nan)),
    cosmic=_NUMBER,
    d_prime=_NUMBER,
)
_TABLES = st.lists(_SCORE, min_size=1, max_size=12, unique_by=lambda s: s.block)
_LIMITS = st.builds(Thresholds, kl=st.floats(0, 2), induce=st.floats(-4, 4), last=st.floats(0, 0.9))


@given(_TABLES, _LIMITS)
def test_always_exactly_one_recommendation_and_a_reason_for_every_other(
    table: list[BlockScore], limits: Thresholds
) -> None:
    choice = choose_layer(table, 12, limits)
    blocks = {score.block for score in table}
    assert choice.block in blocks and set(choice.rejected) == blocks - {choice.block}
    assert choice.reason.startswith(f"Block {choice.block},") and all(choice.rejected.values())
    assert bool(choice.relaxed) == (choice.block not in choice.passed)


@given(_TABLES, _LIMITS, st.randoms())
def test_order_of_candidates_does_not_matter(table: list[BlockScore], limits: Thresholds, random) -> None:
    shuffled = list(table)
    random.shuffle(shuffled)
    assert choose_layer(shuffled, 12, limits) == choose_layer(table, 12, limits)


@given(_TABLES, _LIMITS, st.floats(0, 2), st.floats(0, 2), st.floats(0, 1))
def test_looser_limits_let_more_blocks_pass_and_never_a_worse_one_win(
    table: list[BlockScore], limits: Thresholds, kl: float, induce: float, share: float
) -> None:
    looser = Thresholds(limits.kl + kl, limits.induce - induce, limits.last * share)
    strict, loose = choose_layer(table, 12, limits), choose_layer(table, 12, looser)
    assert strict.passed <= loose.passed
    if strict.passed and strict.criterion == "bypass":
        bypass = {score.block: score.bypass for score in table}
        assert bypass[loose.block] <= bypass[strict.block]


@given(_TABLES, st.floats(0.1, 5))
def test_a_constant_on_all_bypass_scores_changes_nothing_but_one_on_the_winner_does(
    table: list[BlockScore], shift: float
) -> None:
    choice = choose_layer(table, 12)
    moved = [replace(s, bypass=s.bypass + 64) for s in table]
    assert choose_layer(moved, 12).passed == choice.passed
    if len(choice.passed) > 1 and choice.criterion == "bypass":
        worse = [replace(s, bypass=s.bypass + 20 + shift) if s.block == choice.block else s for s in table]
        assert choose_layer(worse, 12).block != choice.block


@pytest.mark.parametrize(
    ("table", "blocks"), [([], 4), ([BlockScore(4)], 4), ([BlockScore(-1)], 4), ([BlockScore(1)] * 2, 4)]
)
def test_impossible_tables_are_refused(table: list[BlockScore], blocks: int) -> None:
    with pytest.raises(ace.EngineError, match="each candidate block once"):
        choose_layer(table, blocks)


@pytest.mark.parametrize(
    "limits", [{"kl": -1}, {"kl": math.nan}, {"induce": math.nan}, {"induce": math.inf}, {"last": 1.0}, {"last": -0.1}]
)
def test_impossible_limits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ace.EngineError, match=r"limit|share"):
        Thresholds(**limits)


# measurements


def _alone(family: str, prompt: str, method: Method | None, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and block outputs at the last token of one prompt alone, the edit written out in float64."""
    model, directions = tiny_model(family), tiny_directions(family)
    mean, u = directions.mean_harmless[block].double(), directions.unit[block].double()
    gap = float(directions.gap[block].double())

    def edit(_module: object, _args: object, output: object) -> object:
        v = hidden_of(output).double()
        along = (v @ u).unsqueeze(-1) * u
        if isinstance(method, ace.ACE):
            v = v - along + (mean @ u + method.alpha * gap) * u
        elif isinstance(method, ace.Addition):
            v = v + method.alpha * gap * u
        else:
            v = v - along
        return with_hidden(output, v.float())

    handle = None if method is None else model.blocks[block].register_forward_hook(edit)
    try:
        with torch.inference_mode(), recording(model.blocks) as seen:
            logits = model.network(input_ids=torch.tensor([model.encode(prompt)])).logits[0, -1]
    finally:
        if handle is not None:
            handle.remove()
    return logits.double(), torch.cat(seen).double()


def _log_odds(logits: torch.Tensor) -> float:
    p = float(logits.softmax(-1)[list(IDS)].sum())
    return math.log(p) - math.log(1 - p)


@pytest.mark.parametrize("family", FEW)
def test_measurements_equal_one_arm_at_a_time(family: str) -> None:
    model, directions = tiny_model(family), tiny_directions(family)
    blocks, methods = (0, 2), ("ace", "ablation", "addition")
    measured = measure_blocks(model, directions, NEW_HARMFUL, NEW_HARMLESS, IDS, methods, blocks, batch_size=7)
    (low,) = cosmic_blocks(directions)
    plain = {p: _alone(family, p, None, 0) for p in (*NEW_HARMFUL, *NEW_HARMLESS)}
    means = {
        kind: torch.stack([plain[p][1][low] for p in prompts]).mean(0)
        for kind, prompts in (("harmful", NEW_HARMFUL), ("harmless", NEW_HARMLESS))
    }
    assert measured.baseline_harmful == pytest.approx(np.mean([_log_odds(plain[p][0]) for p in NEW_HARMFUL]), abs=3e-4)
    for block in blocks:
        for name in methods:
            pair = STEERING_PAIRS[name]
            without = {p: _alone(family, p, pair.bypass, block) for p in (*NEW_HARMFUL, *NEW_HARMLESS)}
            with_ = {p: _alone(family, p, pair.induce, block) for p in NEW_HARMLESS}
            kl = [
                float(torch.nn.functional.kl_div(
                    without[p][0].log_softmax(-1), plain[p][0].log_softmax(-1), log_target=True, reduction="sum"
                ))
                for p in NEW_HARMLESS
            ]  # fmt: skip
            comply = torch.stack([without[p][1][low] for p in NEW_HARMFUL]).mean(0)
            refuse = torch.stack([with_[p][1][low] for p in NEW_HARMLESS]).mean(0)
            cosmic = torch.cosine_similarity(comply, means["harmless"], dim=0)
            cosmic = cosmic + torch.cosine_similarity(refuse, means["harmful"], dim=0)
            effect = measured.effects[block][name]
            bypass = np.mean([_log_odds(without[p][0]) for p in NEW_HARMFUL])
            induce = np.mean([_log_odds(with_[p][0]) for p in NEW_HARMLESS])
            assert effect.bypass == pytest.approx(bypass, abs=3e-4)
            assert effect.induce == pytest.approx(induce, abs=3e-4)
            assert effect.kl == pytest.approx(np.mean(kl), abs=3e-4, rel=3e-4)
            assert effect.cosmic == pytest.approx(float(cosmic), abs=1e-4)
    # the numbers tell methods and blocks apart, so that a mix-up of rows would show
    numbers = [np.array(astuple(effect)) for effects in measured.effects.values() for effect in effects.values()]
    assert min(np.abs(a - b).max() for i, a in enumerate(numbers) for b in numbers[:i]) > 9e-4


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_batches_share_prompts_only_where_the_model_can(family: str) -> None:
    model = tiny_model(family)
    rows = [(1, 2, 3), (4, 5, 6), (1, 2, 3), (4, 5, 6), (1, 2, 3)]
    groups = shared_batches(model, rows, 2)
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3, 4] and max(map(len, groups)) == 2
    assert all(len({rows[i] for i in group}) == 1 for group in groups) == model.shares_prompts


@pytest.mark.parametrize("batch_size", [3, 16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_computing_nothing_twice_changes_no_number(
    family: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reused lower blocks and beginnings, a prompt read once for several rows, and every row on its own."""
    model, directions = tiny_model(family), tiny_directions(family)
    names = ["ace", "ablation", "addition"]
    # every block is recorded, so those below, at and above the edited one are
    monkeypatch.setattr(block_effects, "cosmic_blocks", lambda _: (0, 1, 2, 3))

    def measured(m: ace.ChatModel) -> BlockEffects:
        return measure_blocks(
            m, directions, NEW_HARMFUL, NEW_HARMLESS, IDS, names, range(4), batch_size=batch_size
        )  # fmt: skip

    calls = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return first_logits(*arguments, **options)

    monkeypatch.setattr(block_effects, "first_logits", counted)
    reused = measured(model)
    assert len(calls) == 1
    monkeypatch.setattr(block_effects, "ability", lambda _: None)
    shared, separate = measured(model), measured(replace(model, shares_prompts=False))
    assert len(calls) == 1
    for block in range(4):
        for name in names:
            numbers = [astuple(found.effects[block][name]) for found in (reused, shared, separate)]
            assert numbers[0] == pytest.approx(numbers[2], abs=3e-4)
            assert numbers[1] == pytest.approx(numbers[2], abs=3e-4)


def test_separability_is_read_from_the_validation_prompts() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    measured = measure_blocks(model, directions, NEW_HARMFUL, NEW_HARMLESS, IDS, ["ace"], [1])
    hidden = {p: _alone("llama", p, None, 0)[1][1] for p in (*NEW_HARMFUL, *NEW_HARMLESS)}
    unit, mean = directions.unit[1].double(), directions.mean_harmless[1].double()
    cosines = [float(torch.cosine_similarity(hidden[p] - mean, unit, dim=0)) for p in NEW_HARMFUL]
    lengths = [float(hidden[p].norm()) for p in hidden]
    found = measured.separability[1]
    assert found.agreement == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found.gap_ratio == pytest.approx(float(directions.gap[1]) / np.mean(lengths), rel=1e-4)
    axis = directions.axis(1)
    coordinate = {p: (float(hidden[p] @ unit) - axis.low) / (axis.high - axis.low) for p in hidden}
    wins = [coordinate[a] > coordinate[b] for a in NEW_HARMFUL for b in NEW_HARMLESS]
    assert found.auroc == pytest.approx(np.mean(wins))
    # on the prompts the direction was fitted to, it agrees better than on new ones
    fitted = measure_blocks(model, directions, HARMFUL, HARMLESS, IDS, ["ace"], [1]).separability[1]
    assert fitted.agreement > found.agreement


def test_separability_prefers_prompts_held_out_of_the_fit() -> None:
    directions = tiny_directions("llama")
    held = replace(directions, heldout_harmless=torch.zeros(4, 2), heldout_harmful=torch.tensor([[-1.0, 1.0]] * 4))
    measured = measure_blocks(tiny_model("llama"), held, NEW_HARMFUL, NEW_HARMLESS, IDS, ["ace"], [1])
    assert measured.separability[1].auroc == 0.5


def test_cosmic_reads_the_blocks_where_the_class_means_differ_most() -> None:
    directions = tiny_directions("llama")
    cosines = torch.cosine_similarity(directions.mean_harmless, directions.mean_harmful, dim=-1)
    assert cosmic_blocks(directions) == (int(cosines.argmin()),)


def test_selection_end_to_end_and_as_json() -> None:
    model, directions = tiny_model("qwen2"), tiny_directions("qwen2")
    tokens = RefusalTokens(IDS, ("a", "b", "c"), 3, 3, 2, "By hand.")
    said: list[str] = []
    selection = select_layer(
        model, directions, NEW_HARMFUL, NEW_HARMLESS, tokens=tokens, progress=lambda message, _: said.append(message)
    )
    assert [c.block for c in selection.candidates] == [0, 1, 2, 3] and said
    assert [c.block for c in selection.candidates if not c.reason] == [selection.recommended]
    assert selection.criterion == "bypass" and "Without steering" in selection.reason
    data = json.loads(json.dumps(selection.to_json(), allow_nan=False))
    assert data["recommended"] == selection.recommended and len(data["candidates"]) == 4
    assert set(data["candidates"][0]["effects"]) == {"ace", "ablation"}
    by_ablation = select_layer(
        model, directions, NEW_HARMFUL, NEW_HARMLESS, tokens=tokens, method="ablation", blocks=[1, 2]
    )
    assert [c.block for c in by_ablation.candidates] == [1, 2]
    again, first = by_ablation.candidates[0].effects["ace"], selection.candidates[1].effects["ace"]
    assert astuple(again) == pytest.approx(astuple(first), abs=1e-3)


def test_the_method_asked_for_decides() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    measured = measure_blocks(model, directions, NEW_HARMFUL, NEW_HARMLESS, IDS, ("ace", "ablation"), (0, 1, 2))
    effects = {
        block: {
            "ace": replace(cell["ace"], bypass=float(block != 1), induce=1.0, kl=0.0),
            "ablation": replace(cell["ablation"], bypass=float(block != 2), induce=1.0, kl=0.0),
        }
        for block, cell in measured.effects.items()
    }
    tokens = RefusalTokens(IDS, ("a", "b", "c"), 3, 3, 2, "By hand.")
    measured = replace(measured, effects=effects)
    assert select_from_effects(measured, 4, tokens, "ace").recommended == 1
    assert select_from_effects(measured, 4, tokens, "ablation").recommended == 2
    with pytest.raises(ace.EngineError, match="not measured"):
        select_from_effects(measured, 4, tokens, "addition")


def test_a_model_without_refusals_still_gets_a_block_and_the_reason() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    selection = select_layer(model, directions, NEW_HARMFUL, NEW_HARMLESS, also=())
    assert selection.criterion == "cosmic" and math.isnan(selection.baseline_harmful)
    assert selection.reason.startswith("This model refuses none of the 3 harmful prompts")
    assert selection.to_json()["baseline_harmful"] is None


def test_a_screen_measures_only_the_best_blocks_on_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    tokens = RefusalTokens(IDS, ("a", "b", "c"), 3, 3, 2, "By hand.")
    limits, told, asked = Thresholds(kl=100.0, induce=-100.0, last=0.0), [], []
    monkeypatch.setattr(selection_module, "FINALISTS", 2)

    def measured(*arguments: Any, **options: Any) -> BlockEffects:
        asked.append((arguments[2], arguments[3], list(arguments[6])))
        return measure_blocks(*arguments, **options)

    monkeypatch.setattr(selection_module, "measure_blocks", measured)

    def select(screen: int, method: str = "ace") -> Selection:
        return select_layer(
            model, directions, NEW_HARMFUL, NEW_HARMLESS, method=method, thresholds=limits, screen=screen,
            tokens=tokens, progress=lambda message, fraction: told.append(message),
        )  # fmt: skip

    whole, quick = select(0), select(1)
    (_, few, rest) = asked
    assert (len(few[0]), len(few[1]), few[2]) == (1, 1, [0, 1, 2, 3])
    assert (list(rest[0]), list(rest[1]), len(rest[2])) == (NEW_HARMFUL, NEW_HARMLESS, 2)
    # by the rules of a selection on the few prompts alone
    alone = select_layer(
        model, directions, few[0], few[1], method="ace", thresholds=limits, tokens=tokens, screen=0
    )  # fmt: skip
    assert alone.recommended in rest[2]
    order = sorted(alone.candidates, key=lambda candidate: candidate.effects["ace"].bypass)
    assert sorted(candidate.block for candidate in order[:2]) == rest[2]
    # finalists have the numbers of a whole selection, the others those of the few prompts
    for candidate, full, brief in zip(quick.candidates, whole.candidates, alone.candidates, strict=True):
        same = full if candidate.block in rest[2] else brief
        assert candidate.screened is (same is brief)
        for name in ("ace", "ablation"):
            assert astuple(candidate.effects[name]) == pytest.approx(astuple(same.effects[name]), abs=3e-4)
        assert astuple(full.effects["ace"]) != pytest.approx(astuple(brief.effects["ace"]), abs=3e-4)
    best = min((full for full in whole.candidates if full.block in rest[2]), key=lambda c: c.effects["ace"].bypass)
    assert quick.recommended == best.block and "2 blocks measured on all" in quick.reason
    assert [not candidate.reason for candidate in quick.candidates].count(True) == 1
    assert all(c.reason.startswith("Left out on the first prompts: ") for c in quick.candidates if c.screened)
    assert any("all prompts" in message for message in told)
    # nothing to save: as many prompts in the screen as there are, or few candidates
    asked.clear()
    select(len(NEW_HARMFUL))
    monkeypatch.setattr(selection_module, "FINALISTS", 4)
    select(1)
    assert [list(blocks) for *_, blocks in asked] == [[0, 1, 2, 3]] * 2


def test_bad_arguments_and_stopping() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    tokens = RefusalTokens(IDS, ("a", "b", "c"), 3, 3, 2, "By hand.")
    with pytest.raises(ace.EngineError, match="No block can be chosen for 'magic'"):
        select_layer(model, directions, HARMFUL, HARMLESS, method="magic")
    with pytest.raises(ace.EngineError, match="at least one of each"):
        select_layer(model, directions, [], HARMLESS)
    with pytest.raises(ace.EngineError, match="candidate blocks from 0 to 3"):
        select_layer(model, directions, HARMFUL, HARMLESS, blocks=[7])
    with pytest.raises(ace.EngineError, match="fitted on gemma2"):
        select_layer(model, tiny_directions("gemma2"), HARMFUL, HARMLESS)
    with pytest.raises(Stopped):
        select_layer(model, directions, HARMFUL, HARMLESS, tokens=tokens, cancelled=lambda: True)
    assert not any(block._forward_hooks for block in model.blocks)
