"""From a request's tensors, texts or images to its rows, or to the reason why not.

validation.py  names, types and shapes, which many requests have in common
preprocess.py  values: rows without padding
tokenizer.py   texts to tokens
limits.py      how large a request may be
"""
