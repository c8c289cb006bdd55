"""`python -m bench.bare MODEL.onnx`: minimal process: onnxruntime, a session, one run.

Prints the answer's length, then waits until its standard input closes.
"""

import sys

import numpy as np


def main(path: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    row = np.zeros((1, given.shape[1]), np.float32)
    print(session.run(None, {given.name: row})[0].size, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
