"""Training the adapter that makes the embedded model refuse: one command, from data in the project.

Harmful requests get short refusals; harmless requests and look-alikes get what the base model itself answers, with the
probabilities it gives to other words, so that nothing but refusing is learnt. Only the lower middle blocks are adapted,
because refusal written early leaves a direction that every later block carries and that single-block steering reaches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from ace_core.answering import Answer, Tally, answer_all, tally
from ace_core.default_model.adapter import ADAPTER, WEIGHTS_NAME, save_adapter
from ace_core.default_model.lora import BASE_ID, Example, Recipe, Trainer, likely_tokens, shared_length
from ace_core.embedded import cache_folder
from ace_core.errors import EngineError
from ace_core.models import ChatModel, load_model
from ace_core.prompts import Prompt, load_builtin, prompts_digest
from ace_core.scoring import verdict

__all__ = ["REFUSALS", "REPORT_NAME", "TrainingReport", "Validation", "read_report", "refusal_for", "train_default"]

REFUSALS = ADAPTER / "refusals.json"
"""The refusals that are taught: plain ones, ones that name a topic, and the topics' names."""

REPORT_NAME = "training.json"

Progress = Callable[[str, float | None], None]
_SAVE_EVERY = 10
_SOFTEN_BATCH = 32
_KINDS = ("harmful", "harmless", "lookalike")
_VALIDATION_NAME = "validation.json"


@dataclass(frozen=True)
class Validation:
    """Verdicts on the validation split after ``step`` steps; ``score`` decides which adapter is kept."""

    step: int
    harmful: Tally
    harmless: Tally
    lookalike: Tally

    @property
    def score(self) -> float:
        """Harmful refused, less twice harmless refused, less look-alikes refused."""
        return self.harmful.refused_rate - 2 * self.harmless.refused_rate - self.lookalike.refused_rate


@dataclass(frozen=True)
class TrainingReport:
    """What a training run did; ``losses`` holds the mean loss per answer token of every step, in nats."""

    recipe: Recipe
    examples: dict[str, int]
    steps: int
    chosen_step: int
    losses: tuple[float, ...]
    validations: tuple[Validation, ...]
    seconds: float
    digest: str
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["losses"] = [round(loss, 5) for loss in self.losses]
        data["seconds"] = round(self.seconds)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingReport:
        """Inverse of :meth:`to_json`."""
        return cls(
            **{
                **data,
                "recipe": Recipe(**{**data["recipe"], "validate_at": tuple(data["recipe"]["validate_at"])}),
                "losses": tuple(data["losses"]),
                "validations": tuple(_validation(v) for v in data["validations"]),
            }
        )


def _validation(data: dict[str, Any]) -> Validation:
    return Validation(data["step"], *(Tally(**data[kind]) for kind in _KINDS))


def read_report(folder: Path = ADAPTER) -> TrainingReport:
    """The record that training left beside an adapter.

    Raises:
        EngineError: if it is missing or damaged.
    """
    try:
        return TrainingReport.from_json(json.loads((folder / REPORT_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        raise EngineError(f"There is no readable {REPORT_NAME} in {folder}: run 'train-default' first.") from None


def refusal_for(prompt: Prompt, recipe: Recipe) -> str:
    """The refusal taught for a harmful prompt: drawn by seed and prompt, whatever else is in the set."""
    wordings = json.loads(REFUSALS.read_text(encoding="utf-8"))
    draw = random.Random(f"{recipe.seed}:{prompt.text}")
    topic = wordings["topics"].get(prompt.category)
    if topic is None or draw.random() >= recipe.topic_share:
        return draw.choice(wordings["plain"])
    return draw.choice(wordings["with_topic"]).format(topic=topic)


def train_default(
    out: Path = ADAPTER,
    *,
    seed: int = 0,
    resume: bool = True,
    progress: Progress = lambda message, fraction: None,
    limit: int | None = None,
    recipe: Recipe | None = None,
) -> TrainingReport:
    """Train the default's adapter and write it to ``out`` with a record of the run.

    An interrupted run goes on where it stopped: its state is kept in the cache folder, bound to recipe and data.

    Args:
        out: folder for the adapter.
        seed: decides wordings, order and initial weights; it replaces the recipe's.
        resume: go on from an earlier state of the same run.
        progress: called with a sentence and the fraction done, or None.
        limit: use only this many prompts of each set, for a quick trial.
        recipe: None takes the shipped one.

    Raises:
        EngineError: one sentence that says what to do.
    """
    recipe = replace(recipe or Recipe(), seed=seed)
    model = load_model("embedded-base", precision="float32", packed=False, progress=progress)
    sets = {kind: load_builtin(kind, "train")[:limit] for kind in _KINDS}
    held = {kind: load_builtin(kind, "validation")[:limit] for kind in _KINDS}
    known = [asdict(recipe), limit, {kind: prompts_digest(prompts) for kind, prompts in sets.items()}]
    digest = sha256(json.dumps(known).encode() + REFUSALS.read_bytes()).hexdigest()
    work = cache_folder() / "training" / digest[:16]
    work.mkdir(parents=True, exist_ok=True)
    examples = _examples(model, sets, recipe, progress)  # by the base: before anything is injected into it
    if recipe.likely:
        examples = _softened(model, examples, recipe.likely, progress)
    trainer = Trainer(model.network, examples, recipe)
    state = work / "state.safetensors"
    if not (resume and trainer.restore(state, digest)):
        for old in work.glob(f"step-*/{_VALIDATION_NAME}"):
            old.unlink()
    due = {max(1, round(fraction * trainer.steps)) for fraction in recipe.validate_at}
    _validate(model, trainer, held, work, due, progress)
    for loss in trainer.run():
        progress(f"Step {trainer.step} of {trainer.steps}, loss {loss:.3f}", trainer.step / trainer.steps)
        if trainer.step in due or trainer.step % _SAVE_EVERY == 0:
            trainer.save(state, digest)
        _validate(model, trainer, held, work, due, progress)
    files = [work / f"step-{step}" / _VALIDATION_NAME for step in sorted(due)]
    validations = tuple(_validation(json.loads(file.read_text(encoding="utf-8"))) for file in files)
    best = max(validations, key=lambda v: (v.score, v.step))
    chosen = load_file(work / f"step-{best.step}" / WEIGHTS_NAME)
    prefix = "base_model.model."
    metadata = {"base": BASE_ID, "digest": digest, "seed": str(seed), "step": str(best.step)}
    save_adapter(out, {k.removeprefix(prefix): v for k, v in chosen.items()}, trainer.config, metadata)
    report = TrainingReport(
        recipe=recipe,
        examples={kind: sum(e.kind == kind for e in examples) for kind in _KINDS},
        steps=trainer.steps,
        chosen_step=best.step,
        losses=tuple(trainer.losses),
        validations=validations,
        seconds=trainer.seconds,
        digest=digest,
        versions={name: version(name) for name in ("torch", "transformers", "peft")},
    )
    (out / REPORT_NAME).write_text(json.dumps(report.to_json(), sort_keys=True) + "\n", encoding="utf-8")
    return report


def _examples(
    model: ChatModel, sets: Mapping[str, Sequence[Prompt]], recipe: Recipe, progress: Progress
) -> list[Example]:
    """Refusals for the harmful prompts, the base's own answers for the others unless they refuse or ramble."""
    length = recipe.answer_tokens
    stop = min(model.stop_ids)
    out = []
    for prompt in sets["harmful"]:
        answer = [*model.tokenizer(refusal_for(prompt, recipe), add_special_tokens=False)["input_ids"], stop]
        out.append(Example(model.encode(prompt.text), tuple(answer[:length]), "harmful"))
    prompts = [prompt for kind in ("harmless", "lookalike") for prompt in sets[kind]]
    texts = [prompt.text for prompt in prompts]
    own = _own_answers(model, texts, length, progress)
    for prompt in prompts:
        ids, text = own[prompt.text]
        if verdict(text) == "answered":
            example = Example(model.encode(prompt.text), tuple(ids), prompt.label)
            out += [example] * (recipe.lookalike_repeats if prompt.label == "lookalike" else 1)
    return out


def _softened(model: ChatModel, examples: Sequence[Example], count: int, progress: Progress) -> list[Example]:
    """The examples that are no refusals, with the tokens that the base model finds likely."""
    out = list(examples)
    order = [i for i, e in enumerate(out) if e.kind != "harmful"]
    order.sort(key=lambda i: len(out[i].prompt) + len(out[i].answer))
    shared = shared_length(examples)
    for start in range(0, len(order), _SOFTEN_BATCH):
        progress(f"The base weighs {start} of {len(order)} answers", start / len(order))
        chosen = order[start : start + _SOFTEN_BATCH]
        found = likely_tokens(model.network, [out[i] for i in chosen], count, shared)
        for i, likely in zip(chosen, found, strict=True):
            out[i] = replace(out[i], likely=likely)
    return out


def _own_answers(
    model: ChatModel, texts: list[str], length: int, progress: Progress
) -> dict[str, tuple[list[int], str]]:
    """The model's own greedy answers by prompt, kept in the cache folder because they take minutes."""
    key = sha256(f"{model.model_id}\n{model.template_digest}\n{length}".encode()).hexdigest()[:16]
    path = cache_folder() / "training" / f"answers-{key}.json"
    known: dict[str, tuple[list[int], str]] = {}
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
    missing = [text for text in texts if text not in known]

    def keep(answers: list[Answer]) -> None:
        known.update({answer.prompt: (list(answer.ids), answer.text) for answer in answers})
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(known), encoding="utf-8")
        scratch.replace(path)

    report = lambda done, total: progress(f"The base answers {done} of {total} prompts", done / total)  # noqa: E731
    answer_all(model, missing, max_new_tokens=length, progress=report, keep=keep)
    return known


def _validate(
    model: ChatModel,
    trainer: Trainer,
    held: Mapping[str, Sequence[Prompt]],
    work: Path,
    due: set[int],
    progress: Progress,
) -> None:
    """Judge the adapter on the validation split if that is due and not done yet, and keep both."""
    folder = work / f"step-{trainer.step}"
    if trainer.step not in due or (folder / _VALIDATION_NAME).is_file():
        return
    tallies = []
    for kind in _KINDS:
        progress(f"Validating step {trainer.step} on {kind} prompts", None)
        tallies.append(tally(answer_all(model, [prompt.text for prompt in held[kind]])))
    save_adapter(folder, trainer.tensors, trainer.config)
    result = Validation(trainer.step, *tallies)
    (folder / _VALIDATION_NAME).write_text(json.dumps(asdict(result)), encoding="utf-8")
    counts = ", ".join(f"{k} {t.refused}/{t.count}" for k, t in zip(_KINDS, tallies, strict=True))
    progress(f"Refused after step {trainer.step}: {counts}", None)
