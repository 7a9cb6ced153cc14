// What else was likely at a token: a list beside it, by pointer and by keys.

import { percent, visible } from "./text.js";

const box = document.querySelector("#likeliest");
let pinned = false;
let origin = null;

/** Show the list; `choose(id)` is called for one of it, null if none can be chosen. */
export function show(span, token, choose, pin) {
  if (pinned && !pin) return;
  if (!token.likeliest.length) return close();
  pinned = pin;
  origin = span.closest("pre");
  box.replaceChildren(...token.likeliest.map((other) => option(other, token, choose)));
  box.hidden = false;
  const { left, bottom, top } = span.getBoundingClientRect();
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  box.style.top = `${bottom + height + 8 < innerHeight ? bottom + 4 : Math.max(8, top - height - 4)}px`;
  if (pin) box.firstChild.focus();
}

export function close() {
  if (pinned && box.contains(document.activeElement)) origin?.focus();
  pinned = false;
  box.hidden = true;
}

function option(other, token, choose) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("role", "option");
  button.setAttribute("aria-selected", String(other.id === null ? other.piece === token.piece : other.id === token.id));
  button.disabled = !choose;
  const [piece, bar, share] = ["code", "i", "span"].map((name) => button.appendChild(document.createElement(name)));
  const p = Math.exp(other.logprob);
  piece.textContent = visible(other.piece);
  bar.style.setProperty("--share", p.toFixed(4));
  share.textContent = percent(p);
  button.addEventListener("click", () => {
    close();
    choose(other.id);
  });
  return button;
}

box.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...box.children];
  buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length).focus();
});
box.addEventListener("pointerleave", () => pinned || close());
document.addEventListener("pointerdown", (event) => box.contains(event.target) || close());
document.addEventListener("scroll", () => pinned || close(), { capture: true, passive: true });
