"""Greedy text of a GGUF file in llama-cpp-python, as people call it: `llama_text.py FILE COUNT complete|chat TEXT`."""

import json
import sys

import llama_cpp

path, count, how, text = sys.argv[1:]
llama = llama_cpp.Llama(path, n_ctx=0, verbose=False)
settings = {"temperature": 0.0, "max_tokens": int(count), "repeat_penalty": 1.0}
if how == "chat":
    answer = llama.create_chat_completion([{"role": "user", "content": text}], **settings)
    written = answer["choices"][0]["message"]["content"]
else:
    written = llama.create_completion(text, **settings)["choices"][0]["text"]
ids = llama.tokenize(text.encode(), add_bos=False)
print(json.dumps({"written": written, "ids": ids, "back": llama.detokenize(ids).decode()}))
