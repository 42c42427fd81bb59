"""Gradients of a regression over columns whose residuals travel encrypted."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_positive, check_slot
from fedjax_lite.checks.made import maker_of
from fedjax_lite.crypto.ckks import CkksSecret, CkksServer
from fedjax_lite.parties.columns import ColumnDataset
from fedjax_lite.parties.model import Joint, VerticalModel


class Protected(NamedTuple):
    """The gradients of all parties, and what protection cost."""

    gradients: Joint
    """Like the parameters, numpy float64."""
    uplink_bytes: int
    """Of masked gradients under encryption, to the holder."""
    downlink_bytes: int
    """Of residuals under encryption, from the holder, and of sums in the clear."""


def protected_gradients(
    model: VerticalModel,
    params: Joint,
    data: ColumnDataset,
    *,
    secret: CkksSecret | None = None,
    mask: float = 1e3,
) -> Protected:
    r"""One full gradient of a `regression`, of whose residuals other parties see ciphertexts only.

    .. math::  \mathrm{Enc}(r) \;\text{down}, \qquad
               \mathrm{Enc}(r \odot x_{\cdot j} + m_j) \;\text{up}, \qquad
               \textstyle\sum_i r_i x_{ij} + \sum_i m_{ij} \;\text{down}

    The holder has the secret key and encrypts the residuals; a party multiplies them with each of
    its columns, adds a mask, and sends that; the holder decrypts and returns the sum, from which
    the party takes its mask. Up to CKKS's error, about 1e-6 of the largest product, it is the plain
    gradient of `joint`. On the host; partial predictors go up in the clear, as ever.

    **What leaks**: a party sees its own gradient (and so some combinations of residuals: with more
    columns than entities, all of them), the largest size of a residual, which the holder announces
    for the masks, and ciphertexts. The holder sees products under masks of
    `mask` times their largest size: statistical hiding, about ``log2(mask)`` bits, not more. CKKS
    is approximate, and what was decrypted must not be shown to those who made the ciphertexts
    unless they are honest.

    Args:
      model: of `regression`.
      params: of the model.
      data: its columns.
      secret: the holder's keys; default fresh ones.
      mask: deviation of the masks, in units of a product's largest possible size.

    Returns:
      `Protected`.

    Raises:
      TypeError: if something is of another kind.
      ValueError: if the model is no regression, or `mask` not positive.
      ImportError: without tenseal.

    Example:
      >>> from fedjax_lite.parties.protected import Protected
      >>> Protected._fields
      ('gradients', 'uplink_bytes', 'downlink_bytes')

    Reference: Hardy et al., "Private federated learning on vertically partitioned data via entity
    resolution and additively homomorphic encryption", 2017, arXiv:1711.10677 (there with Paillier,
    and a Taylor series where here the holder computes residuals exactly).
    """
    check_slot(model, "model", VerticalModel)
    check_slot(params, "params", Joint)
    check_slot(data, "data", ColumnDataset)
    check_positive(mask, "mask")
    note = maker_of(model)
    if note is None or note.name != "regression":
        raise ValueError(
            f"model must be made by regression, got {note}; networks send activations, whose "
            "gradients no party may compute on under encryption here"
        )
    ((holder, head),) = model.heads.items()
    y = data.labels[holder]

    def loss(head_params: Any, z: Any) -> Any:
        return head.loss(head_params, {"x": z, "y": y}, None).mean()

    parts = {p: data.features[p] @ params.bottoms[p] for p in model.bottoms}
    of_head, residuals = jax.grad(loss, argnums=(0, 1))(
        params.heads[holder], model.combine({p: jnp.asarray(z) for p, z in parts.items()})
    )
    residuals = np.asarray(residuals, np.float64)
    secret = CkksSecret() if secret is None else secret
    sent = secret.encrypt(residuals)
    up = down = 0
    bottoms: dict[str, np.ndarray] = {}
    for party in model.bottoms:
        x = np.asarray(data.features[party], np.float64)
        if party == holder:
            bottoms[party] = x.T @ residuals
            continue
        # A party is told how large residuals are at most, and nothing else in the clear.
        theirs = _Party(CkksServer(secret.public), x, mask * float(np.abs(residuals).max()))
        masked = theirs.products(sent)
        sums = np.array([secret.decrypt(one).sum() for one in masked])
        bottoms[party] = theirs.unmasked(sums)
        down += sent.num_bytes + sums.nbytes
        up += sum(one.num_bytes for one in masked)
    return Protected(Joint(bottoms, {holder: jax.tree.map(np.asarray, of_head)}, {}), up, down)


class _Party:
    """The side without labels: what it does with residuals that it cannot read."""

    def __init__(self, server: CkksServer, x: np.ndarray, size: float) -> None:
        rng = np.random.default_rng(secrets.randbits(128))
        self._server, self._x = server, x
        largest = np.maximum(np.abs(x).max(axis=0), 1e-12)
        self._masks = rng.normal(size=x.T.shape) * (size * largest)[:, None]

    def products(self, residuals: Any) -> list[Any]:
        """The masked products, a ciphertext a column."""
        return [
            self._server.shift(self._server.multiply(residuals, column), mask)
            for column, mask in zip(self._x.T, self._masks, strict=True)
        ]

    def unmasked(self, sums: np.ndarray) -> np.ndarray:
        """The gradient, from the sums that come back."""
        return sums - self._masks.sum(axis=1)
