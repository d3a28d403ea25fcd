"""PEFTSegment engine: adapt a segmentation foundation model to a site from a handful of labelled scans.

Importing this package imports neither torch nor monai; see `Docs/design.md` for what may.
"""

from peftseg.version import __version__

__all__ = ["__version__"]
