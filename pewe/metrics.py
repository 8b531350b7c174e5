"""The seven task metrics of CrossFit (Ye et al. 2021), as the original code of the paper computes them, and PEMT's.

`evaluate(metric, predictions, golds)` averages over examples; a prediction may match any of its acceptable answers,
except for Classification-F1, MultiRC and the correlations, which look at the first only.
"""

import functools
import math
import re
import string
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # its parts, as scikit-learn and rouge, are loaded where a metric is computed

from pewe.errors import UserError
from pewe.flags import suggest

Golds = Sequence[Sequence[str]]  # acceptable answers of each example


ACCEPTABLE = ("acceptable", "unacceptable")  # the labels of Matthew-Correlation
OPPOSITE = {"True": "False", "False": "True"}  # those of MultiRC
UNDEFINED = 0.0  # what counts where a metric has no value: no correlation


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
    depth = 2 * (len(prediction.split()) + len(gold.split())) + 1000  # the package recurses once a word
    sys.setrecursionlimit(max(sys.getrecursionlimit(), depth))
    return _rouge().get_scores(prediction, gold)[0]["rouge-l"]["f"]


@functools.cache
def _rouge():
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


def classification_f1(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Macro F1 over the labels that occur among the golds; any other prediction is simply wrong."""
    if not golds:
        raise MetricError("Classification-F1 needs at least one example")
    from sklearn.metrics import f1_score

    return float(f1_score(golds, predictions, labels=sorted(set(golds)), average="macro", zero_division=0))


def matthew_correlation(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Matthews correlation of "is acceptable" (CoLA is CrossFit's only task with this metric)."""
    if not golds:
        raise MetricError("Matthew-Correlation needs at least one example")
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single label in both: the correlation is 0
        acceptable = [[text.strip() == ACCEPTABLE[0] for text in side] for side in (golds, predictions)]
        return float(matthews_corrcoef(*acceptable))


def pearson_correlation(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Pearson correlation of the numbers; NaN where one prediction is not a number."""
    if len(golds) < 2:
        raise MetricError("Pearson-Correlation needs at least two examples")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant predictions: NaN
        return float(scipy.stats.pearsonr([_number(text) for text in predictions], [float(text) for text in golds])[0])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


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


def matthews(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Matthews correlation of the labels; any prediction that is no label of the golds is one more class."""
    known = set(golds)
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single label in both: the correlation is 0
        return float(matthews_corrcoef(golds, [text if text in known else "" for text in predictions]))


def correlation_or_zero(correlation: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    """A correlation of scipy.stats by name, where a text that is no number is -1, and 0 where it is not defined."""

    def value(predictions: Sequence[str], golds: Sequence[str]) -> float:
        if len(golds) < 2:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant predictions: NaN
            both = (np.nan_to_num([_number(text) for text in side], nan=-1.0) for side in (golds, predictions))
            return float(np.nan_to_num(getattr(scipy.stats, correlation)(*both)[0]))

    return value


def multirc_f1(predictions: Sequence[str], golds: Golds) -> float:
    """F1 of the answer True over all lines; a prediction that is neither True nor False is wrong."""
    expected = [answers[0] for answers in golds]
    valid = [text if text in OPPOSITE else OPPOSITE[gold] for text, gold in zip(predictions, expected, strict=True)]
    from sklearn.metrics import f1_score

    return float(f1_score(expected, valid, pos_label="True", zero_division=0))


def multirc_em(predictions: Sequence[str], golds: Golds) -> float:
    """Share of the questions with every answer right; the question of a line stands behind its answer."""
    right: dict[str, list[bool]] = defaultdict(list)
    for prediction, answers in zip(predictions, golds, strict=True):
        right[answers[-1]].append(prediction == answers[0])
    return float(np.mean([all(lines) for lines in right.values()]))


def _mean_of(*scores: Callable[[Sequence[str], Golds], float]) -> Callable[[Sequence[str], Golds], float]:
    return lambda predictions, golds: float(np.mean([score(predictions, golds) for score in scores]))


METRICS: dict[str, Callable[[Sequence[str], Golds], float]] = {
    "EM": _best_over_golds(exact_match),
    "ACC": _best_over_golds(accuracy),
    "QA-F1": _best_over_golds(qa_f1),
    "Rouge-L": _best_over_golds(rouge_l),
    "Classification-F1": _first_gold(classification_f1),
    "Matthew-Correlation": _first_gold(matthew_correlation),
    "Pearson-Correlation": _first_gold(pearson_correlation),
    # PEMT's, each the mean of what its code calls average_metrics
    "Matthews": _first_gold(matthews),
    "Pearson-Spearman": _mean_of(*(_first_gold(correlation_or_zero(one)) for one in ("pearsonr", "spearmanr"))),
    "EM-F1": _mean_of(_best_over_golds(exact_match), _best_over_golds(qa_f1)),
    "MultiRC": _mean_of(multirc_f1, multirc_em),
}


def evaluate(metric: str, predictions: Sequence[str], golds: Golds) -> float:
    """The value of a metric on aligned predictions and acceptable answers. Raises UserError for an unknown metric."""
    if metric not in METRICS:
        raise UserError(f"unknown metric {suggest(metric, METRICS)}")
    return METRICS[metric](predictions, golds)


def score(metric: str, predictions: Sequence[str], golds: Golds) -> tuple[float, str]:
    """As `evaluate`, but always a number, and in words why it had none; empty where it is defined.

    A correlation with predictions that are all equal, that are no numbers, or of a single line counts as 0.
    """
    try:
        value, reason = (
            evaluate(metric, predictions, golds),
            "the predictions or the answers are all equal, or one is no number",
        )
    except MetricError as error:
        value, reason = math.nan, str(error)
    return (UNDEFINED, f"{metric} is not defined: {reason}") if math.isnan(value) else (value, "")


def check_gold(metric: str, answers: Sequence[str], scored: bool = True) -> None:
    """Raise MetricError, which says what is expected, where a metric cannot read the acceptable answers of a line.

    `scored`: the metric is taken of the line (dev and test); a line to train on (else) must hold nothing but answers.
    """
    first = answers[0]
    if metric == "Rouge-L" and not all(answer.replace(".", "").strip() for answer in answers):
        raise MetricError("Rouge-L is not defined for an output of dots only")
    if metric.startswith("Pearson") and not math.isfinite(_number(first)):
        raise MetricError(f"{metric} needs a number, not {first!r}")
    labels = {"Matthew-Correlation": ACCEPTABLE, "MultiRC": tuple(OPPOSITE)}.get(metric)
    if labels and first not in labels:
        raise MetricError(f"{metric} needs {' or '.join(labels)}, not {first!r}")
    if metric == "MultiRC" and scored != (len(answers) > 1):
        wanted = "must have the name of its question behind the answer" if scored else "has one output, the answer"
        raise MetricError(f"{metric}: a line of {'dev and test' if scored else 'train'} {wanted}")
