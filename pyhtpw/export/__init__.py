"""Models in the formats of other tools, and out of them: TensorFlow Lite both ways, ONNX (QDQ) out."""
