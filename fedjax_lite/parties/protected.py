"""Gradients of a regression over columns whose residuals travel encrypted, under CKKS.

Not under Paillier, as in the paper, for want of a package (looked at in November 2026):

* python-paillier, `phe` 1.5.0, is under GPLv3, this library under Apache 2.0; its last release is
  of April 2022; a ciphertext of it carries an exponent in the clear that tells how large the float
  in it is, unless one precision is asked for.
* `lightphe` 0.0.27 draws keys and blinding from Python's `random`, which is no secure source.
* `pailliers` 0.3.1, MIT, is pure Python: the two powers of an encryption with a modulus of 3072
  bits (128-bit security) took half a second of CPU, so a step over 555 patients takes minutes.

There residuals would be integers, and masks uniform: of a sum the holder would learn nothing. Here
masks hide about ten bits, see below; a step over 740 patients and two parties sends 1.7 MB up and
0.7 MB down (`experiments/vertical_hospitals.py`), and is wrong by 3e-8.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_finite, check_positive, check_slot
from fedjax_lite.checks.made import maker_of
from fedjax_lite.crypto.ckks import Ciphertexts, CkksSecret, CkksServer
from fedjax_lite.crypto.normals import secret_normals
from fedjax_lite.parties.columns import ColumnDataset
from fedjax_lite.parties.model import Joint, VerticalModel

SMALLEST = 1e-6
"""Residuals are announced to be no smaller: masks must hide CKKS's noise, too, which a party's
columns multiply."""


class Protected(NamedTuple):
    """The gradients of all parties, and what protection cost."""

    gradients: Joint
    """Like the parameters, numpy float64."""
    uplink_bytes: int
    """Of partial predictors in the clear and masked gradients under encryption, to the holder."""
    downlink_bytes: int
    """Of residuals under encryption, from the holder, of the largest of them, and of sums in the
    clear."""
    context_bytes: int
    """Of the public context to all other parties, once for all that is done with one `secret`; not
    part of `downlink_bytes`."""


def protected_gradients(
    model: VerticalModel,
    params: Joint,
    data: ColumnDataset,
    *,
    bound: float,
    secret: CkksSecret | None = None,
    mask: float = 1e3,
) -> Protected:
    r"""One full gradient of a `regression`, of whose residuals other parties see ciphertexts only.

    .. math::  \mathrm{Enc}(n r) \;\text{down}, \qquad
               \mathrm{Enc}(n r \odot x_{\cdot j}) + \mathrm{Enc}(m_j) \;\text{up}, \qquad
               \textstyle\sum_i n r_i x_{ij} + \sum_i m_{ij} \;\text{down}, \qquad
               m_{ij} \sim N\bigl(0, (\text{mask} \cdot \text{bound} \cdot
               \max_i |n r_i|)^2\bigr)

    The holder has the secret key and encrypts `n` times the residuals of the mean loss; a party
    multiplies them with each of its columns, adds masks that it encrypts anew, and sends that; the
    holder decrypts and returns the sum, from which the party takes its masks and the `n`. It is the
    plain gradient of `joint` up to CKKS's error: each product is wrong by about 2e-7 of itself and
    by 1e-8 `bound`, whatever its size; a gradient, their mean, by no more. On the host; partial
    predictors go up in the clear, as ever.

    **What leaks**: a party sees its own gradient (and so some combinations of residuals: with more
    columns than entities, all of them), the largest size of a residual, which the holder announces
    for the masks, and ciphertexts. `bound` is public, agreed by the parties beforehand from what
    everybody may know (standardised columns: 10), and the same for all columns: masks made by a
    column's own largest value would tell it. The holder sees products under masks of `mask` times
    their largest possible size: statistical hiding of one product, about ``log2(mask)`` bits, not
    more. It weakens over rounds: `T` calls about the same columns average masks to deviation
    :math:`\text{mask} / \sqrt T`. The masks also fill the places of a ciphertext without an
    entity, and are encrypted under the public key with randomness of their own, so a ciphertext is
    no function of residuals and columns by which the holder could confirm a guess; all have one
    length but for the thousandths by which compression varies, that of a column of zeros, too. CKKS
    is approximate, and what was decrypted must not be shown to those who made the ciphertexts
    unless they are honest.

    Args:
      model: of `regression`.
      params: of the model.
      data: its columns.
      bound: no feature of a party without labels is larger in size; known to all.
      secret: the holder's keys; default fresh ones.
      mask: deviation of the masks, in units of a product's largest possible size.

    Returns:
      `Protected`.

    Raises:
      TypeError: if something is of another kind.
      ValueError: if the model is no regression, `mask` or `bound` not positive, or a feature beyond
        `bound`.
      ImportError: without tenseal.

    Example:
      >>> from fedjax_lite.parties.protected import Protected
      >>> Protected._fields
      ('gradients', 'uplink_bytes', 'downlink_bytes', 'context_bytes')

    Reference: Hardy et al., "Private federated learning on vertically partitioned data via entity
    resolution and additively homomorphic encryption", 2017, arXiv:1711.10677 (there with Paillier,
    and a Taylor series where here the holder computes residuals exactly).
    """
    check_slot(model, "model", VerticalModel)
    check_slot(params, "params", Joint)
    check_slot(data, "data", ColumnDataset)
    for number, name in ((mask, "mask"), (bound, "bound")):
        check_positive(number, name)
        check_finite(number, name)
    note = maker_of(model)
    if note is None or note.name != "regression":
        raise ValueError(
            f"model must be made by regression, got {note}; networks send activations, whose "
            "gradients no party may compute on under encryption here"
        )
    ((holder, head),) = model.heads.items()
    y, size = data.labels[holder], data.num_entities
    others = [party for party in model.bottoms if party != holder]
    for party in others:
        _check_bound(party, data.features[party], bound)

    def loss(head_params: Any, z: Any) -> Any:
        return head.loss(head_params, {"x": z, "y": y}, None).mean()

    parts = {p: data.features[p] @ params.bottoms[p] for p in model.bottoms}
    of_head, residuals = jax.grad(loss, argnums=(0, 1))(
        params.heads[holder], model.combine({p: jnp.asarray(z) for p, z in parts.items()})
    )
    # Of the sum of losses: CKKS's noise is the same for large numbers and small ones.
    scaled = size * np.asarray(residuals, np.float64)
    secret = CkksSecret() if secret is None else secret
    sent, public = secret.encrypt(laid_out(scaled, secret.slots)), secret.public
    largest = max(float(np.abs(scaled).max()), SMALLEST)
    up = down = 0
    bottoms: dict[str, np.ndarray] = {}
    for party in model.bottoms:
        x = np.asarray(data.features[party], np.float64)
        if party == holder:
            bottoms[party] = x.T @ scaled / size
            continue
        # A party is told how large residuals are at most, and nothing else in the clear.
        theirs = _Party(CkksServer(public), x, mask * bound * largest, secret.slots)
        masked = theirs.products(sent)
        sums = np.array([taken_out(secret.decrypt(m), secret.slots, size).sum() for m in masked])
        bottoms[party] = theirs.unmasked(sums) / size
        down += sent.num_bytes + np.float64(largest).nbytes + sums.nbytes
        up += sum(one.num_bytes for one in masked) + np.asarray(parts[party]).nbytes
    gradients = Joint(bottoms, {holder: jax.tree.map(np.asarray, of_head)}, {})
    return Protected(gradients, up, down, len(public) * len(others))


class _Party:
    """The side without labels: what it does with residuals that it cannot read."""

    def __init__(self, server: CkksServer, x: np.ndarray, deviation: float, slots: int) -> None:
        self._server, self._size, self._slots = server, len(x), slots
        self._columns = [laid_out(column, slots, last=1.0) for column in x.T]
        self._masks = [deviation * secret_normals(len(column)) for column in self._columns]

    def products(self, residuals: Ciphertexts) -> list[Ciphertexts]:
        """The masked products, a ciphertext a column."""
        return [
            self._server.shift(self._server.multiply(residuals, column), mask)
            for column, mask in zip(self._columns, self._masks, strict=True)
        ]

    def unmasked(self, sums: np.ndarray) -> np.ndarray:
        """What the sums that come back are of."""
        masks = [taken_out(mask, self._slots, self._size).sum() for mask in self._masks]
        return sums - np.array(masks)


def laid_out(values: np.ndarray, slots: int, *, last: float = 0.0) -> np.ndarray:
    """Numbers as ciphertexts hold them: all `slots` in use, the last of each kept free.

    Where that holds a one no plaintext is zero: the product with zero is no product to SEAL, but a
    ciphertext of another length.

    Example:
      >>> laid_out(np.arange(1.0, 4.0), 3, last=9.0).tolist()
      [1.0, 2.0, 9.0, 3.0, 0.0, 9.0]
    """
    parts = -(-len(values) // (slots - 1))
    full = np.zeros(parts * (slots - 1))
    full[: len(values)] = values
    free = np.full((parts, 1), last)
    return np.concatenate([full.reshape(parts, slots - 1), free], axis=1).ravel()


def taken_out(full: np.ndarray, slots: int, size: int) -> np.ndarray:
    """The numbers of `laid_out`, `[size]`.

    Example:
      >>> taken_out(laid_out(np.arange(1.0, 4.0), 3), 3, 3).tolist()
      [1.0, 2.0, 3.0]
    """
    return full.reshape(-1, slots)[:, :-1].ravel()[:size]


def _check_bound(party: str, x: Any, bound: float) -> None:
    inside = np.abs(np.asarray(x)) <= bound
    if not inside.all():
        row, column = np.argwhere(~inside)[0].tolist()
        raise ValueError(
            f"bound must be at least the size of every feature, got {bound:g}, and a larger one in "
            f"row {row}, column {column} of features[{party!r}]; clip or scale the column, or "
            "agree on a larger bound"
        )
