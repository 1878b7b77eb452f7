"""Published prompt sets on the Hugging Face hub, by short name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KNOWN_SETS", "KnownSet"]


@dataclass(frozen=True)
class KnownSet:
    """Where a published prompt set lies on the hub.

    Attributes:
        hub_id: data set on the hub, owner/name.
        label: ``harmful``, ``harmless`` or ``lookalike`` (harmless, but worded like something harmful).
        licence: as on the hub's card.
        paper: where the set comes from.
        column: field that holds the prompt.
        split: split of the data set.
        config: configuration of the data set, if it has several.
        category: field that holds the kind of prompt, if there is one; letter case does not matter.
        keep: field and value of the rows that belong to this set; None for all rows.
        gated: whether the hub asks for a log-in and for conditions to be accepted.
    """

    hub_id: str
    label: str
    licence: str
    paper: str
    column: str = "prompt"
    split: str = "train"
    config: str | None = None
    category: str = "category"
    keep: tuple[str, str] | None = None
    gated: bool = False


def _known_sets() -> dict[str, KnownSet]:
    jbb = ("mit", "Chao et al. 2024, arXiv:2404.01318", "Goal")
    xstest = ("cc-by-4.0", "Röttger et al. 2023, arXiv:2308.01263", "prompt", "train", None, "type")
    orbench = ("cc-by-4.0", "Cui et al. 2024, arXiv:2405.20947", "prompt", "train")
    mazeika, zou = "Mazeika et al. 2024, arXiv:2402.04249", "Zou et al. 2023, arXiv:2307.15043"
    huang, souly = "Huang et al. 2023, arXiv:2310.06987", "Souly et al. 2024, arXiv:2402.10260"
    taori = "Taori et al. 2023, Stanford Alpaca"
    return {
        "advbench": KnownSet("walledai/AdvBench", "harmful", "mit", zou, gated=True),
        "harmbench": KnownSet("walledai/HarmBench", "harmful", "mit", mazeika, config="standard", gated=True),
        "jailbreakbench-harmful": KnownSet("JailbreakBench/JBB-Behaviors", "harmful", *jbb, "harmful", "behaviors"),
        "jailbreakbench-benign": KnownSet("JailbreakBench/JBB-Behaviors", "lookalike", *jbb, "benign", "behaviors"),
        "maliciousinstruct": KnownSet("walledai/MaliciousInstruct", "harmful", "cc-by-sa-4.0", huang),
        "strongreject": KnownSet("walledai/StrongREJECT", "harmful", "mit", souly, gated=True),
        "xstest-safe": KnownSet("Paul/XSTest", "lookalike", *xstest, keep=("label", "safe")),
        "xstest-unsafe": KnownSet("Paul/XSTest", "harmful", *xstest, keep=("label", "unsafe")),
        "orbench-80k": KnownSet("bench-llm/or-bench", "lookalike", *orbench, "or-bench-80k"),
        "orbench-hard": KnownSet("bench-llm/or-bench", "lookalike", *orbench, "or-bench-hard-1k"),
        "orbench-toxic": KnownSet("bench-llm/or-bench", "harmful", *orbench, "or-bench-toxic"),
        "alpaca": KnownSet("tatsu-lab/alpaca", "harmless", "cc-by-nc-4.0", taori, column="instruction"),
    }


KNOWN_SETS: Mapping[str, KnownSet] = MappingProxyType(_known_sets())
"""Published prompt sets by short name."""
