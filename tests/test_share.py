"""Links, programs and commands: what they carry, what they refuse, and that they give the run they stand for."""

from __future__ import annotations

import ast
import json
import logging
import shlex
import string
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ace_core as ace
from ace_core.cli import main
from ace_core.gallery import record
from ace_core.host import HostState, ModelHost
from ace_core.methods import METHODS, REFERENCES, parse_method
from ace_core.prompts import MAX_PROMPT_CHARACTERS
from ace_core.runs import Run, RunSettings
from ace_core.ui import controls
from ace_core.ui.controls import FIELDS, TITLES, Asked, ask, problems, values_of
from ace_core.ui.handlers import Handlers
from ace_core.ui.share.links import PARAMETERS, as_command, as_python, query, read_link
from ace_core.ui.share.panel import Sharing
from families import save_tiny

BLOCKS = 30
SECRET = "my secret prompt & more"
FIRST = dict(zip(FIELDS, values_of("", RunSettings(17), ["baseline"]), strict=True))
HARD = (
    "Say 'hi'",
    '"double" $HOME `ls` \\ !',
    "-5 or --help?",
    "two\nlines",
    "umlaut ü, 你好, 🧭",
    "{braces} %s; rm -rf ~ && true",
    "tab\tand 'both' \"quotes\"",
)


def parameters(text: str) -> dict[str, str]:
    """A query string as a browser's server sees it."""
    return {name: values[-1] for name, values in parse_qs(text.removeprefix("?"), strict_parsing=True).items()}


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    layer = draw(st.integers(0, BLOCKS - 1))
    scope = draw(st.sampled_from(list(controls.SCOPE_NAMES)))
    coefficient = st.floats(*controls.COEFFICIENT_RANGE).map(lambda value: round(value, 4) + 0.0)
    settings = RunSettings(
        layer=layer,
        last=draw(st.integers(layer, BLOCKS - 1)) if scope == "window" else None,
        scope=scope,
        token_scope=draw(st.sampled_from(list(controls.TOKEN_SCOPE_NAMES))),
        coefficient=draw(coefficient),
        addition=draw(coefficient),
        reference=draw(st.sampled_from(list(REFERENCES))),
        temperature=round(draw(st.floats(0, 2)), 3),
        top_p=round(draw(st.floats(0.05, 1)), 3),
        top_k=draw(st.integers(0, 200)),
        seed=draw(st.integers(0, 2**31 - 1)),
        max_new_tokens=draw(st.integers(8, 512)),
    )
    names = draw(st.lists(st.sampled_from(list(METHODS)), min_size=1, unique=True))
    alphas = {"ace": settings.coefficient, "addition": settings.addition}
    methods = tuple(parse_method(name, alphas.get(name), settings.reference) for name in METHODS if name in names)
    prompt = draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
    return Asked(prompt, settings, methods)


@given(requests(), st.booleans())
def test_a_link_brings_back_exactly_the_settings(asked: Asked, with_prompt: bool) -> None:
    found = read_link(parameters(query(asked, with_prompt)), BLOCKS)
    assert found.notes == () and ("prompt" in found.values) is with_prompt
    values = {**FIRST, "prompt": asked.prompt, **found.values}
    assert problems(values, BLOCKS) == {} and ask(values) == asked


@given(requests())
def test_the_prompt_is_in_a_link_only_when_asked_for(asked: Asked) -> None:
    asked = replace(asked, prompt=SECRET)
    assert "secret" not in query(asked) and "secret" in query(asked, with_prompt=True)


@given(st.dictionaries(st.sampled_from(list(PARAMETERS.values())), st.text(string.printable, max_size=30)))
def test_whatever_a_link_says_the_controls_stay_usable(found: dict[str, str]) -> None:
    link = read_link(found, BLOCKS)
    assert problems({**FIRST, "prompt": "Hello", **link.values}, BLOCKS) == {}
    # nothing is dropped in silence, but for an empty prompt
    asked_for = {
        name for name, short in PARAMETERS.items() if short in found and (name != "prompt" or found["prompt"].strip())
    }
    assert asked_for - {"last"} <= set(link.values) | {
        name for name in TITLES if any(note.startswith(TITLES[name]) for note in link.notes)
    } | {"scope"}


@pytest.mark.parametrize(
    ("short", "text"),
    [
        ("layer", "seventeen"),
        ("layer", ""),
        ("layer", "nan"),
        ("layer", "1e999"),
        ("layer", "３"),
        ("layer", "17.5"),
        ("layer", "17; drop"),
        ("ace", "inf"),
        ("ace", "0x10"),
        ("ace", "1_0"),
        ("blocks", "One"),
        ("blocks", "<script>"),
        ("from", "nowhere"),
        ("tokens", "some"),
        ("arms", ""),
        ("arms", "magic"),
        ("length", "many"),
        ("seed", "12.5"),
        ("top_k", "None"),
        ("prompt", "x" * (MAX_PROMPT_CHARACTERS + 1)),
    ],
)
def test_a_bad_value_is_ignored_with_a_note(short: str, text: str) -> None:
    link = read_link({short: text, "top_p": "0.5"}, BLOCKS)
    assert link.values == {"top_p": 0.5}
    (note,) = link.notes
    assert "ignored" in note and "<" not in note and (not text or text not in note or len(text) < 3)


@pytest.mark.parametrize(
    ("short", "text", "name", "value"),
    [
        ("layer", "99", "layer", 29),
        ("layer", "-1", "layer", 0),
        ("ace", "3", "coefficient", 2.5),
        ("add", "-9", "addition", -2.0),
        ("length", "100000", "max_new_tokens", 512),
        ("temperature", "5", "temperature", 2.0),
        ("top_p", "0", "top_p", 0.05),
        ("seed", "9999999999", "seed", 2**31 - 1),
    ],
)
def test_a_value_out_of_range_becomes_the_nearest_there_is(short: str, text: str, name: str, value: float) -> None:
    link = read_link({short: text}, BLOCKS)
    assert link.values == {name: value} and type(link.values[name]) is type(value)
    assert len(link.notes) == 1 and "nearest" in link.notes[0]


def test_what_is_not_ours_is_left_alone_and_known_methods_are_kept() -> None:
    assert read_link({"__theme": "dark", "utm": "x"}, BLOCKS) == read_link({}, BLOCKS)
    link = read_link({"arms": "ace,magic,baseline,ace"}, BLOCKS)
    assert link.values == {"arms": ["baseline", "ace"]} and len(link.notes) == 1


@pytest.mark.parametrize("found", [{"blocks": "window"}, {"blocks": "window", "layer": "9", "last": "8"}])
def test_a_window_that_ends_before_it_starts_is_no_window(found: dict[str, str]) -> None:
    link = read_link(found, BLOCKS)
    assert "scope" not in link.values and "window" in link.notes[-1]


# A link that is opened


def opened(handlers: Handlers, **query_params: str) -> dict[str, Any]:
    note, *values = Sharing(handlers).open(SimpleNamespace(session_hash="a", query_params=query_params))
    return {"note": note, **dict(zip(FIELDS, values, strict=True))}


def test_an_opened_link_sets_its_fields_and_no_other() -> None:
    handlers = Handlers(ModelHost(), None, BLOCKS)
    untouched = opened(handlers, __theme="dark")
    assert all(value == gr.skip() for value in untouched.values())
    found = opened(handlers, layer="9", arms="ace,baseline", seed="x")
    assert (found["layer"], found["arms"]) == (9, ["baseline", "ace"]) and handlers.sessions.get("a").block == 9
    assert all(found[name] == gr.skip() for name in FIELDS if name not in ("layer", "arms"))
    assert found["note"].visible and "2 settings" in found["note"].value and "seed: ignored" in found["note"].value


def test_a_layer_beyond_the_recorded_model_waits_for_the_model(tiny: dict[str, Any]) -> None:
    host = ModelHost()
    handlers = Handlers(host, None, 3)
    found = opened(handlers, layer="3")
    assert found["layer"] == gr.skip() and "once the model is ready" in found["note"].value
    host.adopt(tiny["model"], tiny["directions"])
    assert host.wait_ready(30).status == "ready"
    layer = handlers.poll(SimpleNamespace(session_hash="a"), 1)[2]
    assert (layer.value, layer.maximum) == (3, 3)
    # a visitor's own choice ends that
    handlers.show(SimpleNamespace(session_hash="a"), None, **{**FIRST, "layer": 2})
    assert handlers.poll(SimpleNamespace(session_hash="a"), 2)[2].value == 2
    host.close()


def test_the_panel_needs_usable_settings_and_a_link_no_prompt() -> None:
    sharing = Sharing(Handlers(ModelHost(), None, BLOCKS))
    request: Any = SimpleNamespace(session_hash="a")
    assert "layer=17" in sharing.link(False, **FIRST)
    secret = {**FIRST, "prompt": SECRET}
    assert "secret" not in sharing.link(False, **secret) and "secret" in sharing.link(True, **secret)
    assert "secret" not in sharing.link("yes", **secret)
    for bad in ({**FIRST}, {**secret, "layer": 99}):
        with pytest.raises(gr.Error):
            sharing.python(request, **bad)
        with pytest.raises(gr.Error):
            sharing.command(request, **bad)
    with pytest.raises(gr.Error, match="Run first"):
        sharing.file(request)


# The same run, as a program and as a command


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model folder and its vectors, where the program and the command look for them."""
    folder = tmp_path_factory.mktemp("share")
    save_tiny(folder / "tiny", "qwen2")
    model = ace.load_model(str(folder / "tiny"), precision="float32")
    classes = ["Bad one", "Bad two", "Worse"], ["Good one", "Good two", "Better"]
    directions = ace.fit_directions(model, *classes, reference=["Neither", "Nor"])
    ace.save_directions(directions, folder / "vectors.safetensors")
    return {"folder": folder, "model": model, "directions": directions}


SETTINGS = (
    RunSettings(2, coefficient=0.35, addition=-1.5, max_new_tokens=12),
    RunSettings(1, last=3, scope="window", token_scope="generated", coefficient=1.0, max_new_tokens=9),
    RunSettings(2, temperature=0.9, top_p=0.8, top_k=40, seed=11, token_scope="last", max_new_tokens=10),
    RunSettings(3, scope="shared", coefficient=-0.5, max_new_tokens=8),
    RunSettings(2, coefficient=0.5, reference="origin", max_new_tokens=8),
    RunSettings(2, coefficient=0.5, reference="third", max_new_tokens=8),
)


def asked_of(prompt: str, settings: RunSettings) -> Asked:
    alphas = {"ace": settings.coefficient, "addition": settings.addition}
    return Asked(prompt, settings, tuple(parse_method(name, alphas.get(name), settings.reference) for name in METHODS))


def printed(run: Run) -> str:
    return "".join(f"== {arm.label}\n{arm.text.strip()}\n\n" for arm in run.arms)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompt", HARD[:2])
def test_the_program_prints_the_run(
    tiny: dict[str, Any], prompt: str, settings: RunSettings, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of(prompt, settings)
    run = record(tiny["model"], tiny["directions"], prompt, asked.methods, settings)
    program = as_python(asked, str(tiny["folder"] / "tiny"), "float32", own=True)
    monkeypatch.chdir(tiny["folder"])
    capsys.readouterr()
    exec(compile(program, "program", "exec"), {})
    assert capsys.readouterr().out == printed(run)
    # the comparison can fail
    other = record(
        tiny["model"], tiny["directions"], prompt, asked.methods, replace(settings, layer=0, last=None, scope="one")
    )
    assert printed(other) != printed(run)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("prompt", HARD[:3])
def test_the_command_prints_the_run(
    tiny: dict[str, Any], prompt: str, settings: RunSettings, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of(prompt, settings)
    run = record(tiny["model"], tiny["directions"], prompt, asked.methods, settings)
    words = shlex.split(as_command(asked, str(tiny["folder"] / "tiny"), "float32", own=True))
    assert words[:3] == ["python", "-m", "ace_core"]
    monkeypatch.chdir(tiny["folder"])
    capsys.readouterr()
    try:
        main(["compare", "--save", "run.json", *words[4:]])
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err
    finally:
        logging.disable(logging.NOTSET)
    saved = Run.from_json(json.loads(Path("run.json").read_text("utf-8")))
    assert saved.settings == run.settings and saved.prompt == prompt
    assert [(arm.label, arm.token_ids) for arm in saved.arms] == [(arm.label, arm.token_ids) for arm in run.arms]


@given(st.sampled_from(HARD) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_prompt_is_only_text(prompt: str) -> None:
    asked = asked_of(prompt, SETTINGS[1])
    words = shlex.split(as_command(asked, "owner/name"))
    assert words[-2:] == ["--", prompt] and words[:4] == [*["python", "-m", "ace_core", "compare"]]
    tree = ast.parse(as_python(asked, "owner/name"))
    (given_prompt,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "prompt"
    ]
    assert given_prompt == prompt


def test_the_program_says_where_directions_come_from() -> None:
    asked = asked_of("Hello", SETTINGS[0])
    assert "ace.load_directions(model)\n" in as_python(asked, "embedded")
    assert "directions_for(model)\n" in as_python(asked, "owner/name")
    assert "vectors.safetensors" in as_python(asked, "owner/name", own=True)
    assert "precision" not in as_python(asked, "embedded") and "--precision" not in as_command(asked, "embedded")


def test_the_panel_names_the_loaded_model(tiny: dict[str, Any]) -> None:
    host = ModelHost()
    handlers = Handlers(host, None, BLOCKS)
    host.adopt(tiny["model"], tiny["directions"])
    state: HostState = host.wait_ready(30)
    assert state.info is not None
    request: Any = SimpleNamespace(session_hash="a")
    values = {**FIRST, "prompt": "Hello", "layer": 2}
    command = shlex.split(Sharing(handlers).command(request, **values))
    assert command[command.index("--model") + 1] == str(tiny["folder"] / "tiny")
    assert command[command.index("--precision") + 1] == "float32" and "--vectors" not in command
    handlers.sessions.get("a").use(tiny["directions"], "mine", state.info)
    assert "vectors.safetensors" in Sharing(handlers).python(request, **values)
    host.close()


@pytest.mark.embedded
@pytest.mark.slow
def test_program_and_command_give_the_default_models_run(capsys: Any) -> None:
    model = ace.load_model("embedded", precision="float32")
    directions = ace.load_directions(model)
    settings = RunSettings(directions.recommended_layer, coefficient=1.0, max_new_tokens=8)
    asked = Asked(HARD[0], settings, (ace.Baseline(), ace.ACE(1.0)))
    expected = printed(record(model, directions, asked.prompt, asked.methods, settings))
    capsys.readouterr()
    exec(compile(as_python(asked, "embedded", "float32"), "program", "exec"), {})
    assert capsys.readouterr().out == expected
    try:
        main(shlex.split(as_command(asked, "embedded", "float32"))[3:])
    except SystemExit as stop:
        assert not stop.code
    finally:
        logging.disable(logging.NOTSET)
    told = capsys.readouterr().out
    assert all(part.split("\n", 1)[1].strip() in told for part in expected.split("== ")[1:])
