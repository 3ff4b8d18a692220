"""Which versions of which models are served: found, verified, warmed up, swapped, verified again.

model_repository.py       loads, swaps and unloads versions
registry.py               finds the version that answers a request
folders.py                the folders NAME/VERSION/
verification.py           signature, digests, contract
warmup.py                 chooses the batching policy by measuring
attention_weights.py      the attention weights, with a queue of their own
periodic_verification.py  the contract, repeated while serving
"""
