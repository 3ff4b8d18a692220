"""The code that protoc generates from `protos/*.proto` (`scripts/protos`)."""

from google.protobuf.descriptor_pool import DescriptorPool

# Python's default pool holds one definition of `inference.*` per process, and importing a second one fails. Ours live
# in a pool of their own, so that a process may import heed's client beside tritonclient's or kserve's.
POOL = DescriptorPool()
