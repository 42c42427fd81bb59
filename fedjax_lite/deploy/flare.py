"""flare_client(), flare_server(): a federation as the two classes of an NVFlare job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from fedjax_lite.checks.arguments import check_count, check_key, check_positive, check_tree, shown
from fedjax_lite.deploy.exchange import Answer, Exchange
from fedjax_lite.deploy.federate import federate
from fedjax_lite.deploy.node import node
from fedjax_lite.deploy.parts import deployed
from fedjax_lite.deploy.server import server
from fedjax_lite.deploy.tries import FederationAborted, Limits, check_limits
from fedjax_lite.types import FederatedAlgorithm, Key, Params, PyTree

PACKET = "packet"
"""The name of the task, and of the bytes in it."""
LOOK = 0.05
"""Seconds between two looks at which tasks are done."""


def nvflare() -> Any:
    """NVFlare's package, with what a job needs of it loaded.

    Raises:
      ImportError: that names the extra, where the package is missing.
    """
    try:
        import nvflare.apis.controller_spec
        import nvflare.apis.executor
        import nvflare.apis.fl_constant
        import nvflare.apis.impl.controller
        import nvflare.apis.shareable
    except ImportError as error:
        raise ImportError(
            'NVFlare jobs need the package nvflare; pip install "fedjax_lite[nvflare]"'
        ) from error
    return nvflare.apis


def flare_client(
    algo: FederatedAlgorithm,
    key: Key,
    params: Params,
    examples: PyTree | Callable[[str], PyTree],
    *,
    splits: dict[str, PyTree] | Callable[[str], dict[str, PyTree]] | None = None,
) -> type:
    """The Executor of an algorithm: `fedjax_lite.deploy.node` as a component of an NVFlare job.

    A component is a class of the job's own code, so that module derives one, and the job gives each
    site its own:

        class Hospital(fl.deploy.flare_client(algo, key, params, np.load)): ...
        job.to(Hospital(client_id=0, folder="/srv/rows", data="/srv/heart.npz"), "site-1")

    It stays for the whole job: local training compiles once. Rows lie in the folder, on the site's
    own disk. A site runs a job's code only where its own policy allows that.

    Args:
      algo: as at the server.
      key: of the clients' randomness; see `fedjax_lite.deploy.node`.
      params: a model of the same shapes.
      examples: the site's arrays, leaves `[n, ...]`, or ``(data) -> arrays`` of what the job says.
      splits: other data of this client by name, or ``(data) -> splits``.

    Returns:
      A class, an ``nvflare.apis.executor.Executor``, of ``client_id``, ``folder`` and ``data``.

    Raises:
      ImportError: without NVFlare.
      TypeError, ValueError: as `fedjax_lite.deploy.one_client`.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, optax, fedjax_lite as fl
      >>> from importlib.util import find_spec
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> if find_spec("nvflare"):
      ...     client = flare_client(algo, jax.random.key(0), jnp.float32(0),
      ...                           lambda data: {"b": np.loadtxt(data)})

    Reference: Roth et al., "NVIDIA FLARE: Federated Learning from Simulation to Real-World", 2022,
    arXiv:2210.13291.
    """
    deployed(algo)
    check_key(key)
    check_tree(params, "params")
    apis = nvflare()

    class FlareClient(apis.executor.Executor):
        """One client of a federation, on its site."""

        def __init__(self, client_id: int, folder: str, data: str = "") -> None:
            super().__init__()
            self.client_id, self.folder, self.data = client_id, folder, data
            self._answer: Answer | None = None

        def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
            """Answers a request."""
            request = shareable.get(PACKET)
            if task_name != PACKET or not isinstance(request, bytes):
                return apis.shareable.make_reply(apis.fl_constant.ReturnCode.TASK_UNKNOWN)
            if self._answer is None:
                own, others = (
                    given(self.data) if callable(given) else given for given in (examples, splits)
                )
                self._answer = node(
                    algo,
                    key,
                    params,
                    own,
                    client_id=self.client_id,
                    folder=self.folder,
                    splits=others,  # type: ignore[arg-type]
                )
            return _shareable(apis, self._answer(request))

    return FlareClient


def flare_server(
    algo: FederatedAlgorithm,
    key: Key,
    params: Params,
    *,
    num_rounds: int,
    timeout: float = 600.0,
    min_clients: int = 1,
    on_refusal: Literal["drop", "abort"] = "drop",
    retries: int = 0,
    patience: float = 0.0,
    when_given_up: Literal["abort", "skip"] = "abort",
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
) -> type:
    """The Controller of an algorithm: `fedjax_lite.deploy.federate` over the sites of a job.

        class Server(fl.deploy.flare_server(algo, key, params, num_rounds=100)): ...
        job.to(Server(sites=["site-1", "site-2"], folder="/srv/run"), "server")

    Sampling, aggregation, privacy and the server's optimizer are the simulation's.

    Args:
      algo: any synchronous algorithm.
      key: of the run.
      params: the model to begin with.
      num_rounds: rounds in all, those done before included.
      timeout: seconds that a round waits for replies; who has not replied by then dropped out.
      min_clients: a round with fewer replies that count is given up, where so many were asked.
      on_refusal: "drop" or "abort": what a reply that is refused does.
      retries: how often a round is asked for again before it is given up.
      patience: seconds between two tries.
      when_given_up: "abort" or "skip", as of `fedjax_lite.deploy.federate`.
      evaluate: ``(state) -> scores`` after each round, joined to its row.

    Returns:
      A class, an ``nvflare.apis.impl.controller.Controller``, of ``sites`` (their names; client `i`
      is the `i`-th) and ``folder`` (of checkpoints and metrics, "" for none).

    Raises:
      ImportError: without NVFlare.
      TypeError, ValueError: as `fedjax_lite.deploy.server`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_lite as fl
      >>> from importlib.util import find_spec
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> if find_spec("nvflare"):
      ...     Server = flare_server(algo, jax.random.key(0), jnp.float32(0), num_rounds=10)
    """
    deployed(algo)
    check_key(key)
    check_tree(params, "params")
    check_count(num_rounds, "num_rounds", minimum=0)
    check_positive(timeout, "timeout")
    limits = check_limits(Limits(min_clients, on_refusal, retries, patience, when_given_up))
    apis = nvflare()

    class FlareServer(apis.impl.controller.Controller):
        """The server of a federation."""

        def __init__(self, sites: list[str], folder: str = "") -> None:
            super().__init__()
            self.sites, self.folder = sites, folder

        def start_controller(self, fl_ctx: Any) -> None:
            """Nothing is to be prepared."""

        def stop_controller(self, fl_ctx: Any) -> None:
            """Nothing is left behind."""

        def control_flow(self, abort_signal: Any, fl_ctx: Any) -> None:
            """The federation."""
            exchange = flare_exchange(self, self.sites, abort_signal, fl_ctx, timeout=timeout)
            federate(
                server(algo, key, params, num_clients=len(self.sites)),
                exchange,
                num_rounds=num_rounds,
                folder=self.folder or None,
                **limits._asdict(),
                evaluate=evaluate,
            )

    return FlareServer


def flare_exchange(
    controller: Any, sites: Sequence[str], abort_signal: Any, fl_ctx: Any, *, timeout: float
) -> Exchange:
    """An exchange over NVFlare: a task a client, whose sites run `flare_client`.

    Args:
      controller: in whose ``control_flow`` this runs.
      sites: names of the clients' sites; client `i` is the `i`-th.
      abort_signal: of ``control_flow``.
      fl_ctx: of ``control_flow``.
      timeout: seconds that an exchange waits for replies, at most.

    Returns:
      An `Exchange`.

    Raises:
      TypeError, ValueError: if `controller` is none, `sites` no names, or a time is not positive.

    Example:
      >>> flare_exchange("server", ["site-1"], None, None, timeout=60)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      TypeError: controller must be that of an NVFlare Controller's control_flow, got 'server'; ...
    """
    given = {"controller": controller, "abort_signal": abort_signal, "fl_ctx": fl_ctx}
    for (name, part), has in zip(given.items(), ("send", "triggered", "get_prop"), strict=True):
        if not hasattr(part, has):
            raise TypeError(
                f"{name} must be that of an NVFlare Controller's control_flow, got {shown(part)}; "
                "flare_exchange(self, sites, abort_signal, fl_ctx, timeout=600)"
            )
    named = not isinstance(sites, str) and all(isinstance(site, str) and site for site in sites)
    if not named or not len(sites):
        raise TypeError(f'sites must be names of sites, got {shown(sites)}; ["site-1", "site-2"]')
    check_positive(timeout, "timeout")
    seconds = math.ceil(timeout)

    def exchange(requests: Mapping[int, bytes]) -> dict[int, bytes]:
        apis = nvflare()
        replies: dict[int, bytes] = {}
        tasks = []

        def receiver(client: int) -> Callable[[Any, Any], None]:
            def received(client_task: Any, fl_ctx: Any) -> None:
                result = client_task.result
                good = result.get_return_code() == apis.fl_constant.ReturnCode.OK
                if good and isinstance(result.get(PACKET), bytes):
                    replies[client] = result[PACKET]

            return received

        for client, request in requests.items():
            task = apis.controller_spec.Task(
                name=PACKET,
                data=_shareable(apis, request),
                timeout=seconds,
                result_received_cb=receiver(client),
            )
            tasks.append(task)
            controller.send(task, fl_ctx, targets=[sites[client]], task_assignment_timeout=seconds)
        while any(task.completion_status is None for task in tasks):
            if abort_signal.triggered:
                raise FederationAborted("NVFlare stops this job")
            time.sleep(LOOK)
        return dict(replies)

    return exchange


def _shareable(apis: Any, data: bytes) -> Any:
    shareable = apis.shareable.Shareable()
    shareable[PACKET] = data
    return shareable
