"""How a page is served, read once from environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

from ace_core.errors import EngineError
from ace_core.policy import Policy
from ace_core.sampling import MAX_NEW_TOKENS
from ace_core.scheduling.limits import Limits

__all__ = ["Classroom", "Settings", "settings_table"]

Classroom = Literal["off", "recorded", "live"]

_USUAL = Limits()
_LESSON = Limits(tokens=128, visitor_running=1, visitor_waiting=1)
"""Caps of a live classroom, unless variables say otherwise."""
_HUGGING_FACE = ("https://huggingface.co", "https://*.hf.space")
_ORIGIN = re.compile(r"https?://(\*\.)?[A-Za-z0-9.-]+(:\d{1,5})?")
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


_ELSEWHERE = (
    ("ACE_CACHE", "the user's cache folder", "folder for the embedded model and fitted vectors"),
    ("ACE_JUDGE_TIMEOUT", "60", "seconds that `sweep` waits for a judge's verdict"),
)
"""Variables that also matter without a page, and are read where they are used."""


class _Unreadable(ValueError):
    """What a variable should have held."""


def _text(value: str) -> str:
    return value


def _yes_or_no(value: str) -> bool:
    if value.lower() not in _YES + _NO:
        raise _Unreadable("1 or 0")
    return value.lower() in _YES


def _classroom(value: str) -> Classroom:
    if value.lower() not in get_args(Classroom):
        raise _Unreadable("off, recorded or live")
    return cast("Classroom", value.lower())


def _names(value: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in value.split(","))))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise _Unreadable(f"a whole number from {least} to {most}")
        return int(value)

    return parse


def _auth(value: str) -> tuple[tuple[str, str], ...]:
    pairs = [name.partition(":") for name in _names(value)]
    if not pairs or not all(user.strip() and password for user, _, password in pairs):
        raise _Unreadable("user:password, several of them separated by commas")
    return tuple((user.strip(), password) for user, _, password in pairs)


def _root_path(value: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)+/?|https?://[\w.-]+(:\d{1,5})?(/[\w.~-]+)*/?", value):
        raise _Unreadable("a path such as /explorer, or a whole address")
    return value.rstrip("/")


def _origins(value: str) -> tuple[str, ...]:
    if value.lower() == "none":
        return ()
    origins = _names(value)
    if not origins or not all(map(_ORIGIN.fullmatch, origins)):
        raise _Unreadable("addresses such as https://school.example, separated by commas, or none")
    return origins


def _about(name: str, parse: Callable[[str], Any], says: str, shown: str | None = None) -> dict[str, Any]:
    """What a field keeps of its variable; ``shown`` is the default in words, if the value does not speak for itself."""
    return {"name": name, "parse": parse, "says": says, "shown": shown}


@dataclass(frozen=True)
class Settings:
    """One page's; each field says in :func:`settings_table` what it does.

    Caps that are None follow the classroom.
    """

    model: str = field(
        default="embedded",
        metadata=_about("ACE_MODEL", _text, "model to load: `embedded`, a hub id, a folder or a `.gguf`"),
    )
    models: tuple[str, ...] = field(
        default=(),
        metadata=_about("ACE_MODELS", _names, "the only models that may be loaded, separated by commas", "any"),
    )
    classroom: Classroom = field(
        default="off",
        metadata=_about(
            "ACE_CLASSROOM",
            _classroom,
            "`recorded` loads no model and shows recorded runs and lessons only; `live` keeps one model for short "
            "runs, read-only and one at a time a visitor (also `--classroom`)",
        ),
    )
    read_only: bool = field(
        default=False, metadata=_about("ACE_READ_ONLY", _yes_or_no, "1 turns uploads, fits and sweeps off", "0")
    )
    tokens: int | None = field(
        default=None,
        metadata=_about(
            "ACE_MAX_TOKENS",
            _whole(8, MAX_NEW_TOKENS),
            "longest answer, in tokens",
            f"{_USUAL.tokens}; live: {_LESSON.tokens}",
        ),
    )
    visitor_running: int | None = field(
        default=None,
        metadata=_about(
            "ACE_VISITOR_RUNS",
            _whole(1, 100),
            "runs of one visitor at once",
            f"{_USUAL.visitor_running}; live: {_LESSON.visitor_running}",
        ),
    )
    visitor_waiting: int | None = field(
        default=None,
        metadata=_about(
            "ACE_VISITOR_WAITING",
            _whole(1, 100),
            "runs of one visitor that may wait",
            f"{_USUAL.visitor_waiting}; live: {_LESSON.visitor_waiting}",
        ),
    )
    rows: int = field(
        default=_USUAL.rows,
        metadata=_about("ACE_ROWS", _whole(1, 4096), "arms of all visitors together in one batch"),
    )
    waiting: int = field(
        default=_USUAL.waiting,
        metadata=_about("ACE_WAITING", _whole(1, 10_000), "runs of all visitors that may wait"),
    )
    wait_seconds: int = field(
        default=int(_USUAL.wait_seconds),
        metadata=_about("ACE_WAIT_SECONDS", _whole(1, 86_400), "how long a run may wait before it is dropped"),
    )
    auth: tuple[tuple[str, str], ...] = field(
        default=(),
        repr=False,
        metadata=_about(
            "ACE_AUTH", _auth, "`user:password` pairs, separated by commas, that may sign in", "nobody has to"
        ),
    )
    root_path: str | None = field(
        default=None,
        metadata=_about(
            "ACE_ROOT_PATH", _root_path, "path a reverse proxy serves the page under, such as `/explorer`", "none"
        ),
    )
    embedders: tuple[str, ...] = field(
        default=_HUGGING_FACE,
        metadata=_about(
            "ACE_EMBED",
            _origins,
            "sites that may show the page in a frame, separated by commas; `none` for no site",
            "Hugging Face",
        ),
    )

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """Settings from variables, of which an empty one counts as not set.

        Args:
            environment: None for the process's own.
            flags: fields that a command line gave; None for those it did not. They come first.

        Raises:
            EngineError: one sentence for a value that can't be used.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
        for one in fields(cls):
            variable = one.metadata["name"]
            given = environment.get(variable, "").strip()
            if not given or one.name in values:
                continue
            try:
                values[one.name] = one.metadata["parse"](given)
            except _Unreadable as error:  # a password must not be repeated
                raise EngineError(f"{variable} can't be read: set it to {error}.") from None
        made = cls(**values)
        if made.models and made.model not in made.models:
            raise EngineError("ACE_MODEL is not one of ACE_MODELS: add it there, or choose one of them.")
        return made

    @property
    def limits(self) -> Limits:
        """Caps of the host."""
        base = _LESSON if self.classroom == "live" else _USUAL

        def cap(own: int | None, usual: int) -> int:
            return usual if own is None else own

        return Limits(
            rows=self.rows,
            waiting=self.waiting,
            wait_seconds=float(self.wait_seconds),
            tokens=cap(self.tokens, base.tokens),
            visitor_running=cap(self.visitor_running, base.visitor_running),
            visitor_waiting=cap(self.visitor_waiting, base.visitor_waiting),
        )

    @property
    def policy(self) -> Policy:
        """What visitors may ask."""
        free = self.classroom == "off" and not self.read_only
        models = (self.model,) if self.classroom == "live" else self.models
        return Policy(runs=self.classroom != "recorded", work=free, files=free, models=models)


def settings_table() -> str:
    """A Markdown table of all variables: name, default, what it does."""
    lines = ["| variable | default | what it does |", "|---|---|---|"]
    for one in fields(Settings):
        about = one.metadata
        default = str(one.default) if about["shown"] is None else about["shown"]
        lines.append(f"| `{about['name']}` | {default} | {about['says']} |")
    lines += [f"| `{name}` | {default} | {says} |" for name, default, says in _ELSEWHERE]
    return "\n".join(lines)
