"""What a client does that trains two networks against each other, in words."""

from __future__ import annotations

from typing import Any

from fedjax_lite.describe.numbers import figure
from fedjax_lite.describe.optimizers import of_the_round


def gan_words(known: dict[str, Any]) -> str:
    """The steps of `fedgan`.

    Args:
      known: its arguments.

    Example:
      >>> import optax
      >>> sgd = optax.sgd(0.5)
      >>> known = {"generator_optimizer": sgd, "discriminator_optimizer": sgd, "clip": None}
      >>> gan_words({**known, "share": "both"})[:60]
      'the discriminator by SGD with learning rate 0.5, then the ge'
    """
    judge, maker = (
        of_the_round(known[f"{name}_optimizer"]).words for name in ("discriminator", "generator")
    )
    if known["clip"] is not None:
        judge += (
            f" (each example's gradient clipped to L2 norm {figure(known['clip'])}, Gaussian noise "
            f"of {figure(known['noise_multiplier'])} times the clip on the sum)"
        )
    kept = "; discriminators stay with their clients" if known["share"] == "generator" else ""
    return f"the discriminator by {judge}, then the generator by {maker}{kept}"
