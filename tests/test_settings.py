"""Environment variables: what each sets, which values are refused, and that the README lists them all."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ace_core.errors import EngineError
from ace_core.host import Limits
from ace_core.settings import Settings, settings_table

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- settings -->", "<!-- /settings -->"


def test_without_variables_everything_is_open() -> None:
    made = Settings.read({})
    assert made.limits == Limits()
    assert made.policy.runs and made.policy.work and made.policy.files and not made.policy.notice
    assert made.model == "embedded" and made.auth == () and made.root_path is None
    assert Settings.read({"ACE_ROWS": "", "ACE_AUTH": "  "}) == made, "empty is not set"


def test_every_variable_sets_its_field() -> None:
    made = Settings.read(
        {
            "ACE_MODEL": "owner/name",
            "ACE_MODELS": "owner/name, embedded,",
            "ACE_READ_ONLY": "yes",
            "ACE_CLASSROOM": "Live",
            "ACE_MAX_TOKENS": "64",
            "ACE_VISITOR_RUNS": "3",
            "ACE_VISITOR_WAITING": "5",
            "ACE_ROWS": "16",
            "ACE_WAITING": "9",
            "ACE_WAIT_SECONDS": "30",
            "ACE_AUTH": "ada:love:lace, bob: x",
            "ACE_ROOT_PATH": "/explorer/",
            "ACE_EMBED": "https://school.example, http://*.lab.example:8080",
        }
    )
    assert made == Settings(
        "owner/name", ("owner/name", "embedded"), "live", True, 64, 3, 5, 16, 9, 30,
        (("ada", "love:lace"), ("bob", " x")), "/explorer", ("https://school.example", "http://*.lab.example:8080"),
    )  # fmt: skip
    limits = made.limits
    assert (limits.tokens, limits.visitor_running, limits.visitor_waiting) == (64, 3, 5)
    assert (limits.rows, limits.waiting, limits.wait_seconds) == (16, 9, 30.0)
    assert "love" not in repr(made), "a password must not be printed"
    assert Settings.read({"ACE_EMBED": "none"}).embedders == ()


def test_flags_come_before_variables() -> None:
    made = Settings.read({"ACE_MODEL": "a/b", "ACE_CLASSROOM": "nonsense"}, model="embedded", classroom="recorded")
    assert made.model == "embedded" and made.classroom == "recorded"
    assert Settings.read({"ACE_MODEL": "a/b"}, model=None).model == "a/b"


def test_classrooms() -> None:
    recorded = Settings.read({"ACE_CLASSROOM": "recorded"}).policy
    assert not (recorded.runs or recorded.work or recorded.files) and recorded.notice
    live = Settings.read({"ACE_CLASSROOM": "live", "ACE_MODEL": "a/b", "ACE_VISITOR_RUNS": "2"})
    assert live.policy.runs and not live.policy.work and not live.policy.files
    assert live.policy.models == ("a/b",), "the model is locked"
    assert live.limits.tokens < Limits().tokens and live.limits.visitor_waiting == 1
    assert live.limits.visitor_running == 2, "a variable that is set counts"
    read_only = Settings.read({"ACE_READ_ONLY": "1"}).policy
    assert read_only.runs and not read_only.work and not read_only.files


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACE_READ_ONLY", "maybe"),
        ("ACE_CLASSROOM", "on"),
        ("ACE_ROWS", "0"),
        ("ACE_ROWS", "-5"),
        ("ACE_ROWS", "1e3"),
        ("ACE_ROWS", "९"),
        ("ACE_MAX_TOKENS", "1000000"),
        ("ACE_MAX_TOKENS", "513"),
        ("ACE_AUTH", "ada"),
        ("ACE_AUTH", "ada:secret,:x"),
        ("ACE_AUTH", ","),
        ("ACE_ROOT_PATH", "explorer"),
        ("ACE_ROOT_PATH", "/a/../<b>"),
        ("ACE_EMBED", "school.example"),
        ("ACE_EMBED", "https://a.example; script-src *"),
    ],
)
def test_a_bad_value_is_one_sentence(variable: str, value: str) -> None:
    with pytest.raises(EngineError) as refused:
        Settings.read({variable: value})
    said = str(refused.value)
    assert variable in said and said.endswith(".") and "\n" not in said and "secret" not in said


def test_a_model_outside_the_list_is_refused() -> None:
    with pytest.raises(EngineError, match="ACE_MODELS"):
        Settings.read({"ACE_MODELS": "a/b,c/d"})


@pytest.mark.parametrize(("variable", "value"), [("ACE_ROWS", "many"), ("ACE_MODELS", "a/b")])
def test_the_program_ends_with_2_and_one_sentence(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    ended = subprocess.run([sys.executable, "app.py"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    said = ended.stderr.strip()
    assert variable in said and len(said.splitlines()) == 1 and not ended.stdout


def test_readme_lists_all_variables() -> None:
    names = [one.metadata["name"] for one in fields(Settings)]
    assert len(set(names)) == len(names)
    table = settings_table()
    assert all(f"| `{name}` |" in table for name in names)
    readme = (ROOT / "README.md").read_text("utf-8")
    found = re.search(f"{START}\n(.*?)\n{END}", readme, re.DOTALL)
    assert found and found[1].strip() == table, f"README needs, between {START} and {END}:\n{table}"
