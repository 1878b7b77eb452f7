"""Prompt sets from the Hugging Face hub: the known benchmarks by a short name, any public data set by its id."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ace_core.errors import EngineError
from ace_core.prompts.known_sets import KNOWN_SETS, KnownSet
from ace_core.prompts.sets import MAX_PROMPT_CHARACTERS, TEXT_COLUMNS, Prompt

__all__ = ["HubPrompts", "load_hub_prompts"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,99}", re.ASCII)
_SPLITS = ("train", "test", "validation")
# Plain rows of text; other readers of the library open archives, media or foreign table formats.
_READERS = frozenset({"arrow", "csv", "json", "parquet", "text"})
_MAX_ROWS = 1_000_000
_INSTALL = "install it with pip install 'datasets>=4.8,<6'"


@dataclass(frozen=True)
class HubPrompts:
    """Prompts read from the hub, with everything needed to read them again.

    Attributes:
        prompts: in the order of the data set; `id` names the split and the row's number in it.
        source: data set, configuration, split, column, row filter and revision in words.
        licence: as on the hub's card, ``unknown`` if it names none.
        revision: commit that was read.
        column: field that was read.
        split: split that was read.
        skipped: rows left out because their text is missing, too long or not proper text.
        complete: False if the set goes on after the last prompt.
    """

    prompts: tuple[Prompt, ...]
    source: str
    licence: str
    revision: str
    column: str
    split: str
    skipped: int = 0
    complete: bool = True


def load_hub_prompts(
    name: str,
    *,
    config: str | None = None,
    split: str | None = None,
    column: str | None = None,
    limit: int = 100_000,
    revision: str | None = None,
    max_chars: int = MAX_PROMPT_CHARACTERS,
    progress: Callable[[str, float | None], None] = lambda message, fraction: None,
) -> HubPrompts:
    """Read prompts from the hub without downloading the whole data set or running code of its author.

    What is not given comes from :data:`ace_core.prompts.known_sets.KNOWN_SETS`, else it is picked: the split ``train``,
    ``test`` or ``validation`` and the first of the usual prompt columns. Where ``instruction`` is read beside an
    ``input`` (Alpaca and its kin), only rows whose input is empty are kept.

    Args:
        name: short name of a known set, or owner/name of any public data set on the hub; never a local path.
        config: configuration, for data sets that have several.
        split: split to read.
        column: field that holds the text; letter case does not matter.
        limit: largest number of prompts returned.
        revision: branch, tag or commit.
        max_chars: rows with longer texts are skipped and counted.
        progress: called with a sentence and a fraction or None.

    Raises:
        EngineError: one sentence for a wrong name, configuration, split, column or revision, a gated set, an
            unreachable hub, a set without usable text, or a missing or old `datasets` library.
    """
    known = KNOWN_SETS.get(name.strip().casefold())
    hub_id = known.hub_id if known else _checked_name(name.strip())
    if limit < 1:
        raise EngineError(f"The limit of prompts is {limit}: choose at least 1.")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise EngineError(f"'{revision[:40]}' is not a revision: give a branch, tag or commit.")
    if known and config in (None, known.config):
        config, split, column = known.config, split or known.split, column or known.column
    library = _library()
    progress(f"Looking up {hub_id} on the hub", None)
    prompts: list[Prompt] = []
    skipped, complete = 0, True
    with _readable_errors(hub_id):
        commit, licence = _describe(hub_id, revision)
        parts = _builder(library, hub_id, config, commit).as_streaming_dataset()
        split = _pick_split(hub_id, list(parts), split)
        table = _open(hub_id, parts[split], column, known)
        for number, row in enumerate(table.rows):
            if number == _MAX_ROWS:
                complete = False
                break
            if number % 1_000 == 0:
                progress(f"{number} rows read, {len(prompts)} prompts", min(1.0, len(prompts) / limit))
            if any(str(row.get(field) or "").strip() != value for field, value in table.keep):
                continue
            value, kind = row.get(table.column), row.get(table.category)
            text = value.strip() if isinstance(value, str) else ""
            if not _usable(text, max_chars):
                skipped += 1
                continue
            if len(prompts) == limit:
                complete = False
                break
            kind = kind.strip() if isinstance(kind, str) else ""
            prompts.append(Prompt(text, id=f"{split}-{number}", category=kind, label=known.label if known else ""))
    if not prompts:
        where = f"column '{table.column}' of split '{split}'"
        raise EngineError(f"{hub_id} has no usable text in {where}: choose another column or split.")
    words = [f"{hub_id} at revision {commit[:8]}", f"config {config}" if config else "", f"split {split}"]
    words += [f"column {table.column}", *(f"rows whose {field} is {value or 'empty'}" for field, value in table.keep)]
    words += ["" if complete else f"the first {len(prompts)} prompts"]
    licence = licence or (known.licence if known else "unknown")
    source = ", ".join(filter(None, words))
    return HubPrompts(tuple(prompts), source, licence, commit, table.column, split, skipped, complete)


@dataclass(frozen=True)
class _Table:
    rows: Iterable[dict[str, Any]]
    column: str
    category: str
    keep: tuple[tuple[str, str], ...]


def _checked_name(name: str) -> str:
    if re.fullmatch(r"[\w.-]{1,60}", name):
        raise EngineError(f"Unknown prompt set '{name}': choose one of {', '.join(KNOWN_SETS)}, or give owner/name.")
    odd = ".." in name or "--" in name or name.endswith((".py", ".git", ".")) or name.startswith("buckets/")
    if odd or not _NAME.fullmatch(name):
        raise EngineError(f"'{_one_line(name)}' is not a data set on the hub: write it as owner/name.")
    return name


def _library() -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise EngineError(f"Prompt sets from the hub need the library 'datasets': {_INSTALL}.") from None
    if [int(part) for part in re.findall(r"\d+", datasets.__version__)[:2]] < [4, 8]:
        # Older ones prefer a local folder of the same name, and before 4 they run scripts.
        raise EngineError(f"The library 'datasets' {datasets.__version__} is too old: {_INSTALL}.")
    return datasets


def _describe(hub_id: str, revision: str | None) -> tuple[str, str]:
    """Commit and licence; one quick request, so that a hub out of reach is noticed before anything is retried."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(hub_id, revision=revision, timeout=20)
    licence = getattr(info.card_data, "license", None)
    names = licence if isinstance(licence, list) else [licence]
    return str(info.sha), ", ".join(_one_line(name) for name in names[:5] if name)


def _builder(library: Any, hub_id: str, config: str | None, commit: str) -> Any:
    path = f"hf://datasets/{hub_id}"  # the scheme keeps a local folder of that name out
    try:
        builder = library.load_dataset_builder(path, name=config, revision=commit)
    except ValueError as error:
        if "BuilderConfig" not in str(error) and "onfig name" not in str(error):
            raise
        names = _listed(library.get_dataset_config_names(path, revision=commit))
        problem = f"has no config '{_one_line(config)}'" if config else "has several configs"
        raise EngineError(f"{hub_id} {problem}: choose one of {names}.") from error
    reader = type(builder).__module__.split(".")[-1]
    if reader == "cache":
        raise ConnectionError("the library fell back to a copy on this machine")
    if reader not in _READERS:
        raise EngineError(f"{hub_id} holds {reader} files, not rows of text: choose another data set.")
    # A card may name any path or address, this machine's own files included; newer libraries refuse it as well.
    for files in (builder.config.data_files or {}).values():
        if any(not str(file).startswith(f"hf://datasets/{hub_id}@") for file in files):
            raise ValueError("Data files don't belong to the data set")
    return builder


def _pick_split(hub_id: str, splits: list[str], split: str | None) -> str:
    for wanted in _SPLITS if split is None else (split,):
        if wanted in splits:
            return wanted
    if split is None and len(splits) == 1:
        return splits[0]
    problem = "has several splits" if split is None else f"has no split '{_one_line(split)}'"
    raise EngineError(f"{hub_id} {problem}: choose one of {_listed(splits)}.")


def _open(hub_id: str, rows: Any, column: str | None, known: KnownSet | None) -> _Table:
    features = rows.features
    if features:
        kinds = {name: getattr(kind, "dtype", "") in ("string", "large_string") for name, kind in features.items()}
    else:
        stream = iter(rows)
        first = next(stream, {})
        kinds = {name: value is None or isinstance(value, str) for name, value in first.items()}
        rows = chain([first], stream)
    chosen = _pick_column(hub_id, list(kinds), [name for name, is_text in kinds.items() if is_text], column)
    by_name = {name.casefold(): name for name in reversed(kinds)}
    keep = [known.keep] if known and known.keep else []
    if missing := [field for field, _ in keep if field not in kinds]:
        raise EngineError(f"{hub_id} has no column '{missing[0]}' any more: load it by its id '{hub_id}' instead.")
    if chosen.casefold() == "instruction" and "input" in by_name:
        keep.append((by_name["input"], ""))
    category = by_name.get((known.category if known else "category").casefold(), "")
    if features:
        # Without the other fields no picture or sound is fetched and decoded.
        rows = rows.select_columns(sorted({chosen, category, *(field for field, _ in keep)} - {""}))
    return _Table(rows, chosen, category, tuple(keep))


def _pick_column(hub_id: str, columns: list[str], texts: list[str], column: str | None) -> str:
    by_name = {name.strip().casefold(): name for name in reversed(texts)}
    # Alpaca and its kin also have a `text`, which holds the answer as well.
    usual = ("instruction",) if {"instruction", "input"} <= by_name.keys() else TEXT_COLUMNS
    for wanted in usual if column is None else (column.strip().casefold(),):
        if wanted in by_name:
            return by_name[wanted]
    if column is None and len(texts) == 1:
        return texts[0]
    if not texts:
        raise EngineError(f"{hub_id} has no column of text (but {_listed(columns)}): choose another data set.")
    problem = "has no usual prompt column" if column is None else f"has no column of text '{_one_line(column)}'"
    raise EngineError(f"{hub_id} {problem}: choose one of {_listed(texts)}.")


def _usable(text: str, max_chars: int) -> bool:
    if not 0 < len(text) <= max_chars or "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair from a JSON escape
        return False
    return True


def _one_line(name: str) -> str:
    return " ".join(str(name).split())[:60]


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{_one_line(name)}'" for name in names[:12]) + (", ..." if len(names) > 12 else "")


@contextmanager
def _readable_errors(hub_id: str) -> Iterator[None]:
    """Turn what the libraries raise into one :class:`EngineError` sentence."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(_sentence(hub_id, error)) from error


def _sentence(hub_id: str, error: Exception) -> str:
    links: list[BaseException] = [error]
    while (cause := links[-1].__cause__ or links[-1].__context__) is not None and len(links) < 12:
        links.append(cause)
    kinds = {kind.__name__ for link in links for kind in type(link).__mro__}
    text = " ".join(str(link) for link in links)
    if "GatedRepoError" in kinds or "gated dataset" in text:
        page = f"https://huggingface.co/datasets/{hub_id}"
        return f"{hub_id} is gated: accept its conditions at {page} and log in with 'hf auth login'."
    if "RevisionNotFoundError" in kinds:
        return f"{hub_id} has no such revision: check the branch, tag or commit."
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        return f"The hub has no data set {hub_id}: check the spelling, or log in with 'hf auth login' if it is private."
    if "scripts are no longer supported" in text:
        return f"{hub_id} needs a script of its own, which is never run here: choose a set stored as plain files."
    if "Data files don't belong" in text:
        return f"{hub_id} points to files outside itself: choose another data set."
    if kinds & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return f"{hub_id} holds no files of rows (parquet, csv, json, text): choose another data set."
    if kinds & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "TransportError"}:
        hint = " (offline mode is on)" if "OfflineModeIsEnabled" in kinds else ""
        return f"The hub can't be reached{hint}: check the network, or use a prompt file instead of {hub_id}."
    if "HfHubHTTPError" in kinds:
        return f"The hub refuses or fails to send {hub_id}: try again later, or use a prompt file."
    first = _one_line(str(error)).rstrip(".") or type(error).__name__
    return f"{hub_id} could not be read ({first}): choose another config or data set."
