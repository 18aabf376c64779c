"""`cyclic export`: writes parts of a model as ONNX files, and checks each file against torch."""
