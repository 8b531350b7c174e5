"""The seven task metrics of CrossFit (Ye et al. 2021), as the original code of the paper computes them.

`evaluate(metric, predictions, golds)` averages over examples; a prediction may match any of its acceptable answers,
except for Classification-F1, Matthew- and Pearson-Correlation, which look at the first only.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from rouge import Rouge
from scipy.stats import pearsonr
from sklearn.metrics import f1_score, matthews_corrcoef

from pewe.cli import UserError, suggest

Golds = Sequence[Sequence[str]]  # acceptable answers of each example


class MetricError(UserError, ValueError):
    """These predictions and answers have no value under this metric."""


def normalize_answer(text: str) -> str:
    """SQuAD normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 where both are equal after SQuAD normalisation."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def accuracy(prediction: str, gold: str) -> float:
    """1 where both are equal in lower case."""
    return float(prediction.lower() == gold.lower())


def qa_f1(prediction: str, gold: str) -> float:
    """F1 of the bags of normalised tokens; 0 where they share none."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(gold).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, gold: str) -> float:
    """F of ROUGE-L over unique words, case and punctuation sensitive; 0 for a prediction of nothing but punctuation.

    Raises MetricError where the answer is empty or has only dots.
    """
    if not prediction.strip(string.punctuation + string.whitespace):
        return 0.0
    if not gold.replace(".", "").strip():
        raise MetricError(f"Rouge-L is not defined for the answer {gold!r}: Reference is empty.")
    return _ROUGE.get_scores(prediction, gold)[0]["rouge-l"]["f"]


_ROUGE = Rouge(metrics=["rouge-l"])


def classification_f1(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Macro F1 over the labels that occur among the golds; any other prediction is simply wrong."""
    if not golds:
        raise MetricError("Classification-F1 needs at least one example")
    return float(f1_score(golds, predictions, labels=sorted(set(golds)), average="macro", zero_division=0))


def matthew_correlation(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Matthews correlation of "is acceptable" (CoLA is CrossFit's only task with this metric)."""
    if not golds:
        raise MetricError("Matthew-Correlation needs at least one example")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single label in both: the correlation is 0
        acceptable = [[text.strip() == "acceptable" for text in side] for side in (golds, predictions)]
        return float(matthews_corrcoef(*acceptable))


def pearson_correlation(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Pearson correlation of the numbers; NaN where one prediction is not a number."""
    if len(golds) < 2:
        raise MetricError("Pearson-Correlation needs at least two examples")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant predictions: NaN
        return float(pearsonr([_number(text) for text in predictions], [float(text) for text in golds])[0])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _best_over_golds(score: Callable[[str, str], float]):
    def mean(predictions: Sequence[str], golds: Golds) -> float:
        best = [
            max((score(p, gold) for gold in answers), default=0.0)
            for p, answers in zip(predictions, golds, strict=True)
        ]
        return float(np.mean(best)) if best else float("nan")

    return mean


def _first_gold(score: Callable[[Sequence[str], Sequence[str]], float]):
    return lambda predictions, golds: score(predictions, [answers[0] for answers in golds])


METRICS: dict[str, Callable[[Sequence[str], Golds], float]] = {
    "EM": _best_over_golds(exact_match),
    "ACC": _best_over_golds(accuracy),
    "QA-F1": _best_over_golds(qa_f1),
    "Rouge-L": _best_over_golds(rouge_l),
    "Classification-F1": _first_gold(classification_f1),
    "Matthew-Correlation": _first_gold(matthew_correlation),
    "Pearson-Correlation": _first_gold(pearson_correlation),
}


def evaluate(metric: str, predictions: Sequence[str], golds: Golds) -> float:
    """The value of a metric on aligned predictions and acceptable answers. Raises UserError for an unknown metric."""
    if metric not in METRICS:
        raise UserError(f"unknown metric {suggest(metric, METRICS)}")
    return METRICS[metric](predictions, golds)
