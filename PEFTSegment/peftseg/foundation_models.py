"""The public foundation models, declared. Torch-free; see Docs/add-a-model.md."""

from __future__ import annotations

from peftseg.models import ModelEntry

FOUNDATION_MODELS: tuple[ModelEntry, ...] = ()
