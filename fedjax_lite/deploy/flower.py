"""flower_client(), flower_server(): a federation as the two halves of a Flower app."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fedjax_lite.checks.arguments import (
    check_bool,
    check_count,
    check_key,
    check_positive,
    check_tree,
    shown,
)
from fedjax_lite.deploy.exchange import Answer
from fedjax_lite.deploy.federate import federate
from fedjax_lite.deploy.flower_claims import MARK, mark_of
from fedjax_lite.deploy.flower_grid import ASK, PACKET, WHO, flower, grid_exchange, packed, unpacked
from fedjax_lite.deploy.node import node
from fedjax_lite.deploy.parts import deployed
from fedjax_lite.deploy.secure_client import check_secure
from fedjax_lite.deploy.secure_server import secure_server
from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.deploy.secure_sums import check_sums
from fedjax_lite.deploy.server import server
from fedjax_lite.deploy.tries import Limits, check_limits
from fedjax_lite.types import FederatedAlgorithm, Key, Params, PyTree

Config = Mapping[str, Any]
"""A SuperNode's ``--node-config``, or a run's."""


def flower_client(
    algo: FederatedAlgorithm,
    key: Key | Callable[[Config], Key],
    params: Params,
    examples: PyTree | Callable[[Config], PyTree],
    *,
    splits: dict[str, PyTree] | Callable[[Config], dict[str, PyTree]] | None = None,
    secure: SecureSettings | None = None,
    identity: Any = None,
) -> Any:
    """The ClientApp of an algorithm: `fedjax_lite.deploy.node` behind a Flower SuperNode.

        flower-supernode --node-config 'client-id=2 folder="/srv/rows" data="/srv/heart.csv"' ...

    Who this machine is, and where its rows lie, its own configuration says: ``client-id``, and
    ``folder`` on its own disk. Local training, uplink, SCAFFOLD's and Ditto's rows are ours; Flower
    carries bytes. It starts a process for every message, so programs are compiled once a message
    unless ``JAX_COMPILATION_CACHE_DIR`` names a folder.

    Under secure aggregation the phases of a session are answered by different processes, so it is
    kept in the folder from one to the next. Until the vector is masked private keys and the vector
    itself lie there, from then on no key; the file is gone when the session is over. Make the
    folder the node's alone (mode 0700), and keep it out of backups; what holds where one was
    restored: `fedjax_lite.deploy.secure_client.SecureClient`. A machine that was killed between two
    messages goes on; one that was killed over a message dropped out in that phase.

    Args:
      algo: as at the server.
      key: of this client's randomness; see `fedjax_lite.deploy.node`. Or ``(node config) -> key``
        that reads the machine's own, where noise of the clients is to protect them.
      params: a model of the same shapes.
      examples: the machine's arrays, leaves `[n, ...]`, or ``(node config) -> arrays`` that reads
        them when a request came: the same app is sent to all machines.
      splits: other data of this client by name, or ``(node config) -> splits``.
      secure: answer a `flower_server` that aggregates securely only: as of
        `fedjax_lite.deploy.node`.
      identity: where `secure` has identities, the client's ``Ed25519PrivateKey``, or
        ``(node config) -> key`` that reads it from the machine's own disk.

    Returns:
      A ``flwr.clientapp.ClientApp``.

    Raises:
      ImportError: without Flower.
      TypeError, ValueError: as `fedjax_lite.deploy.one_client`; if `secure` does not fit `algo`, or
        `identity` is there without its public keys, or missing.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, optax, fedjax_lite as fl
      >>> from importlib.util import find_spec
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> if find_spec("flwr"):
      ...     client = flower_client(algo, jax.random.key(0), jnp.float32(0),
      ...                            lambda config: {"b": np.loadtxt(config["data"])})

    Reference: Beutel et al., "Flower: A Friendly Federated Learning Research Framework", 2020,
    arXiv:2007.14390.
    """
    _check_securely(algo, secure)
    signed = secure is not None and secure.identities is not None
    if signed != (identity is not None):
        raise TypeError(
            f"identity must be {'a private key' if signed else 'None'} where secure has "
            f"{'identities' if signed else 'none'}, got {shown(identity)}; "
            "SecureSettings(threshold, identities={...}) and its Ed25519PrivateKey go together"
        )
    if not callable(key):
        check_key(key)
    check_tree(params, "params")

    def answer_of(config: Config) -> Answer:
        def own(data: Any) -> Any:
            return data(config) if callable(data) else data

        folder = config.get("folder")
        if not isinstance(folder, str) or not folder:
            raise ValueError(
                f"the SuperNode's configuration has folder={folder!r:.60}; it takes "
                "--node-config 'client-id=2 folder=\"/a/folder/of/its/own\"'"
            )
        client_id = _client_id(config)
        return node(
            *(algo, own(key), params, own(examples)),
            client_id=client_id,
            folder=folder,
            splits=own(splits),
            secure=secure,
            identity=own(identity),
            keep_session=secure is not None,
        )

    return flower_answers(answer_of)


def flower_answers(answer_of: Callable[[Config], Answer]) -> Any:
    """A ClientApp of any function that answers requests, for exchanges over Flower.

    Args:
      answer_of: ``(node config) -> answer``; called for every request, in a process of its own.

    Returns:
      A ``flwr.clientapp.ClientApp``; its SuperNode has ``client-id`` in its configuration.

    Raises:
      ImportError: without Flower.
      TypeError: if `answer_of` is no function.

    Example:
      >>> from importlib.util import find_spec
      >>> if find_spec("flwr"):
      ...     client = flower_answers(lambda config: bytes.upper)
    """
    if not callable(answer_of):
        raise TypeError(
            f"answer_of must be a function of a node's configuration, got {shown(answer_of)}; "
            "lambda config: fl.deploy.node(...)"
        )
    flwr = flower()
    client = flwr.clientapp.ClientApp()

    @client.query(WHO.split(".")[1])
    def who(message: Any, context: Any) -> Any:
        config = context.node_config
        client_id = _client_id(config)
        told = {"client": client_id, MARK: mark_of(config.get("folder"), client_id)}
        said = flwr.app.ConfigRecord(told)
        return flwr.app.Message(flwr.app.RecordDict({PACKET: said}), reply_to=message)

    @client.train()
    def ask(message: Any, context: Any) -> Any:
        request = unpacked(message)
        if request is None:
            raise ValueError("the message holds no packet; the server is fl.deploy.flower_server")
        reply = answer_of(context.node_config)(request)
        return flwr.app.Message(packed(reply), reply_to=message)

    assert ASK == "train"
    return client


def flower_server(
    algo: FederatedAlgorithm,
    key: Key | Callable[[Config], Key],
    params: Params,
    *,
    num_clients: int,
    num_rounds: int,
    folder: str | os.PathLike[str] | None = None,
    timeout: float = 600.0,
    min_clients: int = 1,
    on_refusal: Literal["drop", "abort"] = "drop",
    retries: int = 0,
    patience: float = 0.0,
    when_given_up: Literal["abort", "skip"] = "abort",
    bind: bool = True,
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
    secure: SecureSettings | None = None,
) -> Any:
    """The ServerApp of an algorithm: `fedjax_lite.deploy.federate` over the SuperNodes of a grid.

    Sampling, aggregation, privacy and the server's optimizer are the simulation's. The run's own
    configuration may set ``num-rounds``, ``folder`` and ``timeout``:
    ``flwr run . --run-config 'num-rounds=100 folder="/srv/run"'``; a run with the folder of one
    that was killed goes on from there.

    Args:
      algo: any synchronous algorithm.
      key: of the run. Or ``(run config) -> key`` that reads it from the server's disk: clients have
        the same app, and must not know a key whose noise hides them from one another.
      params: the model to begin with.
      num_clients: `N`, SuperNodes with ``client-id`` ``0 .. N - 1``.
      num_rounds: rounds in all, those done before included.
      folder: of checkpoints and metrics, on the server's disk.
      timeout: seconds that a round waits for replies, in each of its phases where there are
        several, and the start for SuperNodes; who has not replied by then dropped out.
      min_clients: a round with fewer replies that count is given up, where so many were asked.
      on_refusal: "drop" or "abort": what a reply that is refused does.
      retries: how often a round is asked for again before it is given up.
      patience: seconds between two tries.
      when_given_up: "abort" or "skip", as of `fedjax_lite.deploy.federate`.
      bind: a client is the machine that was first to say so, which is kept in `folder`; see
        `fedjax_lite.deploy.grid_exchange`.
      evaluate: ``(state) -> scores`` after each round, joined to its row.
      secure: learn sums only, as `fedjax_lite.deploy.secure_server`; with its identities if it has
        some. The same on every client.

    Returns:
      A ``flwr.serverapp.ServerApp``.

    Raises:
      ImportError: without Flower.
      TypeError, ValueError: as `fedjax_lite.deploy.server` or `fedjax_lite.deploy.secure_server`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_lite as fl
      >>> from importlib.util import find_spec
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> if find_spec("flwr"):
      ...     app = flower_server(algo, jax.random.key(0), jnp.float32(0),
      ...                         num_clients=3, num_rounds=10)
    """
    _check_securely(algo, secure)
    if not callable(key):
        check_key(key)
    check_tree(params, "params")
    check_count(num_clients, "num_clients", minimum=1)
    check_count(num_rounds, "num_rounds", minimum=0)
    check_positive(timeout, "timeout")
    limits = check_limits(Limits(min_clients, on_refusal, retries, patience, when_given_up))
    check_bool(bind, "bind")
    app = flower().serverapp.ServerApp()

    @app.main()
    def main(grid: Any, context: Any) -> None:
        config = context.run_config
        place, seconds = config.get("folder") or folder, config.get("timeout") or timeout
        given = (algo, key(config) if callable(key) else key, params)
        if secure is None:
            hub = server(*given, num_clients=num_clients)
        else:
            hub = secure_server(*given, num_clients=num_clients, secure=secure)
        federate(
            hub,
            grid_exchange(grid, timeout=seconds, bind=bind, folder=place),
            num_rounds=config.get("num-rounds", num_rounds),
            folder=place,
            **limits._asdict(),
            evaluate=evaluate,
        )

    return app


def _check_securely(algo: Any, secure: SecureSettings | None) -> None:
    """Raises where an algorithm does not run on machines, or not under these settings."""
    wires = deployed(algo)
    if secure is not None:
        check_secure(secure)
        check_sums(wires.program.aggregator, secure)


def _client_id(config: Config) -> int:
    number = config.get("client-id")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(
            f"the SuperNode's configuration has client-id={number!r:.60}; it takes "
            "--node-config 'client-id=2'"
        )
    return number
