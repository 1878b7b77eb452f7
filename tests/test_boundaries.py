"""Who may import what, read off the source.

The page never reaches into the model, the mathematics needs only torch, and only the page knows gradio.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ace_core"
STANDARD = sys.stdlib_module_names


@dataclass(frozen=True)
class Rule:
    """What the modules under one name may import.

    Attributes:
        only: top-level packages allowed besides the standard library; None for any.
        never: top-level packages refused.
        own: modules of `ace_core` allowed, with everything below them; None leaves them to `only`.
    """

    only: frozenset[str] | None = None
    never: frozenset[str] = frozenset()
    own: frozenset[str] | None = None


HEAVY = frozenset({"torch", "transformers", "accelerate", "peft", "safetensors", "gguf"})
RULES: dict[str, Rule] = {
    "app": Rule(only=frozenset({PACKAGE})),
    f"{PACKAGE}.geometry": Rule(only=frozenset({"torch"}), own=frozenset()),
    f"{PACKAGE}.plots": Rule(never=HEAVY | {"gradio"}),
    f"{PACKAGE}.ui": Rule(
        never=HEAVY,
        own=frozenset(
            {
                "directions",
                "errors",
                "gallery",
                "host",
                "journal",
                "lab",
                "methods",
                "plots",
                "prompts",
                "runs",
                "tasks",
                "ui",
            }
        ),
    ),
    PACKAGE: Rule(never=frozenset({"gradio"})),
}
"""By module name; the longest name that fits applies. `ace_core.ui` is the one place for gradio."""


def module_name(path: str) -> str:
    """`ace_core/ui/page.py` as `ace_core.ui.page`; a package is named by its folder."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything `source` imports, at any depth, relative imports made absolute.

    `from a import b` yields `a.b`, which may name a module or something in one. Imports for type checkers
    only count as well: a name needed for an annotation is a dependency of the design. A name computed at run
    time yields `?`.
    """
    package = module_name(path).split(".")
    if Path(path).name != "__init__.py":
        package = package[:-1]

    def absolute(level: int, name: str) -> str:
        base = package[: len(package) - level + 1] if level else []
        return ".".join([*base, *filter(None, [name])])

    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.level, node.module or "")
            for alias in node.names:
                yield node.lineno, ".".join(filter(None, [base, alias.name]))
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function not in {"import_module", "__import__"}:
                continue
            match node.args[0]:
                case ast.Constant(value=str(name)):
                    bare = name.lstrip(".")
                    yield node.lineno, absolute(len(name) - len(bare), bare)
                case _:
                    yield node.lineno, "?"


def rule_for(module: str) -> Rule | None:
    names = [name for name in RULES if module == name or module.startswith(name + ".")]
    return RULES[max(names, key=len)] if names else None


def allowed(rule: Rule, name: str) -> bool:
    top, _, rest = name.partition(".")
    if name == "?":
        # a computed name could be anything
        return False
    if top in STANDARD:
        return True
    if top == PACKAGE and rule.own is not None:
        return rest.split(".")[0] in rule.own
    return top not in rule.never and (rule.only is None or top in rule.only)


def violations(files: dict[str, str]) -> list[str]:
    """Forbidden imports in `files` (path from the repository root → source), as `path:line imports name`."""
    found = []
    for path, source in sorted(files.items()):
        rule = rule_for(module_name(path))
        if rule is not None:
            found += [
                f"{path}:{line} imports {name}" for line, name in imports(path, source) if not allowed(rule, name)
            ]
    return found


def project_files() -> dict[str, str]:
    paths = [ROOT / "app.py", *(ROOT / PACKAGE).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths if path.exists()}


def test_the_project_keeps_its_boundaries() -> None:
    files = project_files()
    assert f"{PACKAGE}/geometry.py" in files
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ace_core/geometry.py", "import transformers"),
        ("ace_core/geometry.py", "import numpy as np"),
        ("ace_core/geometry.py", "from ace_core.methods import Method"),
        ("ace_core/geometry.py", "from .methods import Method"),
        ("ace_core/geometry.py", "from . import methods"),
        ("ace_core/geometry.py", "def f():\n    import plotly"),
        ("ace_core/plots.py", "import torch"),
        ("ace_core/plots.py", "import torch.nn.functional as F"),
        ("ace_core/plots.py", "from gradio import HTML"),
        ("ace_core/plots.py", "if True:\n    from transformers import AutoConfig"),
        ("ace_core/plots/lines.py", "import torch"),
        ("ace_core/host.py", "from gradio import x"),
        ("ace_core/host.py", "import gradio.themes as themes"),
        ("ace_core/host.py", "def f():\n    from gradio import x"),
        ("ace_core/host.py", 'import importlib\nimportlib.import_module("gradio")'),
        ("ace_core/host.py", 'from importlib import import_module\nimport_module("gradio.themes")'),
        ("ace_core/host.py", '__import__("gradio")'),
        ("ace_core/host.py", 'import importlib\nimportlib.import_module("gra" + "dio")'),
        ("ace_core/host.py", "try:\n    import os, gradio\nexcept ImportError:\n    pass"),
        ("ace_core/__init__.py", "import gradio"),
        ("ace_core/uix.py", "import gradio"),
        ("ace_core/ui/page.py", "import torch"),
        ("ace_core/ui/page.py", "async def f():\n    import transformers"),
        ("ace_core/ui/page.py", "class A:\n    from torch import Tensor"),
        ("ace_core/ui/page.py", "from ace_core.generation import stream"),
        ("ace_core/ui/page.py", "from ace_core import stream"),
        ("ace_core/ui/page.py", "import ace_core"),
        ("ace_core/ui/page.py", "from ..models import load_model"),
        ("ace_core/ui/page.py", "from .. import models"),
        ("ace_core/ui/__init__.py", "from ..models import load_model"),
        ("ace_core/ui/page.py", 'import importlib\nimportlib.import_module("..models", __package__)'),
        ("ace_core/ui/page.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("app.py", "import gradio as gr"),
        ("app.py", "from torch import nn"),
    ],
)
def test_a_planted_import_is_caught(path: str, source: str) -> None:
    (found,) = violations({path: source})
    assert found.startswith(f"{path}:")


def test_a_violation_names_file_line_and_import() -> None:
    files = {"ace_core/host.py": "import os\n\nfrom gradio import HTML", "ace_core/plots.py": "import torch"}
    assert violations(files) == [
        "ace_core/host.py:3 imports gradio.HTML",
        "ace_core/plots.py:1 imports torch",
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "ace_core/geometry.py",
            "from __future__ import annotations\nimport math\nimport torch\nfrom torch import Tensor",
        ),
        ("ace_core/plots.py", "import numpy as np\nimport plotly.graph_objects as go\nfrom .runs import Run"),
        (
            "ace_core/host.py",
            "import threading\nimport torch\nfrom .errors import EngineError\nx = 'import gradio'",
        ),
        (
            "ace_core/ui/page.py",
            "import gradio as gr\nfrom ..host import ModelHost\nfrom . import parts\nfrom .parts import x",
        ),
        (
            "ace_core/ui/__init__.py",
            "from .page import build\nfrom ..runs import Run\nfrom ace_core.plots import x",
        ),
        ("ace_core/ui/page.py", "def f(import_module):\n    return import_module()"),
        ("app.py", "import argparse\nimport os\nfrom ace_core.ui import build_page"),
        ("tests/test_page.py", "import gradio, torch"),
    ],
)
def test_a_permitted_import_passes(path: str, source: str) -> None:
    assert violations({path: source}) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [("app.py", "app"), ("ace_core/__init__.py", "ace_core"), ("ace_core/ui/page.py", "ace_core.ui.page")],
)
def test_module_names(path: str, name: str) -> None:
    assert module_name(path) == name
