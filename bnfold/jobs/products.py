"""What can be made of a model, by the words of the command line: read by it without any library."""

PRODUCTS: dict[str, tuple[str, str]] = {
    "onnx": (".onnx", "float32"),
    "tflite": (".tflite", "float32"),
    "tflite:float16": ("_float16.tflite", "float16"),
    "tflite:int8": ("_int8.tflite", "int8"),
    "saved_model": (".savedmodel", "float32"),
}
"""What a model can be exported to: what follows its name then, and the precision."""

RECALIBRATIONS = ("never", "auto", "always")
"""When `prepare` estimates the moving statistics again."""
