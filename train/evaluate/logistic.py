"""Logistic regression by Newton's method: of the pixel statistics, and of a logit that is to be moved.

Legend: B image; P parameter. `target_B` is 1 for ai and 0 for real.
"""

from __future__ import annotations

import numpy as np

from aivsreal.train.evaluate.metrics import Floats, TargetB


def logistic_weights(inputs_BP: Floats, target_B: TargetB, penalty_P: Floats, weight_B: Floats | None = None) -> Floats:
    """The `weights_P` with the least `sum_B weight * log(1 + exp(-sign * logit)) + penalty/2 * weights^2`.

    Steps are halved until the sum falls. No randomness: the same images, the same weights.

    Args:
        inputs_BP: what the logit is made of; a column of ones is its bias.
        target_B: the classes.
        penalty_P: above 0, or classes that are separated would have no minimum.
        weight_B: of each image; None is 1.
    """
    weight_B = np.ones(len(target_B)) if weight_B is None else weight_B

    def loss(weights_P: Floats) -> float:
        logits_B = inputs_BP @ weights_P
        nll_B = np.logaddexp(0, logits_B) - target_B * logits_B
        return float((weight_B * nll_B).sum() + (penalty_P * weights_P**2).sum() / 2)

    weights_P = np.zeros(inputs_BP.shape[1])
    for _ in range(100):
        p_ai_B = sigmoid(inputs_BP @ weights_P)
        gradient_P = inputs_BP.T @ (weight_B * (p_ai_B - target_B)) + penalty_P * weights_P
        hessian_PP = (inputs_BP.T * (weight_B * p_ai_B * (1 - p_ai_B))) @ inputs_BP + np.diag(penalty_P)
        step_P = np.linalg.solve(hessian_PP, gradient_P)
        while loss(weights_P - step_P) > loss(weights_P) and np.abs(step_P).max() > 1e-9:
            step_P = step_P / 2
        weights_P = weights_P - step_P
        if np.abs(step_P).max() < 1e-9:
            break
    return weights_P


def sigmoid(logits_B: Floats) -> Floats:
    """Without overflow."""
    p_ai_B: Floats = 0.5 * (1 + np.tanh(logits_B / 2))
    return p_ai_B
