"""How well do single numbers of a code stand for single causes of the data? MIG, SAP and DCI.

All three need data whose causes are known: labels that say all that there is to an example. They
compare each number of a code with each cause, and ask how alone the best number is.

Axes: N examples, D numbers of a code, K causes, C values of one cause.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ae_toolkit.randomness import Source

MIG_BINS = 20  #: of a number of a code, and of a real cause, as Locatello et al. (2019) have it
SAP_BINS = 100  #: between the thresholds of a classifier
NUM_TREES = 50  #: of a forest
MIN_LEAF_EXAMPLES = 30  #: fewer would let a tree learn the noise of numbers that say nothing


def disentanglement(
    codes: Tensor, causes: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, float]:
    """Measures how well the numbers of codes and the causes of the data fall together.

    Each result lies between 0 and 1, and more is better. Several thousand examples should be
    given: of few, even a number that says nothing seems to say something.

    Args:
        codes: posterior means, `(N, D)`.
        causes: `(N,)` each; whole numbers are classes, real ones are put into bins.
        seed: of the half of the examples that SAP and DCI learn from, and of DCI's forests.

    Returns:
        `mig`, the mutual information gap; `sap`, the separated attribute predictability;
        `dci_disentanglement`, `dci_completeness` and `dci_informativeness`. Causes with a single
        value are left out.

    Raises:
        ValueError: no cause has two values.
    """
    codes = codes.detach().cpu().double()
    known = {name: _classes(column.detach().cpu()) for name, column in causes.items()}
    columns = [column for column in known.values() if column.max() > 0]
    if not columns:
        raise ValueError("disentanglement needs a cause that has two values in the data at least")
    order = Source(seed, "disentanglement").permutation(len(codes), 0)
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    found = {
        "mig": mutual_information_gap(codes, columns),
        "sap": attribute_predictability(codes, columns, *halves),
    }
    return found | _dci(codes, columns, *halves, seed=seed)


def mutual_information_gap(codes: Tensor, causes: list[Tensor]) -> float:
    """The mutual information gap (Chen et al. 2018, eq. 6), of codes `(N, D)` in 20 equal bins.

    Over the causes v, the mean of [I(z_a; v) - I(z_b; v)] / H(v), where z_a tells most of v and z_b
    most of all others. Of a cause of more than 20 values, bins let it reach log 20 / H(v).
    """
    bins = _bins(codes, MIG_BINS)
    gaps = []
    for cause in causes:
        num = int(cause.max()) + 1
        counts = torch.stack([_counts(each, cause, MIG_BINS, num) for each in bins.T])
        shares = counts / len(codes)
        own = _entropy(shares.sum(1))  # of the cause, the same for each number
        told = own + _entropy(shares.sum(2)) - _entropy(shares.flatten(1))
        gaps.append(_gap(told / own))
    return float(torch.stack(gaps).mean())


def attribute_predictability(
    codes: Tensor, causes: list[Tensor], learned: Tensor, judged: Tensor
) -> float:
    """The separated attribute predictability (Kumar et al. 2018, section 3), of codes `(N, D)`.

    Over the causes, the mean of S_a - S_b, where S is the balanced accuracy at which thresholds on
    one number tell the cause, and a and b are the two best numbers.

    Args:
        codes: posterior means.
        causes: classes `(N,)` each.
        learned: the examples by which thresholds are found.
        judged: the others, by which they are judged.
    """
    bins = _bins(codes, SAP_BINS)
    gaps = []
    for cause in causes:
        num, scores = int(cause.max()) + 1, []
        for each in bins.T:
            seen, new = (_counts(each[i], cause[i], SAP_BINS, num) for i in (learned, judged))
            # Of each value of the cause, which share of its examples lies in each bin.
            guess = (seen / seen.sum(0).clamp(min=1)).argmax(1, keepdim=True)
            scores.append((new / new.sum(0).clamp(min=1)).gather(1, guess).sum() / num)
        gaps.append(_gap(torch.stack(scores)))
    return float(torch.stack(gaps).mean())


def _dci(
    codes: Tensor, causes: list[Tensor], learned: Tensor, judged: Tensor, *, seed: int
) -> dict[str, float]:
    """Disentanglement, completeness, informativeness (Eastwood and Williams 2018, section 2).

    A forest predicts each cause from codes `(N, D)`, and R `(D, K)` says how much it makes of each
    number. With P_ij = R_ij / Σ_k R_ik, a number's disentanglement is 1 - H(P_i) / log K; their
    mean is weighted by Σ_k R_ik. Completeness is the same of the columns of R. Informativeness is
    the accuracy of the forests on the examples that they have not seen.
    """
    from sklearn.ensemble import RandomForestClassifier

    x, importances, accuracies = codes.numpy(), [], []
    for cause in causes:
        forest = RandomForestClassifier(
            NUM_TREES, max_features=None, min_samples_leaf=MIN_LEAF_EXAMPLES, random_state=seed
        )
        forest.fit(x[learned], cause[learned])
        importances.append(torch.from_numpy(forest.feature_importances_))
        accuracies.append(float(forest.score(x[judged], cause[judged])))
    importance = torch.stack(importances, 1)
    return {
        "dci_disentanglement": _concentration(importance),
        "dci_completeness": _concentration(importance.T),
        "dci_informativeness": sum(accuracies) / len(accuracies),
    }


def _concentration(importance: Tensor) -> float:
    """One minus the entropy of each row `(rows, columns)`, of its largest, weighted by its sum."""
    columns = importance.shape[1]
    if columns == 1:
        return 1.0
    total = importance.sum(1)
    entropy = _entropy(importance / total.clamp(min=1e-12)[:, None])
    spread = entropy / torch.tensor(float(columns)).log()
    return float(((1 - spread) * total).sum() / total.sum().clamp(min=1e-12))


def _classes(cause: Tensor) -> Tensor:
    """A cause `(N,)` as classes, counted from 0 without gaps; what is real, in equal bins."""
    if cause.is_floating_point():
        cause = _bins(cause.double()[:, None], MIG_BINS)[:, 0]
    return cause.unique(return_inverse=True)[1]


def _bins(values: Tensor, num: int) -> Tensor:
    """In which of `num` equally wide bins each number `(N, D)` lies, between its extremes."""
    low, high = values.amin(0), values.amax(0)
    share = (values - low) / (high - low).clamp(min=1e-12)
    return (share * num).long().clamp(max=num - 1)


def _counts(bins: Tensor, cause: Tensor, num_bins: int, num_classes: int) -> Tensor:
    """How many examples `(N,)` have each bin and each class of a cause, `(bins, C)`."""
    counts = torch.bincount(bins * num_classes + cause, minlength=num_bins * num_classes)
    return counts.view(num_bins, num_classes)


def _entropy(shares: Tensor) -> Tensor:
    """Of distributions over the last axis, `(…, C)` to `(…)` nats."""
    return torch.special.entr(shares).sum(-1)


def _gap(scores: Tensor) -> Tensor:
    """The best score `(D,)` less the next, or the best itself where it is alone."""
    best = scores.sort(descending=True).values
    return best[0] - best[1] if len(best) > 1 else best[0]
