"""LiteRT's side of bench/simulate.py: runs an exported network when it is told to, and says how long it took.

Started by that script with a Python that has `ai-edge-litert`; talks JSON, one object a line. It needs nothing of pyhtpw.
Usage: simulate_litert.py MODEL.tflite WINDOWS.npy
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ai_edge_litert.interpreter import Interpreter

BATCHES = (1, 16, 64)  # windows for each call of the interpreter


class Runner:
    """`interpreters` interpreters of `threads` threads each, every one with its share of the windows, `batch` at a time."""

    def __init__(self, model: str, windows: np.ndarray, interpreters: int, threads: int, batch: int) -> None:
        self.pool = ThreadPoolExecutor(interpreters)
        self.parts = []
        for share in np.array_split(windows, interpreters):
            interpreter = Interpreter(model, num_threads=threads)
            info = interpreter.get_input_details()[0]
            shape = [batch, *info["shape"][1:]]
            if batch != info["shape"][0]:
                interpreter.resize_tensor_input(info["index"], shape)
            interpreter.allocate_tensors()
            whole = len(share) // batch * batch
            self.parts.append((interpreter, info["index"], share[:whole].reshape(-1, *shape)))
        self.windows = sum(x.shape[0] * batch for _, _, x in self.parts)

    def _work(self, part) -> np.ndarray:
        interpreter, index, x = part
        output = interpreter.get_output_details()[0]["index"]
        found = []
        for window in x:
            interpreter.set_tensor(index, window)
            interpreter.invoke()
            found.append(interpreter.get_tensor(output).reshape(window.shape[0], -1))
        return np.concatenate(found)

    def run(self) -> tuple[float, np.ndarray]:
        """Seconds per window, and the logits."""
        start = time.perf_counter()
        logits = np.concatenate(list(self.pool.map(self._work, self.parts)))
        return (time.perf_counter() - start) / self.windows, logits


def main() -> None:
    model, windows = sys.argv[1], np.load(sys.argv[2])
    runners = {}
    for interpreters, threads in ((1, 1), (1, 2), (2, 1)):
        for batch in BATCHES:
            if len(windows) // interpreters >= batch:
                name = f"{interpreters} x {threads} threads, batch {batch}"
                try:
                    runners[name] = Runner(model, windows, interpreters, threads, batch)
                    runners[name].run()
                except (RuntimeError, ValueError) as error:  # a model that cannot be resized
                    runners.pop(name, None)
                    print(f"litert: {name} does not run: {error}", file=sys.stderr)
    print(json.dumps({"ready": sorted(runners)}), flush=True)
    for line in sys.stdin:
        seconds, logits = runners[json.loads(line)["run"]].run()
        print(json.dumps({"seconds": seconds, "logits": logits.tolist() if json.loads(line).get("logits") else None}), flush=True)


if __name__ == "__main__":
    main()
