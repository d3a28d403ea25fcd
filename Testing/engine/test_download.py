"""Downloads from a real server on this machine, licences, and `peftseg models`; without torch."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftseg import cli, cli_models, foundation_models, licences
from peftseg.download import download, file_hash, verify_file
from peftseg.errors import BadInput, JobCancelled
from peftseg.locks import FileLock
from peftseg.models import (
    BUNDLED,
    Intensity,
    ModelEntry,
    NetworkSpec,
    Preprocessing,
    Source,
    Structure,
    catalogue,
    read_model_dir,
    remember,
    to_dict,
)

CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)
HALF = 150_000
FILE = "weights.pt"
PAGE = "https://models.example/page"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the site's `answer`."""

    def do_GET(self) -> None:
        self.server.site.requests.append((self.path, dict(self.headers)))
        self.server.site.answer(self)

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


class Site:
    """One file on a server: what it holds, how it answers, and what was asked.

    `cut` ends the connection after so many bytes; `ranges` tells whether parts can be asked for.
    """

    def __init__(self) -> None:
        self.content = CONTENT
        self.headers = {"ETag": '"one"', "Content-Type": "application/octet-stream"}
        self.ranges = True
        self.cut: int | None = None
        self.answer: Callable[[Handler], None] = self.send_file
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.site = self
        self.base = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def asked(self) -> list[str | None]:
        """The Range header of each request."""
        return [headers.get("Range") for _, headers in self.requests]

    def send_file(self, handler: Handler) -> None:
        start, total = 0, len(self.content)
        asked, condition = handler.headers["Range"], handler.headers["If-Range"]
        if self.ranges and asked and condition in (None, self.headers.get("ETag"), self.headers.get("Last-Modified")):
            start = int(asked[len("bytes=") : -1])
        if start and start >= total:
            self.send(handler, 416, {"Content-Range": f"bytes */{total}"}, b"")
            return
        extent = {"Content-Range": f"bytes {start}-{total - 1}/{total}"} if start else {}
        body = self.content[start:]
        self.send(handler, 206 if start else 200, {**self.headers, **extent}, body[: self.cut], len(body))

    def send(self, handler: Handler, code: int, headers: dict[str, str], body: bytes, length: int | None = None):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    def refuse(self, code: int) -> None:
        self.answer = lambda handler: self.send(handler, code, {"Content-Type": "text/html"}, b"<html>no</html>")

    def redirect_to(self, address: str, code: int = 302) -> None:
        """Send every request for another path than /real/ to `address`."""

        def answer(handler: Handler) -> None:
            if handler.path.startswith("/real/"):
                self.send_file(handler)
            else:
                self.send(handler, code, {"Location": address}, b"")

        self.answer = answer

    def fall_silent(self, after: int) -> None:
        """Send so many bytes of the content, or not even an answer, and then nothing more."""

        def answer(handler: Handler) -> None:
            if after:
                self.send(handler, 200, self.headers, self.content[:after], len(self.content))
            self.ended.wait(5.0)

        self.answer = answer


@pytest.fixture
def make_site():
    """Start servers that end with the test."""
    sites = []

    def start(tls: ssl.SSLContext | None = None) -> Site:
        site = Site()
        if tls is not None:
            site.server.socket = tls.wrap_socket(site.server.socket, server_side=True)
            site.base = site.base.replace("http:", "https:")
        thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        sites.append((site, thread))
        return site

    yield start
    for site, thread in sites:
        site.ended.set()
        site.server.shutdown()
        thread.join()
        site.server.server_close()


@pytest.fixture
def site(make_site) -> Site:
    return make_site()


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch):
    """No proxy and no mirror of the machine that runs the tests."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("PEFTSEGMENT_MIRROR", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("PEFTSEGMENT_CERT_FILE", raising=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "downloads"


@pytest.fixture
def part(folder) -> Path:
    return folder / f"{FILE}.part"


def source_at(base: str, **fields: Any) -> Source:
    return Source(**{"file": FILE, "address": f"{base}/a/b/{FILE}", "page": PAGE, "sha256": SHA256, **fields})


def get(source: Source, folder: Path, **settings: Any) -> Path:
    settings = {"progress": lambda done, total: None, "check": lambda: None, "timeout_s": 5.0, **settings}
    return download(source, folder, **settings)


def refusal(source: Source, folder: Path, **settings: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        get(source, folder, **settings)
    assert caught.value.remedy
    return caught.value


def begin(site: Site, folder: Path, **fields: Any) -> Source:
    """Half a download, of a server that then sends all."""
    source = source_at(site.base, **fields)
    site.cut = HALF
    assert "goes on where it stopped" in refusal(source, folder).remedy
    site.cut = None
    return source


# what goes well


def test_a_file_is_downloaded_checked_and_nothing_else_stays(site, folder):
    steps = []
    path = get(source_at(site.base, size=len(CONTENT)), folder, progress=lambda *step: steps.append(step))
    assert path == folder / FILE
    assert path.read_bytes() == CONTENT
    assert {p.name for p in folder.iterdir()} <= {FILE, f"{FILE}.lock"}
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_a_complete_file_is_not_downloaded_again_but_a_wrong_one_is(site, folder):
    source = source_at(site.base)
    path = get(source, folder)
    get(source, folder)
    assert len(site.requests) == 1
    path.write_bytes(OTHER)
    assert get(source, folder).read_bytes() == CONTENT
    assert len(site.requests) == 2


def test_without_a_published_hash_a_file_that_has_its_name_counts_as_whole(site, folder):
    source = source_at(site.base, sha256="", size=len(CONTENT) + 1)  # sizes are only shown; some are rounded
    get(source, folder)
    assert get(source, folder).read_bytes() == CONTENT
    assert len(site.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, folder, code):
    site.redirect_to(f"/real/{FILE}", code)
    assert get(source_at(site.base), folder).read_bytes() == CONTENT


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_takes_the_place_of_scheme_and_host(site, folder, slash):
    source = source_at("https://models.invalid", address=f"https://models.invalid/a/{FILE}?download=true")
    assert get(source, folder, mirror=f"{site.base}/mirror{slash}").read_bytes() == CONTENT
    assert [path for path, _ in site.requests] == [f"/mirror/a/{FILE}?download=true"]


def test_a_mirror_may_be_set_for_the_whole_site_and_given_for_one_download(site, folder, monkeypatch):
    source = source_at("https://models.invalid")
    monkeypatch.setenv("PEFTSEGMENT_MIRROR", f"{site.base}/house")
    get(source, folder).unlink()
    get(source, folder, mirror=f"{site.base}/own")
    assert [path for path, _ in site.requests] == [f"/house/a/b/{FILE}", f"/own/a/b/{FILE}"]


def test_the_proxy_of_the_surroundings_is_used(site, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", site.base)
    assert get(source_at("http://models.invalid"), folder).read_bytes() == CONTENT
    assert [path for path, _ in site.requests] == [f"http://models.invalid/a/b/{FILE}"]


def test_a_host_that_needs_no_proxy_is_asked_directly(site, folder, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(source_at(site.base), folder).read_bytes() == CONTENT


def test_a_server_that_does_not_say_the_length_is_read_to_its_end(site, folder):
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    site.answer = answer
    steps = []
    get(source_at(site.base), folder, progress=lambda *step: steps.append(step))
    assert steps[-1] == (len(CONTENT), 0)


# going on


def test_a_download_that_broke_off_goes_on_where_it_stopped(site, folder, part):
    source = begin(site, folder)
    assert part.read_bytes() == CONTENT[:HALF]
    steps = []
    assert get(source, folder, progress=lambda *step: steps.append(step)).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={HALF}-"]
    assert site.requests[1][1]["If-Range"] == '"one"'
    assert HALF < steps[0][0] <= len(CONTENT) == steps[0][1]
    assert not part.exists()


def test_a_server_without_ranges_sends_all_again(site, folder):
    site.ranges = False
    source = begin(site, folder)
    assert get(source, folder).read_bytes() == CONTENT
    assert site.asked[1] == f"bytes={HALF}-"


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_file_that_changed_on_the_server_is_not_glued_to_the_older_half(site, folder, header):
    site.headers = {header: "Mon, 01 Jan 2024 00:00:00 GMT"}
    source = begin(site, folder, sha256="")
    site.content, site.headers = OTHER, {header: "Tue, 02 Jan 2024 00:00:00 GMT"}
    assert get(source, folder).read_bytes() == OTHER


def test_not_even_by_a_server_that_heeds_no_condition(site, folder):
    source = begin(site, folder, sha256="")
    site.content = OTHER

    def answer(handler: Handler) -> None:
        del handler.headers["If-Range"]
        site.headers["ETag"] = '"two"'
        site.send_file(handler)

    site.answer = answer
    assert get(source, folder).read_bytes() == OTHER
    assert site.asked == [None, f"bytes={HALF}-", None]


def test_a_server_that_sends_another_part_than_asked_for_is_asked_for_all(site, folder):
    source = begin(site, folder)

    def answer(handler: Handler) -> None:
        if handler.headers["Range"]:
            extent = {"Content-Range": f"bytes 10-{len(CONTENT) - 1}/{len(CONTENT)}", **site.headers}
            site.send(handler, 206, extent, CONTENT[10:])
        else:
            site.send_file(handler)

    site.answer = answer
    assert get(source, folder).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("headers", "sha256", "second"),
    [({}, "", None), ({"ETag": 'W/"weak"'}, "", None), ({}, SHA256, f"bytes={HALF}-")],
    ids=["nothing tells versions apart", "a weak ETag", "the hash tells in the end"],
)
def test_where_nothing_tells_versions_apart_a_download_starts_over(site, folder, headers, sha256, second):
    site.headers = headers
    source = begin(site, folder, sha256=sha256)
    assert get(source, folder).read_bytes() == CONTENT
    assert site.asked == [None, second]


def test_a_half_of_another_address_is_not_gone_on_with(site, folder):
    source = begin(site, folder)
    get(dataclasses.replace(source, address=source.address.replace("/b/", "/revision-2/")), folder)
    assert site.asked == [None, None]


def test_what_is_whole_but_has_not_got_its_name_yet_is_not_sent_again(site, folder, part):
    source = begin(site, folder)
    part.write_bytes(CONTENT)
    assert get(source, folder).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={len(CONTENT)}-"]


def test_more_than_the_server_has_is_thrown_away(site, folder, part):
    source = begin(site, folder)
    part.write_bytes(CONTENT + b"more")
    assert get(source, folder).read_bytes() == CONTENT


def test_a_cancelled_download_stops_at_the_next_block_and_keeps_what_it_has(site, folder, part):
    def check() -> None:
        if part.exists() and part.stat().st_size:
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        get(source_at(site.base), folder, check=check)
    kept = part.read_bytes()
    assert kept
    assert CONTENT.startswith(kept)
    assert not (folder / FILE).exists()
    get(source_at(site.base), folder)
    assert len(kept) == len(CONTENT) or site.asked[1] == f"bytes={len(kept)}-"


# what goes wrong


def test_a_wrong_hash_deletes_the_file_and_names_both(site, folder):
    site.content = OTHER
    error = refusal(source_at(site.base), folder)
    assert SHA256 in error.message
    assert hashlib.sha256(OTHER).hexdigest() in error.message
    assert PAGE in error.remedy
    assert {p.name for p in folder.iterdir()} <= {f"{FILE}.lock"}


def test_a_published_md5_is_checked_where_it_is_all_there_is(site, folder):
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    get(source_at(site.base, sha256="", md5=md5.upper()), folder).unlink()
    site.content = OTHER
    assert md5 in refusal(source_at(site.base, sha256="", md5=md5), folder).message


@pytest.mark.parametrize(
    ("code", "named"),
    [(404, "has no file /a/b/weights.pt (404"), (403, "refuses"), (401, "refuses"), (503, "now"), (429, "now")],
)
def test_a_refusal_is_told_with_the_way_by_hand(site, folder, code, named):
    site.refuse(code)
    error = refusal(source_at(site.base), folder)
    assert named in error.message
    assert f"({code} " in error.message
    assert PAGE in error.remedy
    assert "peftseg models import ID FILE" in error.remedy


def test_a_web_page_in_place_of_the_file_is_refused_and_the_half_kept(site, folder, part):
    source = begin(site, folder)
    site.refuse(200)
    error = refusal(source, folder)
    assert "sent a web page, not the file" in error.message
    assert PAGE in error.remedy
    assert part.read_bytes() == CONTENT[:HALF]
    assert not (folder / FILE).exists()


@pytest.mark.parametrize("code", [202, 204, 206])
def test_an_answer_that_is_no_file_is_refused(site, folder, code):
    site.answer = lambda handler: site.send(handler, code, {}, b"")
    assert f"no file ({code})" in refusal(source_at(site.base), folder).message


@pytest.mark.parametrize("after", [0, HALF])
def test_a_server_that_falls_silent_is_left_with_its_name(site, folder, part, after):
    site.fall_silent(after)
    error = refusal(source_at(site.base), folder, timeout_s=0.2)
    assert "127.0.0.1 sent nothing for 0.2 s" in error.message
    assert "peftseg models import ID FILE" in error.remedy
    assert (part.stat().st_size if part.exists() else 0) == after


def test_a_server_that_cannot_be_reached_or_is_not_known_is_named(folder, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert "127.0.0.1 cannot be reached" in refusal(source_at(f"http://127.0.0.1:{port}"), folder).message

    def unknown(*arguments: Any, **settings: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refusal(source_at("https://models.invalid"), folder)
    assert "models.invalid is not found" in error.message
    assert "HTTPS_PROXY" in error.remedy


@pytest.mark.parametrize(
    ("fields", "settings", "named"),
    [
        ({"address": ""}, {}, "by hand"),
        ({"address": "file:///etc/passwd"}, {}, "file:///etc/passwd"),
        ({"address": "ftp://models.example/w"}, {}, "ftp:"),
        ({"address": "https:///w"}, {}, "no web address"),
        ({"address": "https://models.example:port/w"}, {}, "no web address"),
        ({"address": "https://models.example/a b"}, {}, "no web address"),
        ({}, {"mirror": "models.example"}, "The mirror 'models.example'"),
        ({"file": "../w.pt"}, {}, "'../w.pt'"),
        ({"file": ".."}, {}, "'..'"),
    ],
)
def test_what_cannot_be_an_address_or_a_file_name_is_refused(folder, fields, settings, named):
    source = source_at("https://models.invalid", **fields)
    error = refusal(source, folder, **settings)
    assert named in error.message
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named(site, tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(source_at(site.base), tmp_path / "file" / "folder").message


def test_too_little_space_is_told_before_the_transfer(site, folder, part, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    error = refusal(source_at(site.base), folder)
    assert "0 MB left" in error.message
    assert "Free some space" in error.remedy
    assert not part.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_a_disk_that_takes_no_more_is_told_and_the_download_goes_on_later(site, folder, part):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, limits[1]))
    try:
        error = refusal(source_at(site.base), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{part} cannot be written" in error.message
    assert part.read_bytes() == CONTENT[:HALF]
    assert get(source_at(site.base), folder).read_bytes() == CONTENT
    assert site.asked == [None, f"bytes={HALF}-"]


def test_a_full_disk_is_told_with_what_to_do(site, folder, part, monkeypatch):
    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == len(CONTENT):  # not the small note beside it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    error = refusal(source_at(site.base), folder)
    assert f"{part} cannot be written: No space left" in error.message
    assert error.remedy == "Free some space. Run the same command again: it goes on where it stopped."


def test_two_processes_do_not_write_one_file(site, folder):
    folder.mkdir()
    script = (
        "import sys; from pathlib import Path; from peftseg.locks import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); lock.acquire('process 77'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(folder / f"{FILE}.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert "process 77" in refusal(source_at(site.base), folder).message
        other.stdin.close()
    assert get(source_at(site.base), folder).read_bytes() == CONTENT
    lock = FileLock(folder / f"{FILE}.lock")
    assert lock.acquire()
    lock.release()


# encryption


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate of this machine's own, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    key = path.with_name("key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=test"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {path}"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


@pytest.fixture
def secure_site(make_site, certificate) -> Site:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return make_site(context)


def test_a_certificate_is_trusted_only_where_the_user_says_so(secure_site, folder, certificate, monkeypatch):
    error = refusal(source_at(secure_site.base), folder)
    assert "No secure connection to 127.0.0.1" in error.message
    assert "set PEFTSEGMENT_CERT_FILE" in error.remedy
    monkeypatch.setenv("PEFTSEGMENT_CERT_FILE", str(certificate))
    assert get(source_at(secure_site.base), folder).read_bytes() == CONTENT


def test_a_certificate_in_binary_form_is_trusted_too(secure_site, folder, certificate, monkeypatch, tmp_path):
    binary = tmp_path / "site.cer"
    binary.write_bytes(ssl.PEM_cert_to_DER_cert(certificate.read_text().partition("-----BEGIN PRIVATE")[0]))
    monkeypatch.setenv("PEFTSEGMENT_CERT_FILE", str(binary))
    assert get(source_at(secure_site.base), folder).read_bytes() == CONTENT


def test_the_users_certificates_are_trusted_beside_the_usual_ones(
    secure_site, folder, certificate, monkeypatch, tmp_path
):
    another = tmp_path / "another.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=proxy -keyout {tmp_path}/key -out {another}"
    subprocess.run(command.split(), check=True, capture_output=True)
    monkeypatch.setenv("PEFTSEGMENT_CERT_FILE", str(another))
    assert "No secure connection" in refusal(source_at(secure_site.base), folder).message
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # as Slicer's launcher names the usual ones
    assert get(source_at(secure_site.base), folder).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_file_that_is_no_certificate_is_named(secure_site, folder, monkeypatch, tmp_path, content):
    wrong = tmp_path / "wrong.pem"
    if content is not None:
        wrong.write_bytes(content)
    monkeypatch.setenv("PEFTSEGMENT_CERT_FILE", str(wrong))
    error = refusal(source_at(secure_site.base), folder)
    assert f"PEFTSEGMENT_CERT_FILE is {wrong}, which is no file of certificates" in error.message
    assert "IT department" in error.remedy


def test_an_encrypted_address_never_leads_to_one_that_is_not(site, secure_site, folder, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    secure_site.redirect_to(f"{site.base}/real/{FILE}")
    assert "without encryption" in refusal(source_at(secure_site.base), folder).message
    assert site.requests == []
    site.redirect_to(f"{secure_site.base}/real/{FILE}")
    assert get(source_at(site.base), folder).read_bytes() == CONTENT


def test_a_server_that_speaks_no_tls_is_told(site, folder):
    source = source_at(site.base.replace("http:", "https:"))
    assert "No secure connection" in refusal(source, folder).message


# hashes


def test_a_file_that_came_by_hand_is_compared_with_what_is_published(tmp_path):
    path = tmp_path / "by-hand.pt"
    path.write_bytes(CONTENT)
    assert file_hash(path, "sha256") == SHA256
    assert verify_file(source_at("http://x"), path) == SHA256
    assert verify_file(source_at("http://x", sha256=""), path) == SHA256, "recorded where none is published"
    with pytest.raises(BadInput, match=f"{SHA256}, expected {'0' * 64}.*{PAGE}"):
        verify_file(source_at("http://x", sha256="0" * 64), path)
    with pytest.raises(BadInput, match="cannot be read"):
        verify_file(source_at("http://x"), tmp_path / "missing.pt")


# licences and the command line

ENTRY = ModelEntry(
    id="public-ct",
    title="A public model",
    modality="CT",
    structures=tuple(Structure(f"organ {i}", i) for i in range(1, 15)),
    network=NetworkSpec("segresnet", {}),
    activation="softmax",
    preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
    window=(16, 16, 16),
    overlap=0.5,
    licence="CC-BY-NC-4.0",
    licence_notice="Not for money.",
    citation="Somebody 2024",
    patents="US 1",
    acknowledge=True,
)


@pytest.fixture
def declare(monkeypatch):
    """Put a model into the catalogue, in place of the public ones."""

    def put(entry: ModelEntry = ENTRY, **fields: Any) -> ModelEntry:
        entry = dataclasses.replace(entry, **fields)
        monkeypatch.setattr(foundation_models, "FOUNDATION_MODELS", (entry,))
        return entry

    return put


@pytest.fixture
def importing(monkeypatch, own_home) -> list[Path]:
    """Import without torch: checks the file and writes a model folder; lists the files that were imported."""
    files = []

    def import_checkpoint(entry: ModelEntry, file: Path, *, reporter: Any, clip_driven: bool | None) -> ModelEntry:
        verify_file(entry.source, file)
        files.append(file)
        reporter.progress("read", 1, 1)
        return write_model(own_home / "models" / entry.id, entry)

    monkeypatch.setattr(cli_models, "_importer", lambda: import_checkpoint)
    return files


def write_model(folder: Path, entry: ModelEntry) -> ModelEntry:
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(to_dict(entry)))
    (folder / "weights.safetensors").write_bytes(bytes(2_000_000))
    return read_model_dir(folder)


def peftseg(capsys, *arguments: str, code: int = 0) -> str:
    """What a command prints, on stderr where it is refused."""
    assert cli.main(["models", *map(str, arguments)]) == code
    output = capsys.readouterr()
    assert code == 0 or "Error: " in output.err
    return output.err if code else output.out


def test_a_licence_is_accepted_once_and_again_when_its_text_changes(declare, own_home):
    entry = declare()
    with pytest.raises(BadInput, match=r"CC-BY-NC-4.0.*peftseg models accept public-ct"):
        licences.require_accepted(entry)
    licences.accept(entry)
    licences.require_accepted(entry)
    record = json.loads((own_home / "models" / "accepted.json").read_text())["public-ct"]
    assert record["licence"] == "CC-BY-NC-4.0\nNot for money.\nUS 1"
    assert record["time"].endswith("+00:00")
    for changed in ({"licence": "MIT"}, {"licence_notice": ""}, {"patents": "US 1, US 2"}, {"id": "other"}):
        assert licences.acknowledgement(dataclasses.replace(entry, **changed)) == "needed"
    assert licences.acknowledgement(dataclasses.replace(entry, acknowledge=False)) == "not needed"


def test_accepting_one_licence_keeps_the_others(declare):
    entry, other = declare(), dataclasses.replace(ENTRY, id="other")
    licences.accept(entry)
    licences.accept(other)
    assert licences.acknowledgement(entry) == licences.acknowledgement(other) == "accepted"


@pytest.mark.parametrize("text", ["{", "[]", '{"public-ct": 1}', '{"public-ct": {}}'])
def test_a_damaged_record_of_licences_is_named_and_accepts_nothing(own_home, text):
    file = own_home / "models" / "accepted.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(BadInput, match=r"accepted\.json is damaged"):
        licences.require_accepted(ENTRY)


def test_a_licence_is_shown_and_accepted_on_a_terminal_or_with_yes(declare, capsys, monkeypatch):
    entry = declare()
    assert "no terminal" in peftseg(capsys, "accept", "public-ct", code=2)
    assert cli.main(["models", "accept", "public-ct", "--json"]) == 2
    assert "--yes" in json.loads(capsys.readouterr().out)["remedy"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "")
    assert "not accepted" in peftseg(capsys, "accept", "public-ct", code=3)
    assert licences.acknowledgement(entry) == "needed"
    monkeypatch.setattr("builtins.input", lambda question: "y")
    shown = peftseg(capsys, "accept", "public-ct")
    assert not [t for t in ("CC-BY-NC-4.0", "Not for money.", "US 1", "Somebody 2024") if t not in shown]
    assert licences.acknowledgement(entry) == "accepted"
    declare(licence="MIT")
    found = json.loads(peftseg(capsys, "accept", "public-ct", "--yes", "--json"))
    assert (found["licence"], found["acknowledgement"]) == ("MIT", "accepted")


def test_a_licence_that_needs_no_acceptance_asks_nothing(declare, capsys, own_home):
    declare(acknowledge=False)
    assert "needs no acceptance" in peftseg(capsys, "accept", "public-ct")
    assert not (own_home / "models" / "accepted.json").exists()


def test_the_catalogue_tells_licence_size_and_source(declare, capsys, own_home):
    entry = declare(source=source_at("https://models.example", size=349_000_000))
    text = peftseg(capsys)
    assert "(CT; CC-BY-NC-4.0; licence to be accepted; 349 MB to download)" in text
    assert f"source: {PAGE}" in text
    assert "organ 12 and 2 more" in text
    assert text.index("phantom-ct") < text.index("public-ct")
    licences.accept(entry)
    row = next(r for r in json.loads(peftseg(capsys, "--json")) if r["id"] == "public-ct")
    assert (row["weights_here"], row["download_mb"], row["page"]) == (False, 349.0, PAGE)
    assert (row["acknowledgement"], len(row["structures"])) == ("accepted", 14)
    declare(source=source_at("", address=""))
    assert "licence accepted; a weights file to be imported" in peftseg(capsys)
    declare(source=source_at("https://models.example"))
    assert "weights to be downloaded" in peftseg(capsys)
    write_model(own_home / "models" / "public-ct", entry)
    assert "licence accepted; weights here" in peftseg(capsys)


def test_a_model_folder_that_cannot_be_read_is_a_warning_beside_the_others(declare, capsys, own_home):
    declare()
    folder = own_home / "models" / "broken"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{")
    assert cli.main(["models", "--json"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith(f"Warning: {folder}")
    assert "public-ct" in [row["id"] for row in json.loads(output.out)]


def test_another_model_folder_is_shown_where_it_is_given(declare, capsys, tmp_path):
    declare()
    write_model(tmp_path / "m", dataclasses.replace(ENTRY, id="elsewhere"))
    assert "elsewhere: " in peftseg(capsys, "--dir", tmp_path / "m")


def test_a_model_is_downloaded_imported_and_removed(declare, importing, site, capsys, own_home):
    entry = declare(source=source_at(site.base))
    assert "peftseg models accept public-ct" in peftseg(capsys, "download", "public-ct", code=2)
    assert site.requests == []
    licences.accept(entry)
    folder = own_home / "models" / "public-ct"
    assert peftseg(capsys, "download", "public-ct") == f"The model public-ct was imported: {folder}\n"
    assert catalogue()["public-ct"].weights_path == folder / "weights.safetensors"
    assert not importing[0].exists(), "the public file is not needed any more"
    assert peftseg(capsys, "download", "public-ct").startswith("The model public-ct is here already: ")
    assert len(site.requests) == 1
    removed = json.loads(peftseg(capsys, "remove", "public-ct", "--json"))
    assert (removed["removed"], removed["freed_mb"]) == ([str(folder)], 2.0)
    assert catalogue()["public-ct"].weights_path is None
    assert "no weights" in peftseg(capsys, "remove", "public-ct", code=2)


def test_a_download_tells_its_progress_as_json_and_takes_a_mirror(declare, importing, site, capsys):
    declare(source=source_at("https://models.invalid"), acknowledge=False)
    lines = peftseg(capsys, "--json", "download", "public-ct", "--mirror", f"{site.base}/m").splitlines()
    events = [json.loads(line) for line in lines]
    assert events[-1]["event"] == "finished"
    assert events[-1]["id"] == "public-ct"
    assert {"stage": "download (MB)", "step": 1, "total": 1}.items() <= events[-3].items()
    assert site.requests[0][0].startswith("/m/")


def test_a_download_that_broke_off_is_kept_until_it_is_removed(declare, importing, site, capsys, own_home):
    declare(source=source_at(site.base), acknowledge=False)
    site.cut = HALF
    assert "goes on where it stopped" in peftseg(capsys, "download", "public-ct", code=2)
    assert "that freed 0.2 MB." in peftseg(capsys, "remove", "public-ct")
    peftseg(capsys, "download", "public-ct", code=2)
    site.cut = None
    peftseg(capsys, "download", "public-ct")
    assert site.asked == [None, None, f"bytes={HALF}-"]


def test_a_checkpoint_is_imported_from_a_file(declare, importing, capsys, tmp_path, own_home):
    entry = declare(source=source_at("", address=""))
    file = tmp_path / "mine.pt"
    assert "mine.pt does not exist" in peftseg(capsys, "import", "public-ct", file, code=2)
    file.write_bytes(CONTENT)
    assert "models accept" in peftseg(capsys, "import", "public-ct", file, code=2)
    licences.accept(entry)
    assert "by hand" in peftseg(capsys, "download", "public-ct", code=2)
    events = peftseg(capsys, "import", "public-ct", file, "--json").splitlines()
    assert json.loads(events[-1])["directory"] == str(own_home / "models" / "public-ct")
    assert importing == [file]
    assert file.is_file()
    assert not (own_home / "models" / ".downloads" / "public-ct").exists()
    assert "models remove public-ct" in peftseg(capsys, "import", "public-ct", file, code=2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["download", "none-such"], ["'none-such'", "public-ct"]),
        (["download", "public-ct"], ["no public weights"]),
        (["import", "none-such", "FILE"], ["'none-such'"]),
        (["import", "none-such"], ["none-such does not exist"]),
        (["import", "public-ct"], ["public-ct FILE"]),
        (["import", "public-ct", "FILE"], ["not made from a public checkpoint"]),
        (["import", "phantom-ct", "FILE"], ["already"]),
        (["remove", "none-such"], ["'none-such'"]),
        (["remove", "phantom-ct"], ["bundled"]),
        (["remove", ".."], ["'..'"]),
        (["remove", ".downloads"], ["'.downloads'"]),
        (["accept", "none-such"], ["'none-such'"]),
    ],
)
def test_models_that_cannot_be_taken_or_removed_are_named(declare, capsys, own_home, arguments, named):
    declare(acknowledge=False)
    (own_home / "models" / ".downloads").mkdir(parents=True)
    error = peftseg(capsys, *arguments, code=2)
    assert not [text for text in named if text not in error], error
    assert (own_home / "models" / ".downloads").is_dir()


def test_a_damaged_model_can_be_removed_and_one_elsewhere_is_left_alone(declare, capsys, own_home, tmp_path):
    declare()
    folder = own_home / "models" / "broken"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{")
    assert f"Removed {folder}" in peftseg(capsys, "remove", "broken")
    assert not folder.exists()
    write_model(tmp_path / "m", dataclasses.replace(ENTRY, id="mine"))
    remember(tmp_path / "m")
    assert f"{tmp_path / 'm'}" in peftseg(capsys, "remove", "mine", code=2)
    assert (tmp_path / "m" / "weights.safetensors").is_file()


def test_without_torch_the_catalogue_is_listed_and_an_import_says_what_is_missing(own_home, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "peftseg", "models", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert "phantom-ct" in run().stdout
    copy = shutil.copytree(BUNDLED / "phantom-ct", tmp_path / "m")
    (copy / "model.json").write_text((copy / "model.json").read_text().replace('"phantom-ct"', '"copy"', 1))
    done = run("import", str(copy))
    assert (done.returncode, "no torch here" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


# as a process of another program, which reads JSON lines


def events_of(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """The lines that a real process prints with --json; every one must be an event, and the last one an ending."""
    command = [sys.executable, "-m", "peftseg", "models", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    events = [json.loads(line) for line in done.stdout.decode("utf-8").splitlines()]
    assert done.returncode == code, done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert [e["event"] in ("finished", "failed", "cancelled") for e in events[-1:]] == [True]
    return events


@pytest.fixture
def tiny(tmp_path, own_home, site) -> Path:
    """A model of the catalogue whose weights are on the server; the folder of its weights when they are imported."""
    torch = pytest.importorskip("torch")
    from peftseg.networks import build

    network = NetworkSpec("segresnet", {"init_filters": 8})
    torch.manual_seed(0)
    torch.save({"state_dict": build(network, n_outputs=15)[0].state_dict()}, tmp_path / "public.pt")
    site.content = (tmp_path / "public.pt").read_bytes()
    digest = hashlib.sha256(site.content).hexdigest()
    entry = dataclasses.replace(
        ENTRY, id="tiny", title="Winzig, für Tests", network=network, source=source_at(site.base, sha256=digest)
    )
    target = own_home / "models" / "tiny"
    target.mkdir(parents=True)
    (target / "model.json").write_text(json.dumps(to_dict(entry)))
    return target


@pytest.mark.slow
def test_with_json_every_verb_prints_events_alone_and_errors_are_one_of_them(tiny, tmp_path):
    (refused,) = events_of("download", "tiny", code=2)
    assert (refused["event"], refused["kind"]) == ("failed", "bad_input")
    assert "has not been accepted" in refused["message"]
    assert "models accept tiny" in refused["remedy"]
    (accepted,) = events_of("accept", "tiny", "--yes")
    assert (accepted["event"], accepted["acknowledgement"]) == ("finished", "accepted")
    downloaded = events_of("download", "tiny")
    assert {e["stage"] for e in downloaded if e["event"] == "progress"} >= {"download (MB)", "read", "write"}
    assert (downloaded[-1]["id"], downloaded[-1]["directory"]) == ("tiny", str(tiny))
    assert (tiny / "weights.safetensors").is_file()
    (removed,) = events_of("remove", "tiny")
    assert removed["removed"] == [str(tiny)]
    for wrong in (["remove", "nöne"], ["import", "nowhere", "no.pt"], ["accept", "tiny"], ["download"], ["dance", "x"]):
        (failed,) = events_of(*wrong, code=2)
        assert failed["event"] == "failed"
        assert failed["message"]
        assert failed["remedy"]


def test_a_checkpoint_that_is_imported_tells_its_steps_and_what_is_wrong_with_another(tiny, tmp_path):
    events_of("accept", "tiny", "--yes")
    (tmp_path / "other.pt").write_bytes(b"something else")
    assert "is not the published file" in events_of("import", "tiny", str(tmp_path / "other.pt"), code=2)[-1]["message"]
    events = events_of("import", "tiny", str(tmp_path / "public.pt"))
    assert [e["event"] for e in events][-1] == "finished"


def test_an_error_inside_is_one_line_too_with_the_traceback_on_stderr(monkeypatch, capsys):
    def breaks() -> None:
        raise ZeroDivisionError("seven by nothing")

    monkeypatch.setattr(cli_models, "known_models", breaks)
    assert cli.main(["models", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["kind"] == "internal"
    assert "seven by nothing" in json.loads(output.out)["message"]
    assert "Traceback" in output.err


def test_what_libraries_print_does_not_come_between_the_events(declare, site, capsys, monkeypatch, own_home):
    def import_checkpoint(entry: ModelEntry, file: Path, **rest: Any) -> ModelEntry:
        print("a library prints something")
        return write_model(own_home / "models" / entry.id, entry)

    declare(source=source_at(site.base), acknowledge=False)
    monkeypatch.setattr(cli_models, "_importer", lambda: import_checkpoint)
    assert cli.main(["models", "download", "public-ct", "--json"]) == 0
    output = capsys.readouterr()
    assert [json.loads(line)["event"] for line in output.out.splitlines()][-1] == "finished"
    assert "a library prints something" in output.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals are of Unix")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_a_download_that_is_ended_goes_on_where_it_stopped(tiny, site, own_home, number):
    events_of("accept", "tiny", "--yes")
    half = len(site.content) // 2

    def trickle(handler: Handler) -> None:
        """Half of the file, then a byte now and then."""
        site.send(handler, 200, site.headers, site.content[:half], len(site.content))
        for start in range(half, half + 2000):
            if site.ended.wait(0.01):
                return
            handler.wfile.write(site.content[start : start + 1])

    site.answer = trickle
    part = own_home / "models" / ".downloads" / "tiny" / f"{FILE}.part"
    command = [sys.executable, "-m", "peftseg", "models", "download", "tiny", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size > half):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    if number != signal.SIGKILL:
        assert process.returncode == 3
        assert json.loads(out.splitlines()[-1]) == {"event": "cancelled", "message": "Interrupted."}
        assert "Traceback" not in err
    site.answer = site.send_file
    assert part.stat().st_size > half
    assert events_of("download", "tiny")[-1]["event"] == "finished"
    assert site.asked[-1].startswith("bytes=")
    assert not part.parent.exists()
