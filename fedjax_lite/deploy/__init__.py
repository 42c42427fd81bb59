"""The same algorithms on machines of their clients' own: bytes in, bytes out, any transport."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.deploy.answer_forever import NotWelcome, answer_forever
    from fedjax_lite.deploy.certificates import Certificates, make_certificates
    from fedjax_lite.deploy.exchange import Answer, Exchange, in_process
    from fedjax_lite.deploy.federate import Federated, federate
    from fedjax_lite.deploy.flare import flare_client, flare_exchange, flare_server
    from fedjax_lite.deploy.flower import flower_answers, flower_client, flower_server
    from fedjax_lite.deploy.flower_grid import grid_exchange
    from fedjax_lite.deploy.frames import FrameError
    from fedjax_lite.deploy.listen import Listener, listen
    from fedjax_lite.deploy.node import node
    from fedjax_lite.deploy.one_client import OneClient, one_client
    from fedjax_lite.deploy.packets import Packet, PacketError, decode, encode, unpack
    from fedjax_lite.deploy.parts import ToldSizes
    from fedjax_lite.deploy.rounds import Merged, Served
    from fedjax_lite.deploy.secure_server import SecureServer, secure_server
    from fedjax_lite.deploy.secure_settings import SecureSettings
    from fedjax_lite.deploy.server import FederatedServer, server
    from fedjax_lite.deploy.tls import TLS
    from fedjax_lite.deploy.tries import FederationAborted, RoundGivenUp

__all__ = [
    "Answer",
    "Certificates",
    "Exchange",
    "Federated",
    "FederatedServer",
    "FederationAborted",
    "FrameError",
    "Listener",
    "Merged",
    "NotWelcome",
    "OneClient",
    "Packet",
    "PacketError",
    "RoundGivenUp",
    "SecureServer",
    "SecureSettings",
    "Served",
    "TLS",
    "ToldSizes",
    "answer_forever",
    "decode",
    "encode",
    "federate",
    "flare_client",
    "flare_exchange",
    "flare_server",
    "flower_answers",
    "flower_client",
    "flower_server",
    "grid_exchange",
    "in_process",
    "listen",
    "make_certificates",
    "node",
    "one_client",
    "secure_server",
    "server",
    "unpack",
]

load_when_asked(__name__)
