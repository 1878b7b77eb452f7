"""Tests of the prompt reader and of the prompt sets that ship with the project."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import tempfile
import tracemalloc
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ace_core.cli.prompt_sets import find_set
from ace_core.errors import EngineError
from ace_core.prompts import (
    BUILTIN_NAMES,
    LANGUAGES,
    Prompt,
    PromptFileError,
    display_prompts,
    duplicates_across,
    load_builtin,
    load_language,
    prompts_digest,
    read_prompts,
)
from ace_core.prompts import builtin as module

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "prompts"
FORMS = {"imperative", "question", "story", "role", "list"}
FIELDS = {
    "harmful": ["id", "text", "category", "form", "split"],
    "harmless": ["id", "text", "category", "form", "split"],
    "lookalike": ["id", "text", "category", "split"],
    "multilingual": ["id", "text", "language", "label", "category", "split"],
}
STOP_TEXT = """
    a about after all also am an and any are as at be been before being between both but by can could did
    do does doing down each few for from further had has have having he her here hers him his how i if in into
    is it its just me more most my no nor not of off on once only or other our out over own same she should so
    some such than that the their them then there these they this those through to too under until up us very
    was we were what when where which while who whom why will with without would you your
"""
STOP_WORDS = frozenset(STOP_TEXT.split())


def texts(prompts: Iterable[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


# --- reading files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "One prompt\r\n\r\n  Two prompts  \rThree", ["One prompt", "Two prompts", "Three"]),
        ("a.TXT", "\ufeffOne", ["One"]),
        ("a.txt", "form\x0cfeed\u2028inside", ["form\x0cfeed\u2028inside"]),
        ("a.csv", "id,Prompt\n1,One\n2,\n\n3,Two\n", ["One", "Two"]),
        ("a.csv", 'goal,text\nx,"One, two\nthree"\n', ["One, two\nthree"]),
        ("a.csv", "title\nOne\nTwo\n", ["One", "Two"]),
        ("a.csv", "id;text\n1;One, two\n", ["One, two"]),
        ("a.csv", "id\ttext\n1\tOne\n", ["One"]),
        ("a.csv", "text,id\nOne\nTwo,2,\n", ["One", "Two"]),
        ("a.json", '["One", " ", "Two"]', ["One", "Two"]),
        ("a.json", '{"prompts": [{"question": "One"}, "Two"]}', ["One", "Two"]),
        ("a.json", '[{"title": "One"}]', ["One"]),
        ("a.jsonl", '{"text": "One"}\n\n"Two"\n', ["One", "Two"]),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8"))
    assert texts(read_prompts(path)) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    path.write_bytes(f"{mark}prompt\nGrüße 你好 🙂\n".encode(encoding))
    assert texts(read_prompts(path)) == ["Grüße 你好 🙂"]


def test_column_order_and_explicit_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("query,Goal,note\nq,g,n\n", encoding="utf-8")
    assert texts(read_prompts(path)) == ["g"]
    assert texts(read_prompts(path, column=" NOTE ")) == ["n"]
    path = tmp_path / "a.json"
    path.write_text('[{"text": "t", "Body": "b"}]', encoding="utf-8")
    assert texts(read_prompts(path, column="body")) == ["b"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_known_fields_are_kept(tmp_path: Path, suffix: str) -> None:
    row = {"text": "Hallo", "id": "x-1", "category": "c", "language": "de", "other": "o", "split": ""}
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n", encoding="utf-8")
    else:
        path.write_text(json.dumps({**row, "form": 3}), encoding="utf-8")
    assert read_prompts(path) == (Prompt("Hallo", id="x-1", category="c", language="de"),)


ERRORS: list[tuple[str, str | bytes, str]] = [
    ("a.docx", "One", "save it as .txt, .csv, .json or .jsonl"),
    ("noext", "One", "save it as .txt, .csv, .json or .jsonl"),
    ("a.txt", "x" * 3_001, "it is larger than 3000 bytes, split it into smaller files"),
    ("a.txt", b"caf\xe9", "its characters in line 1 cannot be decoded, save it with UTF-8 encoding"),
    ("a.txt", "Grüße\r\nGrüße\rGrüße\n".encode() + b"caf\xe9\n", "its characters in line 4 cannot be decoded, save"),
    ("a.csv", "text\nGrüße\n".encode() + b"caf\xe9\n", "its characters in line 3 cannot be decoded, save it with"),
    ("a.jsonl", '"ü"\n'.encode() + b'"caf\xe9"', "its characters in line 2 cannot be decoded, save it with UTF-8"),
    ("a.txt", b"\xff\xfea", "its characters cannot be decoded, save it with UTF-8 encoding"),
    ("a.txt", "One\0two", "it contains NUL bytes, save it as plain UTF-8 text"),
    ("a.txt", "One".encode("utf-32"), "it contains NUL bytes, save it as plain UTF-8 text"),
    ("a.txt", " \n\n", "no prompts found, add at least one that is not empty"),
    ("a.csv", "", "no prompts found, add at least one that is not empty"),
    ("a.csv", "prompt\n", "no prompts found, add at least one that is not empty"),
    ("a.json", "", "no prompts found, add at least one that is not empty"),
    ("a.json", "[]", "no prompts found, add at least one that is not empty"),
    ("a.txt", "a\nb\nc\nd\n", "it has more than 3 prompts, split it into smaller files"),
    ("a.txt", "a\n" + "x" * 101, "the prompt at line 2 has 101 characters, shorten it to 100"),
    ("a.csv", "x,y\n1,2\n", "it has no usable prompt column, choose one of its columns 'x', 'y'"),
    (
        "a.json",
        '[{"x": "1", "y": "2"}]',
        "it has no usable prompt column, choose one of its columns 'x', 'y'",
    ),
    ("a.json", '["a",\n]', "line 2 is not valid JSON (Expecting value), correct it"),
    ("a.jsonl", '"a"\n\n{"text": }\n', "line 3 is not valid JSON (Expecting value), correct it"),
    ("a.json", '{"items": ["a"]}', 'it must hold a list or {"prompts": [...]}, rewrite it that way'),
    ("a.json", '"a"', 'it must hold a list or {"prompts": [...]}, rewrite it that way'),
    ("a.json", '["a", 3]', "the prompt at entry 2 is not a string, write it as text in double quotes"),
    (
        "a.json",
        '[{"text": null}]',
        "the prompt at entry 1 is not a string, write it as text in double quotes",
    ),
    ("a.jsonl", '"a"\n["b"]', "the prompt at line 2 is not a string, write it as text in double quotes"),
    ("a.json", '[{"text": "a"}, {"b": "c"}]', "the prompt at entry 2 is not a string, write it as text in"),
    ("a.json", r'["a\u0000"]', "the prompt at entry 1 contains a NUL character, remove it"),
    ("a.json", r'["a\ud800"]', "the prompt at entry 1 contains half a Unicode character, remove it"),
    ("a.csv", 'text\n"open', "line 2 is not valid CSV (unexpected end of data), check its quotes"),
    ("a.csv", "text\nHello, world\n", "line 2 has 2 fields but the header has 1, put texts that contain ','"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), ERRORS)
def test_errors(tmp_path: Path, name: str, content: str | bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    check_sentence(path, sentence, max_bytes=3_000, max_prompts=3, max_chars=100)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", "[" * 200_000, "it is nested too deeply, write a flat list of prompts"),
        ("a.jsonl", '{"text":' * 200_000, "it is nested too deeply, write a flat list of prompts"),
        ("a.csv", "text\n" + "x" * 131_073, "(field larger than field limit (131072)), shorten that field"),
        ("a.csv", "text" + ",c" * 1_000, "line 1 has more than 1000 columns, remove some"),
        ("a.csv", ",".join(f"c{i}" for i in range(10_000)), "line 1 has more than 1000 columns, remove some"),
        ("a.json", json.dumps([{str(i): "" for i in range(1_001)}]), "it has more than 1000 columns, remove"),
        ("a.jsonl", '"a"\n' + json.dumps({str(i): 1 for i in range(1_001)}), "it has more than 1000 columns, remove"),
    ],
)
def test_errors_of_large_files(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    check_sentence(path, sentence)


VALUES = "it holds too many values, keep only the prompts or split it into smaller files"
LINES = "it has more than 1000000 lines, remove empty ones or split it into smaller files"
PROMPTS = "it has more than 100000 prompts, split it into smaller files"


@pytest.mark.parametrize(
    ("name", "start", "unit", "count", "end", "sentence"),
    [
        ("a.csv", "text\n", ",", 19_999_990, "", "line 2 has more than 1000 columns, remove some"),
        ("a.json", "[", "[],", 6_600_000, "1]", VALUES),
        ("a.json", "[", "1,", 9_900_000, "1]", VALUES),
        ("a.json", "[", "[" * 900 + "]" * 900 + ",", 11_000, "1]", VALUES),
        ("a.json", '[{"text":"a","x":[', "{},", 500_000, "1]}]", VALUES),
        ("a.json", "[", '"",', 100_000, '""]', PROMPTS),
        ("a.jsonl", "", "[]\n", 100_001, "", PROMPTS),
        ("a.jsonl", "", "[]\n", 6_600_000, "", LINES),
        ("a.csv", "text", "\r\n", 9_900_000, "", LINES),
        ("a.txt", "", "\n", 19_999_990, "", LINES),
    ],
)
def test_files_that_would_fill_the_memory(
    tmp_path: Path, name: str, start: str, unit: str, count: int, end: str, sentence: str
) -> None:
    path = tmp_path / name
    path.write_text(start + unit * count + end, encoding="utf-8", newline="")
    tracemalloc.start()
    try:
        check_sentence(path, sentence)
        assert tracemalloc.get_traced_memory()[1] < 8 * path.stat().st_size + 30_000_000
    finally:
        tracemalloc.stop()


def test_large_files_within_the_limits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"text": f"Do, or don't, {i}: [a, b] {{c}}", "id": str(i), "category": "c"} for i in range(100_000)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert len(read_prompts(path)) == 100_000
    path = tmp_path / "a.csv"
    path.write_text("text,id\n" + "\n".join(f'"One, two\n{i}",{i}' for i in range(100_000)), encoding="utf-8")
    assert read_prompts(path)[-1] == Prompt("One, two\n99999", id="99999")


def test_a_huge_upload_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1_000_000_000)
    tracemalloc.start()
    try:
        check_sentence(path, "it is larger than 20000000 bytes, split it into smaller files")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def zipped(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, "x" * 1_000_000)
    return data.getvalue()


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt", "a.jsonl"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(b'["a"]', mtime=0), "it is really a gzip archive and not text, unpack it first"),
        (zipped("a.json"), "it is really a ZIP archive and not text, unpack it first"),
        (zipped("xl/workbook.xml"), "it is really an Excel workbook and not text, export its sheet as .csv"),
        (bz2.compress(b"a"), "it is really a bzip2 archive and not text, unpack it first"),
        (lzma.compress(b"a"), "it is really an xz archive and not text, unpack it first"),
        (b"%PDF-1.7\n%\xe2\xe3", "it is really a PDF document and not text, copy its text into a .txt file"),
        (b"PAR1\x15\x04PAR1", "it is really a Parquet table and not text, export it as .csv or .jsonl"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "it is really an old Office document and not text, export its table as .csv"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    check_sentence(path, sentence)


def test_short_csv_rows_and_repeated_column_names(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text,category,id\n1,One\n2,Two,c,3\n", encoding="utf-8")
    assert read_prompts(path) == (Prompt("One"), Prompt("Two", id="3", category="c"))


def check_sentence(path: Path, part: str, column: str | None = None, **limits: int) -> None:
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path, column=column, **limits)
    message = str(caught.value)
    assert part in message
    assert message.startswith(f"Cannot use {path.name!r}: ")
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message
    assert isinstance(caught.value, ValueError)


def test_missing_file_folder_and_column(tmp_path: Path) -> None:
    check_sentence(tmp_path / "none.txt", "there is no such file, check the path")
    (tmp_path / "folder.csv").mkdir()
    check_sentence(tmp_path / "folder.csv", "there is no such file, check the path")
    path = tmp_path / "wide.csv"
    path.write_text(",".join(f"c{i}" for i in range(20)) + "\n1\n", encoding="utf-8")
    check_sentence(path, "it has no column 'text', choose one of its columns 'c0', 'c1', ", column="text")
    check_sentence(path, "'c11', ....", column="text")


def test_size_is_checked_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc", encoding="utf-8")
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the file was read"))
    check_sentence(path, "it is larger than 2 bytes", max_bytes=2)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, os.strerror(13))

    path = tmp_path / "a.txt"
    path.write_text("abc", encoding="utf-8")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    check_sentence(path, f"it cannot be opened ({os.strerror(13)}), check its permissions")


LISTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=60)
    .map(str.strip)
    .filter(bool),
    min_size=1,
    max_size=8,
)


def write_jsonl(path: Path, items: list[str]) -> list[str]:
    path.write_text("".join(json.dumps({"text": item}) + "\n" for item in items), encoding="utf-8")
    return items


def write_csv(path: Path, items: list[str]) -> list[str]:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "prompt"], *([str(n), item] for n, item in enumerate(items))])
    return items


def write_txt(path: Path, items: list[str]) -> list[str]:
    items = [stripped for item in items if (stripped := item.replace("\n", " ").replace("\r", " ").strip())]
    path.write_bytes("\n".join(items).encode("utf-8"))
    return items


@pytest.mark.parametrize(("suffix", "write"), [(".jsonl", write_jsonl), (".csv", write_csv), (".txt", write_txt)])
@settings(max_examples=60)
@given(items=LISTS)
def test_round_trip(suffix: str, write: Callable[[Path, list[str]], list[str]], items: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"prompts{suffix}"
        expected = write(path, items)
        assert texts(read_prompts(path)) == expected


@settings(max_examples=150)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".csv", ".json", ".jsonl"]))
def test_any_bytes_give_prompts_or_one_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"prompts{suffix}"
        path.write_bytes(content)
        try:
            message = ""
            assert read_prompts(path)
        except PromptFileError as error:
            message = str(error)
        assert message == "" or message.endswith(".")


# --- helpers -------------------------------------------------------------------------------------------


def test_digest_depends_on_texts_and_order_only() -> None:
    a, b = Prompt("One", id="x"), Prompt("Two")
    assert prompts_digest([a, b]) == prompts_digest((Prompt("One"), b))
    assert prompts_digest([a, b]) != prompts_digest([b, a])
    assert prompts_digest([Prompt("ab"), Prompt("c")]) != prompts_digest([Prompt("a"), Prompt("bc")])
    assert prompts_digest([]) == hashlib.sha256().hexdigest()


def test_duplicates_across() -> None:
    a = [Prompt("How  ARE\tyou?"), Prompt("New"), Prompt("Straße")]
    b = [Prompt("how are you?"), Prompt("STRASSE"), Prompt("Other")]
    assert duplicates_across(a, b) == ("How  ARE\tyou?", "Straße")
    assert duplicates_across(a, []) == ()


def test_unknown_name_and_split() -> None:
    with pytest.raises(ValueError, match=r"Unknown prompt set 'evil': choose one of harmful, harmless"):
        load_builtin("evil")
    with pytest.raises(ValueError, match=r"has no split 'dev': choose one of fit, test, train, validation\."):
        load_builtin("harmless", "dev")


def test_public_names_exist() -> None:
    assert all(hasattr(module, name) for name in module.__all__)


# --- built-in sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILTIN_NAMES)
def test_schema(name: str) -> None:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(list(row) == FIELDS[name] for row in rows)
    assert all(isinstance(value, str) and value == value.strip() != "" for row in rows for value in row.values())
    assert all("\n" not in row["text"] for row in rows)
    ids = [row["id"] for row in rows]
    assert ids == sorted(set(ids))
    assert all(value.startswith(f"{name}-") for value in ids)
    assert len({row["text"].casefold() for row in rows}) == len(rows)
    prompts = load_builtin(name)
    assert texts(prompts) == [row["text"] for row in rows]
    assert {prompt.label for prompt in prompts} == ({"harmful", "harmless"} if name == "multilingual" else {name})


@pytest.mark.parametrize("name", ["harmful", "harmless", "lookalike"])
def test_splits_are_disjoint_and_complete(name: str) -> None:
    splits = sorted({prompt.split for prompt in load_builtin(name)})
    assert set(splits) <= {"train", "fit", "validation", "test"}
    parts = {split: load_builtin(name, split) for split in splits}
    assert sum(map(len, parts.values())) == len(load_builtin(name))
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            assert duplicates_across(parts[first], parts[second]) == ()


def test_counts() -> None:
    harmful, harmless = load_builtin("harmful"), load_builtin("harmless")
    assert len(harmful) >= 400
    assert len({prompt.category for prompt in harmful}) >= 10
    assert len(harmless) >= 820
    assert len({prompt.category for prompt in harmless}) >= 12
    assert all(4 <= len(prompt.text.split()) <= 25 for prompt in harmless)
    sizes = Counter(prompt.split for prompt in harmless)
    assert (sizes["train"], sizes["fit"], sizes["validation"]) == (len(harmless) - sizes["test"] - 310, 250, 60)
    assert sizes["test"] >= 100
    assert len(load_builtin("lookalike")) >= 120


def test_one_language_or_all_of_them() -> None:
    everything = load_builtin("multilingual")
    for label in ("harmful", "harmless"):
        parts = [load_language(label, code) for code in LANGUAGES]
        assert all(parts) and {p.language for part in parts for p in part} == set(LANGUAGES)
        assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in load_language(label))
        assert {p.id for p in load_language(label)} == {p.id for p in everything if p.label == label}
        assert find_set("multilingual:de", label)[0] == load_language(label, "de")
        assert find_set("multilingual", label)[0] == load_language(label)
    with pytest.raises(EngineError, match="no prompts in 'xx'"):
        find_set("multilingual:xx", "harmful")


def test_multilingual_is_balanced() -> None:
    cells = Counter((prompt.language, prompt.label) for prompt in load_builtin("multilingual"))
    assert {language for language, _ in cells} == {"de", "fr", "es", "it", "pt", "zh"}
    assert set(cells.values()) == {12}
    assert {prompt.split for prompt in load_builtin("multilingual")} == {"test"}


def test_display_examples() -> None:
    examples = display_prompts()
    assert Counter(prompt.label for prompt in examples) == {"harmful": 4, "harmless": 4, "lookalike": 4}
    for name in BUILTIN_NAMES:
        assert duplicates_across(examples, load_builtin(name)) == ()


@pytest.mark.parametrize("split", ["train", "fit", "validation", "test"])
def test_form_does_not_reveal_the_class(split: str) -> None:
    shares: dict[str, dict[str, float]] = {}
    for name in ("harmful", "harmless"):
        prompts = load_builtin(name, split)
        counts = Counter(prompt.form for prompt in prompts)
        assert set(counts) == FORMS
        shares[name] = {form: count / len(prompts) for form, count in counts.items()}
    assert all(abs(shares["harmful"][form] - shares["harmless"][form]) < 0.1 for form in FORMS)
    assert min(Counter(prompt.form for prompt in load_builtin("harmless")).values()) >= 80


# --- near-duplicates -----------------------------------------------------------------------------------


def content_words(text: str) -> list[str]:
    letters = (char if char.isalnum() else " " for char in text.casefold().replace("'", "").replace("\u2019", ""))
    words = "".join(letters).split()
    return [word for word in words if word not in STOP_WORDS] or words


def word_set(text: str) -> set[str]:
    return set(content_words(text))


def five_grams(text: str) -> set[str]:
    joined = " ".join(content_words(text))
    return {joined[i : i + 5] for i in range(max(1, len(joined) - 4))}


def near_duplicates(items: list[str], limit: float = 0.6) -> list[tuple[float, str, str]]:
    """Pairs whose Jaccard similarity reaches `limit`; an inverted index skips pairs that share nothing."""
    found: list[tuple[float, str, str]] = []
    for features in (word_set, five_grams):
        sets = [features(item) for item in items]
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for i, current in enumerate(sets):
            shared = Counter(j for feature in current for j in holders[feature])
            for j, common in shared.items():
                similarity = common / (len(current) + len(sets[j]) - common)
                if similarity >= limit:
                    found.append((similarity, items[j], items[i]))
            for feature in current:
                holders[feature].append(i)
    return found


def all_texts() -> list[str]:
    built_in = [text for name in BUILTIN_NAMES for text in texts(load_builtin(name))]
    return built_in + texts(display_prompts())


def test_no_near_duplicates() -> None:
    assert near_duplicates(all_texts()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.upper().replace(" ", "  ") + "!",
        lambda text: f"Please {text}",
        lambda text: text.replace("e", "ee", 1),
    ],
)
def test_a_planted_near_duplicate_is_found(change: Callable[[str], str]) -> None:
    original = max(texts(load_builtin("harmless")), key=len)
    found = near_duplicates([*all_texts(), change(original)])
    assert {(first, second) for _, first, second in found} == {(original, change(original))}


def test_near_duplicate_arithmetic() -> None:
    assert near_duplicates(["alpha beta gamma", "the alpha beta delta"]) == []
    pairs = near_duplicates(["red green blue grey", "grey, blue and green!"])
    assert [round(similarity, 2) for similarity, _, _ in pairs] == [0.75]
