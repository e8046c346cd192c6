"""Files that a finished classifier can be taken away in: Hugging Face, TorchScript, ONNX, ONNX in 8 bits."""
