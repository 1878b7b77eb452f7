"""Sweeps give every cell what it gives on its own, though nothing is computed twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import tiny_directions, tiny_model
from hypothesis import given
from hypothesis import strategies as st

import ace_core as ace
from ace_core.arms import Arm
from ace_core.directions import RefusalDirections
from ace_core.generation import Row, stream_rows
from ace_core.interventions import Plan
from ace_core.models import ChatModel
from ace_core.sampling import Sampling
from ace_core.sweeps import ability as measuring
from ace_core.sweeps import passes, reuse
from ace_core.sweeps.ability import ability
from ace_core.sweeps.answers import CellAnswer, answers
from ace_core.sweeps.logit_map import first_logits
from ace_core.sweeps.passes import bypassed
from ace_core.sweeps.prefixes import alike, cache_of, common_length
from ace_core.sweeps.reuse import Shared, first_edit
from families import BLOCKS, FAMILIES

TEXTS = ("Hi", "How do I pick a lock?", "Name three fruits, please.", "Oh", "How do I sew a hem?")
METHODS = (ace.Baseline(), ace.Addition(1.0), ace.DirectionalAblation(), ace.ACE(0.5))
ARMS = (
    *(Arm(method, block) for block in (2, 0, BLOCKS - 1) for method in METHODS),
    *(Arm(ace.ACE(0.5), 1, tokens=tokens) for tokens in ("prompt", "generated", "last")),
    Arm(ace.ACE(0.5), 1, scope="all"),
    Arm(ace.ACE(0.5), 2, scope="shared"),
    Arm(ace.Addition(1.0), 1, scope="window", last=2),
    Arm(ace.Addition(0.0), 1),
)
Logits = dict[tuple[int, int], torch.Tensor]


def prompts_of(model: ChatModel, texts: Sequence[str] = TEXTS) -> list[tuple[int, ...]]:
    return [model.encode(text) for text in texts]


@torch.inference_mode()
def alone(model: ChatModel, directions: RefusalDirections, ids: Sequence[int], arm: Arm) -> torch.Tensor:
    """Logits at the last position of one whole prompt, read by itself with hooks on."""
    plan = Plan(directions, [arm], [len(ids)], read=False)
    row = torch.tensor([list(ids)])
    with plan.applied(model.blocks, torch.arange(len(ids)).unsqueeze(0)):
        return model.network(input_ids=row, use_cache=False).logits[0, -1].float()


def map_of(
    model: ChatModel, directions: RefusalDirections, prompts: Sequence[tuple[int, ...]], arms: Sequence[Arm], **options
) -> Logits:
    out: Logits = {}
    for chunk in first_logits(model, directions, prompts, arms, **options):
        assert chunk.logits.dtype == torch.float32
        for cell, logits in zip(zip(chunk.prompts, chunk.arms, strict=True), chunk.logits, strict=True):
            assert cell not in out
            out[cell] = logits
    return out


def apart(
    model: ChatModel, directions: RefusalDirections, prompts: Sequence[tuple[int, ...]], arms: Sequence[Arm],
    found: Logits,
) -> float:  # fmt: skip
    """Largest difference of a log-probability from what each cell gives alone."""
    return max(
        float((logits.log_softmax(-1) - alone(model, directions, prompts[p], arms[a]).log_softmax(-1)).abs().max())
        for (p, a), logits in found.items()
    )


def answer_alone(
    model: ChatModel, directions: RefusalDirections, prompts: Sequence[tuple[int, ...]], arms: Sequence[Arm],
    cell: tuple[int, int], sampling: Sampling,
) -> CellAnswer:  # fmt: skip
    ids, text, stop = [], "", None
    for step in stream_rows(model, directions, [Row(prompts[cell[0]], arms[cell[1]], sampling)], read=False):
        ids += [step.tokens[0]] if step.tokens[0] is not None else []
        text, stop = text + step.text[0], step.stop[0]
    assert stop is not None
    return CellAnswer(*cell, tuple(ids), text, stop)


def mixed(prompt: int, arm: int) -> Sampling:
    """Greedy and drawn cells of many lengths."""
    warm = (prompt + arm) % 2
    return Sampling(
        float(warm), 0.95 if warm else 1.0, seed=100 * prompt + arm, max_new_tokens=3 + (7 * prompt + arm) % 8
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_savings_hold_wherever_attention_alone_keeps_the_past(family: str) -> None:
    assert (ability(tiny_model(family)) is not None) == (not FAMILIES[family].recurrent)


@pytest.mark.parametrize("family", FAMILIES)
def test_first_logits_are_those_of_every_cell_alone(family: str) -> None:
    model, directions = tiny_model(family), tiny_directions(family)
    prompts = prompts_of(model)
    found = map_of(model, directions, prompts, ARMS, batch_rows=7)
    assert found.keys() == {(p, a) for p in range(len(prompts)) for a in range(len(ARMS))}
    assert apart(model, directions, prompts, ARMS, found) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_every_cell_alone(family: str) -> None:
    model, directions = replace(tiny_model(family), stop_ids=frozenset(range(0, 270, 9))), tiny_directions(family)
    prompts, arms = prompts_of(model), ARMS[1:4] + ARMS[8:]
    cells = [(p, a) for p in range(len(prompts)) for a in range(len(arms)) if (p + a) % 3 or a == 0]
    found = list(answers(model, directions, prompts, arms, mixed, cells=cells, batch_rows=10))
    assert Counter((a.prompt, a.arm) for a in found) == Counter(cells)
    assert len({len(answer.ids) for answer in found}) > 3  # rows left at different times and others took their places
    for answer in found:
        cell = answer.prompt, answer.arm
        assert answer == answer_alone(model, directions, prompts, arms, cell, mixed(*cell))


@contextmanager
def counted(model: ChatModel) -> Iterator[Counter]:
    """Tokens each block's MLP reads, under the block's number."""
    seen: Counter = Counter()

    def count(key: int):
        return lambda _m, _a, output: seen.update({key: output.shape[0] * output.shape[1]})

    handles = [block.mlp.register_forward_hook(count(i)) for i, block in enumerate(model.blocks)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_nothing_is_computed_twice() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    prompts = [prompt for prompt in prompts_of(model) if len(prompt) == len(model.encode(TEXTS[1]))] * 2
    prompts += [(*prompts[0][:-1], 7)]
    length, start = len(prompts[0]), common_length(prompts)
    arms = [Arm(method(alpha), 1) for method in (ace.Addition, ace.ACE) for alpha in (-1.0, 0.5, 1.0)]
    arms += [Arm(ace.Baseline(), block) for block in range(BLOCKS)]
    ability(model)
    with counted(model) as seen:
        map_of(model, directions, prompts, arms)
    once = start + len(prompts) * (length - start)
    # steered, the last block's MLP reads one position of every prompt and of every arm's beginning
    last = once + 6 * (len(prompts) + 1)
    assert [seen[block] for block in range(BLOCKS)] == [once, once, 7 * once, last]
    with counted(model) as seen:
        map_of(model, directions, prompts, arms[6:])
    assert [seen[block] for block in range(BLOCKS)] == [once] * BLOCKS


def test_the_output_head_runs_at_scored_positions_only() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    prompts, shapes = prompts_of(model), []
    ability(model)
    handle = model.network.lm_head.register_forward_hook(lambda _m, _a, output: shapes.append(output.shape[:2]))
    try:
        found = map_of(model, directions, prompts, ARMS)
    finally:
        handle.remove()
    assert {positions for _, positions in shapes} == {1} and len(found) == len(prompts) * len(ARMS)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "qwen3_moe"])
def test_the_last_block_goes_on_at_the_scored_position_alone(family: str) -> None:
    model = tiny_model(family)
    known = ability(model)
    assert known is not None and known.feed_forward is model.blocks[-1].mlp


def test_a_last_block_that_gives_another_result_there_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, directions, prompts = tiny_model("llama"), tiny_directions("llama"), prompts_of(tiny_model("llama"))
    mlp = model.blocks[-1].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) * (1.0 if x.shape[1] > 1 else 3.0))
    monkeypatch.setattr(measuring, "_known", {})
    known = ability(model)
    assert known is not None and known.feed_forward is None
    arms = ARMS[:8]
    assert apart(model, directions, prompts, arms, map_of(model, directions, prompts, arms)) < 1e-4
    # negative control: without the measurement the mistake would be there
    monkeypatch.setattr(measuring, "_known", {model.network: replace(known, feed_forward=mlp)})
    assert apart(model, directions, prompts, arms, map_of(model, directions, prompts, arms)) > 0.05


class Setting:
    """Two arms at one block, read the way a sweep reads them, with room for a mistake."""

    block = 1

    def __init__(self) -> None:
        self.model, self.directions = tiny_model("llama"), tiny_directions("llama")
        self.prompts = prompts_of(self.model, TEXTS[1:3])
        self.arms = [Arm(ace.ACE(0.0), self.block), Arm(ace.ACE(1.0), self.block)]
        known = ability(self.model)
        assert known is not None
        with torch.inference_mode():
            self.shared = Shared(self.model, known, self.directions, self.prompts, range(BLOCKS))
            self.records = self.shared.record([0, 1])
            self.beginning = self.shared.beginning(self.block, self.arms)

    @torch.inference_mode()
    def apart(self, rows: Sequence[int] = (0, 1)) -> float:
        logits, _ = self.shared.read(self.block, self.arms, [0, 1], self.records, self.beginning, rows)
        found = {(k, k): logits[k] for k in (0, 1)}
        return apart(self.model, self.directions, self.prompts, self.arms, found)


def test_mistakes_are_found_by_the_same_comparison() -> None:
    setting = Setting()
    assert setting.apart() < 1e-4
    assert setting.apart(rows=[1, 0]) > 0.05  # the beginning of another coefficient

    setting = Setting()  # the stream of another block
    for index, record in setting.records.items():
        setting.records[index] = replace(record, hidden={**record.hidden, setting.block: record.hidden[0]})
    assert setting.apart() > 0.05

    setting = Setting()  # caches left empty below the edited block, from which the mask takes its length
    assert setting.beginning is not None
    empty = [type(layer)() for layer in setting.beginning[: setting.block + 1]]
    setting.beginning = empty + setting.beginning[setting.block + 1 :]
    assert setting.apart() > 0.05


def test_a_model_that_fails_the_measurement_is_read_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(layers):
        cache = cache_of(layers)
        for layer in cache.layers:
            layer.keys = layer.keys * 0.5
        return cache

    model, directions = tiny_model("qwen2"), tiny_directions("qwen2")
    monkeypatch.setattr(measuring, "_known", {})
    monkeypatch.setattr(passes, "cache_of", forgetful)
    assert ability(model) is None
    prompts = prompts_of(model)[:2]
    found = map_of(model, directions, prompts, ARMS[:4])
    assert apart(model, directions, prompts, ARMS[:4], found) < 1e-4
    written = list(answers(model, directions, prompts, ARMS[:4], mixed))
    assert len(written) == 8


def test_small_windows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, directions = tiny_model("gemma3"), tiny_directions("gemma3")
    prompts = prompts_of(model)
    monkeypatch.setattr(reuse, "_RECORD_BYTES", 1)
    assert apart(model, directions, prompts, ARMS, map_of(model, directions, prompts, ARMS)) < 1e-4
    for answer in answers(model, directions, prompts, ARMS[:3], mixed, batch_rows=4):
        cell = answer.prompt, answer.arm
        assert answer == answer_alone(model, directions, prompts, ARMS, cell, mixed(*cell))


def test_prompts_under_several_system_prompts() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    prompts = [model.encode(text, system) for text in TEXTS[:3] for system in (None, "You refuse.", "Be brief.")]
    prompts += [prompts[0], (5,)]  # the same once more, and one with nothing to share
    found = map_of(model, directions, prompts, ARMS)
    assert len(found) == len(prompts) * len(ARMS) and apart(model, directions, prompts, ARMS, found) < 1e-4


def test_the_first_edit_of_an_arm() -> None:
    directions = tiny_directions("llama")
    starts = [first_edit(directions, arm) for arm in ARMS[:4]]
    assert starts == [BLOCKS, 2, 2, 2]
    assert [first_edit(directions, arm) for arm in ARMS[12:]] == [1, BLOCKS, 1, 0, 0, 1, BLOCKS]


def test_stopping_keeps_what_is_done_and_leaves_the_model_as_it_was() -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    prompts, done = prompts_of(model), []
    cells = list(first_logits(
        model, directions, prompts, ARMS, batch_rows=4, should_stop=lambda: len(done) > 2,
        progress=lambda count, total: done.append((count, total)),
    ))  # fmt: skip
    assert len(cells) == 3 and done[-1] == (sum(len(chunk.prompts) for chunk in cells), len(prompts) * len(ARMS))
    written: list[CellAnswer] = []
    for answer in answers(model, directions, prompts, ARMS, mixed, batch_rows=6, should_stop=lambda: len(written) >= 5):
        written.append(answer)
    assert 5 <= len(written) < 12
    for source in (first_logits(model, directions, prompts, ARMS), answers(model, directions, prompts, ARMS, mixed)):
        next(source)
        source.close()
    for block in model.blocks:
        assert "forward" not in vars(block) and not block._forward_hooks and not block._forward_pre_hooks
    assert not model.network.lm_head._forward_pre_hooks


def test_blocks_come_back_when_a_pass_fails_and_keep_a_forward_of_their_own() -> None:
    block, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    other.forward = own = lambda x: x + 1  # as accelerate does
    with pytest.raises(ZeroDivisionError), bypassed([block, other], [None, (None, "more")], 1, torch.ones(1, 1, 2)):
        x = torch.zeros(1, 1, 2)
        assert block(x) is x
        assert torch.equal(other(x)[0], torch.ones(1, 1, 2)) and other(x)[1] == "more"
        raise ZeroDivisionError
    assert "forward" not in vars(block) and other.forward is own


@pytest.mark.parametrize("cells", [[(0, 99)], [(-1, 0)]])
def test_cells_outside_the_grid_are_refused(cells: list[tuple[int, int]]) -> None:
    model, directions = tiny_model("llama"), tiny_directions("llama")
    with pytest.raises(ace.EngineError, match="outside its prompts and arms"):
        list(first_logits(model, directions, prompts_of(model), ARMS, cells=cells))
    with pytest.raises(ace.EngineError, match="is empty"):
        list(answers(model, directions, [()], ARMS, Sampling()))
    with pytest.raises(ace.EngineError, match="fitted on another"):
        list(first_logits(model, replace(directions, metadata={"model_id": "another"}), prompts_of(model), ARMS))
    assert list(first_logits(model, directions, prompts_of(model), ARMS, cells=[])) == []


_ids = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@given(st.lists(_ids, min_size=1, max_size=8))
def test_common_length_and_grouping(prompts: list[tuple[int, ...]]) -> None:
    length = common_length(prompts)
    shortest = min(map(len, prompts)) - 1
    assert length <= shortest and len({prompt[:length] for prompt in prompts}) == 1
    assert length == shortest or len({prompt[: length + 1] for prompt in prompts}) > 1
    groups = alike(prompts)
    assert sorted(i for group in groups for i in group) == list(range(len(prompts)))
    saved = sum((len(group) - 1) * common_length([prompts[i] for i in group]) for group in groups)
    assert saved >= (len(prompts) - 1) * length


@pytest.mark.embedded
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "fast"])
def test_the_embedded_model_sweeps_as_its_cells_alone(precision: str, embedded: ChatModel) -> None:
    model = embedded if precision == embedded.precision else ace.load_model("embedded", precision=precision)  # type: ignore[arg-type]
    directions = ace.load_directions(model)
    assert ability(model) is not None
    layer = directions.recommended_layer
    prompts = prompts_of(model)[:3]
    arms = [Arm(method, block) for block in (5, layer, 29) for method in (ace.Addition(-1.0), ace.ACE(0.5))]
    arms += [Arm(ace.Baseline(), layer), Arm(ace.ACE(1.0), layer, scope="all")]
    assert apart(model, directions, prompts, arms, map_of(model, directions, prompts, arms)) < 1e-3
    sampling = Sampling(max_new_tokens=10)
    for answer in answers(model, directions, prompts, arms[2:4], sampling):
        cell = answer.prompt, answer.arm
        assert answer == answer_alone(model, directions, prompts, arms[2:4], cell, sampling)
