"""A model whose blocks lie partly on the disk, as accelerate's device_map places them, is steered and read the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import HARMFUL, HARMLESS

import ace_core as ace
from ace_core.arms import Arm
from ace_core.models import ChatModel
from ace_core.sampling import Sampling
from ace_core.sweeps.ability import ability
from ace_core.sweeps.answers import answers
from ace_core.sweeps.logit_map import first_logits
from families import BLOCKS, save_tiny

ON_DISK = (1, 3)
ARMS = [
    Arm(ace.Baseline(), 0),
    *(Arm(method, block) for block in (*ON_DISK, 2) for method in (ace.Addition(1.0), ace.ACE(0.5))),
    Arm(ace.ACE(1.0), 1, scope="all"),
]


def placement(model: ChatModel) -> dict[str, str]:
    """Every module on the CPU but two blocks, which lie on the disk."""
    (prefix,) = {name.rpartition(".")[0] for name, module in model.network.named_modules() if module is model.blocks[0]}
    blocks = {f"{prefix}.{i}": "disk" if i in ON_DISK else "cpu" for i in range(BLOCKS)}
    rest: dict[str, str] = {}

    def visit(module: torch.nn.Module, path: str) -> None:
        for name, child in module.named_children():
            below = f"{path}{name}"
            if prefix == below:
                continue
            if prefix.startswith(f"{below}."):
                visit(child, f"{below}.")
            else:
                rest[below] = "cpu"

    visit(model.network, "")
    return {**rest, **blocks}


@pytest.fixture(params=["qwen2", "gemma2", "bloom", "mamba"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ChatModel, ChatModel]:
    """The same model whole and split."""
    save_tiny(tmp_path / "tiny", request.param)
    whole = ace.load_model(str(tmp_path / "tiny"), precision="float32", packed=False)
    split = ace.load_model(str(tmp_path / "tiny"), precision="float32", device_map=placement(whole))  # type: ignore[arg-type]
    return whole, split


def test_a_split_model_gives_what_the_whole_gives(pair: tuple[ChatModel, ChatModel]) -> None:
    whole, split = pair
    for i, block in enumerate(split.blocks):
        # weights on the disk are nowhere in memory between two passes
        assert {p.device.type for p in block.parameters()} == {"meta" if i in ON_DISK else "cpu"}
    assert (ability(whole) is None) == (ability(split) is None) == whole.recurrent
    fits = [ace.fit_directions(model, HARMFUL, HARMLESS) for model in pair]
    for name in ("mean_harmful", "mean_harmless"):
        torch.testing.assert_close(getattr(fits[1], name), getattr(fits[0], name), rtol=1e-4, atol=1e-5)

    prompts = [whole.encode(text) for text in (*HARMFUL[:2], *HARMLESS[:2])]
    logits, texts, coordinates = [], [], []
    for model in pair:
        found = torch.empty(len(prompts), len(ARMS), 0)
        for chunk in first_logits(model, fits[0], prompts, ARMS, batch_rows=6):
            found = found if found.shape[2] else found.new_zeros(*found.shape[:2], chunk.logits.shape[1])
            found[list(chunk.prompts), list(chunk.arms)] = chunk.logits
        logits.append(found)
        given = answers(model, fits[0], prompts, ARMS, Sampling(max_new_tokens=6), batch_rows=10)
        texts.append({(answer.prompt, answer.arm): answer.ids for answer in given})
        arms = [ace.Baseline(), ace.Addition(1.0), ace.ACE(0.5)]
        steps = ace.stream(model, fits[0], HARMFUL[0], arms, layer=ON_DISK[0], max_new_tokens=3)
        coordinates.append([step.coordinates for step in steps])
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert texts[0] == texts[1] and len(texts[0]) == len(prompts) * len(ARMS)
    for one, other in zip(*coordinates, strict=True):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one), rtol=1e-3, atol=1e-3)
    # edits at blocks on the disk happen: under them, and under each of them, something else comes out
    moved = (logits[1] - logits[1][:, :1]).abs().amax(dim=(0, 2))
    assert moved[0] == 0 and float(moved[1:].min()) > 2e-3  # twenty times what may differ
