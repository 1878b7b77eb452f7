"""What a page asks the model thread for when somebody fits directions of their own; knows no page.

:func:`fit_lab` and :func:`choose_block` are run by :meth:`ace_core.host.ModelHost.work`; everything they return is
frozen and small, so a page can keep it.
"""

from __future__ import annotations

from ace_core.lab.choice import METHOD_CHOICES, BlockChoice, choose_block
from ace_core.lab.files import (
    FILE_SUFFIXES,
    LabFiles,
    accept_directions,
    is_foreign,
    read_foreign,
    read_own,
    write_files,
)
from ace_core.lab.fit import LabFit, LabRequest, fit_lab
from ace_core.lab.look import Look, look_at
from ace_core.lab.options import (
    LIMIT_RANGE,
    POSITION_CHOICES,
    SITE_CHOICES,
    VARIANT_CHOICES,
    LabOptions,
    lab_options,
)
from ace_core.lab.sets import KINDS, LabParts, LabSet, builtin_set, file_set, hub_names, hub_set, split_sets

__all__ = [
    "FILE_SUFFIXES",
    "KINDS",
    "LIMIT_RANGE",
    "METHOD_CHOICES",
    "POSITION_CHOICES",
    "SITE_CHOICES",
    "VARIANT_CHOICES",
    "BlockChoice",
    "LabFiles",
    "LabFit",
    "LabOptions",
    "LabParts",
    "LabRequest",
    "LabSet",
    "Look",
    "accept_directions",
    "builtin_set",
    "choose_block",
    "file_set",
    "fit_lab",
    "hub_names",
    "hub_set",
    "is_foreign",
    "lab_options",
    "look_at",
    "read_foreign",
    "read_own",
    "split_sets",
    "write_files",
]
