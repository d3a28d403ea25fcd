"""Public checkpoints from the internet: resumed, checked, and never half a file. Torch-free, standard library only.

`FILE.part` grows beside `FILE`, and `FILE.part.json` says of which version of the file on the server it is a part, so
that pieces of two versions are never glued together. The proxies that the system or HTTP_PROXY, HTTPS_PROXY and NO_PROXY
name are used. PEFTSEGMENT_CERT_FILE names certificates to trust beside the usual ones; SSL_CERT_FILE is no way for that in
Slicer, whose launcher sets it to its own file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peftseg.errors import BadInput
from peftseg.locks import FileLock
from peftseg.models import Source
from peftseg.paths import owner_only, write_text
from peftseg.version import __version__

MIRROR_VARIABLE = "PEFTSEGMENT_MIRROR"
CERTIFICATE_VARIABLE = "PEFTSEGMENT_CERT_FILE"
BLOCK = 1 << 20  # bytes
VALIDATORS = ("ETag", "Last-Modified")  # headers that tell one version of a file from another, the better one first
AGAIN = "Run the same command again: it goes on where it stopped."
_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class _Changed(Exception):
    """The server does not go on with the file that was begun: the download starts over."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from an encrypted address to one that is not."""

    def __init__(self, secure: bool) -> None:
        self._secure = secure

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """As the base class; BadInput where the new address is not allowed."""
        if urlsplit(newurl).scheme not in (("https",) if self._secure else ("https", "http")):
            fp.close()
            raise BadInput(
                f"The server {_host(req.full_url)} sends on to {_host(newurl)} without encryption.",
                "Tell the model's authors, and use a mirror (--mirror) or download it by hand.",
            )
        # Python 3.10 follows 308 only where it is told so; it means what 307 means.
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


def download(
    source: Source,
    folder: Path,
    *,
    mirror: str = "",
    progress: Callable[[int, int], None],
    check: Callable[[], None],
    timeout_s: float = 30.0,
) -> Path:
    """Download a public file, going on with what an earlier try left; a complete one is not downloaded again.

    Parameters
    ----------
    folder : Path
        Where to write `source.file`; made when it is not there.
    mirror : str
        Address that takes the place of scheme and host in `source.address`, e.g. "https://mirror.example/models";
        "" means the environment variable PEFTSEGMENT_MIRROR, where it is set.
    progress : callable
        Called with bytes done and bytes in total; the total is 0 where the server does not say it.
    check : callable
        Called for every block that arrives; raises JobCancelled to stop. A silent server delays it by `timeout_s`.
    timeout_s : float
        Seconds without any byte after which the connection counts as dead.

    Raises
    ------
    BadInput
        No connection, a refusal, a file that ends early or has another hash than published, or a disk that cannot be
        written to. What has arrived stays for the next try, unless its hash is wrong.
    """
    address = _address(source, mirror)
    target = owner_only(Path(folder)) / source.file
    lock = FileLock(target.with_name(f"{source.file}.lock"))
    if not lock.acquire(f"process {os.getpid()}"):
        raise BadInput(f"{source.file} is being downloaded already, by {lock.holder()}.", "Wait until it has ended.")
    try:
        check()
        if _is_complete(source, target):
            return target
        part = target.with_name(f"{source.file}.part")
        try:
            _fetch(source, address, part, progress, check, timeout_s)
        except _Changed:
            _forget(part)
            _fetch(source, address, part, progress, check, timeout_s)
        _refuse_other_content(source, part)
        with _disk_errors(target):
            os.replace(part, target)
        _forget(part)
    finally:
        lock.release()
    return target


def file_hash(path: Path, name: str) -> str:
    """Hash of a file, hexadecimal; `name` as `hashlib` knows it, e.g. "sha256". BadInput where it cannot be read."""
    digest = hashlib.new(name, usedforsecurity=False)
    try:
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    return digest.hexdigest()


def verify_file(source: Source, path: Path) -> str:
    """The SHA-256 of a file that was downloaded, by hand or not.

    Raises
    ------
    BadInput
        It is not the published file (both hashes are named), or cannot be read.
    """
    wrong = _mismatch(source, path)
    if wrong is not None:
        raise BadInput(f"{path} is not the published file: {wrong}.", f"Download it again{_at(source.page)}.")
    return file_hash(path, "sha256")


def _is_complete(source: Source, target: Path) -> bool:
    """Whether an earlier download is there; it got its name only when it was whole."""
    return target.is_file() and _mismatch(source, target) is None


def _mismatch(source: Source, path: Path) -> str | None:
    """How a whole file differs from what is published, or None; where nothing is published, that is None."""
    for name, published in (("sha256", source.sha256), ("md5", source.md5)):
        if published:
            found = file_hash(path, name)
            same = found == published.lower()
            return None if same else f"its {name} is {found}, expected {published.lower()}"
    return None


def _refuse_other_content(source: Source, part: Path) -> None:
    wrong = _mismatch(source, part)
    if wrong is not None:
        _forget(part)
        raise BadInput(
            f"What was downloaded is not the published {source.file}: {wrong}. It was deleted.",
            f"Try again; where it fails again, {_by_hand(source, first=False)}",
        )


def _address(source: Source, mirror: str) -> str:
    """Where to download from."""
    if Path(source.file).name != source.file or source.file in ("", ".", ".."):
        raise BadInput(f"'{source.file}' is no plain file name.", "Correct `source` in the model's model.json.")
    if not source.address:
        raise BadInput(f"{source.file} can only be fetched by hand: it has no address.", _by_hand(source))
    mirror = mirror or os.environ.get(MIRROR_VARIABLE, "")
    for what, address in (("address", source.address), ("mirror", mirror)):
        if address and not _is_web_address(address):
            raise BadInput(
                f"The {what} '{address}' is no web address.", "Give one that begins with https:// (or http://)."
            )
    if not mirror:
        return source.address
    parts = urlsplit(source.address)
    return mirror.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


def _is_web_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        named = bool(parts.hostname) and parts.port != 0  # reading the port checks it
    except ValueError:
        return False
    return named and parts.scheme in ("http", "https") and re.fullmatch(r"[!-~]+", address) is not None


# the transfer


def _fetch(
    source: Source,
    address: str,
    part: Path,
    progress: Callable[[int, int], None],
    check: Callable[[], None],
    timeout_s: float,
) -> None:
    """Bring `part` to its full length; raises _Changed where that cannot be done from what is there."""
    done, validator = _begun(part, source)
    with _ask(source, address, done, validator, timeout_s) as response:
        start, total = _extent(response, done, validator)
        if start == total > 0:  # all is there, only the check and the rename are missing
            return
        _refuse_web_page(response, source, address)
        if start == 0:
            _forget(part)
            found = next(((name, response.headers[name]) for name in VALIDATORS if _usable(response, name)), None)
            write_text(_note(part), json.dumps({"address": source.address, "validator": found}) + "\n")
        _require_space(part, total - start)
        done = start
        with _opened(part) as stream:
            for block in _blocks(response, source, address, timeout_s):
                _append(stream, block, part)
                done += len(block)
                progress(done, total)
                check()
    if done < total:
        raise BadInput(f"{_host(address)} ended the connection after {done} of {total} bytes of {source.file}.", AGAIN)


def _begun(part: Path, source: Source) -> tuple[int, tuple[str, str] | None]:
    """Bytes that an earlier try left and that can be gone on from, and which version of the file they are of."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        done = part.stat().st_size
    except (OSError, ValueError):  # nothing was begun, or it is not known of what: start over
        return 0, None
    if not isinstance(note, dict) or note.get("address") != source.address:
        return 0, None
    validator = tuple(note["validator"]) if note.get("validator") else None
    safe = validator is not None or source.sha256 or source.md5  # else two versions could be glued unnoticed
    return (done, validator) if safe else (0, None)


def _ask(source: Source, address: str, done: int, validator: tuple[str, str] | None, timeout_s: float) -> Any:
    """The server's answer, with headers and content; a refusal of the range counts as one."""
    request = urllib.request.Request(address, headers={"User-Agent": f"peftseg/{__version__}"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if validator is not None:
            request.add_header("If-Range", validator[1])
    secure = urllib.request.HTTPSHandler(context=_trusted())
    opener = urllib.request.build_opener(_Redirects(secure=urlsplit(address).scheme == "https"), secure)
    try:
        return opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:
            return error
        error.close()
        raise _refused(error, source, address) from error
    except (OSError, http.client.HTTPException) as error:
        raise _no_connection(error, source, address, timeout_s) from error


def _trusted() -> ssl.SSLContext | None:
    """What to trust where the user names a certificate file: that beside the usual; None for the usual alone."""
    path = os.environ.get(CERTIFICATE_VARIABLE)
    if not path:
        return None
    context = ssl.create_default_context()
    try:
        content = Path(path).read_bytes()
        if b"-----BEGIN " in content:
            context.load_verify_locations(path)
        else:  # one certificate in binary form, as Windows exports it
            context.load_verify_locations(cadata=content)
    except (OSError, ValueError) as error:  # also ssl.SSLError
        raise BadInput(
            f"{CERTIFICATE_VARIABLE} is {path}, which is no file of certificates ({_reason(error)}).",
            "Set it to the certificate of your site's proxy (ask your IT department), or unset it.",
        ) from error
    return context


def _extent(response: Any, done: int, validator: tuple[str, str] | None) -> tuple[int, int]:
    """First byte of the answer's content and size of the whole file, 0 where it is not said."""
    headers = response.headers
    if response.status == 200:
        length = headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else 0
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    total = int(found[2]) if found and found[2] != "*" else 0
    if validator is not None and headers.get(validator[0], validator[1]) != validator[1]:
        raise _Changed
    if response.status == 206 and found and found[1] == str(done):
        return done, total
    if response.status == 416 and total == done:
        return done, total
    if done:
        raise _Changed
    raise BadInput(
        f"{_host(response.url)} gave an answer that is no file ({response.status}).",
        "Try again later, or use a mirror.",
    )


def _usable(response: Any, name: str) -> bool:
    """Whether a header tells versions of a file apart byte by byte; a weak ETag (W/) does not."""
    return not response.headers.get(name, "W/").startswith("W/")


def _refuse_web_page(response: Any, source: Source, address: str) -> None:
    """Refuse a page that asks to log in or to confirm, where a file was expected."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise BadInput(f"The server {_host(address)} sent a web page, not the file {source.file}.", _by_hand(source))


def _blocks(response: Any, source: Source, address: str, timeout_s: float) -> Iterator[bytes]:
    """Content as it arrives, so that a slow server does not keep the caller waiting for a whole block."""
    while True:
        try:
            block = response.read1(BLOCK)
        except TimeoutError as error:
            raise _silent(source, address, timeout_s, AGAIN + " Or: ") from error
        except (OSError, http.client.HTTPException) as error:
            raise BadInput(f"The connection to {_host(address)} broke ({_reason(error)}).", AGAIN) from error
        if not block:
            return
        yield block


# files


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    """Delete what was begun: first the bytes, so that no note ever speaks of older ones."""
    with _disk_errors(part):
        part.unlink(missing_ok=True)
        _note(part).unlink(missing_ok=True)


def _require_space(part: Path, needed: int) -> None:
    with _disk_errors(part):
        free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise BadInput(
            f"The disk of {part.parent} has {free / 1e6:.0f} MB left; {needed / 1e6:.0f} MB are needed.",
            f"Free some space. {AGAIN}",
        )


@contextlib.contextmanager
def _opened(part: Path) -> Iterator[Any]:
    """The file to append to, without a buffer; its bytes are on the disk at the end."""
    with contextlib.ExitStack() as stack:
        with _disk_errors(part):
            stream = stack.enter_context(open(part, "ab", buffering=0))
        yield stream
        with _disk_errors(part):
            os.fsync(stream.fileno())


def _append(stream: Any, block: bytes, part: Path) -> None:
    rest = memoryview(block)
    with _disk_errors(part):
        while rest:
            rest = rest[stream.write(rest) :]


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _DISK_FULL
        remedy = f"Free some space. {AGAIN}" if full else "Make sure that you may write there, then run it again."
        raise BadInput(f"{path} cannot be written: {error.strerror or error}.", remedy) from error


# what went wrong, in words


def _host(address: str) -> str:
    return urlsplit(address).hostname or address


def _at(page: str) -> str:
    return f" from {page}" if page else ""


def _by_hand(source: Source, first: bool = True) -> str:
    """How to do without this module."""
    start = "Download" if first else "download"
    return f"{start} {source.file} by hand{_at(source.page)}, then run `peftseg models import ID FILE`."


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refused(error: urllib.error.HTTPError, source: Source, address: str) -> BadInput:
    host, answer = _host(address), f"{error.code} {error.reason}".strip()
    if error.code in (404, 410):
        return BadInput(f"{host} has no file {urlsplit(address).path} ({answer}).", _by_hand(source))
    if error.code == 407:
        remedy = f"Set HTTPS_PROXY to http://user:password@proxy:port, or {_by_hand(source, first=False)}"
        return BadInput(f"The proxy on the way to {host} asks for a password ({answer}).", remedy)
    if error.code == 429 or error.code >= 500:
        remedy = f"Try again later; it goes on where it stopped. Or {_by_hand(source, first=False)}"
        return BadInput(f"{host} cannot send {source.file} now ({answer}).", remedy)
    return BadInput(f"{host} refuses to send {source.file} ({answer}).", _by_hand(source))


def _no_connection(error: Exception, source: Source, address: str, timeout_s: float) -> BadInput:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    reason = inner if isinstance(inner, Exception) else error
    host = _host(address)
    if isinstance(reason, TimeoutError):
        return _silent(source, address, timeout_s)
    if isinstance(reason, ssl.SSLError):
        return BadInput(
            f"No secure connection to {host} ({_reason(reason)}).",
            f"Where your site's proxy has a certificate of its own, set {CERTIFICATE_VARIABLE} to its file (ask your IT "
            f"department), and start the program again. Or {_by_hand(source, first=False)}",
        )
    what = "is not found" if isinstance(reason, socket.gaierror) else "cannot be reached"
    return BadInput(
        f"The server {host} {what} ({_reason(reason)}).",
        "Check the internet connection; where your site has a proxy, set HTTPS_PROXY. "
        f"Or {_by_hand(source, first=False)}",
    )


def _silent(source: Source, address: str, timeout_s: float, first: str = "Try again. Or: ") -> BadInput:
    return BadInput(
        f"The server {_host(address)} sent nothing for {timeout_s:g} s.", f"{first}{_by_hand(source, first=False)}"
    )
