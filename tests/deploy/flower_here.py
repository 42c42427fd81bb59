"""Flower without its processes: a grid in this one, and SuperNodes that are functions."""

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity


def be_in_a_task(monkeypatch):
    """As in a process that Flower started."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """A SuperLink in this process: `nodes` maps the ids of SuperNodes to what they do."""

    def __init__(self, nodes):
        self.nodes, self.waiting, self.asked = nodes, {}, []
        self.looks = 0
        self.at = {}  # what happens before the n-th look

    def get_node_ids(self):
        self.looks += 1
        self.at.pop(self.looks, lambda: None)()
        return list(self.nodes)

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"m{len(self.asked)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.waiting[ids[-1]] = message
            self.asked.append((message.metadata.dst_node_id, message.metadata.message_type))
            assert 0 < message.metadata.ttl <= 30
        return ids

    def pull_messages(self, message_ids):
        assert message_ids
        replies = []
        for name in message_ids:
            message = self.waiting[name]
            node = self.nodes.get(message.metadata.dst_node_id)
            if node is not None and (reply := node(message)) is not None:
                replies.append(reply)
        return replies


def context_of(node_config, run_config):
    return Context(
        run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config=run_config,
        series_id=3,
    )  # fmt: skip


def supernode(app, config):
    """A SuperNode that runs a ClientApp as Flower does."""
    context = context_of(config, {})

    def handle(message):
        try:
            return app(message, context)
        except Exception as error:
            return Message(Error(code=2, reason=str(error)), reply_to=message)

    return handle
