"""Everything that needs TensorFlow, Keras, tf2onnx or ONNX Runtime, and nothing else does.

The libraries are imported inside functions, so that importing this package costs nothing. What they
print is kept from the user's terminal. Three arithmetics are offered to the judge:

    keras           the model as the file defines it, called with training=False as for
                    inference, and as `model(x)` where a layer is called with training=True
    keras float64   the same graph rebuilt with every dtype set to float64, where kernels exist
    onnxruntime     the tf2onnx export on the CPU, without ONNX Runtime's own graph optimisations
                    (one of them has computed wrong results: onnxruntime#22512)

`timing` has the same models as they run in practice, for measuring how long they take.
"""
