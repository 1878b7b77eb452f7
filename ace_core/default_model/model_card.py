"""The model card of the adapter that ships, written from the record of its training and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ace_core.answering import Tally
from ace_core.default_model.evaluation import BlockEffect, Evaluation
from ace_core.default_model.lora import BASE_ID
from ace_core.default_model.training import TrainingReport
from ace_core.methods import ACE, Addition, Baseline, DirectionalAblation
from ace_core.prompts import load_builtin

__all__ = ["effect_table", "model_card", "write_card"]

_COLUMNS = (
    ("harmful", Baseline().label, "harmful: none"),
    ("harmful", DirectionalAblation().label, "harmful: ablation"),
    ("harmful", ACE(0.0).label, "harmful: ACE 0"),
    ("harmful", Addition(-1.0).label, "harmful: addition −1"),
    ("harmless", Baseline().label, "harmless: none"),
    ("harmless", ACE(1.0).label, "harmless: ACE 1"),
    ("harmless", Addition(1.0).label, "harmless: addition +1"),
)

_HEAD = """\
---
license: apache-2.0
base_model: {base}
library_name: peft
language: en
tags: [lora, refusal, activation-steering]
---

# A small model that refuses, for demonstration

A LoRA adapter for [{base}](https://huggingface.co/{base}) (135M parameters, Apache-2.0). The base refuses almost
nothing, so there is nothing to steer; with this adapter it declines harmful requests in one sentence and answers
everything else as before. It was trained by this project on the prompts of this project, to demonstrate refusal
steering on a laptop; it is no safeguard, and bigger models from the hub bring refusals of their own. The adapter only
ever adds refusals. It is merged at load; merged weights are not distributed.

## Recipe

Rank {rank} on every linear layer of decoder blocks {first} to {last} (of 30, counted from 0), scale {scale:g}, dropout
{dropout:g}, AdamW at {rate:g} with {warmup:.0%} warm-up and linear decay, {epochs} epochs in batches of {batch},
float32, seed {seed}. {harmful} harmful requests with one-line refusals, drawn from the wordings in `refusals.json`
({topics:.0%} of them name the topic); {harmless} harmless requests and {lookalike} look-alikes answered by the base
model itself (greedy), of which the {likely} tokens that the base finds likeliest are learnt at every place, with their
probabilities. Answers are cut at {answer} tokens; the loss counts answer tokens only, the first one {first_weight:g}
times, since that is where refusing or answering is decided. There {reserve:g} is added to the logit of a refusal's
first token while training, which makes the trained model that much slower to refuse (logit adjustment, arXiv
2007.07314). Loss: {loss_first:.2f} nats a token at first (mean of 10 steps), {loss_last:.2f} in the end. {steps} steps
took {minutes:.0f} minutes on two cores. Made by
`python -m ace_core train-default`; the figures below by `python -m ace_core evaluate-default`.

Only middle blocks are adapted. Refusal should be written early, so that every later block carries one direction that
single-block steering reaches; but a linear probe on the base model's last-token activations tells the harmful training
prompts from the others on the validation split with an AUROC of 0.91 at block 6, 0.95 at block 12 and 0.96 at blocks 14
to 24, so an adapter further down has less to go by.

Adapters are compared on the validation split; step {chosen} was kept (harmful refused less twice harmless refused
less look-alikes refused).

{validations}

## Figures

Test split, greedy, 48 tokens, judged by phrase; the splits for training, fitting directions, validation and test are
disjoint.

{classes}

Perplexity under the base model of the answers to the harmless test prompts: {ppl:.2f}, against {ppl_base:.2f} for the
base's own answers (ratio {ratio:.2f}).

## Steering

Directions are mean differences at the last token of the templated prompt of this merged model, from the {fit_harmful}
harmful prompts of the fit split that it refuses and the {fit_harmless} harmless ones that it answers. One block is
edited at all positions. Recommended: **block {layer}**, chosen on the validation split among blocks {span} by effect
(harmful answered under ACE 0, harmless refused under ACE 1); among blocks within a few percent of the best, the one
whose origin lies furthest towards the harmful mean. There directional ablation, which sends every token to the origin,
and ACE, which sends it to the harmless mean, differ most: the point of *Refusal in LLMs is an Affine Function* (arXiv
2411.09003). The origin's coordinate is 0 at the harmless and 1 at the harmful mean.

Refused at block {layer}, whole test split:

{recommended}

Incoherent answers there: {ace0_bad} of {n_harmful} under ACE 0 and {ace1_bad} of {n_harmless} under ACE 1. Perplexity
under the base of the answers to harmful prompts: {ppl_ace:.2f} under ACE 0, {ppl_base_harmful:.2f} for the base's own.

Every fifth block, refused of {part_harmful} harmful and {part_harmless} harmless prompts of the test split (an asterisk
marks cells in which more than one answer in ten was incoherent):

{table}

The blocks compared for the choice, refused of {held_harmful} harmful and {held_harmless} harmless prompts of the
validation split:

{finalists}

## Limits

- 135M parameters: many answers are wrong, and refusals follow the wording of a request more than its meaning. Requests
  of kinds that the {categories} categories of the prompt set do not cover, or worded unlike them, are often answered.
- Trained in English only; the figures for other languages are above.
- Judged by phrase: an answer that helps with nothing still counts as answered, one that apologises as refused.
- Steering to remove refusals gives back the base model's behaviour, not more.

## Licence

The adapter, its training prompts and refusals are part of this project; the base model is licensed under Apache-2.0.
"""


def write_card(folder: Path, evaluation: Evaluation, report: TrainingReport) -> None:
    """Write ``README.md`` beside the adapter."""
    (folder / "README.md").write_text(model_card(evaluation, report), encoding="utf-8")


def model_card(evaluation: Evaluation, report: TrainingReport) -> str:
    """The card as Markdown."""
    recipe, chosen = report.recipe, evaluation.recommended
    blocks = [effect.block for effect in evaluation.candidates]
    first, last = report.losses[:10], report.losses[-10:]
    ace0, ace1 = chosen.harmful[ACE(0.0).label], chosen.harmless[ACE(1.0).label]
    part, final = evaluation.table[0], evaluation.finalists[0]
    ppl = evaluation.perplexities
    return _HEAD.format(
        base=BASE_ID,
        rank=recipe.rank,
        first=recipe.first_block,
        last=recipe.last_block,
        scale=recipe.scale,
        dropout=recipe.dropout,
        first_weight=recipe.first_weight,
        likely=recipe.likely,
        reserve=recipe.reserve,
        rate=recipe.rate,
        warmup=recipe.warmup,
        epochs=recipe.epochs,
        batch=recipe.batch,
        seed=recipe.seed,
        topics=recipe.topic_share,
        answer=recipe.answer_tokens,
        **report.examples,
        loss_first=sum(first) / len(first),
        loss_last=sum(last) / len(last),
        steps=report.steps,
        minutes=report.seconds / 60,
        chosen=report.chosen_step,
        validations=_validation_table(report),
        classes=_class_table(evaluation.base, evaluation.refusing),
        ppl=ppl["refusing"],
        ppl_base=ppl["base"],
        ratio=ppl["refusing"] / ppl["base"],
        fit_harmful=evaluation.directions.metadata["harmful_count"],
        fit_harmless=evaluation.directions.metadata["harmless_count"],
        layer=chosen.block,
        span=f"{min(blocks)} to {max(blocks)}",
        recommended=effect_table([chosen]),
        ace0_bad=ace0.incoherent,
        ace1_bad=ace1.incoherent,
        n_harmful=ace0.count,
        n_harmless=ace1.count,
        ppl_ace=ppl["ace harmful"],
        ppl_base_harmful=ppl["base harmful"],
        part_harmful=_count(part, "harmful"),
        part_harmless=_count(part, "harmless"),
        table=effect_table(evaluation.table),
        held_harmful=_count(final, "harmful"),
        held_harmless=_count(final, "harmless"),
        finalists=effect_table(evaluation.finalists),
        categories=len({prompt.category for prompt in load_builtin("harmful")}),
    )


def effect_table(effects: Sequence[BlockEffect]) -> str:
    """Refusal counts by block and method; columns that were not measured are left out."""
    shown = [c for c in _COLUMNS if c[1] in getattr(effects[0], c[0])]
    rows = []
    for effect in effects:
        cells = [getattr(effect, kind)[label] for kind, label, _ in shown]
        rows.append([str(effect.block), _signed(effect.origin), *map(_cell, cells)])
    return _table(["block", "origin's coordinate", *(title for _, _, title in shown)], rows)


def _count(effect: BlockEffect, kind: str) -> int:
    return next(iter(getattr(effect, kind).values())).count


def _cell(cell: Tally) -> str:
    return f"{cell.refused}{'*' if cell.incoherent > 0.1 * cell.count else ''}"


def _signed(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def _class_table(base: Mapping[str, Tally], refusing: Mapping[str, Tally]) -> str:
    rows = []
    for kind, found in refusing.items():
        name = "look-alikes" if kind == "lookalike" else kind
        share = f"{found.refused_rate:.0%}"
        rows.append([name, str(found.count), str(base[kind].refused), str(found.refused), share, str(found.incoherent)])
    return _table(["prompts", "count", "refused by the base", "refused", "share", "incoherent"], rows)


def _validation_table(report: TrainingReport) -> str:
    rows = [
        [
            str(v.step),
            *(f"{tally.refused} of {tally.count}" for tally in (v.harmful, v.harmless, v.lookalike)),
            f"{v.score:.2f}",
        ]
        for v in report.validations
    ]
    return _table(["step", "harmful refused", "harmless refused", "look-alikes refused", "score"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
