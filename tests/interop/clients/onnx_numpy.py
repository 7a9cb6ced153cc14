"""model_kv.onnx with onnxruntime and numpy alone: greedy ids after those given. FILE COUNT ID…"""

import json
import sys

import numpy as np
import onnxruntime

path, count, *prompt = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
past = {
    node.name: np.zeros((0, node.shape[1], 0, node.shape[3]), np.float32)
    for node in session.get_inputs()
    if node.name.startswith("past")
}
ids = [int(word) for word in prompt]
fresh = ids
for _ in range(int(count)):
    feed = {
        "input_ids": np.array([fresh]),
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids) - len(fresh), len(ids))[None],
    }
    logits, *present = session.run(None, {**feed, **past})
    past = dict(zip(past, present, strict=True))
    fresh = [int(logits[0, -1].argmax())]
    ids = ids + fresh
print(json.dumps(ids))
