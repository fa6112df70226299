"""Sets of metrics to start from, and the baselines: none, one for each aspect, k-means, planted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaopt.problems.metric_induction.data import FeedbackData, KnownBehaviours
from metaopt.problems.metric_induction.metric_set import Metric, parse, render
from metaopt.problems.metric_induction.prompts import Aspect

STARTS = ("none", "aspects", "k_means", "planted")
TOP_WORDS, NEAREST = 6, 3


def first_set(
    start: str, data: FeedbackData, aspects: Sequence[Aspect], clusters: int, seed: int
) -> str:
    """Return a set of metrics as text.

    Args:
        start: one of `STARTS`, the text of a set, or the path of a file with it.
        data: the instances.
        aspects: of the feedback that metrics are induced from.
        clusters: of k-means.
        seed: of k-means.

    Raises:
        ValueError: no such start: the text of no metric, or planted ones of data without.
    """
    if start == "none":
        return ""
    if start == "aspects":
        # Without a bullet, which would make it an example of a metric without a definition.
        distinct = dict.fromkeys(aspect.text.lstrip("-*\u2022 ") or "-" for aspect in aspects)
        return render(Metric(f"aspect {i}", text) for i, text in enumerate(distinct, 1))
    if start == "k_means":
        return render(k_means(aspects, clusters, seed))
    if start == "planted":
        if not isinstance(data, KnownBehaviours):
            raise ValueError(
                f"first=planted needs a world whose behaviours are known; {type(data).__name__} "
                "has none. Use none, aspects, k_means, or the text of a set of metrics."
            )
        return render(data.planted)
    try:
        is_file = "<" not in start and Path(start).is_file()
        metrics = parse(Path(start).read_text(encoding="utf-8") if is_file else start)
    except ValueError as error:
        raise ValueError(f"first={start[:80]!r} is no set of metrics: {error}") from error
    if not metrics:
        raise ValueError(
            f"first={start[:80]!r} must be one of {', '.join(STARTS)}, or a text, or a file, "
            'with a block <metric name="...">definition</metric> for each metric.'
        )
    return render(metrics)


def k_means(aspects: Sequence[Aspect], clusters: int, seed: int) -> list[Metric]:
    """Return a metric for each cluster of aspects by their words: no language model.

    Bags of words without scikit-learn's English stop words, weighted by tf-idf, and its k-means
    with ten starts. A definition is the six heaviest words of a cluster's centre, examples are the
    aspects nearest to it.
    """
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [aspect.text for aspect in aspects]
    vectorizer = TfidfVectorizer(stop_words="english")
    vectors = vectorizer.fit_transform(texts)
    count = min(clusters, len(set(texts)))
    fitted = KMeans(count, n_init=10, random_state=seed).fit(vectors)
    words, distances = vectorizer.get_feature_names_out(), fitted.transform(vectors)
    metrics = []
    for cluster, centre in enumerate(fitted.cluster_centers_):
        heaviest = [
            str(words[i]) for i in np.argsort(-centre, kind="stable")[:TOP_WORDS] if centre[i]
        ]
        nearest = np.argsort(distances[:, cluster], kind="stable")
        examples = list(dict.fromkeys(texts[i] for i in nearest))[:NEAREST]
        name = f"cluster {cluster + 1}"
        metrics.append(Metric(name, f"What is said with: {', '.join(heaviest)}.", tuple(examples)))
    return metrics
