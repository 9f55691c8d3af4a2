"""Held-out predictions of any scikit-learn classifier over given folds; chooses no folds and no settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What a classifier said of each item when it had not been fitted on the item's fold.

    Args:
        predicted: code of the predicted class.
        logprobs: of every class (nats); NaN where the classifier gives no probabilities.
    """

    predicted: Int[np.ndarray, " item"]
    logprobs: Float[np.ndarray, "item class"]


def out_of_fold(
    classifier: Any,
    x: Float[np.ndarray, "item d"],
    codes: Int[np.ndarray, " item"],
    folds: Int[np.ndarray, " item"],
) -> OutOfFold:
    """Fit a fresh clone on all folds but one, and predict that one, for each fold.

    Args:
        classifier: a scikit-learn classifier, or a pipeline that ends in one; left as it is.
        x: features.
        codes: labels, 0 to K - 1.
        folds: see `stratified_folds`.
    """
    predicted = np.zeros_like(codes)
    logprobs = np.full((len(codes), int(codes.max()) + 1), np.nan)
    for fold in np.unique(folds):
        held = folds == fold
        fitted = cast(Any, clone(classifier)).fit(x[~held], codes[~held])
        predicted[held] = fitted.predict(x[held])
        if hasattr(fitted, "predict_proba"):
            with np.errstate(divide="ignore"):
                own = np.full((int(held.sum()), logprobs.shape[1]), -np.inf)
                own[:, fitted.classes_] = np.log(fitted.predict_proba(x[held]))
            logprobs[held] = own
    return OutOfFold(predicted, logprobs)
