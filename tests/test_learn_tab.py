"""The learn tab, shared links and recorded runs in a real browser, served without any model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Locator, Page, expect

from ace_core import geometry
from ace_core.gallery import RECIPES, read_classes, read_gallery
from ace_core.host import ModelHost
from ace_core.methods import Method, parse_method
from ace_core.ui import build_page, load_recorded
from ace_core.ui.geometry.tab import load_map
from ace_core.ui.learn import pictures as learn_pictures
from ace_core.ui.learn import tab as learn
from ace_core.ui.learn.lessons import LESSONS
from ace_core.ui.learn.pictures import Sources
from ace_core.ui.sessions import Sessions
from browsing import complaints_of, in_browser, opened_browser, served

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
RECIPE = {recipe.name: recipe for recipe in RECIPES}
PATIENCE = 120_000  # milliseconds, for a busy machine
CLIPPED = """stage => [...stage.querySelectorAll('text')].map((text) => [text.textContent, text.getBBox()])
    .filter(([, box]) => box.x < -1 || box.x + box.width > stage.clientWidth + 1).map(([text]) => text)"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The whole page, whose model never comes."""
    host = ModelHost()
    with served(build_page(host, load_recorded())) as url:
        yield url
    host.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser(PATIENCE) as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page. It must not complain, nor talk to anyone but the server."""
    given = dict(getattr(request, "param", {}))
    query = given.pop("query", "")
    options = {"viewport": {"width": 1440, "height": 900}, **given}
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    fresh = context.new_page()
    complaints = complaints_of(fresh)
    strangers: list[str] = []
    fresh.on(
        "request",
        lambda call: None if call.url.startswith((address, "data:", "blob:")) else strangers.append(call.url),
    )
    fresh.goto(address + (query or ("?__theme=dark" if options.get("color_scheme") == "dark" else "")))
    expect(fresh.locator("#recording input")).to_be_visible()
    yield fresh
    context.close()
    assert (complaints, strangers) == ([], [])


def open_lesson(page: Page, number: int) -> Locator:
    page.get_by_role("tab", name="Learn").click()
    page.locator(f".ace-learn-steps button[data-step='{number}']").click()
    lesson = page.locator(f"#lesson-{number}")
    expect(lesson).to_be_visible()
    return lesson


def field(page: Page, name: str) -> str:
    return page.locator(f"#{name} :is(input[type=number], textarea)").first.input_value()


def arms(page: Page) -> set[str]:
    return set(page.locator("#arms label:has(input:checked)").all_inner_texts())


def places(lesson: Locator) -> np.ndarray:
    """Coordinates after the edit as the picture has them, harmless prompts first."""
    marks = lesson.locator(".ace-learn-cloud path")
    return np.array(marks.evaluate_all("all => all.map(({dataset}) => Number(dataset.c))"), np.float64)


def engine(method: Method, origin: float | None = None) -> np.ndarray:
    """The same by the engine, the origin moved to a coordinate if one is given."""
    data = load_map()
    assert data is not None
    low, high = data["mean_harmless"][0], data["mean_harmful"][0]
    shift = 0.0 if origin is None else (data["origin"][0] - low) - origin * (high - low)
    points = torch.tensor([x + shift for x, _ in [*data["harmless"], *data["harmful"]]], dtype=torch.float64)
    remove, add = method.affine(low + shift, high + shift)
    v = points[None, :, None].float()
    edited = geometry.apply_edit(v, torch.ones(1), torch.tensor([remove]).float(), torch.tensor([add]).float())
    return ((edited[0, :, 0].double() - low - shift) / (high - low)).numpy()


# Without a browser


def test_every_lesson_has_sources_one_right_answer_and_a_recording() -> None:
    recorded = {one.name[3:] for one in read_gallery()}
    assert 6 <= len(LESSONS) <= 8
    for lesson in LESSONS:
        assert len([choice for choice in lesson.choices if choice.right]) == 1
        assert all(choice.why.startswith("Right" if choice.right else "Not quite") for choice in lesson.choices)
        assert re.search(r"\[\d{4}\.\d{5}\]\(https://arxiv\.org/abs/\d{4}\.\d{5}\)", lesson.text)
        links = re.findall(r"\[([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", lesson.text)
        assert all(shown == linked for shown, linked in links)
        assert lesson.text.count("$") % 2 == 0 and "$$" in lesson.text
        assert lesson.recipe in recorded and lesson.recipe in RECIPE


def test_lessons_show_different_recordings_and_pictures() -> None:
    assert len({lesson.recipe for lesson in LESSONS}) == len({lesson.picture for lesson in LESSONS}) == len(LESSONS)


def test_pictures_come_from_recorded_numbers() -> None:
    sources = Sources(load_map(), read_classes(), read_gallery())
    for lesson in LESSONS:
        data = learn_pictures.value(lesson.picture, sources)
        assert data is not None
        json.dumps(data, allow_nan=False)
    drift = learn_pictures.value("drift", sources)
    assert drift is not None
    (edited,) = [arm for arm in drift["arms"] if arm["method"] == "ace"]
    assert edited["after"][drift["block"]] == pytest.approx(0.0, abs=0.01)
    assert edited["before"][drift["block"]] != pytest.approx(0.0, abs=0.01)


def test_without_recordings_a_picture_says_how_to_get_them() -> None:
    nothing = Sources(None, None, ())
    for lesson in LESSONS:
        data = learn_pictures.value(lesson.picture, nothing)
        assert (data is None) is (lesson.picture != "interval")
        assert ("gallery" in learn_pictures.markup(lesson.picture, data, "", 1)) is (data is None)
    with gr.Blocks():
        assert len(learn.build(()).experiments) == len(LESSONS)


# With one


@in_browser
def test_a_student_walks_through_all_lessons(page: Page) -> None:
    page.get_by_role("tab", name="Learn").click()
    for number, lesson in enumerate(LESSONS, 1):
        here = page.locator(f"#lesson-{number}")
        expect(here).to_be_visible()
        assert page.locator(".ace-lesson:visible").count() == 1
        expect(here.locator("h2")).to_have_text(f"{number}. {lesson.title}")
        expect(here.locator(".katex").first).to_be_visible()
        assert (
            here.locator(".katex-error").count() == 0 and "$" not in here.locator(".ace-lesson-text").first.inner_text()
        )
        why = here.locator(".ace-question-why")
        for index, choice in enumerate(lesson.choices):
            here.locator(".ace-question label").nth(index).click()
            expect(why).to_have_text(choice.why)
            expect(why).to_have_attribute("data-right", str(choice.right).lower())
        expect(page.locator(f".ace-learn-steps button[data-step='{number}']")).to_have_attribute("data-done", "true")
        expect(here.locator(".ace-learn-stage > *").first).to_be_visible()
        assert here.locator(".ace-learn-stage").evaluate(CLIPPED) == []
        said = here.locator(".ace-learn-said")
        before = said.inner_text()
        assert before
        slider = here.locator(".ace-learn-picture input[type=range]")
        if slider.count():
            slider.focus()
            page.keyboard.press("Home")
            page.keyboard.press("PageUp")
        else:
            here.locator(".ace-learn-picture label").nth(1).click()
        expect(said).not_to_have_text(before)
        if number < len(LESSONS):
            page.get_by_role("button", name="Next →").click()
            expect(page.locator(f"#lesson-{number + 1} h2")).to_be_focused()
    expect(page.get_by_role("button", name="Next →")).to_be_disabled()
    page.get_by_role("button", name="← Back").click()
    expect(page.locator(f"#lesson-{len(LESSONS) - 1}")).to_be_visible()


@in_browser
def test_pictures_move_prompts_as_the_engine_does(page: Page) -> None:
    pictures = {lesson.picture: number for number, lesson in enumerate(LESSONS, 1)}
    cases: list[tuple[str, str | None, float, Method]] = [
        ("addition", None, -0.65, parse_method("addition:-0.65")),
        ("ace", "addition", 0.4, parse_method("addition:0.4")),
        ("ace", "ace", 1.35, parse_method("ace:1.35")),
        ("origin", "ablation", 1.2, parse_method("ablation")),
        ("origin", "affine_ablation", 1.2, parse_method("affine_ablation")),
    ]
    for picture, method, number, expected in cases:
        lesson = open_lesson(page, pictures[picture])
        if method:
            lesson.locator(f"input[value={method}]").check()
        lesson.locator("input[type=range]").fill(str(number))
        wanted = engine(expected, number if picture == "origin" else None)
        np.testing.assert_allclose(places(lesson), wanted, atol=1e-3, err_msg=f"{picture} {method}")
    # the comparison can fail, and moving the origin moves ablation only
    assert not np.allclose(engine(parse_method("ablation"), 1.2), engine(parse_method("ablation"), 0.2), atol=1e-3)
    np.testing.assert_allclose(
        engine(parse_method("affine_ablation"), 1.2), engine(parse_method("affine_ablation"), 0.2), atol=1e-3
    )


@in_browser
@pytest.mark.parametrize("number", range(1, len(LESSONS) + 1))
def test_a_lesson_sets_up_its_experiment(page: Page, number: int) -> None:
    recipe = RECIPE[LESSONS[number - 1].recipe]
    recording = next(one for one in read_gallery() if one.name[3:] == recipe.name)
    open_lesson(page, number)
    page.locator(f"#try-{number}").click()
    expect(page.get_by_role("tab", name="Compare")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#prompt textarea")).to_have_value(recipe.prompt)
    settings = recording.run.settings
    expect(page.locator("#layer input[type=number]")).to_have_value(str(settings.layer))
    assert float(field(page, "coefficient")) == settings.coefficient
    assert float(field(page, "addition")) == settings.addition
    assert len(arms(page)) == len(recipe.arms)
    expect(page.locator("#recording input")).to_have_value(recording.title)
    expect(page.locator("#recording-note")).to_contain_text(recording.note)


@in_browser
@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_lessons_fit_a_phone_in_the_dark(page: Page) -> None:
    for number in range(1, len(LESSONS) + 1):
        lesson = open_lesson(page, number)
        expect(lesson.locator(".ace-learn-said")).not_to_be_empty()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert lesson.locator(".ace-learn-stage").evaluate(CLIPPED) == []
        colour = lesson.locator("h2").evaluate("title => getComputedStyle(title).color")
        assert colour == "rgb(243, 244, 246)"


LINK = "?layer=9&blocks=window&last=12&tokens=generated&ace=0.75&add=1.5&arms=ace,baseline&temperature=0.8&seed=5"
LINK += "&length=24"


@in_browser
@pytest.mark.parametrize("page", [{"query": LINK}], indirect=True)
def test_a_shared_link_brings_its_settings(page: Page) -> None:
    expect(page.locator(".ace-link-note")).to_contain_text("10 settings taken from the link")
    expect(page.locator("#layer input[type=number]")).to_have_value("9")
    expect(page.locator("#last input[type=number]")).to_have_value("12")
    found = {name: float(field(page, name)) for name in ("coefficient", "addition")}
    assert found == {"coefficient": 0.75, "addition": 1.5}
    assert arms(page) == {"● Baseline", "◆ ACE"}
    assert field(page, "prompt") == (load_recorded() or pytest.fail("no record")).prompt
    # and the link made from them is the same link
    page.get_by_role("button", name="Share and reproduce").click()
    page.locator("#share-link").click()
    expect(page.locator("#shared textarea")).not_to_have_value("")
    copied = page.evaluate("navigator.clipboard.readText()")
    expect(page.locator("#shared textarea")).to_have_value(copied)
    asked = {part.split("=")[0]: part.split("=")[1] for part in copied.partition("?")[2].split("&")}
    given = {part.split("=")[0]: part.split("=")[1] for part in LINK[1:].split("&")}
    assert {name: asked[name] for name in given} == {**given, "arms": "baseline,ace"}
    assert "prompt" not in asked


@in_browser
@pytest.mark.parametrize("page", [{"query": "?layer=99&ace=nan&arms=magic&prompt=%3Cimg%20src=x%3E"}], indirect=True)
def test_a_bad_link_is_answered_gently(page: Page) -> None:
    note = page.locator(".ace-link-note")
    expect(note).to_contain_text("2 settings taken")
    for words in ("layer: 99 once the model is ready", "ACE coefficient: ignored", "arms: ignored"):
        expect(note).to_contain_text(words)
    expect(page.locator("#prompt textarea")).to_have_value("<img src=x>")
    assert page.locator("#prompt img").count() == 0 and note.locator("img").count() == 0


@in_browser
def test_the_prompt_is_shared_only_when_ticked_and_a_run_can_be_taken_away(page: Page) -> None:
    page.locator("#prompt textarea").fill("my secret's prompt")
    page.get_by_role("button", name="Share and reproduce").click()
    shared = page.locator("#shared textarea")
    page.locator("#share-link").click()
    expect(shared).to_have_value(re.compile("layer="))
    assert "secret" not in shared.input_value()
    page.locator("#share-prompt input").check()
    page.locator("#share-link").click()
    expect(shared).to_have_value(re.compile("prompt=my\\+secret"))
    page.locator("#share-python").click()
    expect(shared).to_have_value(re.compile("^import ace_core as ace"))
    assert page.evaluate("navigator.clipboard.readText()") == shared.input_value()
    page.locator("#share-command").click()
    expect(shared).to_have_value(re.compile("^python -m ace_core compare"))
    with page.expect_download() as download:
        page.locator("#share-download").click()
    run = json.loads(download.value.path().read_text("utf-8"))
    assert run["recorded"] is True and run["arms"][0]["method"] == "baseline"


@in_browser
@pytest.mark.parametrize(("kind", "start"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
def test_a_plot_is_saved(page: Page, kind: str, start: bytes) -> None:
    plot = page.locator("#projection .ace-plot")
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".main-svg").first).to_be_visible()
    plot.hover()
    with page.expect_download() as download:
        plot.locator(f'[data-title="Save as {kind}"]').click()
    assert download.value.suggested_filename == f"projection.{kind.lower()}"
    assert download.value.path().read_bytes().startswith(start)


@in_browser
def test_a_recording_is_replayed_and_can_be_stopped(page: Page) -> None:
    one = read_gallery()[2]
    page.locator("#recording input").click()
    page.get_by_role("option", name=one.title).click()
    expect(page.locator("#recording-note")).to_contain_text(one.note)
    page.locator("#replay").click()
    status = page.locator("#status .ace-status")
    expect(status).to_contain_text("Replaying")
    expect(status).to_have_attribute("data-kind", "recorded")
    expect(page.locator("#run")).to_be_disabled()
    expect(page.locator("#prompt textarea")).to_have_value(one.run.prompt)
    columns = page.locator("#answers .ace-text")
    expect(columns).to_have_count(len(one.run.arms))
    early = columns.nth(1).inner_text()
    assert one.run.arms[1].text.startswith(early) and len(early) < len(one.run.arms[1].text)
    expect(status).to_contain_text("not a live run")
    for arm, text in zip(one.run.arms, columns.all_text_contents(), strict=True):
        assert text == "".join(arm.tokens)
    expect(page.locator("#run")).to_be_enabled()
    assert float(field(page, "coefficient")) == 1.0
    page.locator("#replay").click()
    expect(status).to_contain_text("Replaying")
    page.locator("#stop").click()
    expect(page.locator("#run")).to_be_enabled()
    longest = max(range(len(one.run.arms)), key=lambda row: len(one.run.arms[row].tokens))
    assert len(columns.nth(longest).inner_text()) < len(one.run.arms[longest].text)


def test_the_page_forgets_what_a_link_asked_for_with_its_session() -> None:
    sessions = Sessions(limit=1)
    sessions.get("a").linked = {"layer": 3}
    sessions.get("b")
    assert sessions.get("a").linked == {}
