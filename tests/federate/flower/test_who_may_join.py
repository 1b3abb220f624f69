"""Who may join and what a site runs: every refusal with the line that people see."""

import datetime
import stat
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fedclip.cache import EncoderFacts, FeatureCache

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
pytestmark = pytest.mark.flower

MakeFeatures = Callable[..., FeatureCache]

# A server whose run has another app bundle.
FOREIGN = """
from pathlib import Path
from fedclip.federate.flower import bundle
theirs = Path("theirs")
theirs.mkdir()
ours = (bundle.APP / "pyproject.toml").read_text()
(theirs / "pyproject.toml").write_text(ours.replace("fedclip.federate", "elsewhere"))
bundle.APP = theirs
from fedclip.cli import main
main()
"""

# Notes and refuses every connection to anywhere but loopback, and every process of Flower's, of
# Python or of an installer.
ALONE = """
import socket
connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo
def guarded(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
        open("strangers", "a").write(f"{address}\\n")
        raise OSError("refused by the test")
    return connect(self, address)
def looked_up(host, *arguments, **options):
    if host not in ("127.0.0.1", "localhost", None, b"127.0.0.1"):
        open("strangers", "a").write(f"{host}\\n")
        raise OSError("refused by the test")
    return getaddrinfo(host, *arguments, **options)
socket.socket.connect, socket.getaddrinfo = guarded, looked_up
import subprocess, sys
process = subprocess.Popen.__init__
def ours_only(self, arguments, *more, **options):
    if any(word in str(arguments) for word in ("flower", "flwr", "pip", "uv", sys.executable)):
        open("strangers", "a").write(f"{arguments}\\n")
        raise OSError("refused by the test")
    process(self, arguments, *more, **options)
subprocess.Popen.__init__ = ours_only
from fedclip.cli import main
main()
"""


# A site whose answers have a hundred arrays more than they should.
BLOATED = """
from flwr.app import Array, ArrayRecord
from fedclip.federate.flower.messages import Answer
whole = Answer.to_record
def to_record(self):
    record = whole(self)
    arrays = {str(n): Array("uint8", (1,), "raw", bytes([n])) for n in range(100)}
    record["more"] = ArrayRecord(arrays)
    return record
Answer.to_record = to_record
from fedclip.cli import main
main()
"""


@pytest.fixture
def caches(make_features: MakeFeatures) -> list[FeatureCache]:
    return [make_features("hospital-a", 40), make_features("hospital-b", 50)]


def refused(process: Any) -> str:
    """Return the one line of an error that a process ends with."""
    assert process.wait() == 2, process.output
    assert "Traceback" not in process.output
    lines: list[str] = process.output.splitlines()
    (line,) = [each for each in lines if each.startswith("error: ")]
    return line.removeprefix("error: ")


def test_strangers_are_refused_with_one_line_on_either_side(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys("hospital-a", "hospital-b")
    stranger = place.start("more", "keys", "--site", "stranger")
    assert stranger.wait() == 0, stranger.output
    known = place.folder / "keys" / "server" / "sites" / "stranger.pub"
    known.unlink()  # `keys` registers whom it makes a key for
    server = place.serve("--clients-expected", 2, "--rounds", 2, "--name", "run")
    address = place.server_address

    unknown = place.join("hospital-a", keys="stranger", name="unknown")
    assert refused(unknown).startswith(f"{address}: does not know this site's key (")
    server.shows("warning: refused a site with an unknown key (")

    plain = place.join("hospital-a", "--insecure", name="plain")
    assert refused(plain) == (
        f"{address}: closes connections in plain text; it uses TLS, so pass --keys in place of "
        "--insecure"
    )
    server.shows("warning: refused a connection: it came in plain text")

    keyless = place.start("keyless", "join", address, "--cache", "hospital-a.h5")
    assert keyless.wait() == 2
    assert "needs --keys with this site's private key" in " ".join(keyless.output.split())

    other = place.start("other", "keys", "--dir", "others", "--host", "127.0.0.1")
    assert other.wait() == 0, other.output
    ours, theirs = place.folder / "keys" / "hospital-a" / "ca.crt", place.folder / "others"
    kept = ours.read_bytes()
    ours.write_bytes((theirs / "server" / "ca.crt").read_bytes())
    wrong = place.join("hospital-a", name="wrong")
    assert refused(wrong).startswith(f"{address}: its certificate is refused (")
    server.shows("warning: refused a connection: ")
    ours.write_bytes(kept)

    sites = [place.join(client) for client in ("hospital-a", "hospital-b")]
    assert server.wait() == 0, server.output
    assert [site.wait() for site in sites] == [0, 0]


def test_two_processes_do_not_join_for_one_site(caches: list[FeatureCache], loopback: Any) -> None:
    place = loopback(caches)
    place.keys("hospital-a", "hospital-b")
    server = place.serve("--clients-expected", 2, "--rounds", 2, "--name", "run")
    site = place.join("hospital-a")
    server.shows("hospital-a joined")
    assert refused(place.join("hospital-a", name="twice")) == (
        "joined: another process has joined as hospital-a; stop it first"
    )
    place.join("hospital-b")
    assert [server.wait(), site.wait()] == [0, 0]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("join --cache hospital-a.h5", "SERVER: is missing (see fedclip join --help)"),
        (
            "join https://127.0.0.1:9 --cache hospital-a.h5",
            "SERVER https://127.0.0.1:9: https://127.0.0.1 is not a name or an IP address of a "
            "machine; pass it as server.example.org or 10.0.0.1, without https://",
        ),
        (
            "join 127.0.0.1:9 --cache other.h5 --insecure",
            "--cache other.h5: no such file; pass the .h5 file that fedclip extract wrote",
        ),
        (
            "join 127.0.0.1:9 --cache hospital-a.h5 --insecure --device cuda:9",
            "--device cuda:9: cannot be used here; choose auto or cpu",
        ),
        (
            "join 127.0.0.1:9 --cache hospital-a.h5 --insecure --keys keys/hospital-a",
            "--insecure cannot be combined with --keys; leave out one (see fedclip join --help)",
        ),
        (
            "serve --insecure --host 127.0.0.1 --tls-dir keys/server",
            "--insecure cannot be combined with --tls-dir; leave out one (see fedclip serve "
            "--help)",
        ),
        (
            "serve --tls-dir keys/server --clients-expected 3",
            "--clients-expected 3: keys/server has the keys of only 1 site; put those of the "
            "others into its folder sites",
        ),
        (
            "serve --tls-dir keys/server --clients-expected 1 --host 192.0.2.1 --port 0",
            "--host 192.0.2.1 --port 0: cannot be listened on (Cannot assign requested address); "
            "choose an address of this machine, such as 0.0.0.0 for all, and a free port",
        ),
        (
            "keys --host a.example:9092",
            "--host a.example:9092: a.example:9092 is not a name or an IP address of a machine; "
            "pass it as server.example.org or 10.0.0.1, without https://",
        ),
        ("keys --site server", "--site server: is the server's folder; choose another name"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_begun(
    command: str, line: str, caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys("hospital-a")
    before = sorted(place.folder.rglob("*"))
    process = place.start("refused", *command.split())
    assert refused(process) == line
    assert sorted(place.folder.rglob("*")) == sorted([*before, process.log])


def test_a_certificate_that_expired_or_is_for_another_host_is_refused(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys("hospital-a", hosts=["server.example.org"])
    server = place.serve("--clients-expected", 1, "--rounds", 2, "--name", "run")
    line = refused(place.join("hospital-a"))
    address = place.server_address
    assert line.startswith(f"{address}: its certificate is refused (IP address mismatch")
    assert server.stop() != 0


def expired(folder: Path) -> None:
    """Replace a server's certificate by one that expired yesterday."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    old = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(
        old.issuer,
        old.subject,
        old.public_key(),
        old.serial_number,
        past - datetime.timedelta(days=1),
        past,
        list(old.extensions),
    )
    made = builder.sign(key, hashes.SHA256())
    (folder / "server.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_an_expired_certificate_is_refused_on_either_side(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys("hospital-a")
    expired(place.folder / "keys" / "server")
    where = ["--host", "127.0.0.1", "--tls-dir", "keys/server"]
    day = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    assert refused(place.start("refuses", "serve", *where)) == (
        f"keys/server/server.crt: expired on {day:%Y-%m-%d}; make or ask for another one"
    )
    careless = """
from fedclip.federate.flower import keys
keys.read_certificate = lambda folder: (folder / "server.crt", folder / "server.key")
from fedclip.cli import main
main()
"""
    place.serve("--clients-expected", 1, "--name", "run", code=careless)
    assert refused(place.join("hospital-a")).startswith(
        f"{place.server_address}: its certificate is refused (certificate has expired)"
    )


def test_a_site_refuses_another_app_bundle_unread(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    place.keys("hospital-a", "hospital-b")
    server = place.serve("--clients-expected", 1, code=FOREIGN)
    site = place.join("hospital-a")
    told = refused(site)
    assert told.startswith(f"{place.server_address}: the server runs another app (bundle ")
    assert told.endswith("nothing of it was fetched or run")
    server.shows("hospital-a: refuses: the server runs another app")


def test_the_bundle_is_what_flower_makes_of_the_app() -> None:
    from flwr.cli.build import build_fab_from_disk

    from fedclip.federate.flower.bundle import APP, bundle

    assert build_fab_from_disk(APP) == bundle()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"classes": ("cat", "dog", "bird")},
            "differs in class_names (only hospital-a has 'fish', only hospital-b has 'bird'); "
            "extract again with the same --name, --class-names and --template",
        ),
        (
            {"encoder": EncoderFacts(shared={"library": "other"})},
            "has features of another encoder than hospital-a (the facts that differ: library)",
        ),
    ],
)
def test_a_site_that_differs_is_turned_away_with_the_reason_on_either_side(
    changes: Any, reason: str, make_features: MakeFeatures, loopback: Any
) -> None:
    place = loopback([make_features("hospital-a", 40), make_features("hospital-b", 50, **changes)])
    place.keys("hospital-a", "hospital-b")
    server = place.serve("--clients-expected", 2, "--name", "run")
    place.join("hospital-a")
    server.shows("hospital-a joined")
    site = place.join("hospital-b")
    assert refused(site) == (
        f"{place.server_address}: the server turned this site away: hospital-b: {reason}"
    )
    server.shows(f"warning: turned a site away: hospital-b: {reason}")


def test_what_is_longer_than_any_answer_is_refused_before_it_is_read(
    caches: list[FeatureCache], loopback: Any
) -> None:
    import httpx

    place = loopback(caches)
    server = place.serve(
        *("--insecure", "--clients-expected", 2, "--rounds", 1, "--round-timeout", 2),
        *("--name", "run"),
    )
    url = f"http://{place.server_address}/v1/fleet/push-object"
    assert httpx.post(url, content=bytes(9 << 20)).status_code == 413
    assert httpx.post(url, content=iter([b"unknown length"])).status_code == 413
    server.shows("warning: refused a request: it is longer than any that a site sends")
    place.join("hospital-a", "--insecure")
    place.join("hospital-b", "--insecure", code=BLOATED)
    assert server.wait() == 0, server.output
    assert "warning: refused an answer: it has 2" in server.output
    assert place.sites()[0]["took_part"] == ["hospital-a"]
    assert place.sites()[0]["left_out"] == {"hospital-b": "did not answer within 2 s"}


# A site whose answers are no messages of Flower's, which sends messages that answer none, and whose
# first answers are lost.
HOSTILE = """
import hashlib, os
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from fedclip.federate.flower import node
push = node._push
def hostile(client, at, message):
    if message.metadata.message_type != os.environ["WHICH"]:
        return push(client, at, message)
    content = b"ConfigRecord  3\\x00" + b"\\xff" * 3
    name = hashlib.sha256(content).hexdigest()
    proto = message_to_proto(remove_content_from_message(message))
    proto.metadata.message_id = name
    tree = ObjectTree(object_id=name)
    for reply_to in ("", message.metadata.reply_to_message_id):
        proto.metadata.reply_to_message_id = reply_to
        answer = client.PushMessages(
            PushMessagesRequest(
                node=at,
                messages_list=[proto],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
        )
    client.PushObject(PushObjectRequest(
        node=at, run_id=message.metadata.run_id, object_id=name, object_content=content,
        session_id=answer.session_id,
    ))
node._push = hostile
from fedclip.cli import main
main()
"""


@pytest.mark.parametrize("which", ["train", "query.describe"])
def test_what_is_no_message_is_refused_and_the_server_goes_on(
    which: str, caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    server = place.serve(
        *("--insecure", "--clients-expected", 2 if which == "train" else 1, "--rounds", 2),
        *("--name", "run"),
    )
    place.join("hospital-b", "--insecure", code=HOSTILE, WHICH=which)
    server.shows("refused a message: it answers none" if which != "train" else "joined")
    place.join("hospital-a", "--insecure")
    assert server.wait() == 0, server.output
    assert "refused a message: it answers none" in server.output
    wrong = "answered with something that cannot be read"
    if which == "train":
        assert [line["left_out"] for line in place.sites()] == [{"hospital-b": wrong}] * 2
    else:
        assert f"turned a site away: cannot take part: {wrong}" in server.output
    assert [line["took_part"] for line in place.sites()] == [["hospital-a"]] * 2


class Stranger:
    """A web server that is not fedclip's, and what it was asked for."""

    def __init__(self, location: str = "") -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(307 if location else 200)
                self.send_header("Location", f"{location}{self.path}")
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"\xff" * 4)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Stranger":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_a_site_follows_no_redirect_and_waits_where_something_else_answers(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches)
    with Stranger() as elsewhere, Stranger(elsewhere.url) as first:
        place.port = first.port
        site = place.join("hospital-a", "--insecure")
        site.shows(f"waiting for {place.server_address}: it answered 307")
        assert elsewhere.asked == []
        place.port = elsewhere.port
        site = place.join("hospital-b", "--insecure")
        site.shows(f"waiting for {place.server_address}: what it sent cannot be read (")
        assert elsewhere.asked
    assert "Traceback" not in site.output


def test_no_proxy_gets_what_is_in_plain_text(caches: list[FeatureCache], loopback: Any) -> None:
    place = loopback(caches[:1])
    server = place.serve("--insecure", "--clients-expected", 1, "--rounds", 1, "--name", "run")
    with Stranger() as proxy:
        site = place.join("hospital-a", "--insecure", HTTP_PROXY=proxy.url, http_proxy=proxy.url)
        assert [server.wait(), site.wait()] == [0, 0], site.output
        assert proxy.asked == []


def test_plain_text_is_for_loopback_only(caches: list[FeatureCache], loopback: Any) -> None:
    place = loopback(caches)
    serve = place.start("serve", "serve", "--insecure", "--port", 0)
    assert refused(serve).startswith(
        "--insecure: sends everything in plain text and lets anyone join, so it works on loopback "
        "addresses only, and --host is 0.0.0.0"
    )
    join = place.start("join", *("join", "10.0.0.1:9", "--cache", "hospital-a.h5", "--insecure"))
    assert "SERVER is 10.0.0.1" in refused(join)


def test_nothing_but_the_server_is_spoken_to(caches: list[FeatureCache], loopback: Any) -> None:
    place = loopback(caches, fresh=True)
    before = [path.read_bytes() for path in sorted(place.folder.glob("*.h5"))]
    for path in place.folder.glob("*.h5"):
        path.chmod(0o444)
    server = place.serve(
        *("--insecure", "--clients-expected", 2, "--rounds", 2, "--name", "run"), code=ALONE
    )
    sites = [
        place.join(client, "--insecure", code=ALONE) for client in ("hospital-a", "hospital-b")
    ]
    assert server.wait() == 0, server.output
    assert [site.wait() for site in sites] == [0, 0], sites[0].output
    assert not (place.folder / "strangers").exists(), (place.folder / "strangers").read_text()
    assert before == [path.read_bytes() for path in sorted(place.folder.glob("*.h5"))]
    assert "INSECURE" in server.output


def test_keys_are_private_and_never_overwritten(caches: list[FeatureCache], loopback: Any) -> None:
    place = loopback(caches)
    place.keys("hospital-a")
    keys = place.folder / "keys"
    private = sorted(path.relative_to(keys).as_posix() for path in keys.rglob("*.key"))
    assert private == ["hospital-a/hospital-a.key", "server/ca.key", "server/server.key"]
    for name in private:
        assert stat.S_IMODE((keys / name).stat().st_mode) == 0o600
    before = {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    again = place.start("again", "keys", "--host", "127.0.0.1")
    assert refused(again) == (
        "keys/server/server.crt: exists, and keys are never overwritten; move it away first"
    )
    again = place.start("again", "keys", "--site", "hospital-a")
    assert "exists, and keys are never overwritten" in refused(again)
    assert before == {path: path.read_bytes() for path in keys.rglob("*") if path.is_file()}
    more = place.start("more", "keys", "--site", "hospital-b")
    assert more.wait() == 0, more.output
    assert (keys / "server" / "sites" / "hospital-b.pub").is_file()


def test_a_registered_key_is_not_replaced_and_several_authorities_are_trusted(
    caches: list[FeatureCache], loopback: Any
) -> None:
    from fedclip.federate.flower.keys import read_credentials

    place = loopback(caches)
    place.keys("hospital-a")
    keys = place.folder / "keys"
    (keys / "hospital-a").rename(keys / "elsewhere")
    assert refused(place.start("again", "keys", "--site", "hospital-a")) == (
        "keys/server/sites/hospital-a.pub: exists, and keys are never overwritten; move it away "
        "first"
    )
    ours, theirs = keys / "elsewhere" / "ca.crt", keys / "server" / "server.crt"
    both = ours.read_bytes() + theirs.read_bytes()
    ours.write_bytes("# Behörde\n".encode() + both)
    assert read_credentials(keys / "elsewhere").authority == both


def test_a_dry_run_shows_what_would_be_sent_and_joins_nothing(
    caches: list[FeatureCache], loopback: Any
) -> None:
    place = loopback(caches, fresh=True)
    dry = place.start(
        "dry", "join", "127.0.0.1:9", "--cache", "hospital-a.h5", "--dry-run", code=ALONE
    )
    assert dry.wait() == 0, dry.output
    for text in ("config.class_names", "cat, dog, fish", "parameters.safetensors", "metrics.loss"):
        assert text in dry.output
    assert not (place.folder / "joined").exists()
    assert not (place.folder / "strangers").exists()
