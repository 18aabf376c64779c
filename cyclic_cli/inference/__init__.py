"""Apply trained models, with torch or ONNX Runtime: reconstruct, embed, translate."""
