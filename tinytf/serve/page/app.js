// The page: what the reader does becomes requests, and their streams become texts.

import { ApiError, stream } from "./api.js";
import { buildCheckpoints, chosenModels, defaultModel, mainModel, modelName, readModels, refreshFacts } from "./facts.js";
import { buildLikeliest, hideLikeliest, showLikeliest } from "./likeliest.js";
import { buildSettings, fitSettings, keepSeed, readSettings, samples } from "./settings.js";
import { TokenText, readTokens } from "./text.js";

const find = (selector) => document.querySelector(selector);
const prompt = find("#prompt"), results = find("#results"), talk = find("#talk"), status = find("#status");
const running = new Set(); // AbortControllers
let columns = [], messages = [], lastSeed = null;

const chatting = () => find("#mode [value=chat]").checked;

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function button(label, title, onClick) {
  const element = make("button", "quiet", label);
  Object.assign(element, { type: "button", title, onclick: onClick });
  return element;
}

/** One text on the page: its tokens, what it was made with, and the texts it replaced. */
class Column {
  constructor(model, promptText) {
    Object.assign(this, { model, promptText, seed: null, past: [], request: null });
    this.element = make("article", "column");
    this.head = make("div", "head");
    this.foot = make("div", "foot");
    this.begin([]);
  }

  /** A new text in place of the one shown, beginning with tokens of it. */
  begin(kept) {
    this.text = new TokenText(showLikeliest);
    for (const [token, kind] of kept) this.text.add(token, kind);
    this.waiting = [];
    this.received = kept.map(([token]) => token.piece).join("").length;
    this.shown = this.received;
    this.show();
  }

  show() {
    this.element.replaceChildren(this.head, this.text.element, this.foot);
    this.foot.replaceChildren(
      button("More", "Go on from the end", () => goOn(this, this.text.tokens.length)),
      button("Edit", "Make this text the prompt", () => edit(this.plain)),
      button("Copy", "Copy this text", () => navigator.clipboard.writeText(this.plain)),
    );
    if (this.past.length) {
      this.foot.append(button("Undo", "Back to the text before", () => {
        this.request?.abort();
        this.text = this.past.pop();
        this.show();
      }));
    }
  }

  get plain() {
    return this.text.tokens.map((token) => token.piece).join("");
  }

  get kinds() {
    return this.text.tokens.map((token, at) => [token, this.text.spans[at].classList[0] ?? "new"]);
  }

  /** What a stream brings. A token is shown when the text has come as far: a stop string cuts it. */
  take(choice) {
    this.seed = choice.seed ?? this.seed;
    this.received += (choice.text ?? choice.delta?.content ?? "").length;
    if (choice.logprobs) this.waiting.push(...readTokens(choice.logprobs));
    while (this.waiting.length && this.shown + this.waiting[0].piece.length <= this.received) {
      const token = this.waiting.shift();
      this.shown += token.piece.length;
      this.text.add(token, this.shown <= this.promptText.length && !this.past.length ? "given" : "new");
    }
    // What a stop string cut a token to.
    const cut = choice.finish_reason && this.waiting.shift();
    if (cut && this.shown < this.received) this.text.add({ ...cut, piece: cut.piece.slice(0, this.received - this.shown) }, "new");
    if (choice.finish_reason === "stop") this.text.element.classList.add("ended");
  }

  busy(yes) {
    this.element.setAttribute("aria-busy", yes);
    if (yes) this.text.element.classList.remove("ended");
    const seed = button(`seed ${this.seed ?? "…"}`, "Keep this seed", () => keepSeed(this.seed));
    this.head.replaceChildren(make("span", "", modelName(this.model)), seed);
  }
}

/** Stream a request into columns, choice by choice; columns that have gone on to another request are left alone. */
async function fill(targets, path, body) {
  const controller = new AbortController();
  for (const column of targets) Object.assign(column, { request: controller });
  const mine = () => targets.filter((column) => column.request === controller);
  running.add(controller);
  mine().forEach((column) => column.busy(true));
  let usage = 0;
  try {
    showRunning();
    await stream(path, body, controller.signal, (event) => {
      usage = event.usage?.completion_tokens ?? usage;
      for (const choice of event.choices) {
        const column = targets[choice.index];
        if (column.request === controller) column.take(choice);
      }
    });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    running.delete(controller);
    mine().forEach((column) => column.busy(false));
    showRunning();
  }
  return usage;
}

/** Run requests, and say how fast they were, or what went wrong. */
async function run(work) {
  hideLikeliest();
  complain("");
  status.textContent = "";
  try {
    const began = performance.now();
    const tokens = (await Promise.all(work())).reduce((sum, each) => sum + each, 0);
    const seconds = (performance.now() - began) / 1000;
    if (tokens) status.textContent = `${tokens.toLocaleString("en")} tokens · ${Math.round(tokens / seconds)} per second`;
    await refreshFacts();
  } catch (error) {
    complain(error.message);
    // A failure of this page, and no answer of the server, is also one for its developers.
    if (!(error instanceof ApiError)) console.error(error);
  }
}

function complete(seed) {
  stopAll();
  return run(() => {
    const settings = { ...readSettings(), ...(seed !== null && { seed }) };
    lastSeed = settings.seed;
    const chosen = chosenModels();
    results.replaceChildren();
    results.classList.toggle("two", chosen.length > 1);
    columns = [];
    return chosen.map((model) => {
      const mine = Array.from({ length: samples() }, () => new Column(model, prompt.value));
      const group = make("div", "group");
      group.append(...mine.map((column) => column.element));
      results.append(group);
      columns.push(...mine);
      return fill(mine, "/v1/completions", { ...settings, model: model.id, prompt: prompt.value, echo: true, logprobs: 5 });
    });
  });
}

/** Another text with the same tokens up to a place, and there the token that was picked. */
function goOn(column, at, token) {
  if (column.request === null) return undefined; // An answer of a chat.
  return run(() => {
    const settings = { ...readSettings(), n: 1 };
    const kept = [...column.kinds.slice(0, at), ...(token ? [[token, "picked"]] : [])];
    const ids = kept.map(([each]) => each.id);
    column.past.push(column.text);
    column.begin(kept);
    column.text.focusToken(token ? at : at - 1);
    hideLikeliest();
    // As much of it as the model's context holds.
    const prompt = [ids.slice(-column.model.tinytf.max_seq_len)];
    const body = { ...settings, model: column.model.id, prompt, logprobs: 5 };
    return [fill([column], "/v1/completions", body)];
  });
}

async function say() {
  stopAll();
  const text = prompt.value;
  await run(() => {
    const { n, ...settings } = readSettings();
    const answer = new Column(mainModel(), "");
    messages.push({ role: "user", content: text });
    const [question, reply] = [make("li", "question", text), make("li", "answer")];
    reply.append(answer.text.element);
    talk.append(question, reply);
    prompt.value = "";
    find("#clear").hidden = false;
    const body = { ...settings, model: answer.model.id, messages: [...messages], logprobs: true, top_logprobs: 5 };
    const asked = fill([answer], "/v1/chat/completions", body);
    const mine = messages;
    const keep = () => {
      if (answer.plain) return mine.push({ role: "assistant", content: answer.plain });
      // Unanswered: back to where it can be sent again.
      mine.pop();
      question.remove();
      reply.remove();
      prompt.value ||= text;
      return undefined;
    };
    return [asked.finally(keep)];
  });
}

function newChat() {
  stopAll();
  messages = [];
  talk.replaceChildren();
  find("#clear").hidden = true;
  prompt.focus();
}

function edit(text) {
  prompt.value = text;
  prompt.focus();
  prompt.setSelectionRange(text.length, text.length);
}

function stopAll() {
  for (const controller of running) controller.abort();
}

function showRunning() {
  find("#stop").hidden = running.size === 0;
  find("#legend").hidden = columns.length === 0 && messages.length === 0;
}

function complain(message) {
  const line = find("#error");
  line.textContent = message;
  line.hidden = message === "";
}

function changeMode() {
  stopAll();
  document.body.classList.toggle("chatting", chatting());
  talk.hidden = !chatting();
  results.hidden = chatting();
  find("#go").firstChild.data = chatting() ? "Send " : "Complete ";
  prompt.placeholder = chatting() ? "Write a message" : "Write a beginning";
}

async function start() {
  buildSettings(find("#sliders"));
  buildLikeliest((text, at, token) => {
    const column = columns.find((each) => each.text === text);
    if (column) goOn(column, at, token);
  });
  const narrow = matchMedia("(max-width: 56rem)");
  const fold = () => { find("#panel").open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();
  find("#write").addEventListener("submit", (event) => {
    event.preventDefault();
    if (chatting()) say();
    else complete(null);
  });
  find("#stop").addEventListener("click", stopAll);
  find("#clear").addEventListener("click", newChat);
  find("#mode").addEventListener("change", changeMode);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      find("#write").requestSubmit();
    } else if (event.key === "Escape" && !find("#key-dialog").open) {
      if (running.size) stopAll();
      hideLikeliest();
    }
  });
  try {
    await readModels();
  } catch (error) {
    complain(error.message);
    return;
  }
  const { tinytf: model } = defaultModel();
  fitSettings(model.max_seq_len, model.vocab_size);
  find("#mode").hidden = !model.chat;
  let timer = 0;
  buildCheckpoints(() => {
    clearTimeout(timer);
    // The same prompt and seed at the other step; a moment later, as arrow keys pass over steps.
    if (columns.length && !chatting()) timer = setTimeout(() => complete(lastSeed), 300);
  });
}

start();
