"""SecureSettings: what server and clients agree on before they aggregate securely."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fedjax_lite.crypto.secagg.server import check_degree
from fedjax_lite.crypto.secagg.settings import Settings


@dataclasses.dataclass(frozen=True)
class SecureSettings:
    """How a federation aggregates securely: the same on the server and on every node.

    A node answers no server that asks for less. Threat models: `fedjax_lite.crypto.secure_sum`.

    Raises:
      TypeError, ValueError: if a field makes no sense, or does not fit the others.

    Example:
      >>> SecureSettings(threshold=3).fewest
      3
    """

    threshold: int
    """`t`: above half of the cohort, or of the ``degree + 1`` holders of a secret; with identities
    above two thirds of all clients. Fewer clients together learn nothing of another one, and so
    many have to be there in the end."""
    min_survivors: int | None = None
    """Clients that a revealed sum has at least; None: the threshold."""
    identities: Mapping[int, bytes] | None = None
    """Ed25519 public keys of all clients: the protocol for a server that does as it likes."""
    degree: int | None = None
    """Neighbours in SecAgg+; None: everybody masks with everybody."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError where a field makes no sense."""
        settings = self.of_round("", 0, "", 1)
        if self.degree is not None:
            check_degree(self.degree, settings)

    @property
    def fewest(self) -> int:
        """Clients in a revealed sum, at least."""
        return self.threshold if self.min_survivors is None else self.min_survivors

    def of_round(self, run: str, round: int, session: str, length: int) -> Settings:
        """The protocol's settings of one attempt at a round.

        Args:
          run: its name.
          round: its number.
          session: of the attempt; keys are made for it.
          length: words of a client's vector.
        """
        name = f"fedjax_lite {run}/{round}/{session}".encode()
        return Settings(name, self.threshold, length, self.min_survivors, self.identities)

    def told(self) -> dict[str, int | bool | None]:
        """What a request says of it, for a node to compare."""
        return {
            "threshold": int(self.threshold),
            "min_survivors": int(self.fewest),
            "signed": self.identities is not None,
            "degree": None if self.degree is None else int(self.degree),
        }
