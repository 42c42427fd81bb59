"""describe(): a composed round in words."""

from __future__ import annotations

from typing import Any

from fedjax_lite.describe.columns import columns_note, columns_words
from fedjax_lite.describe.composed import composed
from fedjax_lite.describe.notes import called, is_part
from fedjax_lite.describe.optimizers import is_optimizer
from fedjax_lite.describe.phrases import paragraph, phrase
from fedjax_lite.describe.plans import plan_words
from fedjax_lite.describe.references import named_in, short
from fedjax_lite.describe.sentences import downlink_words, lines, privacy_words
from fedjax_lite.describe.text import Text
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.downlink import Downlink
from fedjax_lite.types import Accountant, FederatedAlgorithm, Mechanism


def describe(algorithm: Any) -> Text:
    """Says in words what one round of an algorithm does: a draft of the methods section.

    It reads what factories note on the parts that they make (`fedjax_lite.checks.made`), traces a
    model's init to count parameters, and tries optimizers of optax on a model of two numbers, to
    call them what they do. No loss is run. What you wrote yourself is called so, by its name; put
    ``@fl.made`` above a factory of your own, and its settings are told, too.

    Args:
      algorithm: a `FederatedAlgorithm`; or a part of one: a sampler, a plan, an aggregator, an
        attack, a transform, a privacy mechanism, an optax optimizer.

    Returns:
      A string; a REPL or notebook shows it as it reads, without `print`.

    Raises:
      TypeError: if it is none of these.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> model = fl.models.mlp((200,), num_classes=10, input_shape=(28, 28, 1))
      >>> algo = fl.fedavg(model.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=20, epochs=5),
      ...                  sampler=fl.uniform(10), uplink=fl.chain(fl.clip(1.0), fl.qsgd(7)))
      >>> describe(algo)
      FedAvg (McMahan et al., 2017)
        Cohort: each round 10 clients, uniformly without replacement.
        Local work: 5 epochs in batches of 20.
        Local steps: SGD with learning rate 0.1.
        Loss: cross_entropy of mlp (159,010 parameters).
        Uplink: messages are sent clipped to L2 norm 1, then quantised by QSGD to 7 levels.
        Aggregation: the weighted mean; a message weighs its number of examples.
        Server: SGD with learning rate 1 on the aggregate.
        Execution: auto().
      >>> describe(fl.krum(2))
      Krum: the one message nearest to its neighbours (num_byzantine 2)
    """
    if isinstance(algorithm, FederatedAlgorithm):
        return Text(_whole(algorithm))
    if isinstance(algorithm, Mechanism):
        rest = [phrase(algorithm.sampler), phrase(algorithm.aggregator)]
        rest += [] if algorithm.uplink is None else [phrase(algorithm.uplink)]
        return Text("; ".join([privacy_words(algorithm.accountant), *rest]))
    if isinstance(algorithm, Plan):
        return Text(plan_words(algorithm))
    if isinstance(algorithm, Downlink):
        return Text(downlink_words(algorithm))
    if isinstance(algorithm, Accountant):
        return Text(privacy_words(algorithm))
    if is_optimizer(algorithm) or (is_part(algorithm) and hasattr(algorithm, "_fields")):
        return Text(phrase(algorithm))
    name = getattr(algorithm, "__name__", "") if callable(algorithm) else ""
    called = f" {name}; was a factory not called?" if callable(algorithm) else ""
    raise TypeError(
        f"describe takes an algorithm, such as fl.fedavg(...), or one of its parts, got "
        f"{type(algorithm).__name__}{called}"
    )


def _whole(algorithm: FederatedAlgorithm) -> str:
    if (columns := columns_note(algorithm)) is not None:
        return columns_words(columns)
    whole = composed(algorithm)
    if whole is None:
        name, module = called(algorithm.round)
        text = [f"An algorithm of your own: {f'`{name}`' if name else 'a function'} ({module})"]
        if algorithm.accountant is not None:
            text.append(paragraph("Privacy", privacy_words(algorithm.accountant)))
        return "\n".join(text)
    papers = named_in(whole.origin.__doc__ if whole.origin else None)
    head = f"{whole.title} ({short(papers[0])})" if papers else whole.title
    head += whole.around
    shown = lines(whole, algorithm.accountant)
    return "\n".join([head, *(paragraph(label, text) for label, text in shown)])
