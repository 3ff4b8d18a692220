"""Bundles to answers.

`runtime.py` runs a graph, `text.py` tokenizes, `requests.py` checks what callers send, `model.py` puts the three
together in one process. `scheduler.py` groups requests, `services/` speaks gRPC, `lifecycle.py` starts and stops.
"""
