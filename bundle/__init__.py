"""The file between export and server: manifest, digests, and the contract that proves a bundle right."""

from bundle.errors import BundleError
from bundle.manifest import Manifest, read_manifest

__all__ = ["BundleError", "Manifest", "read_manifest"]
