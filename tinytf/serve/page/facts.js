// The served model: its checkpoints as positions of two sliders, and its facts.

import { listModels } from "./api.js";

const find = (selector) => document.querySelector(selector);
let entries = [];

/** Entries by step, the default in its place among the run's others; a model without steps is alone. */
export async function readModels() {
  entries = await listModels();
  const last = (entry) => entry.tinytf.step ?? Infinity;
  entries.sort((a, b) => last(a) - last(b));
}

export const defaultModel = () => entries.find((entry) => entry.tinytf.default) ?? entries[0];

export const modelName = (entry) => (entry.tinytf.step === null ? entry.id : `step ${entry.tinytf.step.toLocaleString("en")}`);

/** The checkpoint of the first slider. */
export const mainModel = () => entries[find("#step").value] ?? defaultModel();

/** The chosen checkpoints: one, or two to be shown next to each other, the earlier one first. */
export function chosenModels() {
  if (!find("#compare").checked) return [mainModel()];
  const places = [Number(find("#step").value), Number(find("#step-2").value)];
  return places.sort((a, b) => a - b).map((place) => entries[place]);
}

export function buildCheckpoints(onChange) {
  const position = entries.indexOf(defaultModel());
  find("#model-name").textContent = defaultModel().id;
  document.title = `${defaultModel().id} · tinytf`;
  for (const [id, at] of [["step", position], ["step-2", position === 0 ? entries.length - 1 : 0]]) {
    const slider = find(`#${id}`);
    slider.max = entries.length - 1;
    slider.value = at;
    slider.addEventListener("input", show);
    slider.addEventListener("change", onChange);
  }
  find("#checkpoints").hidden = entries.length < 2;
  find("#compare").addEventListener("change", () => {
    find("#second").hidden = !find("#compare").checked;
    show();
    onChange();
  });
  show();
}

function show() {
  for (const id of ["step", "step-2"]) {
    const slider = find(`#${id}`);
    const name = modelName(entries[slider.value] ?? defaultModel()).replace("step ", "");
    find(`#${id}-value`).textContent = name;
    slider.setAttribute("aria-valuetext", name);
  }
  const { step, val_loss: loss, facts, max_seq_len: context, vocab_size: vocabulary } = mainModel().tinytf;
  // Of a checkpoint that was never loaded only this is known.
  const known = Object.keys(facts).length ? facts : { Context: `${context} tokens`, Vocabulary: `${vocabulary} tokens` };
  const rows = { ...(step !== null && { Steps: step.toLocaleString("en") }), ...(loss !== null && { "val/loss": loss.toFixed(4) }), ...known };
  find("#facts").replaceChildren(...Object.entries(rows).map(([label, text]) => {
    const row = document.createElement("div");
    const [term, value] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = label;
    value.textContent = text.replace(/^(\d{4}-\d\d-\d\d)T.*Z$/, "$1");
    row.append(term, value);
    return row;
  }));
}

/** After a completion: the facts of what was loaded for it. */
export async function refreshFacts() {
  if (chosenModels().every((entry) => Object.keys(entry.tinytf.facts).length)) return;
  const fresh = new Map((await listModels()).map((entry) => [entry.id, entry]));
  for (const entry of entries) entry.tinytf.facts = fresh.get(entry.id)?.tinytf.facts ?? {};
  show();
}
