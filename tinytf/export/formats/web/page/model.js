// The model in onnxruntime, through transformers.js: text in, text out, a token at a time. It knows nothing of the page.

/**
 * Loads the model and its tokenizer.
 * @param library the module @huggingface/transformers.
 * @param home path of the folder that holds the folder `model`, with a slash at its end.
 * @param template how the model's tokenizer writes conversations, in Jinja, or null: the library reads no file of it.
 */
export async function load(library, home, template) {
  const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = library;
  env.localModelPath = home;
  env.allowLocalModels = true;
  env.allowRemoteModels = false;
  // It keeps files by their address alone: a model that was exported again would be the old one.
  env.useBrowserCache = false;
  const tokenizer = await AutoTokenizer.from_pretrained("model");
  tokenizer.chat_template = template;
  const model = await AutoModelForCausalLM.from_pretrained("model", { dtype: "q8" });
  return { tokenizer, model, Tensor };
}

/** Ids of a prompt. Throws an Error that names a character which the vocabulary does not have. */
export function encode({ tokenizer }, prompt, start) {
  const chat = tokenizer.chat_template && [{ role: "user", content: prompt }];
  const text = chat ? tokenizer.apply_chat_template(chat, { tokenize: false, add_generation_prompt: true }) : prompt;
  const ids = tokenizer.encode(text, { add_special_tokens: !chat });
  if (ids.some((id) => !Number.isInteger(id))) {
    const unknown = [...text].find((character) => tokenizer.encode(character).some((id) => !Number.isInteger(id)));
    throw new Error(`The model does not know the character ${JSON.stringify(unknown)}: it was trained on text without it.`);
  }
  return ids.length ? ids : [start];
}

/**
 * Yields the new ids. The next step begins when the next id is asked for, so that whoever asks may stop.
 * Past its context the model goes on from the last half of it, as `tinytf generate` does.
 */
export async function* decode({ model, Tensor }, prompt, { temperature, top_p = 1, seed = 1, count }) {
  const context = model.config.max_position_embeddings;
  const ends = [model.generation_config?.eos_token_id ?? []].flat();
  const random = generator(seed);
  let past, read = 0;
  let ids = window_of(prompt, context);
  for (let made = 0; made < count; made++) {
    if (ids.length > context) [ids, past, read] = [window_of(ids, context), undefined, 0];
    const fresh = ids.slice(read);
    const outputs = await model({
      input_ids: integers(Tensor, fresh),
      attention_mask: integers(Tensor, ids.map(() => 1)),
      position_ids: integers(Tensor, fresh.map((_, place) => read + place)),
      past_key_values: past,
    });
    past = {};
    for (const [name, tensor] of Object.entries(outputs)) {
      if (name.startsWith("present")) past[name.replace("present", "past_key_values")] = tensor;
    }
    read = ids.length;
    const size = outputs.logits.dims.at(-1);
    const id = pick(outputs.logits.data.slice(-size), temperature, top_p, random);
    if (ends.includes(id)) return;
    ids.push(id);
    yield id;
  }
}

function window_of(ids, context) {
  return ids.length > context ? ids.slice(-Math.max(1, Math.floor(context / 2))) : [...ids];
}

function integers(Tensor, values) {
  return new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}

/** The likeliest id at temperature 0, else one drawn from the smallest set that has the probability top_p. */
function pick(logits, temperature, top_p, random) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  if (temperature === 0) return order[0];
  const weights = order.map((id) => Math.exp((logits[id] - logits[order[0]]) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let kept = 0, mass = 0;
  while (kept < order.length && (kept === 0 || mass < top_p * total)) mass += weights[kept++];
  let left = random() * mass;
  for (let place = 0; place < kept; place++) {
    left -= weights[place];
    if (left < 0) return order[place];
  }
  return order[kept - 1];
}

/** Numbers from 0 to 1, the same for the same seed: mulberry32. */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
