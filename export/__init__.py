"""The reference to a bundle: ONNX graph, manifest, and the contract with the reference's own answers."""
