"""`check` passes on every family, and each of its checks catches at least one deliberate fault."""

from __future__ import annotations

import functools

import pytest
from conftest import tiny_directions, tiny_model

from ace_core.checking.checks import CHECKS, CheckRow, run_checks
from ace_core.checking.faults import FAULTS
from ace_core.models import ChatModel
from families import FAMILIES

CATCHES = {
    "layer": "edited layer is exact",
    "row": "arms of one prompt equal each arm alone",
    "position": "edited positions are exact",
    "chunk": "cached decoding equals uncached",
    "coefficient": "coordinate after ACE equals alpha",
    "axis": "orthogonal complement untouched",
}


@functools.cache
def rows(family: str, fault: str | None = None) -> tuple[CheckRow, ...]:
    chosen = None if fault is None else FAULTS[fault]
    return tuple(run_checks(tiny_model(family), tiny_directions(family), chosen))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_check_passes(family: str) -> None:
    failed = [row for row in rows(family) if not row.passed]
    assert not failed
    assert len(rows(family)) == len(CHECKS)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "falcon", "mixtral", "rwkv"])
def test_faults_are_caught_by_the_check_made_for_them(family: str, fault: str) -> None:
    caught = {row.name for row in rows(family, fault) if not row.passed}
    assert CATCHES[fault] in caught


@pytest.mark.parametrize("family", ["llama", "gemma3", "falcon", "mixtral", "rwkv"])
def test_every_check_catches_some_fault(family: str) -> None:
    caught = {row.name for fault in FAULTS for row in rows(family, fault) if not row.passed}
    assert caught == {row.name for row in rows(family)}


@pytest.mark.embedded
@pytest.mark.slow
def test_embedded_model_passes(embedded: ChatModel, embedded_directions) -> None:
    failed = [row for row in run_checks(embedded, embedded_directions) if not row.passed]
    assert not failed
