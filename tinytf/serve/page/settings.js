// Sampling settings: each a slider and, beside it, its value as a number that can be typed.

// `off` is the value at which a setting does nothing, and is not sent.
const SLIDERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, value: 0.8 },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, value: 1, off: 1 },
  { name: "top_k", label: "Top k", min: 0, max: 200, step: 1, value: 0, off: 0 },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, value: 0, off: 0 },
  { name: "max_tokens", label: "Tokens", min: 1, max: 1024, step: 1, value: 200, more: 65536 },
  { name: "n", label: "Samples", min: 1, max: 6, step: 1, value: 1 },
];

const LARGEST_SEED = 2 ** 52; // Beyond it JavaScript's numbers are not exact.

const inputs = new Map();

export function buildSettings(place) {
  for (const each of SLIDERS) {
    const row = document.createElement("div");
    row.className = "row";
    row.dataset.name = each.name;
    const label = document.createElement("label");
    label.textContent = each.label;
    const slider = Object.assign(document.createElement("input"), { type: "range", id: each.name });
    const number = Object.assign(document.createElement("input"), { type: "number", className: "value" });
    label.htmlFor = number.id = `${each.name}-value`;
    slider.setAttribute("aria-label", each.label);
    for (const input of [slider, number]) Object.assign(input, { min: each.min, max: each.max, step: each.step });
    number.max = each.more ?? each.max;
    number.step = each.step < 1 ? "any" : 1;
    number.required = true;
    slider.value = number.value = each.value;
    const show = () => row.classList.toggle("off", Number(number.value) === each.off);
    slider.addEventListener("input", () => { number.value = slider.value; show(); });
    number.addEventListener("input", () => { if (number.validity.valid) slider.value = number.value; show(); });
    row.append(label, slider, number);
    place.append(row);
    inputs.set(each.name, number);
    show();
  }
}

/** No more top-k than there are tokens; a first length that fits the context. */
export function fitSettings(maxSeqLen, vocabSize) {
  const set = (name, limits) => {
    Object.assign(document.getElementById(name), limits);
    Object.assign(inputs.get(name), limits);
  };
  set("top_k", { max: Math.min(200, vocabSize) });
  inputs.get("top_k").max = vocabSize;
  document.getElementById("max_tokens").max = Math.max(64, Math.min(2048, 2 * maxSeqLen));
  if (maxSeqLen < 200) set("max_tokens", { value: maxSeqLen });
}

export function samples() {
  return Number(inputs.get("n").value);
}

/** The request's fields. Throws an Error that names the field which cannot be sent. */
export function readSettings() {
  const fields = {};
  for (const { name, label, off } of SLIDERS) {
    const input = inputs.get(name);
    if (!input.validity.valid) {
      input.focus();
      throw new Error(`${label}: give a number from ${input.min} to ${input.max}.`);
    }
    if (Number(input.value) !== off) fields[name] = Number(input.value);
  }
  const seed = document.querySelector("#seed");
  if (!seed.validity.valid || Math.abs(Number(seed.value)) > LARGEST_SEED) {
    seed.focus();
    throw new Error("Seed: give a whole number of at most 15 digits, or none.");
  }
  // Drawn here and not by the server: two checkpoints are compared with the same one.
  fields.seed = seed.value.trim() === "" ? Math.floor(Math.random() * 1e6) : Number(seed.value);
  const stops = document.querySelector("#stops").value.split("\n").filter((line) => line !== "");
  if (stops.length) fields.stop = stops.map((line) => line.replace(/\\(n|t|\\)/g, (_, c) => ({ n: "\n", t: "\t" })[c] ?? c));
  return fields;
}

export function keepSeed(seed) {
  document.querySelector("#seed").value = seed;
}
