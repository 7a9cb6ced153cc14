// The page: settings into a request, its events into texts.

import { ApiError, call, stream } from "./api.js";
import { close, show } from "./likeliest.js";
import { Text, tokensOf } from "./text.js";

const $ = (selector) => document.querySelector(selector);
const SETTINGS = [
  // name, label, smallest, largest, step, value, and the value that is not sent: it asks for nothing
  ["temperature", "Temperature", 0, 2, 0.05, 0.8, null],
  ["top_p", "Top p", 0.05, 1, 0.05, 1, 1],
  ["top_k", "Top k", 0, 200, 1, 0, 0],
  ["min_p", "Min p", 0, 0.5, 0.01, 0, 0],
  ["max_tokens", "Tokens", 1, 1000, 1, 200, null],
  ["n", "Samples", 1, 6, 1, 1, null],
];
const inputs = {};
let models = []; // by step
let running = null; // an AbortController
let messages = []; // of a chat

for (const [name, label, min, max, step, value] of SETTINGS) {
  const [text, range, number] = ["span", "input", "input"].map((tag) => document.createElement(tag));
  text.textContent = label;
  for (const [input, type] of [[range, "range"], [number, "number"]]) {
    Object.assign(input, { type, min, step, value });
    input.setAttribute("aria-label", label);
  }
  range.max = max;
  range.value = value;
  range.addEventListener("input", () => (number.value = range.value));
  number.addEventListener("input", () => (range.value = number.value));
  const row = document.createElement("div");
  row.className = "slider";
  row.append(text, range, number);
  $("#settings").append(row);
  inputs[name] = number;
}
const seedRow = document.createElement("label");
seedRow.className = "slider seed";
const seed = document.createElement("input");
Object.assign(seed, { id: "seed", type: "number", step: 1, placeholder: "a new one each time" });
seedRow.append("Seed", seed);
$("#settings").append(seedRow);

/** What the settings ask for. */
function settings() {
  const body = {};
  for (const [name, label, , , , , nothing] of SETTINGS) {
    const value = Number(inputs[name].value);
    if (inputs[name].value === "" || !Number.isFinite(value)) throw new ApiError(`${label}: give a number`);
    if (value !== nothing) body[name] = value;
  }
  if (seed.value !== "") body.seed = Number(seed.value);
  const stops = $("#stops").value.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
  if (stops.length) body.stop = stops;
  return body;
}

const chatting = () => $("#form").elements.mode.value === "chat";
const stepText = (model) => (model.tinytf.step === null ? model.id : `step ${model.tinytf.step.toLocaleString("en")}`);

function chosen() {
  const picked = [models[$("#left").value] ?? models[0]];
  if ($("#compare").checked) picked.push(models[$("#right").value]);
  return picked;
}

/** Ask each of the chosen models, and show what comes. */
async function write(prompt, hidden = 0) {
  running?.abort();
  close();
  const control = (running = new AbortController());
  busy(true);
  say("");
  try {
    const body = settings();
    if (!chatting()) $("#texts").replaceChildren();
    await Promise.all(chosen().map((model) => (chatting() ? chat : complete)(model, prompt, hidden, body, control.signal)));
  } catch (error) {
    if (error.name !== "AbortError") {
      control.abort();
      say(error instanceof ApiError ? error.message : `the server cannot be reached: ${error.message}`);
    }
  }
  if (running === control) {
    running = null;
    busy(false);
    load();
  }
}

async function complete(model, prompt, hidden, body, signal) {
  const texts = Array.from({ length: body.n }, () => {
    const text = new Text(stepText(model), { hidden: hidden || Number(prompt === ""), open });
    $("#texts").append(text.element);
    return text;
  });
  const asked = { ...body, model: model.id, prompt, echo: true, logprobs: 5 };
  const seen = new Set();
  for await (const { choices } of stream("/v1/completions", asked, signal)) {
    for (const { index, text: added, logprobs, finish_reason, seed: own } of choices) {
      const text = texts[index];
      const tokens = tokensOf(logprobs);
      let shown = added;
      if (!seen.has(index)) {
        seen.add(index);
        text.heading = `${stepText(model)} · seed ${own}`;
        text.title.textContent = text.heading;
        text.prompt = Array.isArray(prompt) ? prompt.length : tokens.findIndex((_, n) => offsetOf(tokens, n) >= prompt.length);
        if (text.prompt < 0) text.prompt = tokens.length;
        // Of ids, the first is shown as nothing where it was no text of the user's.
        for (let n = 0; n < text.hidden && Array.isArray(prompt); n++) shown = shown.slice(tokens[n].piece.length);
      }
      text.add(tokens, shown);
      if (finish_reason) text.finish(finish_reason);
    }
  }
}

const offsetOf = (tokens, n) => tokens.slice(0, n).reduce((sum, token) => sum + token.piece.length, 0);

async function chat(model, prompt, _, body, signal) {
  const turn = document.createElement("p");
  turn.className = "turn";
  turn.textContent = prompt;
  $("#texts").append(turn);
  const text = new Text(stepText(model), { open });
  $("#texts").append(text.element);
  const said = [...messages, { role: "user", content: prompt }];
  const asked = { ...body, n: 1, model: model.id, messages: said, logprobs: true, top_logprobs: 5 };
  let answer = "";
  for await (const { choices } of stream("/v1/chat/completions", asked, signal)) {
    for (const { delta, logprobs, finish_reason } of choices) {
      answer += delta.content ?? "";
      text.add(tokensOf(logprobs), delta.content ?? "");
      if (finish_reason) text.finish(finish_reason);
    }
  }
  messages = [...said, { role: "assistant", content: answer }];
  $("#prompt").value = "";
}

function open(text, span, index, pin) {
  const token = text.tokens[index];
  const choose = token.id === null ? null : (id) => write([...text.before(index), id], text.hidden);
  show(span, token, choose, pin);
}

function busy(yes) {
  $("#halt").disabled = !yes;
  $("#texts").setAttribute("aria-busy", String(yes));
}

function say(message) {
  $("#message").textContent = message;
  $("#message").hidden = !message;
}

/** The models, and what is known of the chosen ones. */
async function load() {
  const { data } = await call("/v1/models");
  const first = !models.length;
  models = data.sort((one, other) => (one.tinytf.step ?? 0) - (other.tinytf.step ?? 0));
  const preset = models.find((model) => model.tinytf.default);
  $("#checkpoints").hidden = models.length < 2;
  $("#mode").hidden = !preset.tinytf.chat;
  if (first) {
    for (const id of ["#left", "#right"]) $(id).max = models.length - 1;
    $("#left").value = models.indexOf(preset);
    $("#right").value = 0;
  }
  describe();
}

function describe() {
  $("#right").closest("label").hidden = !$("#compare").checked;
  for (const id of ["#left", "#right"]) $(id).nextElementSibling.textContent = stepText(models[$(id).value]);
  const [model] = chosen();
  const { val_loss: loss, max_seq_len: context } = model.tinytf;
  $("#model").textContent = [model.id, stepText(model), loss === null ? null : `val/loss ${loss}`, `context ${context}`]
    .filter((part, n, all) => part && all.indexOf(part) === n).join(" · ");
  const facts = Object.entries(model.tinytf.facts);
  $("#facts").hidden = !facts.length;
  $("#facts dl").replaceChildren(...facts.flatMap(([label, value]) => {
    const [term, definition] = ["dt", "dd"].map((name) => document.createElement(name));
    [term.textContent, definition.textContent] = [label, value];
    return [term, definition];
  }));
}

$("#form").addEventListener("submit", (event) => {
  event.preventDefault();
  write($("#prompt").value);
});
$("#halt").addEventListener("click", () => running?.abort());
$("#colors").addEventListener("change", (event) => document.body.classList.toggle("plain", !event.target.checked));
$("#mode").addEventListener("change", () => {
  messages = [];
  $("#texts").replaceChildren();
  $("#prompt-label").textContent = chatting() ? "Message" : "Prompt";
  $("#write").textContent = chatting() ? "Send" : "Write";
});
for (const id of ["#left", "#right", "#compare"]) $(id).addEventListener("input", describe);
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("#form").requestSubmit();
  } else if (event.key === "Escape") {
    if ($("#likeliest").hidden) running?.abort();
    close();
  }
});
// On a narrow screen the texts would stand below them.
$("#more").open = !matchMedia("(max-width: 48rem)").matches;
load().catch((error) => say(error.message));
