"""The README keeps its word: its example runs, its tree is the project's, its front matter is valid."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.embedded
def test_example_runs_and_its_claim_holds() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks and "assert " in blocks[0]
    for code in blocks:
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.embedded
def test_example_with_a_false_claim_fails() -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    false = code.replace("ace.ACE(0.0)", "ace.ACE(0.5)")
    assert false != code
    result = subprocess.run([sys.executable, "-c", false], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "AssertionError" in result.stderr


def test_tree_names_what_is_there() -> None:
    tree = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert tree
    named = {line.split()[0].rstrip("/") for line in tree[1].splitlines() if line.strip()}
    modules = {path.name for path in (ROOT / "ace_core").glob("*.py") if not path.name.startswith("__")}
    assert modules <= named, f"README's tree misses {sorted(modules - named)}"
    files = {path.name for path in ROOT.rglob("*") if ".git" not in path.parts}
    assert named <= files, f"README's tree names {sorted(named - files)}"


def test_front_matter_is_what_spaces_expects() -> None:
    import yaml

    head = README.split("---\n")[1]
    fields = yaml.safe_load(head)
    assert fields["sdk"] == "gradio" and (ROOT / fields["app_file"]).is_file()
    for name in ("sdk_version", "python_version"):
        assert isinstance(fields[name], str) and f'{name}: "' in head
    assert len(fields["title"]) <= 60


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_and_pictures_exist(link: str) -> None:
    assert (ROOT / link).exists()
