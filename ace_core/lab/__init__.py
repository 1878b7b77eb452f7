"""What a page asks the model thread for when somebody fits directions of their own or sweeps; knows no page.

:func:`fit_lab`, :func:`choose_block`, :func:`block_table` and :meth:`LabSweep.run` are run by
:meth:`ace_core.host.ModelHost.work`; everything they return is frozen and small, so a page can keep it.
"""

from __future__ import annotations

from ace_core.inspecting.achieved import ACHIEVED_COEFFICIENTS, Achieved
from ace_core.lab.block_table import block_table, check_block_table, table_prompts
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
from ace_core.lab.look import Beside, Look, beside, look_at
from ace_core.lab.options import (
    LIMIT_RANGE,
    POSITION_CHOICES,
    SITE_CHOICES,
    VARIANT_CHOICES,
    LabOptions,
    lab_options,
)
from ace_core.lab.prompt_layers import (
    READING,
    READING_METHODS,
    SEPARATES,
    PromptLayers,
    prompt_layers,
    recorded_layers,
)
from ace_core.lab.prompt_plane import PlaneReading, PromptPlane
from ace_core.lab.sets import (
    KINDS,
    REFERENCE,
    LabParts,
    LabSet,
    builtin_set,
    file_set,
    hub_names,
    hub_set,
    language_choices,
    language_set,
    split_sets,
)
from ace_core.lab.sweep import LabSweep, SweepFiles, SweepLook, recorded_sweep
from ace_core.lab.sweep_request import (
    ALPHA_COUNTS,
    ALPHA_RANGE,
    MOST_METHODS,
    PROMPT_COUNTS,
    SWEEP_METHODS,
    SWEEP_PRESETS,
    TOKEN_COUNTS,
    SweepRequest,
    sweep_request,
)

__all__ = [
    "ACHIEVED_COEFFICIENTS",
    "ALPHA_COUNTS",
    "ALPHA_RANGE",
    "FILE_SUFFIXES",
    "KINDS",
    "LIMIT_RANGE",
    "METHOD_CHOICES",
    "MOST_METHODS",
    "POSITION_CHOICES",
    "PROMPT_COUNTS",
    "READING",
    "READING_METHODS",
    "REFERENCE",
    "SEPARATES",
    "SITE_CHOICES",
    "SWEEP_METHODS",
    "SWEEP_PRESETS",
    "TOKEN_COUNTS",
    "VARIANT_CHOICES",
    "Achieved",
    "Beside",
    "BlockChoice",
    "LabFiles",
    "LabFit",
    "LabOptions",
    "LabParts",
    "LabRequest",
    "LabSet",
    "LabSweep",
    "Look",
    "PlaneReading",
    "PromptLayers",
    "PromptPlane",
    "SweepFiles",
    "SweepLook",
    "SweepRequest",
    "accept_directions",
    "beside",
    "block_table",
    "builtin_set",
    "check_block_table",
    "choose_block",
    "file_set",
    "fit_lab",
    "hub_names",
    "hub_set",
    "is_foreign",
    "lab_options",
    "language_choices",
    "language_set",
    "look_at",
    "prompt_layers",
    "read_foreign",
    "read_own",
    "recorded_layers",
    "recorded_sweep",
    "split_sets",
    "sweep_request",
    "table_prompts",
    "write_files",
]
