"""A strict reader for prompt files that users bring along."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from ace_core.errors import EngineError
from ace_core.prompts.sets import MAX_PROMPT_CHARACTERS, TEXT_COLUMNS, Prompt

__all__ = ["PromptFileError", "read_prompts"]

_FIELDS = ("id", "category", "form", "split", "label", "language")
_MAX_COLUMNS = 1_000
# More than any file of prompts within the limits holds; counted before anything is built from the text,
# because lists of tiny or nested values take up to a hundred times the memory of their file.
_MAX_LINES, _MAX_VALUES, _MAX_NESTED, _MAX_MARKS = 1_000_000, 1_200_000, 400_000, 200_000
_OTHER_KINDS = (
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it first"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (b"BZh91AY&SY", "a bzip2 archive", "unpack it first"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "export its table as .csv"),
    (b"%PDF-", "a PDF document", "copy its text into a .txt file"),
    (b"PAR1", "a Parquet table", "export it as .csv or .jsonl"),
)


class PromptFileError(EngineError):
    """A prompt file cannot be used; the message is one sentence that says what to do."""


def read_prompts(
    path: Path,
    *,
    column: str | None = None,
    max_bytes: int = 20_000_000,
    max_prompts: int = 100_000,
    max_chars: int = MAX_PROMPT_CHARACTERS,
) -> tuple[Prompt, ...]:
    """Read prompts from a .txt, .csv, .json or .jsonl file, or raise `PromptFileError`.

    Texts are stripped and empty ones skipped. `column` names the field that holds the text of .csv rows
    and JSON objects (letter case does not matter); other known fields fill the `Prompt` of the same row.
    """
    try:
        prompts: list[Prompt] = []
        for where, prompt in _rows(path, column, max_bytes, max_prompts):
            if not prompt.text:
                continue
            if len(prompts) == max_prompts:
                raise _too_many(max_prompts)
            _check_text(where, prompt.text, max_chars)
            prompts.append(prompt)
        if not prompts:
            raise _BadFileError("no prompts found, add at least one that is not empty")
        return tuple(prompts)
    except _BadFileError as problem:
        raise PromptFileError(f"Cannot use {path.name!r}: {problem}.") from problem.__cause__


class _BadFileError(Exception):
    """What is wrong and what to do, without the file's name and the full stop."""


def _too_many(max_prompts: int) -> _BadFileError:
    return _BadFileError(f"it has more than {max_prompts} prompts, split it into smaller files")


def _rows(path: Path, column: str | None, max_bytes: int, max_prompts: int) -> Iterator[tuple[str, Prompt]]:
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".csv", ".json", ".jsonl"):
        raise _BadFileError("save it as .txt, .csv, .json or .jsonl")
    text = _read_text(path, max_bytes)
    if suffix != ".json" and text.count("\n") + text.count("\r") - text.count("\r\n") >= _MAX_LINES:
        raise _BadFileError(f"it has more than {_MAX_LINES} lines, remove empty ones or split it into smaller files")
    if suffix == ".txt":
        return ((f"line {number}", Prompt(text=line.strip())) for number, line in _lines(text))
    if suffix == ".csv":
        return _csv_rows(text, column)
    return _json_rows(text, column, suffix == ".jsonl", max_prompts)


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        if not path.is_file():
            raise _BadFileError("there is no such file, check the path")
        if path.stat().st_size > max_bytes:
            raise _BadFileError(f"it is larger than {max_bytes} bytes, split it into smaller files")
        data = path.read_bytes()
    except OSError as error:
        raise _BadFileError(f"it cannot be opened ({error.strerror}), check its permissions") from error
    for start, kind, advice in _OTHER_KINDS:
        if data.startswith(start):
            if b"xl/workbook" in data:  # spreadsheets are ZIP archives inside
                kind, advice = "an Excel workbook", "export its sheet as .csv"
            raise _BadFileError(f"it is really {kind} and not text, {advice}")
    utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = f" in line {_line_of(data, error.start)}" * (not utf_16)
        raise _BadFileError(f"its characters{line} cannot be decoded, save it with UTF-8 encoding") from error
    if "\0" in text:
        raise _BadFileError("it contains NUL bytes, save it as plain UTF-8 text")
    return text


def _line_of(data: bytes, position: int) -> int:
    before = data[:position]
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1


def _check_text(where: str, text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise _BadFileError(f"the prompt at {where} has {len(text)} characters, shorten it to {max_chars}")
    if "\0" in text:
        raise _BadFileError(f"the prompt at {where} contains a NUL character, remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # a JSON escape can smuggle in half a surrogate pair
        raise _BadFileError(f"the prompt at {where} contains half a Unicode character, remove it") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # str.splitlines would also split at form feeds and Unicode separators inside a prompt.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _csv_rows(text: str, column: str | None) -> Iterator[tuple[str, Prompt]]:
    head = next(_lines(text), (0, ""))[1]
    # Spreadsheets in many countries export semicolons or tabs under the same suffix.
    delimiter = next((mark for mark in ",;\t" if mark in head), ",")
    reader = csv.reader(_narrow_lines(text, delimiter), delimiter=delimiter, strict=True)
    header: list[str] = []
    used: dict[str, int] = {}
    chosen = ""
    try:
        for row in reader:
            where = f"line {reader.line_num}"
            if len(row) > _MAX_COLUMNS:
                raise _BadFileError(f"{where} has more than {_MAX_COLUMNS} columns, remove some")
            if not any(cell.strip() for cell in row):
                continue
            if not header:
                header = [cell.strip() for cell in row]
                chosen = _pick_column(header, column)
                used = {name: i for i, name in enumerate(header) if name in (chosen, *_FIELDS)}
                continue
            if any(cell.strip() for cell in row[len(header) :]):
                problem = f"{where} has {len(row)} fields but the header has {len(header)}"
                raise _BadFileError(f"{problem}, put texts that contain {delimiter!r} in double quotes")
            yield where, _prompt({name: row[i] if i < len(row) else "" for name, i in used.items()}, chosen)
    except csv.Error as error:
        hint = "shorten that field" if "field larger" in str(error) else "check its quotes"
        raise _BadFileError(f"line {reader.line_num} is not valid CSV ({error}), {hint}") from error


def _narrow_lines(text: str, delimiter: str) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if line.count(delimiter) > _MAX_MARKS:
            raise _BadFileError(f"line {number} has more than {_MAX_COLUMNS} columns, remove some")
        yield line


def _json_rows(text: str, column: str | None, lines: bool, max_prompts: int) -> Iterator[tuple[str, Prompt]]:
    if text.count(",") > _MAX_VALUES or text.count("[") + text.count("{") > _MAX_NESTED:
        raise _BadFileError("it holds too many values, keep only the prompts or split it into smaller files")
    if lines:
        entries: list[tuple[str, object]] = []
        for number, line in _lines(text):
            if len(entries) == max_prompts:
                raise _too_many(max_prompts)
            entries.append((f"line {number}", _parse(line, number)))
    else:
        data = _parse(text, 1) if text.strip() else []
        if isinstance(data, dict):
            data = data.get("prompts")
        if not isinstance(data, list):
            raise _BadFileError('it must hold a list or {"prompts": [...]}, rewrite it that way')
        if len(data) > max_prompts:
            raise _too_many(max_prompts)
        entries = [(f"entry {number}", entry) for number, entry in enumerate(data, 1)]
    keys: dict[str, None] = {}
    for _, entry in entries:
        keys.update(dict.fromkeys(islice(entry, _MAX_COLUMNS + 1)) if isinstance(entry, dict) else {})
        if len(keys) > _MAX_COLUMNS:
            raise _BadFileError(f"it has more than {_MAX_COLUMNS} columns, remove some")
    chosen = _pick_column(list(keys), column) if keys else ""
    for where, entry in entries:
        row = entry if isinstance(entry, dict) else {chosen: entry}
        if not isinstance(row.get(chosen), str):
            raise _BadFileError(f"the prompt at {where} is not a string, write it as text in double quotes")
        yield where, _prompt(row, chosen)


def _parse(text: str, line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        number = line + error.lineno - 1
        raise _BadFileError(f"line {number} is not valid JSON ({error.msg}), correct it") from error
    except RecursionError as error:
        raise _BadFileError("it is nested too deeply, write a flat list of prompts") from error
    except ValueError as error:  # Python refuses to convert integers of thousands of digits
        raise _BadFileError("it holds a number with too many digits, remove it") from error


def _pick_column(columns: list[str], column: str | None) -> str:
    by_name = {key.strip().casefold(): key for key in reversed(columns)}
    for wanted in TEXT_COLUMNS if column is None else (column.strip().casefold(),):
        if wanted in by_name:
            return by_name[wanted]
    if column is None and len(columns) == 1:
        return columns[0]
    shown = ", ".join(repr(key[:40]) for key in columns[:12]) + (", ..." if len(columns) > 12 else "")
    problem = "it has no usable prompt column" if column is None else f"it has no column {column[:40]!r}"
    raise _BadFileError(f"{problem}, choose one of its columns {shown}")


def _prompt(row: Mapping[str, object], chosen: str) -> Prompt:
    values = ((field, row.get(field)) for field in _FIELDS)
    known = {field: value.strip() for field, value in values if isinstance(value, str) and value.strip()}
    return Prompt(text=str(row[chosen]).strip(), **known)
