"""The file between export and server: manifest, digests, and the contract that proves a bundle right."""

from heed.bundle.errors import BundleError
from heed.bundle.manifest import Manifest, read_manifest

__all__ = ["BundleError", "Manifest", "read_manifest"]
