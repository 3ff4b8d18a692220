"""`inference.GRPCInferenceService`: the Open Inference Protocol with Triton's extensions.

service.py         the calls that compute, from message to message
headers.py         names, types, shapes and parameters, validated once for equal headers
tensors.py         tensors on the wire to numpy and back
parameters.py      the parameters that requests may have
classification.py  Triton's classification extension
metadata_calls.py  metadata, configuration, statistics, readiness
repository_calls.py  load, unload, index
unimplemented.py   calls of Triton that heed does not have
"""
