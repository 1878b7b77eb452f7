"""The recorded gallery: what ships, what is refused, and how it is recorded and replayed."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import numpy as np
import pytest
from conftest import tiny_directions, tiny_model

import ace_core as ace
from ace_core import gallery
from ace_core.cli import main
from ace_core.gallery import RECIPES, Classes, Recipe, Recording, read_classes, read_gallery, record, write_gallery
from ace_core.host import ModelHost
from ace_core.methods import METHODS
from ace_core.prompts import display_prompts
from ace_core.ui.compare.gallery import Replays, first
from ace_core.ui.compare.gallery import load as load_for_page
from ace_core.ui.controls import FIELDS, problems, values_of
from ace_core.ui.handlers import Handlers
from families import save_tiny

SHORT = (
    Recipe("one", "One", "Look.", "Hello there", ("baseline", "ace:1")),
    Recipe("two", "Two", "Look again.", "Hello there", ("baseline", "addition:0"), early=True, temperature=0.9, seed=3),
)


@pytest.fixture(scope="module")
def shipped() -> tuple[Recording, ...]:
    return read_gallery()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    write_gallery(folder, tiny_model("llama"), held_out(), SHORT)
    return folder


def held_out() -> ace.RefusalDirections:
    """Directions with 7 harmless and 200 harmful held-out prompts."""
    plain = tiny_directions("llama")
    low = plain.mean_harmless[:, :7]
    return replace(plain, heldout_harmless=low, heldout_harmful=plain.mean_harmful.repeat(1, 5)[:, :200] + low.max())


def values(one: Recording) -> dict[str, Any]:
    arms = [arm.method for arm in one.run.arms]
    return dict(zip(FIELDS, values_of(one.run.prompt, one.run.settings, arms), strict=True))


def test_what_ships_is_what_the_recipes_ask_for(shipped: tuple[Recording, ...]) -> None:
    classes = read_classes()
    assert classes is not None and [one.name[3:] for one in shipped] == [recipe.name for recipe in RECIPES]
    for one, recipe in zip(shipped, RECIPES, strict=True):
        settings = recipe.settings(classes.recommended, len(classes.auroc))
        assert (one.run.prompt, one.run.settings) == (recipe.prompt, settings)
        assert [arm.label for arm in one.run.arms] == [method.label for method in recipe.methods()]
        assert (one.title, one.note, one.run.recorded) == (recipe.title, recipe.note, True)
        # the page can show and run it as it is
        assert problems(values(one), len(classes.auroc)) == {}


def test_the_recipes_cover_every_method_and_prompt_kind_with_mild_prompts() -> None:
    mild = {prompt.text: prompt.label for prompt in display_prompts()}
    assert {mild[recipe.prompt] for recipe in RECIPES} == {"harmful", "harmless", "lookalike"}
    assert {method.name for recipe in RECIPES for method in recipe.methods()} == set(METHODS)
    assert any(recipe.early for recipe in RECIPES) and any(recipe.temperature for recipe in RECIPES)
    # the page tells arms apart by their method
    assert all(len({method.name for method in recipe.methods()}) == len(recipe.arms) for recipe in RECIPES)


def test_what_ships_is_small_and_in_this_format(shipped: tuple[Recording, ...]) -> None:
    files = sorted(gallery.GALLERY.glob("*"))
    assert sum(path.stat().st_size for path in files) <= gallery.MAX_BYTES
    assert [path.stem for path in files] == [*(one.name for one in shipped), "classes"]
    for one in shipped:
        again = json.loads(json.dumps(one.to_json()))
        assert again == json.loads((gallery.GALLERY / f"{one.name}.json").read_text("utf-8"))


def test_recorded_coordinates_obey_the_methods(shipped: tuple[Recording, ...]) -> None:
    classes = read_classes()
    assert classes is not None
    checked = set()
    for one in shipped:
        block = one.run.settings.layer
        for arm in one.run.arms:
            before, after = arm.before[block], arm.after[block]
            alpha = arm.coefficient or 0.0
            expected = {
                "baseline": before,
                # position 0 is an outlier of hundreds, where two decimals are all that is kept
                "addition": before + alpha,
                "ablation": np.full_like(after, classes.origin[block]),
                "affine_ablation": np.zeros_like(after),
                "ace": np.full_like(after, alpha),
            }[arm.method]
            np.testing.assert_allclose(after[1:], expected[1:], atol=0.03, err_msg=f"{one.name} {arm.label}")
            if arm.method != "baseline":
                assert not np.allclose(after[1:], before[1:], atol=0.03)
            checked.add(arm.method)
    assert checked == set(METHODS)


@pytest.mark.embedded
@pytest.mark.slow
def test_what_ships_is_what_the_default_model_says(shipped: tuple[Recording, ...]) -> None:
    model = ace.load_model("embedded", precision="float32")
    directions = ace.load_directions(model)
    recipe = RECIPES[2]
    settings = recipe.settings(directions.recommended_layer, directions.blocks)
    run = record(model, directions, recipe.prompt, recipe.methods(), replace(settings, max_new_tokens=8))
    for now, then in zip(run.arms, shipped[2].run.arms, strict=True):
        count = len(run.prompt_tokens)
        np.testing.assert_allclose(now.after[:, 1:count], then.after[:, 1:count], atol=0.05)
        assert now.tokens[:4] == then.tokens[:4]


def test_recording_is_repeatable_and_clears_what_it_replaces(made: Path, tmp_path: Path) -> None:
    (tmp_path / "07-old.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    write_gallery(tmp_path, tiny_model("llama"), held_out(), SHORT)
    texts = {path.name: path.read_text("utf-8") for path in tmp_path.glob("*.json")}
    assert texts == {path.name: path.read_text("utf-8") for path in made.glob("*.json")}
    assert sorted(texts) == ["01-one.json", "02-two.json", "classes.json"] and (tmp_path / "notes.txt").exists()
    one, two = read_gallery(tmp_path)
    directions = tiny_directions("llama")
    assert one.run.settings.layer == directions.recommended_layer and one.run.settings.coefficient == 1.0
    assert two.run.settings.layer == 0 and two.run.settings.addition == 0.0
    np.testing.assert_allclose(one.run.arms[1].after[one.run.settings.layer], 1.0, atol=0.01)


def test_held_out_prompts_survive_the_file(made: Path, tmp_path: Path) -> None:
    directions = held_out()
    classes = Classes.of("tiny", directions)
    assert classes is not None and classes.harmless.shape[1] == 7 and classes.harmful.shape[1] == 60
    again = Classes.from_json(json.loads(json.dumps(classes.to_json())))
    np.testing.assert_allclose(again.harmful, classes.harmful, atol=6e-4)
    np.testing.assert_allclose(again.origin, np.asarray(directions.origin), atol=6e-4)
    assert read_classes(made) is not None
    # without any there is no file, and none is left from before
    (tmp_path / "classes.json").write_text("{}")
    write_gallery(tmp_path, tiny_model("llama"), tiny_directions("llama"), SHORT[:1])
    assert Classes.of("tiny", tiny_directions("llama")) is None and read_classes(tmp_path) is None


def test_too_large_a_gallery_is_not_written(tmp_path: Path) -> None:
    many = [replace(SHORT[0], name=f"n{k}", prompt="Hello there " * 60) for k in range(45)]
    with pytest.raises(ace.EngineError, match="record fewer"):
        write_gallery(tmp_path / "out", tiny_model("llama"), tiny_directions("llama"), many)
    assert not (tmp_path / "out").exists()


def spoil(data: dict[str, Any], how: str) -> None:
    run = data["run"]
    arm = run["arms"][1]
    match how:
        case "format":
            data["format"] = 0
        case "title":
            del data["title"]
        case "note":
            data["note"] = ["a"]
        case "run":
            data["run"] = None
        case "method":
            arm["method"] = "magic"
        case "layer":
            run["settings"]["layer"] = 99
        case "setting":
            run["settings"]["colour"] = "red"
        case "positions":
            arm["after"] = [row[:-3] for row in arm["after"]]
        case "ragged":
            arm["after"][0] = arm["after"][0][:-1]
        case "tokens":
            arm["tokens"] = arm["tokens"][:-1]
        case "arms":
            run["arms"] = []


@pytest.mark.parametrize(
    "how",
    ["format", "title", "note", "run", "method", "layer", "setting", "positions", "ragged", "tokens", "arms"],
)
def test_a_recording_that_drifted_is_refused(made: Path, how: str) -> None:
    good = json.loads((made / "01-one.json").read_text("utf-8"))
    bad = copy.deepcopy(good)
    spoil(bad, how)
    assert bad != good and Recording.from_json("one", good).title == "One"
    with pytest.raises(ace.EngineError, match="record"):
        Recording.from_json("one", bad)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_damaged_file_leaves_the_page_without_a_gallery(tmp_path: Path, text: str) -> None:
    assert load_for_page(tmp_path) == () and read_classes(tmp_path) is None
    (tmp_path / "01-x.json").write_text(text)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ace.EngineError, match="record"):
        read_gallery(tmp_path)
    with pytest.raises(ace.EngineError, match="record"):
        read_classes(tmp_path)
    assert load_for_page(tmp_path) == ()


def test_the_command_records_all_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, vectors, out = tmp_path / "tiny", tmp_path / "v.safetensors", tmp_path / "out"
    save_tiny(model, "qwen2")
    loaded = ace.load_model(str(model), precision="float32")
    ace.save_directions(ace.fit_directions(loaded, ["Bad one", "Bad two"], ["Good one", "Good two"]), vectors)
    try:
        main(["gallery", "--model", str(model), "--vectors", str(vectors), "--out", str(out), "--json"])
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err
    finally:
        logging.disable(logging.NOTSET)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["recording"] * len(RECIPES) + ["done"]
    assert [one.name for one in read_gallery(out)] == [event["name"] for event in events[:-1]]


# Replaying


def test_the_first_tokens_of_a_run_are_the_run_as_it_was(shipped: tuple[Recording, ...]) -> None:
    run = shipped[0].run
    prompt = len(run.prompt_tokens)
    for count in (0, 1, 5):
        for arm, whole in zip(first(run, count).arms, run.arms, strict=True):
            assert arm.tokens == whole.tokens[:count] and arm.text == "".join(arm.tokens) and arm.stop is None
            read = prompt + count - 1 if count else 0
            assert arm.after.shape[1] == arm.before.shape[1] == read
            np.testing.assert_array_equal(arm.after, whole.after[:, :read])
    assert first(run, 10**6).arms == run.arms


def replays(recordings: tuple[Recording, ...]) -> tuple[Handlers, Replays, Any]:
    handlers = Handlers(ModelHost(), None, 30)
    return handlers, Replays(handlers, recordings, pause=0.0), SimpleNamespace(session_hash="a")


async def collect(replay: Replays, request: Any, name: str, stop: int | None = None, session: Any = None) -> list[Any]:
    found = []
    async for update in replay.play(request, name):
        found.append([json.loads(part) for part in update])
        if len(found) == stop:
            session.stop()
    return found


def test_a_replay_sets_the_controls_and_shows_token_after_token(shipped: tuple[Recording, ...]) -> None:
    handlers, replay, request = replays(shipped)
    one = shipped[0]
    begun = replay.begin(request, one.name)
    assert dict(zip(FIELDS, begun, strict=False)) == values(one)
    session = handlers.sessions.get("a")
    assert session.running
    with pytest.raises(gr.Error, match="stop it first"):
        replay.begin(request, one.name)
    updates = asyncio.run(collect(replay, request, one.name))
    longest = max(len(arm.tokens) for arm in one.run.arms)
    assert len(updates) == longest and not session.running and session.run == one.run
    for count, (status, answers, _) in enumerate(updates, 1):
        assert status["kind"] == "recorded" and "recorded" in status["text"]
        for column, arm in zip(answers["columns"], one.run.arms, strict=True):
            assert [token for token, _ in column["tokens"]] == list(arm.tokens[:count])
    told = json.loads(handlers.finish(request, **values(one))[0])
    assert told["kind"] == "recorded" and "not a live run" in told["text"]


def test_a_replay_can_be_stopped(shipped: tuple[Recording, ...]) -> None:
    handlers, replay, request = replays(shipped)
    replay.begin(request, shipped[0].name)
    session = handlers.sessions.get("a")
    updates = asyncio.run(collect(replay, request, shipped[0].name, stop=3, session=session))
    assert len(updates) == 3 and not session.running
    assert [arm.stop for arm in session.run.arms] == ["cancelled"] * 4
    assert json.loads(handlers.finish(request, **values(shipped[0]))[1])["live"] is False


@pytest.mark.parametrize("name", ["", None, 7, ["01-four-methods"], "../../etc/passwd"])
def test_only_names_on_the_list_are_replayed(shipped: tuple[Recording, ...], name: Any) -> None:
    _, replay, request = replays(shipped)
    with pytest.raises(gr.Error, match="from the list"):
        replay.begin(request, name)
