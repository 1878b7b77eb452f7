"""The README's front matter against the fields that Hugging Face Spaces reads, and the versions that ZeroGPU has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
HARDWARE = re.compile(r"cpu-(basic|upgrade)|zero-a10g|(t4|a10g|l4|l40s|a100|h100|h200|rtx-pro-6000)[-\w]*")
TEXT = (
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "base_path",
    "license", "short_description", "suggested_hardware", "suggested_storage", "thumbnail", "header",
    "startup_duration_timeout",
)  # fmt: skip
LISTS = ("models", "datasets", "tags", "preload_from_hub", "hf_oauth_scopes")
SWITCHES = ("pinned", "fullWidth", "disable_embedding", "hf_oauth")
OTHERS = ("app_port", "custom_headers", "hf_oauth_expiration_minutes", "hf_oauth_authorized_org")
ZERO_GPU_PYTHON = ("3.10", "3.12")
ZERO_GPU_TORCH = ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
"""Versions that ZeroGPU offers, of which Spaces takes the newest that requirements allow."""


def front_matter() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])


def faults(fields: dict[str, Any]) -> list[str]:
    """What Spaces would not accept, or read as something else than meant."""
    found = [f"unknown field {name}" for name in fields if name not in (*TEXT, *LISTS, *SWITCHES, *OTHERS)]
    found += [f"{name} is no text" for name in TEXT if not isinstance(fields.get(name, ""), str)]
    found += [f"{name} is no yes or no" for name in SWITCHES if not isinstance(fields.get(name, True), bool)]
    for name in LISTS:
        value = fields.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            found.append(f"{name} is no list of texts")
    found += [
        f"{name} is missing" for name in ("title", "emoji", "sdk", "sdk_version", "app_file") if name not in fields
    ]
    found += [f"{name} is no colour" for name in ("colorFrom", "colorTo") if fields.get(name, "red") not in COLOURS]
    for name, pattern in (
        ("sdk", r"gradio"),
        ("sdk_version", r"\d+\.\d+\.\d+"),
        ("python_version", r"3\.\d+(\.\d+)?"),
        ("short_description", r".{1,60}"),
        ("title", r".{1,60}"),
        ("emoji", r"[^\w\s]{1,4}"),
        ("header", r"mini|default"),
        ("startup_duration_timeout", r"\d+(\.\d+)?[smh]"),
        ("base_path", r"/.*"),
        ("suggested_hardware", HARDWARE.pattern),
        ("suggested_storage", "small|medium|large"),
    ):
        if name in fields and not re.fullmatch(pattern, str(fields[name])):
            found.append(f"{name} can't be {fields[name]!r}")
    found += [f"no model id: {name}" for name in fields.get("models", []) if not re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    return found


def requirement(name: str) -> SpecifierSet:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines())
    return next(r.specifier for r in map(Requirement, filter(None, lines)) if r.name == name)


def test_front_matter_is_what_spaces_reads() -> None:
    fields = front_matter()
    assert faults(fields) == []
    assert (ROOT / fields["app_file"]).is_file()


@pytest.mark.parametrize(
    "wrong",
    [
        {"color_from": "red"}, {"colorTo": "teal"}, {"sdk": "docker"}, {"sdk_version": 6.31}, {"python_version": 3.1},
        {"short_description": "x" * 61}, {"pinned": "false"}, {"models": "a/b"}, {"models": ["gpt2 small"]},
        {"startup_duration_timeout": "1 hour"}, {"suggested_hardware": "gpu"}, {"title": None},
    ],
)  # fmt: skip
def test_what_spaces_does_not_read_is_found(wrong: dict[str, Any]) -> None:
    assert faults({**front_matter(), **wrong})


def test_the_space_gets_the_gradio_that_is_asked_for() -> None:
    assert front_matter()["sdk_version"] in requirement("gradio")


def test_zero_gpu_has_versions_that_are_allowed() -> None:
    python = front_matter()["python_version"]
    assert python in ZERO_GPU_PYTHON
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    allowed = re.search(r'requires-python = "(.*)"', project)
    assert allowed and f"{python}.0" in SpecifierSet(allowed[1])
    assert any(version in requirement("torch") for version in ZERO_GPU_TORCH)
