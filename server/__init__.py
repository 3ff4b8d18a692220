"""From bundles to answers, by stage. Each folder imports only what stands below it.

lifecycle.py   starts and stops a server
protocols/     the gRPC services: messages to requests and back
transport/     the gRPC server: interceptors, TLS, tokens, limits
repository/    which versions of which models are served
telemetry/     metrics, logs, traces
scheduling/    admission, queue, batching, threads
engine/        graphs, sessions, kernels
requests/      tensors, texts and images to rows of tokens
settings.py    every flag, variable and line of a settings file
environment.py variables `HEED_...`, and addresses
errors.py      the errors, and the status code of each
"""

import os

# Before anything imports onnxruntime: it would report its use to its makers and write an identifier to the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
