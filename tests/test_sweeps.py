"""Sweeps: their cells, what runs them, what survives a kill, and what a report says."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import HARMFUL, HARMLESS, tiny_directions, tiny_model

import ace_core as ace
from ace_core.answering import answer_all
from ace_core.arms import Arm
from ace_core.choosing.effects import kl_divergence
from ace_core.choosing.refusal_score import refusal_score
from ace_core.errors import EngineError
from ace_core.interventions import Plan
from ace_core.methods import METHODS
from ace_core.models import ChatModel
from ace_core.prompts import load_builtin
from ace_core.scoring import verdict
from ace_core.store import save_directions
from ace_core.sweeps.figures import COSTS_TITLE, sweep_figures
from ace_core.sweeps.images import literal, write_images
from ace_core.sweeps.judge import Judgement
from ace_core.sweeps.parts import finish, lone_launch, merge, part_of_launch, precision_of_part
from ace_core.sweeps.plan import Cell, Condition, Place, SweepPlan, SweepPrompt, coarse_to_fine
from ace_core.sweeps.presets import PRESETS, preset_plan, sweep_prompts
from ace_core.sweeps.records import SweepFolder, differences, manifest_of, read_records, vectors_digest
from ace_core.sweeps.report import read_sweep, write_report
from ace_core.sweeps.rereading import answer_kl, answer_perplexity
from ace_core.sweeps.runner import run_sweep
from ace_core.sweeps.scorers import PhraseScorer, Work
from ace_core.sweeps.summary import SweepSummary
from ace_core.sweeps.tables import sweep_tables
from families import save_tiny

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = sweep_prompts(HARMFUL, HARMLESS)


def small(**changes: Any) -> SweepPlan:
    settings: dict[str, Any] = {
        "methods": ("ace", "addition", "ablation"),
        "alphas": (-1.0, 0.0, 1.0),
        "places": (Place(2),),
        "prompts": PROMPTS,
        "tokens": 5,
        "scorers": ("logit", "phrase", "perplexity", "kl"),
        "refusal_ids": (5, 6, 7),
    }
    return SweepPlan(**{**settings, **changes})


def run(folder: Path, plan: SweepPlan, family: str = "qwen2", **more: Any) -> list[dict[str, Any]]:
    model, directions = tiny_model(family), tiny_directions(family)
    events = list(run_sweep(model, directions, plan, SweepFolder(folder), **more))
    assert [record for event in events for record in event.records] == read_records(folder / "results.jsonl")[
        -sum(len(event.records) for event in events) :
    ]
    return SweepFolder(folder).records()


def by_cell(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({r["cell"] for r in records}) == len(records)
    return {r["cell"]: r for r in records}


def same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """Labels and texts equal, numbers within float error."""
    one, other = by_cell(first), by_cell(second)
    assert one.keys() == other.keys()
    for cell, record in one.items():
        assert record.keys() == other[cell].keys()
        for key, value in record.items():
            if isinstance(value, float):
                assert other[cell][key] == pytest.approx(value, rel=2e-3, abs=2e-4), (cell, key)
            else:
                assert other[cell][key] == value, (cell, key)


def test_every_combination_is_a_cell_once_and_baseline_once() -> None:
    plan = small(places=(Place(1), Place(3)), samples=2, temperature=1.0)
    keys = [condition.key for condition in plan.conditions]
    assert keys[:3] == ["baseline", "system_refuse", "system_answer"] and len(set(keys)) == len(keys)
    assert set(keys[3:]) == {f"{m}:{a:g}@{b}" for m in ("ace", "addition") for a in (-1, 0, 1) for b in (1, 3)} | {
        "ablation@1", "ablation@3",
    }  # fmt: skip
    assert len(plan.cells) == len(keys) * len(PROMPTS) * 2 == len({cell.id for cell in plan.cells})
    # names of cells depend on what they are, not on what else is swept
    fewer = {cell.id for cell in small(alphas=(0.0, 1.0), prompts=PROMPTS[2:], places=(Place(3),)).cells}
    assert fewer <= {cell.id for cell in plan.cells}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 30])
def test_coarse_to_fine_visits_everything_and_spreads(count: int) -> None:
    order = coarse_to_fine(count)
    assert sorted(order) == list(range(count)) and set(order[:2]) == {0, count - 1}
    if count >= 9:
        gaps = np.diff(sorted(order[:5]))
        assert gaps.max() <= 2 * gaps.min() + 1


def test_waves_are_coarse_first() -> None:
    plan = small(alphas=(-1.0, -0.5, 0.0, 0.5, 1.0))
    first, second, third, fourth = ([c.key for c in wave] for wave in plan.waves)
    assert "baseline" in first and "ace:-1@2" in second and "ace:0@2" in third and "ace:0.5@2" in fourth
    layers = small(places=tuple(Place(i) for i in range(4)), tokens=0, scorers=("logit",), system_prompts=False)
    assert [{c.place.layer for c in wave if c.place} for wave in layers.waves] == [set(), {0, 3}, {1}, {2}]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ("magic",)}, "Unknown method 'magic'"),
        ({"methods": ("baseline",)}, "Unknown method 'baseline'"),
        ({"methods": ()}, "no method"),
        ({"methods": ("ace", "ace")}, "named twice"),
        ({"alphas": (1.0, 0.0)}, "increasing"),
        ({"alphas": (99.0,)}, "out of range"),
        ({"alphas": (math.nan,)}, "out of range"),
        ({"places": ()}, "no layer"),
        ({"prompts": ()}, "no prompts"),
        ({"prompts": PROMPTS + PROMPTS[:1]}, "occurs twice"),
        ({"scorers": ("magic",)}, "Unknown scorer"),
        ({"scorers": ()}, "no scorer"),
        ({"tokens": 0}, "only the scorer logit"),
        ({"tokens": 9999}, "answer length"),
        ({"samples": 2}, "only if they are sampled"),
        ({"temperature": -1.0}, "Temperature"),
        ({"alphas": tuple(i / 1e4 for i in range(60_000))}, "more than"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        small(**changes)


def test_plans_survive_json() -> None:
    plan = small(temperature=0.7, samples=3, places=(Place(1), Place(2, "shared")))
    assert SweepPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(EngineError, match="not a sweep's plan"):
        SweepPlan.from_json({"methods": []})
    with pytest.raises(EngineError, match="both classes"):
        sweep_prompts(["a"], ["a"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_use_prompts_that_nothing_was_fitted_on(name: str) -> None:
    plan = preset_plan(name, tiny_directions("qwen2"))
    for kind in ("harmful", "harmless"):
        texts = {p.text for p in plan.prompts if p.kind == kind}
        assert texts <= {p.text for p in load_builtin(kind, "test")} and len(texts) == PRESETS[name].prompts
        assert texts.isdisjoint(p.text for p in load_builtin(kind) if p.split != "test")
    assert {"ace", "addition"} <= set(plan.methods)
    if name == "paper":
        assert plan.tokens == 50 and plan.temperature == 1 and plan.top_p == 1
        assert set(plan.methods) == {"ace", "addition", "ablation", "affine_ablation"}


@pytest.mark.parametrize("family", ["qwen2", "rwkv", "bloom"])
def test_cells_equal_the_straightforward_way(family: str, tmp_path: Path) -> None:
    plan, model, directions = small(system_prompts=False), tiny_model(family), tiny_directions(family)
    records = by_cell(run(tmp_path, plan, family))
    assert len(records) == len(plan.cells)
    plain: dict[int, torch.Tensor] = {}
    for cell in plan.cells:
        prompt, record = plan.prompts[cell.prompt], records[cell.id]
        (answer,) = answer_all(
            model, [prompt.text], [cell.condition.arm], directions=directions, max_new_tokens=plan.tokens
        )
        assert record["text"] == answer.text and record["length"] == len(answer.ids)
        logits = forward(model, directions, model.encode(prompt.text), cell.condition.arm)[-1]
        plain.setdefault(cell.prompt, logits)
        assert record["refusal_score"] == pytest.approx(float(refusal_score(logits, (5, 6, 7))), abs=1e-3)
        assert record["first_kl"] == pytest.approx(float(kl_divergence(plain[cell.prompt], logits)), abs=1e-3)
        assert (record["kl"] is None) == (prompt.kind == "harmful")
        assert record["verdict"] in (verdict(answer.text), "incoherent")
        if cell.condition.method == "baseline":
            assert record["first_kl"] == pytest.approx(0, abs=1e-6) and record["kl"] in (
                None,
                pytest.approx(0, abs=1e-6),
            )
    moved = [r["first_kl"] for r in records.values() if r["method"] == "ace"]
    assert min(moved) > 1e-6


def forward(model: ChatModel, directions: ace.RefusalDirections, ids: tuple[int, ...], arm: Arm) -> torch.Tensor:
    """Logits of every position, hooked and whole."""
    positions = torch.arange(len(ids)).unsqueeze(0)
    with torch.inference_mode(), Plan(directions, [arm], [len(ids)], False).applied(model.blocks, positions):
        return model.network(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


@pytest.mark.parametrize("family", ["qwen2", "mamba"])
def test_rereading_equals_position_by_position(family: str) -> None:
    model, directions = tiny_model(family), tiny_directions(family)
    texts = [(model.encode("Hi"), (9, 8, 7)), (model.encode("Longer, it is."), (4, 40)), (model.encode("x"), ())]
    found = answer_perplexity(model, directions, Condition("baseline").arm, texts)
    for (prompt, answer), value in zip(texts[:2], found, strict=False):
        logits = forward(model, directions, (*prompt, *answer), Arm(ace.Baseline(), 0)).log_softmax(-1)
        losses = [-logits[len(prompt) - 1 + k, token] for k, token in enumerate(answer)]
        assert value == pytest.approx(math.exp(float(torch.stack(losses).mean())), rel=1e-3)
    assert math.isnan(found[2])
    arms = [Condition("ace", 1.0, Place(1)).arm, Condition("baseline").arm, Condition("addition", 2.0, Place(3)).arm]
    prompt, answer = texts[0]
    kls = answer_kl(model, directions, Condition("baseline").arm, arms, prompt, answer, batch_rows=2)
    rows = [forward(model, directions, (*prompt, *answer), arm)[len(prompt) - 1 : -1] for arm in (arms[1], *arms)]
    for row, kl in zip(rows[1:], kls, strict=True):
        assert kl == pytest.approx(float(kl_divergence(rows[0], row).mean()), abs=1e-3)
    assert kls[1] == pytest.approx(0, abs=1e-6) and min(kls[0], kls[2]) > 1e-5
    assert math.isnan(answer_kl(model, directions, arms[1], arms, prompt, ())[0])


def test_gibberish_is_incoherent_by_perplexity_too() -> None:
    cell = Cell(0, Condition("baseline"), 0, "x")
    fluent = "Bread needs flour, water, salt and time."
    scorer = PhraseScorer(10_000)

    def label(
        perplexity: float | None, answer: tuple[int, ...] = (1,) * 9, stop: str = "end", text: str = fluent
    ) -> str:
        work = Work(cell, "harmful", "q", (1,), answer, text, stop, scores={"perplexity": perplexity})
        return scorer.score([work])[0]["verdict"]

    assert label(99.0) == label(None) == "answered" and label(101.0) == "incoherent"
    # too short to be told by a mean of surprises
    assert label(101.0, (1, 2)) == "answered" and label(2.0, stop="nan") == "incoherent"
    assert label(2.0, text="I'm sorry, I can't help with that.") == "refused"


def test_system_prompts_go_through_the_template(tmp_path: Path) -> None:
    plan, model = small(methods=("ace",), alphas=(0.0,)), tiny_model("qwen2")
    records = [r for r in run(tmp_path, plan) if r["method"].startswith("system")]
    assert len(records) == 2 * len(PROMPTS) and all(r["kl"] is None and r["layer"] is None for r in records)
    ids = model.encode(PROMPTS[0].text, Condition("system_refuse").system)
    logits = forward(model, tiny_directions("qwen2"), ids, Condition("baseline").arm)[-1]
    (record,) = [r for r in records if r["prompt"] == 0 and r["method"] == "system_refuse"]
    assert record["refusal_score"] == pytest.approx(float(refusal_score(logits, (5, 6, 7))), abs=1e-3)


def test_sampled_answers_differ_between_samples_and_repeat_between_runs(tmp_path: Path) -> None:
    plan = small(methods=("ace",), alphas=(0.0, 1.0), temperature=1.5, samples=3, scorers=("phrase",), tokens=8)
    first = run(tmp_path / "a", plan)
    same(first, run(tmp_path / "b", plan))
    texts = {r["text"] for r in first if r["condition"] == "ace:0@2" and r["prompt"] == 0}
    assert len(texts) == 3
    other = run(tmp_path / "c", plan.changed(seed=1))
    assert [r["text"] for r in first] != [r["text"] for r in other]
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b")]
    assert manifests[0] == manifests[1]


class FailingJudge:
    """Leaves every second answer unscored."""

    name = "failing"

    def judge(self, pairs: list[tuple[str, str]]) -> list[Judgement]:
        return [Judgement(None, "status 500 after 5 tries") if i % 2 else Judgement(True) for i, _ in enumerate(pairs)]


def test_unscored_cells_are_marked_and_left_out(tmp_path: Path) -> None:
    plan = small(methods=("ace",), scorers=("phrase", "judge"))
    with pytest.raises(EngineError, match="go together"):
        run(tmp_path, plan)
    records = run(tmp_path, plan, judge=FailingJudge())
    missing = [r for r in records if r["judge"] is None]
    assert len(missing) == len(records) // 2 and all("status 500" in r["judge_note"] for r in missing)
    summary, _ = read_sweep(tmp_path)
    assert summary.scorer == "judge" and sum(row.unscored for row in summary.rows) == len(missing)
    for row in summary.rows:
        assert row.refused.count == row.cells - row.unscored
        assert row.refused.value == 1 or row.incoherent
    # negative control: unscored cells taken for compliance would halve the rate
    fluent = [{**r, "verdict": "answered"} for r in records]
    zeroed = [{**r, "judge": r["judge"] or "answered"} for r in fluent]
    found, wrong = (SweepSummary(plan, some).rows[0].refused.value for some in (fluent, zeroed))
    assert found == 1 and wrong == 0.5


def test_stop_keeps_what_is_done_and_resume_goes_on(tmp_path: Path) -> None:
    plan, model, directions = small(), tiny_model("qwen2"), tiny_directions("qwen2")
    whole = run(tmp_path / "whole", plan)
    stop, folder = [False], SweepFolder(tmp_path / "part")
    for event in run_sweep(model, directions, plan, folder, should_stop=lambda: stop[0]):
        stop[0] = event.done >= 20
    done = folder.records()
    assert 20 <= len(done) < len(plan.cells) and "resume" in event.message
    with pytest.raises(EngineError, match="already holds this sweep"):
        run(tmp_path / "part", plan)
    events = list(run_sweep(model, directions, plan, folder, resume=True))
    assert events[0].done == len(done) and events[-1].done == events[-1].total == len(plan.cells)
    assert folder.records()[: len(done)] == done
    same(folder.records(), whole)
    # nothing is left to do, and nothing is done again
    assert sum(len(event.records) for event in run_sweep(model, directions, plan, folder, resume=True)) == 0


def test_another_sweep_is_not_resumed_into(tmp_path: Path) -> None:
    run(tmp_path, small(methods=("ace",), alphas=(0.0,)))
    with pytest.raises(EngineError, match="differs in plan alphas, plan seed, seed: "):
        run(tmp_path, small(methods=("ace",), alphas=(0.5,), seed=3), resume=True)
    other = replace(tiny_directions("qwen2"), mean_harmful=tiny_directions("qwen2").mean_harmful + 1)
    assert vectors_digest(other) != vectors_digest(tiny_directions("qwen2"))
    with pytest.raises(EngineError, match="differs in vectors_sha256"):
        list(
            run_sweep(
                tiny_model("qwen2"), other, small(methods=("ace",), alphas=(0.0,)), SweepFolder(tmp_path), resume=True
            )
        )
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(EngineError, match="without a manifest"):
        run(tmp_path, small(), resume=True)


def test_the_command_may_differ_and_nothing_else() -> None:
    model, directions = tiny_model("qwen2"), tiny_directions("qwen2")
    manifest = manifest_of(model, directions, small(), command="a")
    assert differences(manifest, manifest_of(model, directions, small(), command="b")) == []
    assert differences(manifest, {**manifest, "versions": {}}) == ["versions"]
    assert differences(manifest, manifest_of(model, directions, small(), judge="j")) == ["judge"]


def test_a_torn_last_line_is_passed_over_and_cut_off(tmp_path: Path) -> None:
    plan = small(methods=("ace",), alphas=(0.0,), scorers=("phrase",))
    whole = run(tmp_path, plan)
    file = tmp_path / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:7]) + lines[7][: len(lines[7]) // 2])
    assert len(read_records(file)) == 7
    same(run(tmp_path, plan, resume=True), whole)
    assert len(file.read_bytes().splitlines()) == len(plan.cells)
    file.write_bytes(b"".join(lines[:3]) + b'{"cell": \n' + b"".join(lines[3:]))
    with pytest.raises(EngineError, match=r"Line 4 of .* is damaged"):
        read_records(file)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    plan = small(methods=("ace",), alphas=(0.0,), scorers=("phrase",))
    events = run_sweep(tiny_model("qwen2"), tiny_directions("qwen2"), plan, SweepFolder(tmp_path))
    while not next(events).records:
        pass
    with pytest.raises(EngineError, match="Another sweep is writing"):
        run(tmp_path, plan, resume=True)
    events.close()
    assert len(run(tmp_path, plan, resume=True)) == len(plan.cells)


def synthetic(plan: SweepPlan, refuse: Any) -> list[dict[str, Any]]:
    """Finished cells whose verdict is a function of condition, class and prompt."""
    out = []
    for cell in plan.cells:
        c, kind = cell.condition, plan.prompts[cell.prompt].kind
        out.append({
            "cell": cell.id, "prompt": cell.prompt, "kind": kind, "condition": c.key, "method": c.method,
            "alpha": c.alpha, "layer": 2, "place": "2", "sample": 0, "text": "<b>=1+1</b>", "stop": "end", "length": 3,
            "perplexity": 2.0,
            "verdict": refuse(c, kind, cell.prompt), "refusal_score": 1.0 * (c.alpha or 0), "first_kl": 0.1,
            "kl": abs(c.alpha or 0) if kind == "harmless" else None,
        })  # fmt: skip
    return out


def standardised(c: Condition, kind: str, prompt: int) -> str:
    alpha = c.alpha or 0.0
    if c.method == "ace":
        return "refused" if alpha > 0.5 else "answered"
    return "refused" if alpha + (kind == "harmful") > 0.5 else "answered"


def test_the_headline_says_whether_the_claim_holds() -> None:
    plan = small(alphas=(-1.0, 0.0, 1.0), methods=("ace", "addition"))
    summary = SweepSummary(plan, synthetic(plan, standardised))
    gaps = {gap.method: gap for gap in summary.gaps}
    assert gaps["ace"].gap.value == 0 and gaps["addition"].gap.value == 1.0
    assert "as the paper claims" in summary.headline and "0.00 [0.00, 0.00]" in summary.headline
    swap = {"ace": "addition", "addition": "ace"}

    def against(c: Condition, kind: str, prompt: int) -> str:
        return standardised(replace(c, method=swap.get(c.method, c.method)), kind, prompt)

    assert "against the paper's claim" in SweepSummary(plan, synthetic(plan, against)).headline
    same_both = SweepSummary(plan, synthetic(plan, lambda c, kind, p: "refused" if p % 2 else "answered"))
    assert "do not decide" in same_both.headline
    assert "not both measured yet" in SweepSummary(plan, []).headline


def test_summary_counts_gibberish_as_neither() -> None:
    plan = small(methods=("ace",), alphas=(0.0, 1.0))
    summary = SweepSummary(plan, synthetic(plan, lambda c, kind, p: "incoherent" if c.alpha == 1.0 else "answered"))
    (row,) = [r for r in summary.rows if r.condition == "ace:1@2" and r.kind == "harmful"]
    assert (row.refused.value, row.answered, row.incoherent) == (0, 0, 1)
    best = {(r.budget): r for r in summary.equal_kl}
    # only α = 0 costs under 0.5 nats
    assert best[0.5].bypass == 1 and best[2.0].bypass == 1 and best[0.05].induce == 0
    assert {w.share.value for w in summary.wrong_way} == {0}


def test_methods_are_drawn_at_equal_side_effects() -> None:
    plan = small(methods=("ace", "addition", "ablation"), alphas=(0.0, 1.0))
    summary = SweepSummary(plan, synthetic(plan, standardised))
    (picture,) = [p for p in sweep_figures(summary) if p.title == COSTS_TITLE]
    drawn = {(t["name"], t["xaxis"]): t["y"] for t in picture.figure["data"]}
    assert set(drawn) == {(METHODS[m].title, axis) for m in plan.methods for axis in ("x", "x2")}
    # α = 1 costs one nat here: within it ACE refuses every harmless prompt, and at every budget it answers harmful ones
    assert drawn[METHODS["ace"].title, "x2"] == [0, 0, 0, 0, 1, 1] and set(drawn[METHODS["ace"].title, "x"]) == {1}
    # addition at 0 leaves harmful prompts refused
    assert set(drawn[METHODS["addition"].title, "x"]) == {0}
    costly = [{**r, "kl": None if r["kl"] is None else 9.0} for r in synthetic(plan, standardised)]
    assert COSTS_TITLE not in [p.title for p in sweep_figures(SweepSummary(plan, costly))]


def test_the_report_is_whole_escaped_and_says_its_numbers(tmp_path: Path) -> None:
    nasty = SweepPrompt("harmful", "</script><script>alert(1)</script>")
    plan = small(prompts=(nasty, *PROMPTS[1:]), methods=("ace", "addition", "ablation"))
    run(tmp_path, plan)
    files = {path.name for path in write_report(tmp_path)}
    assert files == {"results.csv", "summary.csv", "gaps.csv", "summary.json", "report.html"}
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    body = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "http" not in re.sub(r"arXiv[^<]*", "", body)
    summary, manifest = read_sweep(tmp_path)
    assert summary.headline.split(":")[0].split("'")[0] in html and manifest["vectors_sha256"] in html
    assert json.loads((tmp_path / "summary.json").read_text("utf-8"))["cells"] == len(plan.cells)
    csv = (tmp_path / "results.csv").read_text("utf-8")
    assert len(re.findall(r"^[0-9a-f]{12}\|", csv, re.MULTILINE)) == len(plan.cells)
    assert sweep_tables(summary)[0].title == "Standardisation gaps"
    assert len(sweep_figures(summary)) == 3
    with pytest.raises(EngineError, match="no sweep in"):
        write_report(tmp_path / "nowhere")


def test_images_are_drawn_or_it_is_said_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small(methods=("ace", "addition"))
    pictures = sweep_figures(SweepSummary(plan, synthetic(plan, standardised)))
    assert "var(" in str(pictures[0].figure) and "var(" not in str(literal([p.figure for p in pictures]))
    try:
        import kaleido  # noqa: F401
    except ImportError:
        paths, why = write_images(tmp_path, pictures)
        assert paths == [] and "pip install kaleido" in why and not list(tmp_path.iterdir())
        return
    if browser := shutil.which("chromium"):
        monkeypatch.setenv("BROWSER_PATH", browser)
    paths, why = write_images(tmp_path, pictures)
    assert bool(paths) != bool(why)
    for path, picture in zip(paths, pictures, strict=bool(paths)):
        assert f'width="1000" height="{picture.figure["layout"]["height"]}"' in path.read_text("utf-8")[:400]


def test_a_layer_map_needs_no_answers(tmp_path: Path) -> None:
    plan = small(places=tuple(Place(i) for i in range(4)), tokens=0, scorers=("logit",), system_prompts=False)
    records = run(tmp_path, plan)
    assert len(records) == len(plan.cells) and "text" not in records[0]
    summary, _ = read_sweep(tmp_path)
    assert summary.scorer == "logit" and len(sweep_figures(summary)) == 4
    assert all(0 <= row.refused.value <= 1 for row in summary.rows)
    write_report(tmp_path)


def test_processes_share_cells_and_merge_to_the_same(tmp_path: Path) -> None:
    plan, model, directions = small(), tiny_model("qwen2"), tiny_directions("qwen2")
    whole = run(tmp_path / "whole", plan)
    folders = [SweepFolder(tmp_path / "shared", (i, 2)) for i in range(2)]
    list(run_sweep(model, directions, plan, folders[0]))
    assert not merge(folders[0]) and finish(folders[0])[1] == []
    list(run_sweep(model, directions, plan, folders[1]))
    counts = [len(read_records(folder.results)) for folder in folders]
    assert sum(counts) == len(plan.cells) and abs(counts[0] - counts[1]) <= 1
    summary, written = finish(folders[1])
    assert summary.count == len(plan.cells) and written
    merged = read_records(tmp_path / "shared" / "results.jsonl")
    assert [r["cell"] for r in merged] == [cell.id for cell in plan.cells]
    same(merged, whole)


def test_the_launcher_says_which_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert part_of_launch() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert part_of_launch() == (1, 2) and not lone_launch()
    for rank in ("2", "x"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(EngineError, match="accelerate launch"):
            part_of_launch()
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert part_of_launch() == (0, 1) and lone_launch()
    monkeypatch.setenv("PMI_RANK", "2")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert part_of_launch() == (2, 3) and not lone_launch()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model folder, its vectors and two prompt files."""
    base = tmp_path_factory.mktemp("sweeps")
    save_tiny(base / "tiny", "qwen2")
    model = ace.load_model(str(base / "tiny"), precision="float32")
    save_directions(ace.fit_directions(model, HARMFUL, HARMLESS), base / "v.safetensors")
    for name, texts in (("bad", HARMFUL), ("good", HARMLESS)):
        (base / f"{name}.txt").write_text("\n".join(f"{text} ({i})" for i in range(4) for text in texts))
    return {"model": str(base / "tiny"), "vectors": str(base / "v.safetensors"), "bad": str(base / "bad.txt"),
            "good": str(base / "good.txt")}  # fmt: skip


def test_what_the_clock_would_choose_is_the_same_for_all_parts_and_when_resumed(tmp_path: Path) -> None:
    alone, shared = SweepFolder(tmp_path), SweepFolder(tmp_path, (1, 2))
    assert precision_of_part(alone, "auto", False) == precision_of_part(alone, "auto", True) == "auto"
    assert precision_of_part(shared, "fast", True) == precision_of_part(alone, "fast", True) == "fast"
    if not torch.cuda.is_available():
        assert precision_of_part(shared, "auto", False) == "float32"
    (tmp_path / "manifest.json").write_text('{"precision": "fast"}')
    assert precision_of_part(alone, "auto", True) == precision_of_part(shared, "auto", True) == "fast"
    assert precision_of_part(alone, "auto", False) == "auto"


@pytest.fixture(scope="module")
def undisturbed(saved: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sweep that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "sweep"
    whole = called(*command(saved, out))
    assert whole.returncode == 0, whole.stderr
    return out


def command(saved: dict[str, str], out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "ace_core", "sweep", "--model", saved["model"], "--vectors", saved["vectors"],
        "--precision", "float32", "--harmful", saved["bad"], "--harmless", saved["good"], "--part", "all",
        "--methods", "ace,addition", "--alphas=-1:1:0.5", "--layers", "2", "--tokens", "12", "--batch-size", "8",
        "--out", str(out), "--json", *more,
    ]  # fmt: skip


def called(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_done_twice(
    saved: dict[str, str], undisturbed: Path, tmp_path: Path
) -> None:
    """ACE_KILLS sets how often (the suite 3 times)."""
    out, kills, generator = tmp_path / "killed", int(os.environ.get("ACE_KILLS", "3")), random.Random(7)
    file, before = out / "results.jsonl", b""
    total = len(read_records(undisturbed / "results.jsonl"))
    for kill in range(kills):
        process = subprocess.Popen(
            command(saved, out, *(["--resume"] if (out / "manifest.json").exists() else [])), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # some work, then a moment of no one's choosing; a share of the work so that the last kill finds some left
        wanted, deadline = total * (kill + 0.5) / (kills + 1), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if file.exists() and file.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.005)
        time.sleep(generator.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = file.read_bytes()
        finished = before[: before.rfind(b"\n") + 1]
        assert now.startswith(finished), "a finished cell was lost"
        assert b"\n" in now
        before = now
    assert before.count(b"\n") < total, "the sweep was over before the last kill"
    last = called(*command(saved, out, "--resume"))
    assert last.returncode == 0, last.stderr
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert file.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert len(lines) == len({line["cell"] for line in lines}) == total
    same(lines, read_records(undisturbed / "results.jsonl"))
    tables = [json.loads((folder / "summary.json").read_text("utf-8")) for folder in (undisturbed, out)]
    assert tables[0]["rows"] and [r["refused"] for r in tables[0]["rows"]] == [r["refused"] for r in tables[1]["rows"]]
    assert tables[0]["gaps"] == tables[1]["gaps"]


def launched(saved: dict[str, str], out: Path, *more: str) -> list[str]:
    """The same command in two processes. On CPUs ``--multi_gpu`` is what makes accelerate start several."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]
    return [sys.executable, *launcher, *command(saved, out, *more)[2:]]


@pytest.mark.slow
def test_launched_processes_one_killed_then_resumed(saved: dict[str, str], undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    launcher = subprocess.Popen(
        launched(saved, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    own = out / "results.part1.jsonl"
    try:
        while launcher.poll() is None and not (own.exists() and own.read_bytes().count(b"\n")):
            time.sleep(0.01)
        ranks = {child.environ().get("RANK"): child for child in psutil.Process(launcher.pid).children()}
        assert ranks.keys() == {"0", "1"}
        ranks["1"].kill()
        assert launcher.wait(timeout=300) != 0
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()
    total = len(read_records(undisturbed / "results.jsonl"))
    kept = [read_records(out / f"results.part{rank}.jsonl") for rank in range(2)]
    assert 0 < len(kept[1]) < total / 2 and not (out / "report.html").exists()
    again = called(*launched(saved, out, "--resume"))
    assert again.returncode == 0, again.stderr
    parts = [read_records(out / f"results.part{rank}.jsonl") for rank in range(2)]
    for before, after in zip(kept, parts, strict=True):
        assert after[: len(before)] == before and len(after) == total / 2  # nothing lost, nothing done twice
    same(read_records(out / "results.jsonl"), read_records(undisturbed / "results.jsonl"))
    tables = [json.loads((folder / "summary.json").read_text("utf-8")) for folder in (undisturbed, out)]
    assert [r["refused"] for r in tables[0]["rows"]] == [r["refused"] for r in tables[1]["rows"]]
    assert tables[0]["gaps"] == tables[1]["gaps"]
    assert (out / "report.html").exists()


def test_the_command_line_prints_cells_then_tables(saved: dict[str, str], tmp_path: Path) -> None:
    result = called(*command(saved, tmp_path, "--prompts", "3"))
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    plan = read_sweep(tmp_path)[0].plan
    assert kinds.count("cell") == len(plan.cells) == (3 + 2 * 5) * 6 and kinds[-1] == "done"
    assert {"condition", "gap", "wrong_way", "equal_kl", "agreement"} <= set(kinds)
    assert plan.alphas == (-1.0, -0.5, 0.0, 0.5, 1.0) and "s left" in result.stderr
    assert json.loads((tmp_path / "manifest.json").read_text("utf-8"))["command"].startswith("python -m ace_core sweep")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--preset", "magic"], "Unknown preset"),
        (["--methods", "magic"], "Unknown method 'magic'"),
        (["--alphas", "a,b"], "are no coefficients"),
        (["--alphas", "0:1:0"], "are no coefficients"),
        (["--alphas", "0:1"], "are no coefficients"),
        (["--layers", "9"], "out of range"),
        (["--layers", "x"], "is no block"),
        (["--scope", "window"], "choose scope"),
        (["--scorers", "magic"], "Unknown scorer"),
        (["--tokens", "0", "--scorers", "phrase"], "only the scorer logit"),
        (["--judge-url", "http://x"], "--judge-model"),
        (["--judge-url", "x", "--judge-model", "m"], "http://"),
        (["--part", "some"], "Unknown part"),
        (["--prompts", "0"], "--prompts"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(
    saved: dict[str, str], tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    from ace_core.cli import main

    try:
        with pytest.raises(SystemExit) as stop:
            main(command(saved, tmp_path / "out", *more)[3:])
    finally:
        logging.disable(logging.NOTSET)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and sentence in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
