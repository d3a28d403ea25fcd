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
Tensors = dict[str, tuple[str, list[int], memoryview]]


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

    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    digest = _digest(text, _split(save(copies), Path())[1])
    return save(copies, metadata={key: text, "sha256": digest}), digest


def open_seal(content: bytes, key: str, path: Path) -> Sealed | None:
    """Read a sealed file's header and hash all of it; None for a whole safetensors file without the text `key`.

    Raises
    ------
    BadInput
        The file is incomplete, damaged or no safetensors file; `path` is named.
    """
    metadata, tensors = _split(content, path)
    if set(metadata) == {key, "sha256"}:
        digest = _digest(metadata[key], tensors)
        return Sealed(metadata[key], digest, digest == metadata["sha256"])
    if {key, "sha256"} & set(metadata):
        raise damaged(path, "its header is not as it was written")
    return None


def damaged(path: Path, why: str) -> BadInput:
    """The error for a file whose bytes have changed."""
    return BadInput(f"The file {path} is damaged: {why}.", GET_AGAIN)


def _split(content: bytes, path: Path) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors of a safetensors file: 8 bytes of header length, JSON header, data."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise BadInput(f"{path} is no safetensors file, or incomplete ({len(content)} bytes).", GET_AGAIN)
    raw = content[8 : 8 + length]
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(info) for name, info in header.items()}
        known = all(isinstance(text, str) for pair in metadata.items() for text in pair)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, "its header cannot be read") from error
    if not known or not raw.rstrip(b" ").endswith(b"}"):
        raise damaged(path, "its header is not as it was written")
    data = memoryview(content)[8 + length :]
    _check_layout([span for _, _, span in entries.values()], len(data), path)
    return metadata, {name: (dtype, shape, data[slice(*span)]) for name, (dtype, shape, span) in entries.items()}


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
