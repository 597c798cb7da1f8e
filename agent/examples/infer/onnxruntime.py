"""Times vae.onnx and lstm.onnx of a folder: best mean of some repeats, microseconds, one thread."""

import sys
import time

import numpy
import onnxruntime

folder = sys.argv[1]
values = numpy.fromfile(f"{folder}/input.f32", dtype="<f4").reshape(-1, 1, 427)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
for name, x in (("vae", values[-1]), ("lstm", values)):
    session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx", options, providers=["CPUExecutionProvider"])
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(200):
            session.run(None, {"x": x})
        best = min(best, (time.perf_counter() - start) / 200)
    print(best * 1e6)
