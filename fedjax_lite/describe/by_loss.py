"""What a message weighs where the client's loss has a part in it, in words."""

from __future__ import annotations

from typing import Any

from fedjax_lite.describe.phrases import weighting_words

BY_LOSS = {
    "q_fedavg": ", times F^q (1 + q |update|^2 / (rate F)) for its loss F and q {q}",
    "q_fedsgd": ", times F^q (1 + q |update|^2 / (rate F)) for its loss F and q {q}",
    "term": ", times the exponential of {tilt} times its loss",
    "precision_weighted": ", over the larger of its variance and {floor}",
    "afl": "the client's part of the mixture",
}
"""By the method's factory; what begins with a comma follows the weighting's words."""


def by_loss(method: str, weighting: Any, shown: dict[str, str]) -> str:
    """The words, with the method's settings.

    Args:
      method: a key of `BY_LOSS`.
      weighting: of the method, or None.
      shown: its settings as text.

    Example:
      >>> by_loss("term", "uniform", {"tilt": "0.5"})
      '1, times the exponential of 0.5 times its loss'
    """
    words = BY_LOSS[method].format(**shown)
    return f"{weighting_words(weighting)}{words}" if words.startswith(",") else words
