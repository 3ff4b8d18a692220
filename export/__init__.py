"""From the PyTorch reference to a bundle. `heed/exporting.py` composes the stages; each is a module here.

atomic_folder.py     stage and publish: a folder that appears whole or not at all
cases.py             inputs of the contract's cases
reference.py         the contract: the reference's answers in float64
int8_sensitivity.py  which layers int8 cannot hold
graphs.py            which graphs there are, and how they are written
torch_to_onnx.py     a graph captured from PyTorch
passes/              what is done to a captured graph, for each precision
weights.py           the weights of graphs, in files
manifest.py          bundle.json
layer_errors.py      in which layer an error begins, where a bundle does not hold
report.py, charts.py report.html
"""
