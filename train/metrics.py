"""How good `p_ai` or a logit separates the classes; `ai` (1) is the positive class.

Legend: B image; `target_B` is 1 for ai and 0 for real.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatB = npt.NDArray[np.floating]
TargetB = npt.NDArray[np.integer]


def auc(target_B: TargetB, score_B: FloatB) -> float:
    """Area under the ROC curve: the chance that an AI image scores above a real one, ties counting half.

    Raises:
        ValueError: a class is empty.
    """
    positives = int(target_B.sum())
    negatives = len(target_B) - positives
    if not positives or not negatives:
        raise ValueError("AUC needs images of both classes")
    _, inverse_B, counts = np.unique(score_B, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank_B = (last - (counts - 1) / 2)[inverse_B]  # ranks from 1; equal scores share their mean rank
    return float((rank_B[target_B == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
