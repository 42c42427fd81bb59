"""What clients do for models of their own, in words."""

from __future__ import annotations

from fedjax_lite.describe.composed import Composed
from fedjax_lite.describe.numbers import figure
from fedjax_lite.describe.optimizers import of_the_round
from fedjax_lite.describe.plans import plan_words

OWN_KEEPS = {"ditto": "its own model"}
"""What a client keeps, by the method's factory."""


def own_lines(whole: Composed) -> list[tuple[str, str]]:
    """The sentence on the clients' own models; none where they have none.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.describe.composed import composed
      >>> algo = fl.ditto(lambda w, e, key: w * e["x"], optax.sgd(0.1), pull=0.5,
      ...                 plan=fl.Plan(batch_size=10), sampler=fl.uniform(10))
      >>> own_lines(composed(algo))[0][1]
      "SGD with learning rate 0.1 on the same batches, pulled towards the server's model (pull 0.5)"
    """
    if whole.method not in OWN:
        return []
    return [("Own models", OWN[whole.method](whole))]


def ditto_words(whole: Composed) -> str:
    """Ditto's own models.

    Example:
      >>> ditto_words.__name__
      'ditto_words'
    """
    known = whole.known
    chosen = known["personal_optimizer"] or known["client_optimizer"]
    plan = known["personal_plan"]
    work = "on the same batches" if plan is None else f"for {plan_words(plan)}"
    kept = ", its state kept between rounds" if known["keep_optimizer"] else ""
    pull = f"pulled towards the server's model (pull {figure(known['pull'])})"
    return f"{of_the_round(chosen).words} {work}, {pull}{kept}"


OWN = {"ditto": ditto_words}
