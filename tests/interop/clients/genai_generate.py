"""The folder with onnxruntime-genai: greedy ids after those of a text or those given. FOLDER COUNT TEXT|[ID,…]"""

import json
import sys

import onnxruntime_genai as genai

folder, count, prompt = sys.argv[1:]
model = genai.Model(folder)
ids = json.loads(prompt) if prompt.startswith("[") else genai.Tokenizer(model).encode(prompt).tolist()
params = genai.GeneratorParams(model)
params.set_search_options(do_sample=False, max_length=len(ids) + int(count))
generator = genai.Generator(model, params)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
print(json.dumps({"ids": generator.get_sequence(0).tolist()}))
