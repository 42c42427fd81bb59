"""What stands before and behind an optimizer in a chain: clips, decays, pulls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import optax

from fedjax_lite.describe.families import Reading
from fedjax_lite.describe.numbers import measured
from fedjax_lite.describe.trials import DECAY, HUGE, HUGE_STEP, PULL, SMALL, STEPS, Trial, found_in
from fedjax_lite.objectives.proximal import proximal

PROXIMAL = "fedjax_lite.objectives.proximal.proximal"


class Stage(NamedTuple):
    """A transformation that is no optimizer by itself."""

    made: optax.GradientTransformation
    said: str
    """Its words, with {} for its number."""
    number: Any
    key: str
    """What citations know it by."""
    aside: str
    """What it does to a pseudo-gradient, in a title; "" for what belongs to the method."""

    @property
    def words(self) -> str:
        """What it does."""
        return self.said.format(measured(self.number))


class Arrangement(NamedTuple):
    """Stages around an optimizer."""

    before: tuple[Stage, ...]
    after: tuple[Stage, ...]

    def around(self, core: optax.GradientTransformation) -> optax.GradientTransformation:
        """The chain."""
        made = [*(s.made for s in self.before), core, *(s.made for s in self.after)]
        return optax.chain(*made) if len(made) > 1 else core


def arrangements(reading: Reading, trial: Trial) -> Iterator[Arrangement]:
    """Stages that may explain what an optimizer was shown, and what became of its step.

    Args:
      reading: of a family.
      trial: of the whole chain.

    Example:
      >>> from fedjax_lite.describe.families import FAMILIES
      >>> from fedjax_lite.describe.trials import trial_of
      >>> trial, _ = trial_of(optax.chain(optax.clip(0.5), optax.sgd(1.0)))
      >>> [[stage.words for stage in one.before + one.after]
      ...  for one in arrangements(FAMILIES[0].read(trial), trial)]
      [['optax.clip(max_delta 0.5)'], ['optax.clip(max_delta 0.5)']]
    """
    nans = [ZERO_NANS] if found_in(trial.states[0], optax.ZeroNansState) else []
    if reading.seen is None:
        yield Arrangement(tuple(nans), ())
        return
    adding = []
    if mu := _both(reading.seen[PULL]):
        adding.append(pull(mu))
    if decay := _both(reading.seen[DECAY]):
        made, said = optax.add_decayed_weights(decay), "optax.add_decayed_weights(weight_decay {})"
        adding.append(Stage(made, said, decay, "add_decayed_weights", "weight decay"))
    clip = clipping(reading.seen[HUGE_STEP], "pseudo-gradient")
    step = trial.updates[HUGE_STEP, 0] / trial.updates[STEPS, 0, 0] * SMALL
    later = clipping(step, "server step", scale=abs(trial.updates[STEPS, 0, 0]) / SMALL)
    for before in ([*adding, *clip], [*clip, *adding]) if clip and adding else (adding + clip,):
        yield Arrangement((*nans, *before), ())
    if later:
        yield Arrangement((*nans, *adding), tuple(later))


def pull(mu: Any) -> Stage:
    """FedProx' term.

    Example:
      >>> pull(0.5).words
      "a pull towards the server's model (mu 0.5)"
    """
    return Stage(proximal(mu), "a pull towards the server's model (mu {})", mu, PROXIMAL, "")


def clipping(huge: np.ndarray, what: str, *, scale: float = 1.0) -> list[Stage]:
    """The clip that made of a huge gradient, 3 to 4, what is left of it.

    Args:
      huge: float32 `[2]`, over `scale`.
      what: was clipped.
      scale: of the step.

    Example:
      >>> clipping(np.array([3.0, 4.0]), "step")[0].words
      'optax.clip_by_global_norm(max_norm 5)'
      >>> clipping(np.array([3.0, 4.0]) * HUGE, "step")
      []
    """
    one, other = (float(abs(x)) * scale for x in huge)
    if not np.isfinite([one, other]).all() or not one or one >= 3 * HUGE * scale * (1 - 1e-4):
        return []
    aside = f"a clipped {what}"
    if abs(one / other - 0.75) < 1e-4:
        norm = float(np.hypot(one, other))
        made, said = optax.clip_by_global_norm(norm), "optax.clip_by_global_norm(max_norm {})"
        return [Stage(made, said, norm, "clip_by_global_norm", aside)]
    if abs(one / other - 1) < 1e-6:
        return [Stage(optax.clip(one), "optax.clip(max_delta {})", one, "clip", aside)]
    return []


def _both(pair: np.ndarray) -> float:
    return float(pair[0]) if pair[0] == pair[1] and np.isfinite(pair[0]) else 0.0


ZERO_NANS = Stage(optax.zero_nans(), "optax.zero_nans", 0.0, "zero_nans", "NaNs set to zero")
