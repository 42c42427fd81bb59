"""adversarial(): an encoder, a predictor and an adversary as one set of parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_key, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of, with_counts
from fedjax_lite.metrics.answers import answers_of, chosen, valid_labels
from fedjax_lite.models.model import Model
from fedjax_lite.models.reversal import gradient_reversal
from fedjax_lite.types import Array, Key, Params, PyTree

PARTS = ("adversary", "encoder", "predictor")


class Adversarial(NamedTuple):
    """Three networks that are trained against each other; see `adversarial`."""

    encoder: Model
    predictor: Model
    adversary: Model
    group: str
    """The key of examples that holds what the adversary guesses."""
    made: Any = None
    """Which factory made it."""

    @property
    def model(self) -> Model:
        """Encoder and predictor as a `Model` of all parameters, for evaluations.

        Example:
          >>> import jax
          >>> import jax.numpy as jnp
          >>> add = Model(lambda key: jnp.ones(()), None, lambda w, e: w + e["x"])
          >>> parts = adversarial(add, add, add)
          >>> float(parts.model.predict(parts.model.init(jax.random.key(0)), {"x": 1.0}))
          3.0
        """
        counts = counts_of(self.predictor.loss)
        loss = self._task
        return Model(self.init, loss if counts is None else with_counts(loss, counts), self._answer)

    def init(self, key: Key) -> Params:
        """Parameters ``{"encoder": ..., "predictor": ..., "adversary": ...}``.

        Example:
          >>> import jax
          >>> import jax.numpy as jnp
          >>> one = Model(lambda key: jnp.ones(()), None, None)
          >>> sorted(Adversarial(one, one, one, "group").init(jax.random.key(0)))
          ['adversary', 'encoder', 'predictor']
        """
        check_key(key)
        keys = jax.random.split(key, 3)
        each = (self.encoder, self.predictor, self.adversary)
        names = ("encoder", "predictor", "adversary")
        return {name: part.init(one) for name, part, one in zip(names, each, keys, strict=True)}

    def loss(
        self,
        params: Params,
        examples: Any,
        key: Key | None,
        strength: Any,
        mask: Array | None = None,
    ) -> Array:
        r"""The predictor's loss and the adversary's, behind a reversal of this strength, `[B]`.

        .. math::
            \ell_j = \ell_{\text{task}, j}
                + \frac{\sum_i m_i}{\sum_i m_i k_i}\, k_j\, \ell_{\text{group}, j}

        with `k` for a group that is known: the mean of this over the examples that count is the
        task's mean over them, and the adversary's over those of them whose group is known.

        Args:
          params: of all three.
          examples: leaves `[B, ...]`.
          key: of dropout in predictor and adversary; None: none is done.
          strength: of the reversal.
          mask: bool `[B]`, the examples that count; None: all.

        Example:
          >>> import jax
          >>> import jax.numpy as jnp
          >>> up = Model(None, lambda w, e, key: w * e["x"], lambda w, e: w * e["x"])
          >>> params = {name: jnp.array(2.0) for name in PARTS}
          >>> parts, examples = Adversarial(up, up, up, "group"), {"x": 3.0, "group": jnp.array(0)}
          >>> loss = lambda p: parts.loss(p, examples, None, 0.5)
          >>> {name: float(g) for name, g in jax.grad(loss)(params).items()}  # 2 * 3 - .5 * 2 * 3
          {'adversary': 6.0, 'encoder': 3.0, 'predictor': 6.0}
        """
        told = self.encoder.predict(params["encoder"], examples)
        ours, theirs = (None, None) if key is None else jax.random.split(key)
        task = self.predictor.loss(params["predictor"], {**examples, "x": told}, ours)
        guessed = self._guessed(examples, gradient_reversal(told, strength))
        group = self.adversary.loss(params["adversary"], guessed, theirs)
        known = valid_labels(guessed["y"])
        mask = jnp.ones_like(known) if mask is None else mask
        share = mask.sum() / jnp.maximum((mask & known).sum(), 1)
        return task + share.astype(group.dtype) * jnp.where(known, group, 0)

    def hits(self, params: Params, examples: Any) -> tuple[Array, Array]:
        """Which groups the adversary guesses rightly, and which examples have one: bool `[B]`.

        Example:
          >>> import jax.numpy as jnp
          >>> same = Model(None, None, lambda w, e: e["x"])
          >>> parts = Adversarial(same, same, same, "g")
          >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
          >>> [found.tolist() for found in parts.hits(
          ...     {name: () for name in PARTS}, {"x": x, "g": jnp.array([0, 0, -1])})]
          [[True, False, False], [True, True, False]]
        """
        told = self.encoder.predict(params["encoder"], examples)
        guess = self.adversary.predict(params["adversary"], self._guessed(examples, told))
        truth = examples[self.group]
        known = valid_labels(truth)
        logits = answers_of(guess, {"y": known}).logits  # of one output: 0 and that output
        return (chosen(logits) == truth) & known, known

    def _guessed(self, examples: Any, told: Array) -> PyTree:
        return {**examples, "x": told, "y": examples[self.group]}

    def _task(self, params: Params, examples: Any, key: Key | None) -> Array:
        told = self.encoder.predict(params["encoder"], examples)
        return self.predictor.loss(params["predictor"], {**examples, "x": told}, key)

    def _answer(self, params: Params, examples: Any) -> Array:
        told = self.encoder.predict(params["encoder"], examples)
        return self.predictor.predict(params["predictor"], {**examples, "x": told})


@made
def adversarial(
    encoder: Model, predictor: Model, adversary: Model, *, group: str = "group"
) -> Adversarial:
    r"""An encoder whose features serve a predictor, and an adversary that guesses the group.

    .. math::
        z = e(x), \qquad
        \ell = \ell_{\text{task}}(h(z), y) + \ell_{\text{group}}(a(R_\lambda(z)), g)

    With the reversal :math:`R_\lambda` (`gradient_reversal`) one descent on their sum lets
    predictor and adversary descend on losses of their own, and the encoder on
    :math:`\ell_{\text{task}} - \lambda\, \ell_{\text{group}}`. The encoder is trained through its
    `predict`, as it will be used: neither dropout nor augmentation in it is done, and running
    statistics of a batch normalisation stay as they were drawn; give it one by groups or instances.

    Args:
      encoder: its outputs, `[B, d]`, are the features: an `mlp` with ``num_classes=d``.
      predictor: a model of features: ``linear(num_classes, (d,))``.
      adversary: a model of features, too: ``linear(num_groups, (d,))``, or an `mlp`; one output
        is the log-odds of group 1.
      group: the key of examples that holds the group, integers; a negative one is not known: the
        example trains the task only, and counts nowhere in the mean of the adversary's losses.

    Returns:
      An `Adversarial`, which `fedjax_lite.debiasing` trains; its `model` is scored as any.

    Raises:
      TypeError: if one of the three is no `Model`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import fedjax_lite as fl
      >>> encoder = fl.models.mlp((8,), num_classes=4, input_shape=(3,))
      >>> parts = adversarial(encoder, fl.models.linear(2, (4,)), fl.models.linear(2, (4,)))
      >>> examples = {"x": jnp.ones((5, 3)), "y": jnp.zeros(5, int)}
      >>> parts.model.predict(parts.init(jax.random.key(0)), examples).shape
      (5, 2)

    Reference: Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016,
    arXiv:1505.07818.
    """
    for name, part in (("encoder", encoder), ("predictor", predictor), ("adversary", adversary)):
        check_slot(part, name, Model)
    if not group:
        raise ValueError("group must name a key of the examples, got ''; give 'group'")
    return Adversarial(encoder, predictor, adversary, group)
