"""safetensors files with a seal: one text and a SHA-256 over it and all tensors, in the header. Torch-free.

safetensors loads a flipped byte without complaint. The header is parsed here and not by `safetensors.numpy`, which has
no bfloat16. Its metadata has exactly two keys: the text's and "sha256".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftseg.errors import BadInput

if TYPE_CHECKING:
    import torch

GET_AGAIN = "Get or copy the file again."
LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one
Tensors = dict[str, tuple[str, list[int], memoryview]]
Entries = dict[str, tuple[str, list[int], tuple[int, int]]]  # as Tensors, with the place in the data


@dataclass(frozen=True)
class Sealed:
    """What the header of a sealed file says.

    Attributes
    ----------
    text : str
        The text, as stored.
    hash : str
        SHA-256 over text and tensors as they are now, 64 hexadecimal digits.
    intact : bool
        Whether that is the hash that the file was sealed with.
    """

    text: str
    hash: str
    intact: bool


def seal(tensors: Mapping[str, torch.Tensor], key: str, text: str) -> tuple[bytes, str]:
    """The bytes of a sealed file, and its hash.

    Parameters
    ----------
    tensors : mapping of str to tensor
        Any device, layout and dtype.
    key : str
        Name of the text in the metadata.
    """
    from safetensors.torch import save

    packed = _packed(tensors)
    codes = _dtype_codes(packed)
    # Every byte is hashed where it is and copied once: a file may hold a whole network.
    digest = _digest(text, {n: (codes[t.dtype], list(t.shape), _bytes_of(t)) for n, t in packed.items()})
    return save(packed, metadata={key: text, "sha256": digest}), digest


def open_seal(content: bytes, key: str, path: Path) -> Sealed | None:
    """Read a sealed file's header and hash all of it; None for a whole safetensors file without the text `key`.

    Raises
    ------
    BadInput
        The file is incomplete, damaged or no safetensors file; `path` is named.
    """
    metadata, tensors = _split(content, path)
    if not _is_sealed(metadata, key, path):
        return None
    digest = _digest(metadata[key], tensors)
    return Sealed(metadata[key], digest, digest == metadata["sha256"])


def read_seal(path: Path, key: str) -> tuple[str, str] | None:
    """The text and the hash that a sealed file was sealed with, unchecked: only its header is read, for lists of files.

    None for a safetensors file without the text `key`. BadInput as `open_seal`; a file that was cut off is found too.
    """
    head, size = _read_head(path)
    metadata, _, _ = _parse(head, size, path)
    return (metadata[key], metadata["sha256"]) if _is_sealed(metadata, key, path) else None


def tensor_names(path: Path) -> tuple[str, ...]:
    """Names of the tensors of any safetensors file: only its header is read. BadInput as `read_seal`."""
    head, size = _read_head(path)
    return tuple(_parse(head, size, path)[1])


def reseal(content: bytes, key: str, text: str, path: Path) -> tuple[bytes, str]:
    """A sealed file with the same tensors and another text, and its hash; without torch. Errors as `open_seal`."""
    metadata, entries, start = _parse(content, len(content), path)
    digest = _digest(text, _split(content, path)[1])
    header = {"__metadata__": {**metadata, key: text, "sha256": digest}}
    for name, (dtype, shape, span) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": list(span)}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # safetensors keeps the data aligned
    return len(raw).to_bytes(8, "little") + raw + content[start:], digest


def damaged(path: Path, why: str) -> BadInput:
    """The error for a file whose bytes have changed."""
    return BadInput(f"The file {path} is damaged: {why}.", GET_AGAIN)


def _read_head(path: Path) -> tuple[bytes, int]:
    """A file's header with its length in front, and the size of the whole file."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            first = stream.read(8)
            length = int.from_bytes(first, "little")
            head = first + stream.read(length) if length <= min(size - 8, LONGEST_HEADER) else first
    except OSError as error:
        raise BadInput(f"The file {path} cannot be read: {error.strerror}.", "Check the path.") from error
    return head, size


def _packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the processor, each alone in its memory and in order; copied only where they are not yet."""
    packed: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.data_ptr() not in seen and storage.nbytes() == tensor.nbytes
        seen.add(storage.data_ptr())
        ready = alone and tensor.device.type == "cpu" and tensor.is_contiguous()
        packed[name] = tensor.detach() if ready else tensor.detach().to("cpu", copy=True).contiguous()
    return packed


def _dtype_codes(tensors: Mapping[str, torch.Tensor]) -> dict[torch.dtype, str]:
    """How safetensors calls the tensors' dtypes."""
    import torch
    from safetensors.torch import save

    kinds = {str(tensor.dtype): tensor.dtype for tensor in tensors.values()}
    entries = _split(save({name: torch.empty(0, dtype=dtype) for name, dtype in kinds.items()}), Path())[1]
    return {dtype: entries[name][0] for name, dtype in kinds.items()}


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a packed tensor, without a copy."""
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _is_sealed(metadata: dict[str, str], key: str, path: Path) -> bool:
    if set(metadata) == {key, "sha256"}:
        return True
    if {key, "sha256"} & set(metadata):
        raise damaged(path, "its header is not as it was written")
    return False


def _split(content: bytes, path: Path) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors of a safetensors file: 8 bytes of header length, JSON header, data."""
    metadata, entries, start = _parse(content, len(content), path)
    data = memoryview(content)[start:]
    return metadata, {name: (dtype, shape, data[slice(*span)]) for name, (dtype, shape, span) in entries.items()}


def _parse(head: bytes, size: int, path: Path) -> tuple[dict[str, str], Entries, int]:
    """Metadata, tensors' places and the data's first byte; `head` holds the header at least, `size` is the file's."""
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or length > len(head) - 8:
        raise BadInput(f"{path} is no safetensors file, or incomplete ({size} bytes).", GET_AGAIN)
    raw = head[8 : 8 + length]
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(info) for name, info in header.items()}
        known = all(isinstance(text, str) for pair in metadata.items() for text in pair)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, "its header cannot be read") from error
    if not known or not raw.rstrip(b" ").endswith(b"}"):
        raise damaged(path, "its header is not as it was written")
    _check_layout([span for _, _, span in entries.values()], size - 8 - length, path)
    return metadata, entries, 8 + length


def _entry(info: dict[str, Any]) -> tuple[str, list[int], tuple[int, int]]:
    if set(info) != {"dtype", "shape", "data_offsets"} or not isinstance(info["dtype"], str):
        raise ValueError("unknown fields")
    start, stop = info["data_offsets"]
    if any(type(n) is not int or n < 0 for n in (*info["shape"], start, stop)) or stop < start:
        raise ValueError("not whole numbers")
    return info["dtype"], info["shape"], (start, stop)


def _check_layout(spans: list[tuple[int, int]], size: int, path: Path) -> None:
    """Tensors must fill the data without gap or overlap."""
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise damaged(path, "its tensors do not lie end to end")
        end = stop
    if end > size:
        raise BadInput(f"The file {path} is incomplete: {end - size} bytes at its end are missing.", GET_AGAIN)
    if end < size:
        raise damaged(path, f"{size - end} bytes too many")


def _digest(text: str, tensors: Tensors) -> str:
    """SHA-256 over the text, then sorted names, dtypes, shapes and bytes of all tensors."""
    raw = text.encode()
    digest = hashlib.sha256(f"{len(raw)}:".encode() + raw)
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        digest.update(json.dumps([name, dtype, shape, len(data)]).encode())
        digest.update(data)
    return digest.hexdigest()
