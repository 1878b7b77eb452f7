"""Running a sweep: coarse to fine, every cell on the disk before the next ones, stopped and resumed at will."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from ace_core.activations import Stopped, TimeLeft
from ace_core.directions import RefusalDirections
from ace_core.errors import EngineError
from ace_core.models import ChatModel
from ace_core.sampling import Sampling
from ace_core.sweeps.answers import CellAnswer, answers
from ace_core.sweeps.judge import Judge, JudgeScorer
from ace_core.sweeps.logit_map import first_logits
from ace_core.sweeps.plan import SYSTEM_PROMPTS, Cell, Condition, SweepPlan
from ace_core.sweeps.records import Record, SweepFolder, manifest_of
from ace_core.sweeps.scorers import LogitScorer, PerplexityScorer, PhraseScorer, Scorer, Scores, TokenKL, Work
from ace_core.sweeps.unsteered import Unsteered, encoded, refusal_tokens

__all__ = ["SweepEvent", "run_sweep"]

_LOGIT_SCORES = ("refusal_score", "first_kl")
_KEPT = 32
"""Finished answers that wait for each other to be scored together; what a killed sweep does again at most, besides
the answers that were being generated."""


@dataclass(frozen=True)
class SweepEvent:
    """How far a sweep is.

    Args:
        message: one sentence.
        done, total: cells of the whole sweep; ``done`` counts those of earlier runs.
        seconds_left: None before anything is known.
        records: cells finished since the event before, as they are on the disk.
    """

    message: str
    done: int
    total: int
    seconds_left: float | None = None
    records: tuple[Record, ...] = ()

    @property
    def fraction(self) -> float:
        return self.done / max(1, self.total)


def run_sweep(
    model: ChatModel,
    directions: RefusalDirections,
    plan: SweepPlan,
    folder: SweepFolder,
    *,
    resume: bool = False,
    judge: Judge | None = None,
    command: str = "",
    batch_rows: int = 48,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generator[SweepEvent, None, None]:
    """Run what is not yet finished of a sweep, yielding events; finished cells are on the disk when they are told.

    Args:
        model: a loaded model.
        directions: fitted on it.
        plan: what to run.
        folder: where results go. Of a sweep shared by processes this one runs the cells of its part.
        resume: go on with the same sweep in the folder.
        judge: asked if the plan scores by one.
        command: how the sweep was started, for the manifest.
        batch_rows: rows a forward pass.
        should_stop: polled often; once true the sweep ends, keeping what is finished.

    Raises:
        EngineError: one sentence for a folder that holds something else, a plan that does not fit the model, or a judge
            that is missing or refuses.
    """
    model.accepts(directions)
    for condition in plan.conditions:
        condition.arm.blocks(directions.blocks)
    if ("judge" in plan.scorers) != (judge is not None):
        raise EngineError("The scorer 'judge' and a judge go together: give both or neither.")
    manifest = manifest_of(model, directions, plan, judge.name if judge else "", command)
    before = folder.check(manifest, resume)
    done = folder.records() if before else []
    run = _Run(model, directions, plan, judge, batch_rows, should_stop)
    run.done, run.finished = {record["cell"] for record in done}, len(done)
    yield run.event("Resuming" if before else "Starting")
    try:
        known = before.get("refusal_tokens") if before else None
        tokens = known or refusal_tokens(model, plan, batch_rows, should_stop)
    except Stopped:
        return
    with folder.open({**manifest, "refusal_tokens": tokens}):
        yield from run.cells(folder, tuple(tokens["ids"]), done)


class _Run:
    """One run of :func:`run_sweep`."""

    def __init__(
        self,
        model: ChatModel,
        directions: RefusalDirections,
        plan: SweepPlan,
        judge: Judge | None,
        batch_rows: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self.model, self.directions, self.plan, self.judge = model, directions, plan, judge
        self.batch_rows, self.should_stop = batch_rows, should_stop
        self.vocabulary = int(model.network.config.get_text_config().vocab_size)
        self.logit_scorer: LogitScorer | None = None
        self.plain = Unsteered({}, {})
        self.first: dict[tuple[int, str], Scores] = {}
        self.scorers: list[Scorer] = []
        self.done: set[str] = set()
        self.finished, self.total = 0, len(plan.cells)
        self.systems = ["", *(SYSTEM_PROMPTS if plan.system_prompts else ())]
        self.rows = [
            encoded(model, prompt.text, SYSTEM_PROMPTS.get(s)) for s in self.systems for prompt in plan.prompts
        ]

    def event(self, message: str, seconds: float | None = None, records: Sequence[Record] = ()) -> SweepEvent:
        return SweepEvent(message, self.finished, self.total, seconds, tuple(records))

    def cells(
        self, folder: SweepFolder, refusal_ids: tuple[int, ...], before: Sequence[Record]
    ) -> Iterator[SweepEvent]:
        """Run this process's share of what is not done."""
        index, count = folder.part
        mine = [c for number, c in enumerate(self.plan.cells) if number % count == index and c.id not in self.done]
        left, start = TimeLeft(), self.finished
        if mine:
            self._prepare(refusal_ids, before)
            if self.should_stop():  # what every cell is measured against may be missing
                yield self.event("Stopped; resume to go on")
                return
        for cells in self._portions(mine):
            for works in self._works(cells):
                for scorer in self.scorers:
                    for work, scores in zip(works, scorer.score(works), strict=True):
                        work.scores.update(scores)
                records = [self._record(work) for work in works]
                folder.append(records)
                self.finished += len(records)
                yield self.event("Sweeping", left(self.finished - start, len(mine)), records)
            if self.should_stop():
                yield self.event("Stopped; resume to go on")
                return
        yield self.event("Finished" if self.finished == self.total else "This process has finished its part")

    def _prepare(self, refusal_ids: tuple[int, ...], before: Sequence[Record]) -> None:
        """What is computed once for the whole sweep: the unsteered model's logits and answers."""
        rows = self.rows[: len(self.plan.prompts)]
        self.plain = Unsteered.of(self.model, self.directions, self.plan, rows, self.batch_rows, self.should_stop)
        if "logit" in self.plan.scorers:
            self.logit_scorer = LogitScorer(refusal_ids, self.plain.logits)
            # several answers of one condition share what is read before the first token
            self.first = {(r["prompt"], r["condition"]): {name: r[name] for name in _LOGIT_SCORES} for r in before}
        self.scorers = self._scorers()

    def _portions(self, cells: Sequence[Cell]) -> Iterator[list[Cell]]:
        """Cells that run together: those of one wave and sample, neighbours in the plan's order."""
        waves = {condition: number for number, wave in enumerate(self.plan.waves) for condition in wave}
        portions: dict[tuple[int, int], list[Cell]] = {}
        for cell in cells:
            portions.setdefault((waves[cell.condition], cell.sample), []).append(cell)
        yield from portions.values()

    def _works(self, cells: Sequence[Cell]) -> Iterator[list[Work]]:
        """Cells with their answers and what the first logits say, in batches as they are finished."""
        arms = list(dict.fromkeys(cell.condition for cell in cells))
        by_pair = {(self._row(cell), arms.index(cell.condition)): cell for cell in cells}
        yield from self._read(arms, by_pair)
        if not self.plan.tokens or self.should_stop():
            return
        waiting: list[Work] = []
        for answer in self._answers(arms, by_pair):
            cell = by_pair[answer.prompt, answer.arm]
            work = self._work(cell)
            work.answer, work.text, work.stop = answer.ids, answer.text, answer.stop
            waiting.append(work)
            if len(waiting) == _KEPT:
                yield waiting
                waiting = []
        if waiting:
            yield waiting

    def _read(self, arms: Sequence[Condition], by_pair: dict[tuple[int, int], Cell]) -> Iterator[list[Work]]:
        """Score the first logits of cells; where nothing is generated that finishes them."""
        if self.logit_scorer is None:
            return
        unread = [pair for pair, cell in by_pair.items() if (cell.prompt, cell.condition.key) not in self.first]
        plain = [pair for pair in unread if by_pair[pair].condition.method == "baseline"]
        known = (([pair], self.plain.logits[by_pair[pair].prompt].unsqueeze(0)) for pair in plain)
        steered = [pair for pair in unread if by_pair[pair].condition.method != "baseline"]
        read = first_logits(
            self.model, self.directions, self.rows, [condition.arm for condition in arms], cells=steered,
            batch_rows=self.batch_rows, should_stop=self.should_stop,
        ) if steered else ()  # fmt: skip
        for pairs, logits in chain(known, ((list(zip(c.prompts, c.arms, strict=True)), c.logits) for c in read)):
            works = [self._work(by_pair[pair]) for pair in pairs]
            for work, row in zip(works, logits, strict=True):
                work.logits = row
            for work, scores in zip(works, self.logit_scorer.score(works), strict=True):
                work.logits = None
                work.scores.update(scores)
                self.first[work.cell.prompt, work.cell.condition.key] = scores
            if not self.plan.tokens:
                yield works

    def _answers(self, arms: Sequence[Condition], by_pair: dict[tuple[int, int], Cell]) -> Iterator[CellAnswer]:
        pairs = list(by_pair)
        if self.plan.temperature == 0:
            # the unsteered answers are there already
            known = [
                p
                for p in pairs
                if by_pair[p].condition.method == "baseline" and by_pair[p].prompt in self.plain.answers
            ]
            for pair in known:
                found = self.plain.answers[by_pair[pair].prompt]
                yield CellAnswer(pair[0], pair[1], found.ids, found.text, found.stop)
            pairs = [pair for pair in pairs if pair not in set(known)]
        if pairs:
            yield from answers(
                self.model, self.directions, self.rows, [condition.arm for condition in arms],
                lambda p, a: self._sampling(by_pair[p, a]), cells=pairs, batch_rows=self.batch_rows,
                should_stop=self.should_stop,
            )  # fmt: skip

    def _sampling(self, cell: Cell) -> Sampling:
        return self.plan.sampling(cell.prompt, cell.sample)

    def _row(self, cell: Cell) -> int:
        system = self.systems.index(cell.condition.method) if cell.condition.system else 0
        return system * len(self.plan.prompts) + cell.prompt

    def _work(self, cell: Cell) -> Work:
        prompt = self.plan.prompts[cell.prompt]
        scores = self.first.get((cell.prompt, cell.condition.key), {})
        return Work(cell, prompt.kind, prompt.text, self.rows[self._row(cell)], scores=dict(scores))

    def _scorers(self) -> list[Scorer]:
        """Scorers of finished answers; a later one may use what an earlier one said."""
        prompts, names = self.rows[: len(self.plan.prompts)], self.plan.scorers
        out: list[Scorer] = []
        if "perplexity" in names:
            out.append(PerplexityScorer(self.model, self.directions, prompts))
        if "phrase" in names:
            out.append(PhraseScorer(self.vocabulary))
        if "kl" in names:
            ids = {prompt: answer.ids for prompt, answer in self.plain.answers.items()}
            out.append(TokenKL(self.model, self.directions, prompts, ids))
        if self.judge is not None:
            out.append(JudgeScorer(self.judge))
        return out

    def _record(self, work: Work) -> Record:
        condition, place = work.cell.condition, work.cell.condition.place
        return {
            "cell": work.cell.id,
            "prompt": work.cell.prompt,
            "kind": work.kind,
            "condition": condition.key,
            "method": condition.method,
            "alpha": condition.alpha,
            "layer": None if place is None else place.layer,
            "place": None if place is None else place.key,
            "sample": work.cell.sample,
            **({"text": work.text, "stop": work.stop} if self.plan.tokens else {}),
            **work.scores,
        }
