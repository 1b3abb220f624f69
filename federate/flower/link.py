"""Flower's SuperLink in this process: the port that sites connect to, and the grid behind it.

It serves Flower's Fleet API and nothing else. The APIs by which Flower lets anybody who reaches
the port start a run or execute a task are left out, so the only code that runs here is ours.
"""

import asyncio
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    ErrorCode,
    Status,
)
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response

from ...cache import FedclipError
from .bundle import bundle, bundle_hash
from .server_app import fingerprint

logger = logging.getLogger(__name__)

# Seconds until a connection must be closed when the server ends.
_GRACE = 3

# The largest request, and the most objects of an answer. Flower sends arrays in objects of up to
# 5 MiB, one a request, and reads whatever comes.
_REQUEST_BYTES, _ANSWER_OBJECTS = 8 << 20, 64


class _LinkState(InMemoryLinkState):  # type: ignore[misc]
    """Flower's state, in which a site that was killed may connect again at once.

    Flower refuses a second connection of a key until the first has missed its heartbeats, takes a
    message that it has handed out for delivered, and drops the answer of a site that has left
    since, such as the reason why it did.
    """

    def activate_node(self, node_id: int, heartbeat_interval: float) -> bool:
        """Let a site in, and hand out again what it has not answered."""
        with self.lock:
            self.deactivate_node(node_id)
            for message in self.message_ins_store.values():
                answered = message.metadata.message_id in self.message_ins_id_to_message_res_id
                if message.metadata.dst_node_id == node_id and not answered:
                    message.metadata.delivered_at = ""
            return bool(super().activate_node(node_id, heartbeat_interval))

    def store_message_and_object_tree(
        self, message: Message, object_tree: Any, session_id: str
    ) -> tuple[bool, list[str]]:
        """Take in an answer; no other message, and none that no site needs so many objects for."""
        count = sum(1 for _ in iterate_object_tree(object_tree))
        if not message.metadata.reply_to_message_id:
            logger.warning("refused a message: it answers none")
            return False, []
        if count > _ANSWER_OBJECTS:
            logger.warning("refused an answer: it has %d objects, too many", count)
            return False, []
        stored: tuple[bool, list[str]] = super().store_message_and_object_tree(
            message, object_tree, session_id
        )
        return stored

    def store_order(
        self, message: Message, object_tree: Any, session_id: str
    ) -> tuple[bool, list[str]]:
        """Take in a message of the server's own."""
        stored: tuple[bool, list[str]] = super().store_message_and_object_tree(
            message, object_tree, session_id
        )
        return stored

    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """Return answers that have begun to arrive, then what Flower says: who is gone, say."""
        with self.lock:
            answered = sorted(message_ids & self.message_ins_id_to_message_res_id.keys())
            answers = [
                self.message_res_store[self.message_ins_id_to_message_res_id[each]]
                for each in answered
            ]
            return answers + list(super().get_message_res(message_ids, run_id))

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """Find the site with a key, and say so if it is a stranger's."""
        found: int | None = super().get_node_id_by_public_key(public_key)
        if found is None:
            logger.warning(
                "refused a site with an unknown key (%s); to accept it, put its public key into "
                "the folder sites of --tls-dir and start again with --resume",
                fingerprint(public_key),
            )
        return found


class Link(Grid):  # type: ignore[misc]
    """A SuperLink with one run, and the grid that reaches its sites.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        certificate: Files of the certificate and its private key; None for plain text.
        keys: Public keys of the sites that may join, PEM, by name; None lets anyone join.

    Attributes:
        port: Where it listens.
    """

    def __init__(
        self,
        host: str,
        port: int,
        certificate: tuple[Path, Path] | None,
        keys: Mapping[str, bytes] | None,
    ) -> None:
        store = ObjectStoreFactory().store()
        self.state: Any = _LinkState(NoOpFederationManager(), store)
        self.host, self.port = host, port
        for name, key in (keys or {}).items():
            self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=name)
        self.state.store_fab(Fab(bundle_hash(), bundle(), {}))
        self.run_id: int = self.state.create_run(
            "fedclip/fedclip",
            "1.0.0",
            bundle_hash(),
            {},
            NOOP_FEDERATION_ID,
            None,
            NOOP_FLWR_AID,
            TaskType.SERVER_APP,
        )
        self._run = self.state.get_run_info(run_ids=[self.run_id])[0]
        self.state.task_store[self._run.primary_task_id].status.status = Status.RUNNING
        TaskIdentity.task_id = self._run.primary_task_id
        TaskIdentity.run_id = self.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self._server = _server(self.state, host, port, certificate, authenticated=keys is not None)
        self._thread = threading.Thread(target=self._serve, name="superlink", daemon=True)

    def start(self) -> None:
        """Listen.

        Raises:
            FedclipError: the port is taken, or the certificate cannot be used.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            self._socket = socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror
            raise FedclipError(
                f"--host {self.host} --port {self.port}: cannot be listened on ({reason}); "
                "choose an address of this machine, such as 0.0.0.0 for all, and a free port"
            ) from None
        self.port = self._socket.getsockname()[1]
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """Close all connections."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _GRACE)

    def _serve(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent to and received from sites so far."""
        run = self.state.get_run_info(run_ids=[self.run_id])[0]
        return run.bytes_sent, run.bytes_recv

    # The grid.

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the sites that are connected."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[Any]:
        """Return the sites that are connected."""
        nodes = self.state.get_nodes(self.run_id)
        return list(self.state.get_node_info(node_ids=sorted(nodes)))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Make messages available to their sites; '' for one that is not accepted."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            session = self.state.start_session(self.run_id)
            bare = remove_content_from_message(message)
            stored, missing = self.state.store_order(bare, get_object_tree(message), session)
            objects = get_all_nested_objects(message)
            for each in missing:
                self.state.store_object(self.run_id, session, each, objects[each].deflate())
            ids.append(message.metadata.message_id if stored else "")
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers to these messages that have arrived whole, or cannot be read."""
        arrived: dict[str, Message] = {}
        for bare in self.state.get_message_res(message_ids=set(message_ids), run_id=self.run_id):
            message_id = bare.metadata.reply_to_message_id
            if message_id in arrived:
                continue
            try:
                message = self._inflated(bare)
            except Exception as error:  # of many types, as a site may send anything
                logger.debug("%s", error)
                order = self.state.message_ins_store[message_id]
                wrong = Error(ErrorCode.UNKNOWN, "answered with something that cannot be read")
                message = Message(wrong, reply_to=order)
                message.metadata.__dict__["_reply_to_message_id"] = message_id
            if message is not None:
                arrived[message_id] = message
        self.forget(arrived)
        return list(arrived.values())

    def _inflated(self, bare: Message) -> Message | None:
        """Return a message with its content; None as long as some of it has not arrived."""
        store, message_id = self.state.object_store, bare.metadata.message_id
        try:
            tree = store.get_object_tree(message_id)
        except NoObjectInStoreError:
            return bare if bare.has_error() else None
        contents = {
            each.object_id: self.state.get_object(self.run_id, each.object_id)
            for each in iterate_object_tree(tree)
        }
        if not all(contents.values()):
            return None
        message = inflate_object_from_contents(message_id, contents)
        if message.metadata.reply_to_message_id != bare.metadata.reply_to_message_id:
            raise ValueError(message_id)
        message.metadata.__dict__["_message_id"] = message_id
        return message

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop messages and what has arrived in answer; no answer is accepted any more."""
        for message_id in message_ids:
            answer_id = self.state.message_ins_id_to_message_res_id.get(message_id)
            self.state.delete_messages({message_id})
            for each in filter(None, (message_id, answer_id)):
                self.state.object_store.delete(each)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the answers."""
        waiting, arrived = {*self.push_messages(messages)} - {""}, []
        until = None if timeout is None else time.monotonic() + timeout
        while waiting and (until is None or time.monotonic() < until):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                arrived.append(reply)
            time.sleep(0.02)
        return arrived


class _Bound:
    """Refuses requests that are longer than any that a site sends, before they are read."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            length = headers.get(b"content-length", b"0")
            if b"transfer-encoding" in headers or int(length) > _REQUEST_BYTES:
                logger.warning("refused a request: it is longer than any that a site sends")
                await Response(status_code=413)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Handshake(ssl.SSLObject):
    """A TLS connection at the server that reports why a handshake failed."""

    def do_handshake(self) -> None:
        """Shake hands."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            plain = error.reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER")
            reason = "it came in plain text" if plain else str(error.reason).lower()
            logger.warning("refused a connection: %s", reason.replace("_", " "))
            raise


class _Notes(logging.Handler):
    """Passes warnings of uvicorn on to ours, in our words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on."""
        text = record.getMessage()
        if "Invalid HTTP request" in text:
            text = "refused a connection: it did not speak HTTP; does the site use TLS?"
        logger.warning("%s", text)


def _server(
    state: Any,
    host: str,
    port: int,
    certificate: tuple[Path, Path] | None,
    *,
    authenticated: bool,
) -> Any:
    """Make the HTTP server with the Fleet API."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(_Bound),
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.linkstate_factory = _Factory(state)
    app.state.enable_supernode_auth = authenticated
    app.include_router(fleet_router)
    files = {}
    if certificate is not None:
        files = {"ssl_certfile": str(certificate[0]), "ssl_keyfile": str(certificate[1])}
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE,
        **files,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError, ValueError) as error:
        raise FedclipError(f"--tls-dir: its certificate cannot be used ({error})") from None
    if config.ssl is not None:
        config.ssl.sslobject_class = _Handshake
    quiet = logging.getLogger("uvicorn.error")
    quiet.propagate = False
    quiet.handlers = [_Notes(logging.WARNING)]
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    return server


class _Factory:
    """Returns the one state, as Flower's routes ask for it."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state(self) -> Any:
        """Return it."""
        return self._state
