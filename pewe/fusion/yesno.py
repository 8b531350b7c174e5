"""Labels as yes / no generation, for a T5 (Jin et al. 2023): one question per sentence and label that its domain knows.

    does the sentence express joy? <extra_id_0> what a day    ->    <extra_id_0> yes

A row of the test set has the gold of the label that it asks for and -100 for all others, so that the difference of the
logits of yes and no, the other labels' being 0, is scored and averaged like the logits of several labels per sentence.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pewe.batches import IGNORED
from pewe.errors import UserError
from pewe.tokens import tokenise

QUESTION = "does the sentence express {label}? <extra_id_0> {text}"
YES, NO = "<extra_id_0> yes", "<extra_id_0> no"


class Form(NamedTuple):
    """The tokens that both answers begin with, and the first in which they differ."""

    prefix: list[int]
    yes: int
    no: int


def answer_form(tokenizer: PreTrainedTokenizerBase) -> Form:
    """How yes and no are written. Raises UserError for a tokenizer that writes them alike."""
    yes, no = (tokenizer(answer)["input_ids"] for answer in (YES, NO))
    for place, (one, other) in enumerate(zip(yes, no, strict=False)):
        if one != other:
            return Form(yes[:place], one, other)
    raise UserError("the model's tokenizer writes yes and no alike; --kind yesno needs another one")


def training_rows(texts, tokenizer, max_length: int, numbers: dict[str, int], known: frozenset[int]) -> list:
    """Question and answer of every sentence and known label; no is kept with a probability of the root of the share of yes."""
    rng, questions, answers = Random(0), [], []
    labels = [label for label, number in numbers.items() if number in known]
    kept = {label: (sum(label in found for _, found in texts) / len(texts)) ** 0.5 for label in labels}
    for (text,), found in texts:
        for label in labels:
            if label in found or rng.random() < kept[label]:
                questions.append(QUESTION.format(label=label, text=text))
                answers.append(YES if label in found else NO)
    ids = tokenise(tokenizer, questions, max_length)
    return list(zip(ids, tokenizer(answers)["input_ids"], strict=True))


def question_rows(texts, tokenizer, max_length: int, numbers: dict[str, int], known: frozenset[int]) -> list:
    """Question of every sentence and known label; 0 or 1 at the place of that label."""
    asked = [(text, label, label in found) for (text,), found in texts for label in numbers if numbers[label] in known]
    questions = [QUESTION.format(label=label, text=text) for text, label, _ in asked]
    ids = tokenise(tokenizer, questions, max_length)
    gold = [[int(right) if other == label else IGNORED for other in numbers] for _, label, right in asked]
    return list(zip(ids, gold, strict=True))


def answer_logits(model: PreTrainedModel, inputs: dict[str, Tensor], gold: Tensor, form: Form, free: bool) -> Tensor:
    """(B, C): above 0 at the label that is asked for where the answer is yes, 0 at all other labels.

    The answer is that of greedy decoding among yes and no. `free` takes it among all tokens, after a first token of the
    model's own choice, as the release does: whatever is not yes is a no.
    """
    encoded = model.get_encoder()(**inputs)
    ids = torch.full_like(inputs["input_ids"][:, :1], model.config.decoder_start_token_id)
    for token in form.prefix:
        chosen = _next(model, encoded, inputs, ids).argmax(-1) if free else torch.full_like(ids[:, 0], token)
        ids = torch.cat([ids, chosen[:, None]], 1)
    logits = _next(model, encoded, inputs, ids)
    yes = logits[:, form.yes].clone()
    logits[:, form.yes] = -torch.inf
    margin = yes - (logits.amax(1) if free else logits[:, form.no])
    return torch.where(gold == IGNORED, 0.0, margin[:, None].cpu())


def _next(model: PreTrainedModel, encoded: Sequence[Tensor], inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits (B, V) of the token after ids."""
    mask = inputs["attention_mask"]
    return model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits[:, -1]
