"""Admission, queue, batching and the threads that compute.

scheduler.py    admission: which requests are taken, and how their callers get the answers
model_queue.py  the rows that wait for one model, by priority and arrival; the throughput estimate
batching.py     which waiting rows are computed together
workers.py      the threads, shared by all models, and the batch that each computes

Nothing here knows what a row is, how it is computed or how it came: it is tested without a model.
"""
