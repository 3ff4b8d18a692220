"""The gRPC services: from messages to requests and back.

open_inference/  the Open Inference Protocol with Triton's extensions (tensors and texts)
tei/             the API of text-embeddings-inference (texts)
heed_v1.py       many requests on one stream, for heed's own clients
health.py        grpc.health.v1
streams.py       the engine of every call with many requests
"""
