"""A bundle in memory and what computes it.

model.py         one bundle: its graphs, its tokenizer, its contract
graph_runner.py  the graphs of one kind, as one function from a batch of rows to answers
weights.py       a graph and its weights, from files in memory to what a session takes
session.py       one graph in one onnxruntime session, on the CPU or with CUDA
kernels/         heed's own operators for CPUs, in C
host.py          CPUs and memory that this process may use
cgroups.py       quotas and limits of containers and services
"""
