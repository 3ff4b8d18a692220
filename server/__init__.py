"""Bundles to answers.

`runtime.py` runs a graph, `text.py` tokenizes, `requests.py` checks what callers send, `model.py` puts the three
together in one process. `scheduler.py` groups requests, `services/` speaks gRPC, `lifecycle.py` starts and stops.
"""

import os

# Before anything imports onnxruntime: it would report its use to its makers and write an identifier to the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
