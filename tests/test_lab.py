"""The direction lab without a page: sets, fit and choice through a real model thread, stopping, files."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from conftest import tiny_directions, tiny_model
from test_plots import painted

import ace_core as ace
from ace_core import lab, plots
from ace_core.exchange import export_gguf
from ace_core.host import HostState, ModelHost
from ace_core.inspecting.achieved import achieved_table
from ace_core.lab import choice as lab_choice
from ace_core.policy import Policy
from ace_core.prompts import Prompt
from ace_core.runs import Run, RunSettings
from ace_core.store import save_directions
from ace_core.tasks import Task
from ace_core.ui import controls
from ace_core.ui.directions import tab as lab_tab
from ace_core.ui.directions import views as show
from ace_core.ui.directions.bench import Bench
from ace_core.ui.directions.handlers import DirectionsHandlers
from ace_core.ui.directions.in_use import DirectionsInUse
from ace_core.ui.directions.looking import Looking
from ace_core.ui.handlers import Handlers
from ace_core.ui.sessions import Session

GOOD: dict[str, Any] = {
    "seed": 0, "limit": 40, "variant": "mean_difference", "position": "last", "site": "output", "behaving": False,
}  # fmt: skip


@pytest.fixture
def host():
    made = ModelHost()
    made.adopt(tiny_model("llama"), tiny_directions("llama"))
    assert made.wait_ready(30).status == "ready"
    yield made
    made.close()


def made_set(kind: str, count: int) -> lab.LabSet:
    verb = "break" if kind == "harmful" else "paint"
    return lab.LabSet(tuple(Prompt(f"How do I {verb} thing number {i}?") for i in range(count)), "made here", "CC0")


def request(count: int = 20, **changes: Any) -> lab.LabRequest:
    options = lab.lab_options({**GOOD, **changes})
    parts = lab.split_sets(made_set("harmful", count), made_set("harmless", count), options.seed, options.limit)
    return lab.LabRequest(parts, options)


def fitted(host: ModelHost, asked: lab.LabRequest) -> lab.LabFit:
    return host.work(lambda model, task: lab.fit_lab(model, task, asked)).result(120)


def test_a_fit_is_chosen_looked_at_and_used(host: ModelHost) -> None:
    task = host.work(lambda model, task: lab.fit_lab(model, task, request()))
    told = [report.message for report in task.reports(0.01)]
    fit = task.result(1)
    assert any("Reading prompts" in message for message in told)
    assert fit.steers and not fit.stopped and fit.directions.metadata["harmful_count"] == "12"
    assert "SHA-256" in fit.directions.metadata["split_rule"]
    parts = request().parts
    direct = ace.fit_directions(
        tiny_model("llama"), *parts.texts("fit"), heldout_harmful=parts.texts("validation")[0],
        heldout_harmless=parts.texts("validation")[1],
    )  # fmt: skip
    torch.testing.assert_close(fit.directions.mean_harmful, direct.mean_harmful)

    # the map shows the coordinates that the fit itself measured on held-out prompts
    assert len(fit.planes) == 4 and len(fit.harmful) == len(fit.harmless) == 20
    start = len(parts.texts("test")[0])
    np.testing.assert_allclose(
        fit.planes[2].harmful[start : start + 4, 0], fit.directions.heldout_harmful[2].numpy(), atol=1e-3
    )
    assert fit.harmful[start] == parts.texts("validation")[0][0]

    choice = host.work(lambda model, task: lab.choose_block(model, task, fit, "ace")).result(120)
    assert choice.directions.recommended_layer == choice.selection.recommended
    assert {row.coefficient for row in choice.achieved} >= {0.0, 1.0}
    assert all(abs(row.achieved - row.coefficient) < 1e-4 for row in choice.achieved)

    look = lab.look_at(choice.directions)
    assert look.counts == (12, 12) and look.cosines.shape == (4, 4)
    np.testing.assert_allclose(np.diag(look.cosines), 1, atol=1e-5)
    stream = host.compare("Hello", RunSettings(layer=1, max_new_tokens=4), [ace.Baseline()], choice.directions)
    assert sum(1 for _ in stream) == 4


def test_a_run_starts_from_the_reference_that_was_set(host: ModelHost) -> None:
    """Through the page and the model thread: origin is ablation, pooled the paper's code at half a gap."""
    values = dict(zip(controls.FIELDS, controls.values_of("Go on", RunSettings(1, max_new_tokens=6), []), strict=True))

    def run(reference: str, coefficient: float, arms: list[str]) -> Run:
        asked = controls.ask({**values, "reference": reference, "coefficient": coefficient, "arms": arms})
        stream = host.compare(asked.prompt, asked.settings, asked.methods)
        for _ in stream:
            pass
        assert stream.builder is not None
        return stream.builder.snapshot()

    origin = run("origin", 0.0, ["ablation", "ace"])
    ablation, ace_arm = origin.arms
    assert origin.settings.reference == "origin" and "from the origin" in ace_arm.label
    assert ace_arm.token_ids == ablation.token_ids and np.allclose(ace_arm.after, ablation.after, atol=1e-5)
    plain = run("harmless", 0.0, ["ablation", "ace"])
    assert not np.array_equal(plain.arms[0].after, plain.arms[1].after)
    (pooled,) = run("pooled", 0.25, ["ace"]).arms
    np.testing.assert_allclose(pooled.after[1], 0.75, atol=1e-4)
    (harmful,) = run("harmful", -0.5, ["ace"]).arms
    np.testing.assert_allclose(harmful.after[1], 0.5, atol=1e-4)
    with pytest.raises(ace.EngineError, match="no third set's mean"):
        run("third", 0.0, ["ace"])
    # the thread and later runs are none the worse
    np.testing.assert_allclose(run("harmless", 1.0, ["ace"]).arms[0].after[1], 1.0, atol=1e-4)


def test_a_third_set_gives_a_point_to_start_from(host: ModelHost) -> None:
    third = lab.LabSet(tuple(Prompt(f"What colour is thing {i}?") for i in range(60)), "made here", "CC0")
    fit = fitted(host, replace(request(), reference=third))
    assert fit.directions.metadata["reference_count"] == "40", "no more than the limit"
    assert "mean of 40 prompts of the third set" in " ".join(fit.notes)
    assert fitted(host, request()).directions.mean_reference is None
    stream = host.compare("Go on", RunSettings(1, reference="third"), [ace.ACE(0.25, "third")], fit.directions)
    axis = fit.directions.axis(1)
    assert axis.third is not None
    target = (axis.third - axis.low) / (axis.high - axis.low) + 0.25
    assert abs(target - 0.25) > 0.01, "otherwise it would not differ from the harmless mean"
    for step in stream:
        np.testing.assert_allclose(step.after[0][1], target, atol=1e-3)
    assert lab.builtin_set(lab.REFERENCE).prompts != lab.builtin_set("harmless").prompts
    german = lab.language_set("harmful", "de")
    assert len(german.prompts) == 12 and "German" in german.summary and len(lab.language_set("harmful").prompts) == 72
    assert [code for _, code in lab.language_choices()][:2] == ["all", "de"]
    with pytest.raises(ace.EngineError, match="no prompts in 'tlh'"):
        lab.language_set("harmless", "tlh")
    assert lab.hub_names(lab.REFERENCE) and "advbench" not in lab.hub_names(lab.REFERENCE)


def test_two_directions_side_by_side(host: ModelHost) -> None:
    """The last instruction token against the last template token, and everything that is written is only text."""
    ends = [fitted(host, request(position=position)).directions for position in ("instruction", "last")]
    found = lab.beside(ends[0], ends[1], ("<b>mine</b> ${x}", "the model's own"))
    units = [d.direction_of_means.double() / d.direction_of_means.double().norm(dim=-1, keepdim=True) for d in ends]
    np.testing.assert_allclose(found.cosines, (units[0] * units[1]).sum(-1).numpy(), atol=1e-5)
    assert np.abs(found.cosines).max() < 0.999, "different positions"
    np.testing.assert_allclose(lab.beside(ends[0], ends[0], ("a", "b")).cosines, 1, atol=1e-5)
    assert "instruction" in found.words[0] and "instruction" not in found.words[1]
    page = show.beside_words(found, "<i>kept</i>") + show.beside(found)
    assert "<b>" not in page and "<i>" not in page and "${" not in show.beside_words(found, "")
    go.Figure(painted(json.loads(show.beside(found))))
    assert "two different directions" in show.beside(None)


def test_kept_directions_go_with_their_model(host: ModelHost) -> None:
    bench, own, state = Bench(), tiny_directions("llama"), host.state
    bench.kept = (own, "kept", state.info)
    assert not bench.current(state) and bench.kept is not None
    bench.current(HostState())
    assert bench.kept is None


def test_a_choice_for_another_method_needs_no_new_tokens(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fitted(host, request())
    first = host.work(lambda model, task: lab.choose_block(model, task, fit, "ace")).result(120)
    monkeypatch.setattr(lab_choice, "find_refusal_tokens", lambda *_, **__: pytest.fail("searched again"))
    tokens = first.selection.tokens
    again = host.work(lambda model, task: lab.choose_block(model, task, fit, "addition", tokens)).result(120)
    assert again.selection.method == "addition"
    with pytest.raises(ace.EngineError, match="Choose the method"):
        host.work(lambda model, task: lab.choose_block(model, task, fit, "magic")).result(60)


def test_a_stop_keeps_what_is_done(host: ModelHost) -> None:
    asked = request(120, limit=200)

    def compute(model: ace.ChatModel, task: Task[lab.LabFit]) -> lab.LabFit:
        report = task.report

        def watched(message: str, fraction: float | None = None) -> None:
            report(message, fraction)
            if fraction is not None and fraction > 0.6:
                task.cancel()

        task.report = watched  # type: ignore[method-assign]
        return lab.fit_lab(model, task, asked)

    fit = host.work(compute).result(120)
    assert fit.stopped and fit.planes == ()
    assert "what was read is kept" in " ".join(fit.notes)
    assert 32 <= int(fit.directions.metadata["harmful_count"]) < 72
    assert "stopped" in json.loads(show.plane(fit, 0))["layout"]["meta"]["summary"]

    def at_once(model: ace.ChatModel, task: Task[lab.LabFit]) -> lab.LabFit:
        task.cancel()
        return lab.fit_lab(model, task, asked)

    with pytest.raises(ace.EngineError, match="stopped after 0"):
        host.work(at_once).result(60)


def test_others_run_during_a_fit(host: ModelHost) -> None:
    begun, asked, seen = threading.Event(), request(60, limit=100), []

    def compute(model: ace.ChatModel, task: Task[lab.LabFit]) -> lab.LabFit:
        report = task.report

        def watched(message: str, fraction: float | None = None) -> None:
            begun.set()
            if not seen:
                time.sleep(0.3)
                report(message, fraction)
                seen.append(host.active)
            report(message, fraction)

        task.report = watched  # type: ignore[method-assign]
        return lab.fit_lab(model, task, asked)

    task = host.work(compute)
    assert begun.wait(60)
    stream = host.compare("Hello there", RunSettings(layer=1, max_new_tokens=8), [ace.Baseline()])
    assert sum(1 for _ in stream) == 8
    assert task.result(120).steers and seen == [0]


def test_inputs_are_for_looking_only(host: ModelHost) -> None:
    fit = fitted(host, request(site="input", position="mean"))
    assert not fit.steers and len(fit.planes) == 4
    with pytest.raises(ace.EngineError, match="choose another position"):
        request(site="input")
    with pytest.raises(ace.EngineError, match="edits happen at outputs"):
        host.work(lambda model, task: lab.choose_block(model, task, fit, "ace")).result(60)
    assert "for looking" in show.recommendation(lab.look_at(fit.directions), fit, None)


def test_a_table_of_another_block_is_the_engines(host: ModelHost) -> None:
    fit = fitted(host, request())
    chosen = host.work(lambda model, task: lab.choose_block(model, task, fit, "ace")).result(120)
    recommended = chosen.selection.recommended
    other = (recommended + 1) % 4
    tests = fit.parts.texts("test") if fit.parts is not None else ([], [])
    assert lab.table_prompts(fit) == tests and all(len(texts) == 4 for texts in tests)
    table = host.work(lambda model, task: lab.block_table(model, task, fit, other)).result(60)
    assert table == achieved_table(tiny_model("llama"), fit.directions, *tests, [other], batch_size=16)
    assert {row.block for row in table} == {other} and len(table) == 2 * len(lab.ACHIEVED_COEFFICIENTS)
    again = host.work(lambda model, task: lab.block_table(model, task, fit, recommended)).result(60)
    assert again == chosen.achieved != table
    with pytest.raises(ace.EngineError, match="block"):
        host.work(lambda model, task: lab.block_table(model, task, fit, 4)).result(60)
    for barren, told in (
        (fitted(host, request(site="input", position="mean")), "ACE edits outputs"),
        (lab.LabFit(tiny_directions("llama")), "came without prompts"),
    ):
        with pytest.raises(ace.EngineError, match=told):
            host.work(lambda model, task, fit=barren: lab.block_table(model, task, fit, 0)).result(60)


def test_a_stop_while_the_table_is_measured_keeps_the_choice(host: ModelHost) -> None:
    fit = fitted(host, request())

    def compute(model: ace.ChatModel, task: Task[lab.BlockChoice]) -> lab.BlockChoice:
        report = task.report

        def watched(message: str, fraction: float | None = None) -> None:
            report(message, fraction)
            if message.startswith("Measuring block"):
                task.cancel()

        task.report = watched  # type: ignore[method-assign]
        return lab.choose_block(model, task, fit, "ace")

    choice = host.work(compute).result(120)
    assert choice.achieved == () and choice.directions.recommended_layer == choice.selection.recommended


class Bound:
    """The tab of one visitor without a browser, its handlers called as the page calls them."""

    def __init__(self, host: ModelHost, fit: lab.LabFit) -> None:
        with gr.Blocks():
            self.tab = lab_tab.build(4)
            line, back = lab_tab.in_use_line()
            used = DirectionsInUse(page := Handlers(host, None, 4), line, back, self.tab.status, gr.Tabs(), None)  # type: ignore[arg-type]
        self.handlers, self.request = (
            DirectionsHandlers(Looking(page, self.tab, used)),
            gr.Request(session_hash="visitor"),
        )
        self.bench = page.sessions.get("visitor").bench
        self.bench.keep(fit, lab.look_at(fit.directions), host.state.info)
        self.now: dict[Any, Any] = {}

    def look(self, block: object) -> str:
        self.now.update(self.handlers.looking.look(self.request, block))
        return self.table

    def measure(self, block: object) -> list[str]:
        """What stood in the table's place, in order."""
        seen = []
        for update in self.handlers.measuring.measure(self.request, block):
            self.now.update(update)
            seen.append(self.table)
        return seen

    @property
    def table(self) -> str:
        return self.now.get(self.tab.achieved, "")

    def allows(self, button: gr.Button) -> bool:
        return self.now[button].interactive


def test_the_tables_of_blocks_are_measured_when_asked_and_kept(host: ModelHost) -> None:
    fit = fitted(host, request())
    place = Bound(host, fit)
    tab, bench = place.tab, place.bench
    assert "Block 1 is not measured yet." in place.look(1) and place.allows(tab.measure)
    empty = place.table
    seen = place.measure(1)
    assert any("Measuring block 1" in table for table in seen)
    assert "ACE at block 1:" in place.table and not place.allows(tab.measure) and not place.allows(tab.measure_stop)
    assert place.table.count("<tr") == empty.count("<tr") == 11, "as high before as after"
    assert bench.tables[1] == achieved_table(tiny_model("llama"), fit.directions, *lab.table_prompts(fit), [1])
    assert "ACE at" not in place.look(3), "one block's table is not another's"
    known = bench.tables[1]
    place.measure(1)
    assert bench.tables[1] is known, "not measured twice"

    # nothing but blocks of the model
    for nonsense in (-1, 4, 1.5, True, None, "2", [2]):
        assert place.handlers.looking.look(place.request, nonsense) == {tab.classes: gr.skip()}
    assert bench.block == 1

    # the visitor moves on while block 2 is measured
    going = place.handlers.measuring.measure(place.request, 2)
    for update in going:
        place.now.update(update)
        if "Measuring block 2" in place.table:
            assert place.allows(tab.measure_stop) and not place.allows(tab.measure)
            assert "ACE at block 1:" in place.look(1)
            assert "something else is running" in place.look(0)
    assert "Block 0 is not measured yet." in place.table and place.allows(tab.measure)
    assert "ACE at block 2:" in place.look(2)

    # a stop keeps what is known; somebody else's work lies before it
    gate = threading.Event()
    host.work(lambda model, task: gate.wait(60))
    for update in place.handlers.measuring.measure(place.request, 3):
        place.now.update(update)
        if "Measuring block 3" in place.table:
            place.now.update(place.handlers.working.stop(place.request))
            gate.set()
    assert set(bench.tables) == {1, 2} and "topped" in place.table
    assert place.allows(tab.measure) and not place.allows(tab.measure_stop) and place.allows(tab.fit)
    assert bench.tables[1] is known and "ACE at block 1:" in place.look(1)

    # another fit knows nothing
    bench.keep(fit, lab.look_at(fit.directions), host.state.info)
    assert "not measured yet" in place.look(1)


def test_where_nothing_can_be_measured_one_sentence_says_why(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Bound(host, fitted(host, request(site="input", position="mean")))
    assert (
        "ACE edits outputs" in inputs.look(1) and "<table" not in inputs.table and not inputs.allows(inputs.tab.measure)
    )
    inputs.measure(1)
    assert "ACE edits outputs" in inputs.now[inputs.tab.status]
    place = Bound(host, fitted(host, request()))
    assert place.bench.begin()
    assert "something else is running" in place.look(1) and not place.allows(place.tab.measure)
    place.measure(1)
    assert "Something is still running" in place.now[place.tab.status] and not place.bench.tables
    place.bench.release()
    monkeypatch.setattr(host, "policy", Policy(work=False))
    assert "<table" not in place.look(1) and not place.allows(place.tab.measure)
    with pytest.raises(ace.EngineError) as refused:
        host.policy.check_work()
    assert str(refused.value)[:30] in place.table
    place.measure(1)
    assert not place.bench.tables
    hostile = show.not_achieved("<b>${x}{{y}}", ["harmful"]) + show.never_achieved("<b>${x}")
    assert "<b>" not in hostile and "${" not in hostile and "{{" not in hostile


def test_prompts_that_misbehave_are_left_out_and_counted(host: ModelHost) -> None:
    # a random model refuses nothing
    with pytest.raises(ace.EngineError, match=r"[Kk]ept 0 of 20 harmful .* too few to fit on"):
        fitted(host, request(behaving=True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("seed", value) for value in (None, -1, 1.5, "0", float("nan"), 2**40, True)),
        *(("limit", value) for value in (None, 5, 10**9, "100", float("inf"))),
        *(("variant", value) for value in (None, "magic", ["leace"], 3)),
        *(("position", value) for value in (None, "middle", "2", "x" * 1000, [1], "-1.5")),
        *(("site", value) for value in (None, "attention", [])),
    ],
)
def test_a_bad_option_is_one_sentence(field: str, value: object) -> None:
    with pytest.raises(ace.EngineError) as caught:
        lab.lab_options({**GOOD, field: value})
    assert str(caught.value).endswith(".") and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"", "no prompts"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\x00\xff", "decoded|NUL"),
        ("table.xlsx", b"PK\x03\x04", r"save it as"),
        ("broken.json", b'[{"prompt": "a"', "not valid JSON"),
    ],
)
def test_a_bad_prompt_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ace.EngineError, match=sentence):
        lab.file_set(tmp_path / name)


def test_sets_are_cut_to_size_and_say_so() -> None:
    parts = lab.split_sets(lab.builtin_set("harmful"), lab.builtin_set("harmless"), 0, 50)
    assert [len(texts) for part in ("fit", "validation", "test") for texts in parts.texts(part)] == [30, 30, *[10] * 4]
    assert "at equal distances" in parts.rule and parts.counts.startswith("30 + 30 prompts")
    both = lab.LabSet(made_set("harmful", 6).prompts, "again", "CC0")
    with pytest.raises(ace.EngineError, match="in both sets"):
        lab.split_sets(both, both, 0, 50)
    with pytest.raises(ace.EngineError, match="harmless set has 3"):
        lab.split_sets(made_set("harmful", 6), made_set("harmless", 3), 0, 50)
    assert "advbench" in lab.hub_names("harmful") and "alpaca" in lab.hub_names("harmless")
    for name in (None, " ", "x" * 500, "../../etc/passwd"):
        with pytest.raises(ace.EngineError):
            lab.hub_set(name)


def test_files_come_back_as_they_went(host: ModelHost, tmp_path: Path) -> None:
    fit = fitted(host, request())
    directions = replace(fit.directions, recommended_layer=2)
    files = lab.write_files(directions, tmp_path)
    assert files.gguf is not None and "addition only" in files.note and "block 2" in files.note
    assert files.card.read_text("utf-8").startswith("# Refusal") and not lab.is_foreign(files.vectors)
    own = lab.read_own(files.vectors)
    back = host.work(lambda model, task: lab.accept_directions(model, task, own, "mine.safetensors")).result(60)
    assert back.name == "your file mine.safetensors" and back.parts is None
    torch.testing.assert_close(back.directions.unit, directions.unit)

    assert lab.is_foreign(files.gguf)
    foreign = lab.read_foreign(files.gguf)
    completed = fitted(host, replace(request(), foreign=foreign))
    assert "filled by the mean difference" in " ".join(completed.notes)
    torch.testing.assert_close(completed.directions.unit[2], directions.unit[2])

    nowhere = lab.write_files(replace(directions, recommended_layer=0), tmp_path)
    assert nowhere.gguf is None and "no place for block 0" in nowhere.note and not files.gguf.exists()


def test_files_that_do_not_fit_are_one_sentence(host: ModelHost, tmp_path: Path) -> None:
    own = tiny_directions("llama")
    other = replace(own, metadata={**own.metadata, "model_id": "somebody/else"})
    with pytest.raises(ace.EngineError, match="fitted on somebody/else, not on llama"):
        host.work(lambda model, task: lab.accept_directions(model, task, other, "x")).result(60)
    crowd = replace(own, heldout_harmful=torch.zeros(4, 5_001))
    save_directions(crowd, tmp_path / "crowd.safetensors")
    with pytest.raises(ace.EngineError, match="more than 5,000 held-out prompts"):
        lab.read_own(tmp_path / "crowd.safetensors")
    (tmp_path / "noise.bin").write_bytes(b"\x80noise, no vectors")
    assert lab.is_foreign(tmp_path / "noise.bin") and lab.is_foreign(tmp_path / "missing")
    with pytest.raises(ace.EngineError, match="never opened"):
        lab.read_foreign(tmp_path / "noise.bin")
    export_gguf(own, tmp_path / "v.gguf", layer=1)
    with pytest.raises(ace.EngineError, match="whole number"):
        lab.read_foreign(tmp_path / "v.gguf", "two")
    with pytest.raises(ace.EngineError, match="leave out"):
        lab.read_foreign(tmp_path / "v.gguf", "2")


def test_figures_are_valid_and_escape_prompts() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 2)).astype(np.float32)
    hostile = ["<img src=x onerror=alert(1)> %{x} " + "word " * 100] * 3
    figures = [
        plots.by_layer(np.array([0.5, np.nan, 0.9]), np.array([np.inf, np.nan, 2.0]), 2, "k"),
        plots.by_layer(np.full(3, np.nan), np.full(3, np.nan), 2, "k"),
        plots.cosines(np.eye(3), 0, "k"),
        plots.classes(rng.normal(size=4), np.empty(0), 0.4, 1, "k"),
        plots.classes(np.empty(0), np.empty(0), 9.0, 1, "k"),
        plots.plane(points, points, hostile, hostile, float("nan"), 1, "k"),
    ]
    for figure in figures:
        wire = json.loads(json.dumps(figure, allow_nan=False))
        assert wire["layout"]["meta"]["summary"]
        go.Figure(painted(wire))
    (text, *_) = figures[-1]["data"][0]["text"]
    assert "<img" not in text and len(text.replace("<br>", " ").replace("&lt;", "<").replace("&gt;", ">")) <= 121


def test_what_a_file_says_of_itself_is_escaped() -> None:
    own = tiny_directions("llama")
    hostile = replace(own, metadata={"harmful_count": "<b>9</b>", "harmless_count": "²"})
    fit = lab.LabFit(hostile, "your file <script>${x}{{y}}")
    page = show.shown(fit, lab.look_at(hostile)) + show.in_use((hostile, fit.name), None) + show.note("<i>", bad=True)
    assert "<script" not in page and "${" not in page and "{{" not in page and "<i>" not in page and "<b>9" not in page


def test_own_directions_are_dropped_with_their_model(host: ModelHost) -> None:
    own, session, state = tiny_directions("llama"), Session(), host.state
    session.use(own, "your fit", state.info)
    session.bench.keep(lab.LabFit(own), lab.look_at(own), state.info)
    assert session.directions(state) is own and session.bench.current(state)
    host.adopt(tiny_model("llama"), own)
    deadline = time.monotonic() + 30
    while host.state is state and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.own(host.state) is None and not session.bench.current(host.state)
    assert session.directions(host.state) is host.state.directions and session.bench.fit is None
    assert Session().directions(HostState()) is None


def test_a_closed_page_leaves_no_files() -> None:
    bench = Bench()
    assert bench.begin() and not bench.begin()
    folder = bench.folder()
    (folder / "vectors").write_text("x")
    bench.close()
    assert not folder.exists() and bench.stopped.is_set()
    bench.release()
    with pytest.raises(ace.EngineError, match="closed"):
        bench.folder()
