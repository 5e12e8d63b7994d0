"""Images and networks in the forms that other tools read: C, TensorFlow Lite (both ways), ONNX (QDQ)."""
