"""`cyclic export`: parts of a model as ONNX, checked against torch."""
