"""A Flower SuperNode in this process: it connects to a server and answers for one client's file.

Flower's own program fetches the app from the server, starts a process for every message, and looks
for messages every 3 s. This one runs the app of the installed package, in this process, looks as
often as is worth it, and connects again whenever the server comes back.
"""

import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    run_from_proto,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.files import file_name, holding
from ...cache.common.progress import Progress, no_progress
from .bundle import bundle_hash
from .client_app import app, opened, restore
from .keys import Credentials
from .messages import DESCRIBE, END, ROUND
from .server_app import fingerprint
from .site import settings_of

logger = logging.getLogger(__name__)

# Seconds between two looks for a message: few while something happens, then a tenth of the time
# for which nothing has.
SHORTEST_POLL, LONGEST_POLL = 0.05, 1.0

# Seconds between two attempts to reach a server.
RETRY = 1.0

# Seconds that Flower's server waits for a sign of life before it calls a site gone, halved.
HEARTBEAT = 10


# Dropped connections in a row after which a server is taken for one that does not speak plain text.
_DROPS = 3

# Characters of a reason that are shown.
_LONGEST = 1000


class _Over(Exception):  # noqa: N818 - not an error
    """The server said that the run is over."""


class SiteNode:
    """A site's connection to a server.

    Args:
        server: Address as host:port.
        cache: The client's file.
        credentials: None connects in plain text and without authentication.
        state_dir: Folder for what the site keeps.
        device: Where to compute.
        engine: What trains.
        allow_class_means: Whether to send class sums to a server that asks for them.
        progress: Called with the rounds done.
    """

    def __init__(
        self,
        server: str,
        cache: Path,
        credentials: Credentials | None,
        state_dir: Path,
        *,
        device: str = "cpu",
        engine: str = "auto",
        allow_class_means: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self.server = server
        self.credentials = credentials
        self.progress = progress
        self.client_name = opened(str(cache)).client
        private = credentials.key if credentials else generate_key_pairs()[0]
        self._keys = private, private.public_key()
        self._connected = False
        self._state_dir = state_dir
        self._drops = 0
        self._said = ""
        self._runs: set[int] = set()
        config: UserConfig = {
            "cache": str(cache),
            "device": device,
            "engine": engine,
            "allow-class-means": allow_class_means,
            "state-dir": str(state_dir),
        }
        self._context = Context(0, 0, config, RecordDict(), {})
        restore(self._context)

    def serve(self) -> None:
        """Answer until the run is over; connect again whenever the connection is lost.

        Raises:
            FedclipError: the server cannot be trusted, or turns the site away; or another process
                has joined with the same file and `state_dir`.
        """
        self._state_dir.mkdir(parents=True, exist_ok=True)
        busy = FedclipError(
            f"{self._state_dir}: another process has joined as {self.client_name}; stop it first"
        )
        with holding(self._state_dir / f".{file_name(self.client_name)}.lock", busy):
            self._serve()

    def _serve(self) -> None:
        while True:
            try:
                with self._client() as client, self._active(client) as node:
                    self._answer_all(client, node)
            except _Over:
                return
            except httpx.HTTPStatusError as error:
                self._retry(self._refusal(error))
            except httpx.HTTPError as error:
                self._retry(self._obstacle(error))
            except FedclipError:
                raise
            except Exception as error:  # of many types, as a server may send anything
                self._retry(f"what it sent cannot be read ({first_line(error)})")

    def _retry(self, reason: str) -> None:
        if reason != self._said:
            logger.info("waiting for %s: %s", self.server, reason)
            self._said = reason
        time.sleep(RETRY)

    # The connection.

    @contextmanager
    def _client(self) -> Iterator[Any]:
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*self._keys),
        ]
        authority = self.credentials.authority if self.credentials else None
        with FleetHttpClient.from_server_address(
            self.server, authority is None, authority, interceptors
        ) as client:
            client._client.follow_redirects = False  # to no other server, and never in plain text
            yield client

    @contextmanager
    def _active(self, client: Any) -> Iterator[Node]:
        """Announce the site, and show that it is alive until the context ends."""
        key = public_key_to_bytes(self._keys[1])
        if self.credentials is None:
            self._register(client, key)
        request = ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT)
        node = Node(node_id=client.ActivateNode(request).node_id)
        self._connected, self._said = True, ""
        logger.info("connected to %s as %s", self.server, self.client_name)
        stop = threading.Event()

        def beat() -> None:
            request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT)
            while not stop.wait(HEARTBEAT / 2):
                with suppress(httpx.HTTPError):
                    client.SendNodeHeartbeat(request)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield node
        except httpx.HTTPError:
            raise
        except BaseException:
            with suppress(httpx.HTTPError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
            raise
        finally:
            stop.set()

    def _register(self, client: Any, key: bytes) -> None:
        """Register with a server that lets anyone join."""
        try:
            client.RegisterNode(RegisterNodeFleetRequest(public_key=key))
        except httpx.HTTPStatusError as error:
            failure = FlowerError.from_json(error.response.text)
            if failure is None or failure.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                raise

    def _refusal(self, error: httpx.HTTPStatusError) -> str:
        """Return why to try again, if it is worth it.

        Raises:
            FedclipError: it is not.
        """
        failure = FlowerError.from_json(error.response.text)
        code = failure.code if failure else None
        status = error.response.status_code
        if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            key = fingerprint(public_key_to_bytes(self._keys[1]))
            raise FedclipError(
                f"{self.server}: does not know this site's key ({key}); send the server's "
                "operator the public key"
            )
        if code == ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED:
            raise FedclipError(
                f"{self.server}: accepts only sites with a key that it knows; pass --keys"
            )
        if status == httpx.codes.UNAUTHORIZED and error.request.url.path.endswith("activate-node"):
            raise FedclipError(
                f"{self.server}: refused this site's signature; set the clocks of both machines, "
                "which must agree within 5 s"
            )
        if status == httpx.codes.NOT_FOUND:
            raise FedclipError(f"{self.server}: is not a fedclip server; check host and port")
        return f"it answered {status}"

    def _obstacle(self, error: httpx.HTTPError) -> str:
        """Return why to try again, if it is worth it.

        Raises:
            FedclipError: it is not.
        """
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise FedclipError(
                    f"{self.server}: its certificate is refused ({cause.verify_message}); check "
                    "the address, and the ca.crt in --keys, with the server's operator"
                ) from None
            if isinstance(cause, ssl.SSLError) and not self._connected:
                raise FedclipError(
                    f"{self.server}: does not speak TLS there ({cause.reason}); only a server "
                    "started without --insecure can be joined with keys"
                ) from None
            cause = cause.__cause__ or cause.__context__
        dropped = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
        self._drops = self._drops + 1 if dropped else 0
        # One alone may be a server that ends.
        if self._drops == _DROPS and self.credentials is None and not self._connected:
            raise FedclipError(
                f"{self.server}: closes connections in plain text; it uses TLS, so pass --keys in "
                "place of --insecure"
            ) from None
        return re.sub(r"^\[Errno -?\d+\] ", "", first_line(error))

    # Messages.

    def _answer_all(self, client: Any, node: Node) -> None:
        last = time.monotonic()
        while True:
            response = client.PullMessages(PullMessagesRequest(node=node))
            if not response.messages_list:
                idle = time.monotonic() - last
                time.sleep(min(LONGEST_POLL, max(SHORTEST_POLL, idle / 10)))
                continue
            bare = message_from_proto(response.messages_list[0])
            self._check_bundle(client, node, bare)
            message = _pull(client, node, bare, response.message_object_trees[0])
            over = message.metadata.message_type == END
            reason = str(message.content.get("config", {}).get("reason", "")) if over else ""
            reply = Message(RecordDict(), reply_to=message) if reason else self._answer(message)
            # The server that has all of an answer takes none of it again.
            with suppress(ObjectPushError, *([httpx.HTTPError] if over else [])):
                _push(client, node, reply)
            if reason:
                raise FedclipError(f"{self.server}: {reason[:_LONGEST]}")
            if over and reply.has_error():
                raise FedclipError(f"{self.server}: ended the run, but {reply.error.reason}")
            if over:
                raise _Over
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=node,
                    run_id=message.metadata.run_id,
                    message_object_id=message.metadata.message_id,
                )
            )
            last = time.monotonic()

    def _check_bundle(self, client: Any, node: Node, message: Message) -> None:
        """Refuse a server whose app is not the one in the installed package.

        Raises:
            FedclipError: it is another one. Nothing of it has been fetched.
        """
        run_id = message.metadata.run_id
        if run_id in self._runs:
            return
        run = run_from_proto(client.GetRun(GetRunRequest(node=node, run_id=run_id)).run)
        if run.fab_hash != bundle_hash():
            reason = (
                f"the server runs another app (bundle {run.fab_hash[:16]}), and this site runs "
                f"only that of the fedclip installed here (bundle {bundle_hash()[:16]})"
            )
            with suppress(httpx.HTTPError):
                error = Error(ErrorCode.INVALID_FAB, f"{self.client_name}: refuses: {reason}")
                _push(client, node, Message(error, reply_to=message))
            raise FedclipError(f"{self.server}: {reason}; nothing of it was fetched or run")
        self._runs.add(run_id)

    def _answer(self, message: Message) -> Message:
        """Run the app."""
        computes = message.metadata.message_type == ROUND
        self._context.run_id = message.metadata.run_id
        try:
            if computes:
                self._show(message, "computing")
            reply = app(message, self._context)
            if computes:
                self._show(message, "waiting for the others")
        except FedclipError as error:
            reason = str(error).encode(errors="replace").decode()
            if message.metadata.message_type == DESCRIBE:  # the server sends it back
                reason = f"{self.client_name}: {reason}"
            else:
                logger.warning("%s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        except (
            *(LookupError, AttributeError, TypeError, ValueError),
            *(ArithmeticError, RuntimeError),
        ) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            logger.warning("cannot answer: %s", reason)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return reply

    def _show(self, message: Message, what: str) -> None:
        config = message.content["config"]
        rounds = settings_of(str(config["settings"])).rounds
        done = int(config["number"]) - 1
        self.progress(self.client_name, min(done, rounds), rounds, "rounds", what)


def _pull(client: Any, node: Node, bare: Message, tree: Any) -> Message:
    """Fetch a message's content."""
    contents = pull_objects(
        [each.object_id for each in iterate_object_tree(tree)],
        make_pull_object_fn_protobuf(client.PullObject, node, bare.metadata.run_id),
    )
    message: Message = inflate_object_from_contents(tree.object_id, contents)
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _push(client: Any, node: Node, message: Message) -> None:
    """Send a message and its content."""
    message.metadata.__dict__["_message_id"] = message.object_id
    bare = remove_content_from_message(message) if message.has_content() else message
    response = client.PushMessages(
        PushMessagesRequest(
            node=node,
            messages_list=[message_to_proto(bare)],
            message_object_trees=[get_object_tree(message)],
            clientapp_runtime_list=[0.0],
        )
    )
    wanted = set(response.objects_to_push)
    push_objects(
        get_all_nested_objects(message),
        make_push_object_fn_protobuf(
            client.PushObject, node, message.metadata.run_id, response.session_id
        ),
        object_ids_to_push=wanted,
    )
