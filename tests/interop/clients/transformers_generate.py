"""The folder with transformers, or with optimum's ONNX model: greedy ids and text. FOLDER COUNT PROMPT [GRAPH]"""

import json
import sys

from transformers import AutoTokenizer

folder, count, prompt, *graph = sys.argv[1:]
if graph:
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(folder, subfolder="onnx", file_name=graph[0])
else:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(prompt, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=int(count), do_sample=False)[0]
print(json.dumps({"ids": ids.tolist(), "text": tokenizer.decode(ids, skip_special_tokens=True)}))
