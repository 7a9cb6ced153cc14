// A folder of models with transformers.js: greedy ids and text. PARENT NAME DTYPE COUNT PROMPT
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// Packages are those of the folder that it is run in, not of the one that it lies in.
const here = createRequire(`${process.cwd()}/`);
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(pathToFileURL(here.resolve("@huggingface/transformers")));

const [parent, name, dtype, count, prompt] = process.argv.slice(2);
env.localModelPath = parent;
env.allowRemoteModels = false;
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype });
const written = await model.generate({ ...tokenizer(prompt), max_new_tokens: Number(count), do_sample: false });
const ids = written.tolist()[0].map(Number);
console.log(JSON.stringify({ ids, text: tokenizer.decode(ids, { skip_special_tokens: true }) }));
