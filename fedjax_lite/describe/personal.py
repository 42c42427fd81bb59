"""What clients do for models of their own, in words."""

from __future__ import annotations

from fedjax_lite.describe.composed import Composed
from fedjax_lite.describe.numbers import figure
from fedjax_lite.describe.optimizers import of_the_round
from fedjax_lite.describe.plans import plan_words
from fedjax_lite.describe.schedules import rate_words

OWN_KEEPS = {
    "apfl": "its own model and its share in the mixture",
    "ditto": "its own model",
    "fedper": "its head",
    "fedrep": "its head",
    "lg_fedavg": "its body",
    "pfedme": "its proximal point",
}
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


def apfl_words(whole: Composed) -> str:
    """APFL's mixtures.

    Example:
      >>> apfl_words.__name__
      'apfl_words'
    """
    known = whole.known
    chosen = known["personal_optimizer"] or known["client_optimizer"]
    rate = known["mixing_rate"]
    share = f"{figure(known['mixing'])}"
    share = (
        f"{share} of it" if rate is None else f"{share} of it at first, adapted by {figure(rate)}"
    )
    plain = "" if known["variant"] == "paper" else ", without the factor of the chain rule"
    return f"{of_the_round(chosen).words} on a mixture with the global model ({share}){plain}"


def pfedme_words(whole: Composed) -> str:
    """PFedMe's proximal points.

    Example:
      >>> pfedme_words.__name__
      'pfedme_words'
    """
    known = whole.known
    steps, rate = figure(known["inner_steps"]), rate_words(known["learning_rate"])
    return (
        f"proximal points (pull {figure(known['pull'])}), {steps} of the local steps a batch; the "
        f"copy of the global model follows them with learning rate {rate}"
    )


def fedrep_words(whole: Composed) -> str:
    """FedRep's heads.

    Example:
      >>> fedrep_words.__name__
      'fedrep_words'
    """
    known = whole.known
    chosen = of_the_round(known["head_optimizer"] or known["client_optimizer"]).words
    work = plan_words(known["head_plan"] or whole.slots.plan)
    return f"heads, before the body, by {chosen} for {work}; then they rest"


def fedbabu_words(whole: Composed) -> str:
    """FedBABU's head.

    Example:
      >>> fedbabu_words(None)
      'none: the head stays as it was drawn, until clients fine-tune'
    """
    return "none: the head stays as it was drawn, until clients fine-tune"


OWN = {
    "apfl": apfl_words,
    "ditto": ditto_words,
    "fedbabu": fedbabu_words,
    "fedrep": fedrep_words,
    "pfedme": pfedme_words,
}
