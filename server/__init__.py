"""Bundles to answers.

`runtime.py` runs a graph, `graphs.py` those of one kind; `text.py` tokenizes; `requests.py` and `rows.py` check what
callers send; `model.py` puts these together in one process. `scheduler.py` takes requests in, `queue.py` orders
what waits, `grouping.py` makes groups of it, `workers.py` computes them on the threads that all models share;
`attentions.py` keeps the attention weights apart, `services/` speaks gRPC, `lifecycle.py` starts and stops.
"""

import os

# Before anything imports onnxruntime: it would report its use to its makers and write an identifier to the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
