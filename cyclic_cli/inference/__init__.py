"""A trained model at work, by torch or by ONNX Runtime: reconstruct, embed, translate."""
