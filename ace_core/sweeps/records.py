"""A sweep on disk: finished cells one a line, what they were made from, and tables."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.models import ChatModel
from ace_core.prompts import Prompt, prompts_digest
from ace_core.sweeps.plan import SweepPlan

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two sweeps out of one folder
    fcntl = None

__all__ = ["Record", "SweepFolder", "differences", "manifest_of", "read_records", "vectors_digest", "write_whole"]

Record = dict[str, Any]

_FREE = ("command", "refusal_tokens", "processes")
"""Entries of a manifest that may differ between a sweep and what resumes it."""

_VERSIONS = ("ace-explorer", "torch", "transformers", "numpy")


def vectors_digest(directions: RefusalDirections) -> str:
    """SHA-256 of the class means and the directions."""
    digest = hashlib.sha256()
    for tensor in (directions.mean_harmless, directions.mean_harmful, directions.variant_unit):
        digest.update(b"-" if tensor is None else tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def manifest_of(
    model: ChatModel, directions: RefusalDirections, plan: SweepPlan, judge: str = "", command: str = ""
) -> dict[str, Any]:
    """Everything that results depend on, and the command. No date: equal manifests are equal files."""
    return {
        "model": model.model_id,
        "revision": model.revision,
        "precision": model.precision,
        "device": model.device.type,
        "template_sha256": model.template_digest,
        "vectors_sha256": vectors_digest(directions),
        "prompts_sha256": prompts_digest(Prompt(prompt.text) for prompt in plan.prompts),
        "seed": plan.seed,
        "judge": judge,
        "versions": {name: found for name in _VERSIONS if (found := _version(name))},
        "plan": json.loads(json.dumps(plan.to_json())),
        "command": command,
    }


def _version(name: str) -> str:
    with suppress(Exception):
        return version(name)
    return ""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the entries in which two manifests differ, plan fields by their own names."""

    def flat(manifest: Mapping[str, Any]) -> dict[str, Any]:
        out = {key: value for key, value in manifest.items() if key not in (*_FREE, "plan")}
        return {**out, **{f"plan {key}": value for key, value in manifest.get("plan", {}).items()}}

    one, other = flat(before), flat(now)
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))


def read_records(path: Path) -> list[Record]:
    """Finished cells of a results file in the order in which they finished, each once.

    A last line that a killed process left unfinished is passed over.

    Raises:
        EngineError: if another line is damaged, or the file can't be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EngineError(f"{path} could not be read ({error.strerror or error}): check the folder.") from None
    whole = data[: data.rfind(b"\n") + 1]
    found: dict[str, Record] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            found.setdefault(record["cell"], record)
        except (ValueError, KeyError, TypeError):
            raise EngineError(f"Line {number} of {path} is damaged: remove it, and resume the sweep.") from None
    return list(found.values())


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, through to the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise EngineError(f"{path} could not be written ({error.strerror or error}): choose another folder.") from None
    finally:
        temporary.unlink(missing_ok=True)


class SweepFolder:
    """The files of one sweep.

    Args:
        path: folder; made when needed.
        part: number of this process and of all that share the sweep; each writes a results file of its own.
    """

    def __init__(self, path: Path | str, part: tuple[int, int] = (0, 1)) -> None:
        self.path, self.part = Path(path), part
        name = "results.jsonl" if part[1] == 1 else f"results.part{part[0]}.jsonl"
        self.results, self.manifest_file = self.path / name, self.path / "manifest.json"
        self._file: IO[bytes] | None = None

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None if there is none.

        Raises:
            EngineError: if it is damaged.
        """
        try:
            data = json.loads(self.manifest_file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            data = None
        if not isinstance(data, dict):
            raise EngineError(f"{self.manifest_file} is damaged: start the sweep in another folder.")
        return data

    def records(self) -> list[Record]:
        """Finished cells of all processes, each once."""
        files = sorted(self.path.glob("results*.jsonl"))
        found: dict[str, Record] = {}
        for file in files:
            for record in read_records(file):
                found.setdefault(record["cell"], record)
        return list(found.values())

    def check(self, manifest: Mapping[str, Any], resume: bool) -> dict[str, Any] | None:
        """See whether a sweep may be run here; returns the manifest that is there, if any.

        Raises:
            EngineError: if there is a sweep and it is not to be resumed, or not the same one.
        """
        before = self.manifest()
        if before is None:
            if any(self.path.glob("results*.jsonl")):
                raise EngineError(f"{self.path} holds results without a manifest: choose another folder.")
            return None
        if changed := differences(before, manifest):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise EngineError(
                f"{self.path} holds another sweep, which differs in {', '.join(changed[:3])}{more}: choose another "
                "folder, or repeat its settings."
            )
        mine = self.results.exists() if self.part[1] > 1 else True
        if not resume and mine:
            raise EngineError(f"{self.path} already holds this sweep: resume it, or choose another folder.")
        return before

    @contextmanager
    def open(self, manifest: Mapping[str, Any]) -> Iterator[SweepFolder]:
        """Write the manifest, and keep results open for :meth:`append`; a torn last line is cut off first.

        Raises:
            EngineError: if the folder can't be written, or another process is writing it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._file = self.results.open("ab")
        except OSError as error:
            raise EngineError(f"{self.path} can't be written ({error.strerror}): choose another folder.") from None
        try:
            if fcntl is not None:
                try:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise EngineError(f"Another sweep is writing to {self.path}: wait, or choose another.") from None
            data = self.results.read_bytes()
            self._file.truncate(data.rfind(b"\n") + 1)
            write_whole(self.manifest_file, json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
            yield self
        finally:
            self._file.close()
            self._file = None

    def append(self, records: Sequence[Record]) -> None:
        """Add finished cells, on the disk when this returns.

        Raises:
            EngineError: if the disk is full or gone.
        """
        assert self._file is not None
        text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise EngineError(
                f"{self.results.name} can't be written ({error.strerror}): free some space, and resume."
            ) from None

    def write_csv(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """A table; columns are the rows' keys."""
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({key: _for_spreadsheets(value) for key, value in row.items()} for row in rows)
        write_whole(self.path / name, out.getvalue())
        return self.path / name


def _for_spreadsheets(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
