"""Which versions of which models are served: found, verified, warmed up, swapped, verified again.

model_repository.py  loads, swaps and unloads versions
registry.py          finds the version that answers a request
folders.py           the folders NAME/VERSION/
loading.py           signature, digests, contract
warmup.py            chooses the batching policy by measuring
attentions.py        the attention weights, with a queue of their own
recheck.py           the contract, repeated while serving
"""
