// The page: what is typed goes to the model, what it writes is shown as it comes.
import { decode, encode, load } from "./model.js";
import { engine, facts, library, name, prompt, start, template } from "./settings.js";

const at = (id) => document.getElementById(id);
const status = (text, failed = false) => {
  at("status").textContent = text;
  at("status").classList.toggle("failed", failed);
};

document.title = at("name").textContent = name;
at("facts").textContent = facts;
at("prompt").value = prompt;
for (const input of document.querySelectorAll("input[type=range]")) {
  const show = () => (input.parentElement.querySelector("output").value = input.value);
  input.addEventListener("input", show);
  show();
}

let opened, stopped = false;
try {
  const transformers = await import(library);
  if (engine) {
    const { mjs, wasm } = engine;
    transformers.env.backends.onnx.wasm.wasmPaths = { mjs: new URL(mjs, location).href, wasm: new URL(wasm, location).href };
    transformers.env.useWasmCache = false; // It keeps them by their address, which has no version here.
  }
  // A path: a whole address is not local to the library.
  opened = await load(transformers, new URL("./", location).pathname, template);
  status("Ready: the model runs in this page, and nothing that is typed leaves it.");
  at("start").disabled = false;
} catch (error) {
  status(`The model cannot be loaded: ${error.message}`, true);
}

at("stop").addEventListener("click", () => (stopped = true));
at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (at("start").disabled) return;
  at("start").disabled = true;
  at("stop").disabled = stopped = false;
  const given = at("prompt").value;
  const added = Object.assign(document.createElement("span"), { className: "new" });
  at("text").replaceChildren(given, added);
  const number = (id) => Number(at(id).value);
  const settings = { temperature: number("temperature"), top_p: number("top_p"), seed: number("seed"), count: number("count") };
  const ids = [], begun = performance.now();
  const speed = () => `${ids.length} tokens, ${((ids.length / (performance.now() - begun)) * 1000).toFixed(0)} per second`;
  try {
    for await (const id of decode(opened, encode(opened, given, start), settings)) {
      ids.push(id);
      added.textContent = opened.tokenizer.decode(ids, { skip_special_tokens: true });
      status(speed());
      await new Promise((resume) => setTimeout(resume)); // The page is drawn, and its buttons work, between two tokens.
      if (stopped) break;
    }
    status(speed());
  } catch (error) {
    status(error.message, true);
  }
  at("start").disabled = false;
  at("stop").disabled = true;
});
