// The five likeliest tokens at a place of a text: shown beside it, on hover and on focus; one is picked to go on from.

import { percent, visible } from "./text.js";

const panel = document.querySelector("#likeliest");
let shown = null; // { text, at, span }
let pick = () => {};
let timer = 0;
let rest = {}; // Where the pointer picked a token: a text that changes below it is not pointed at.

/** Calls onPick(text, at, token) when one of them is picked. */
export function buildLikeliest(onPick) {
  pick = (row) => {
    const { text, at } = shown;
    hideLikeliest();
    onPick(text, at, { id: row[0], logprob: row[1], piece: row[2], top: text.tokens[at].top });
  };
  panel.addEventListener("pointerenter", () => clearTimeout(timer));
  panel.addEventListener("pointerleave", leaveSoon);
  panel.addEventListener("keydown", (event) => {
    const rows = [...panel.querySelectorAll("button")];
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) {
      event.preventDefault();
      rows[(rows.indexOf(document.activeElement) + by + rows.length) % rows.length].focus();
    }
    if (event.key === "Escape" || event.key === "Tab") {
      const { text, at } = shown;
      event.preventDefault();
      event.stopPropagation();
      text.focusToken(at);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.activeElement !== shown.span && !panel.contains(document.activeElement)) return;
    const row = shown.text.tokens[shown.at].top[Number(event.key) - 1];
    if (event.key === "Enter" && document.activeElement === shown.span) {
      event.preventDefault();
      panel.querySelector("button")?.focus();
    } else if (typeof row?.[0] === "number") {
      event.preventDefault();
      pick(row);
    }
  });
  document.addEventListener("pointerdown", (event) => {
    if (!panel.contains(event.target) && !event.target.closest?.(".text")) hideLikeliest();
  });
  document.addEventListener("focusin", (event) => {
    if (!panel.contains(event.target) && !event.target.closest(".text")) hideLikeliest();
  });
  addEventListener("scroll", () => shown && place(), { passive: true });
  addEventListener("resize", hideLikeliest);
}

export function showLikeliest(text, at, event) {
  const span = event.target;
  if (event.type === "pointerover" && event.clientX === rest.x && event.clientY === rest.y) return undefined;
  clearTimeout(timer);
  const token = text.tokens[at];
  if (!token.top.length) return hideLikeliest();
  if (shown?.span === span) return undefined;
  shown?.span.classList.remove("here");
  shown = { text, at, span };
  span.classList.add("here");
  span.addEventListener("pointerleave", leaveSoon, { once: true });
  const rows = token.top.map((row, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.disabled = typeof row[0] !== "number";
    button.append(part("kbd", number + 1), part("bdi", visible(row[2])), bar(row[1]), part("span", percent(row[1])));
    if (row[0] === token.id) button.setAttribute("aria-current", "true");
    button.addEventListener("click", (event) => {
      rest = { x: event.clientX, y: event.clientY };
      pick(row);
    });
    return button;
  });
  if (!token.top.some((row) => row[0] === token.id)) {
    const own = part("p", "");
    own.append(part("kbd", ""), part("bdi", visible(token.piece)), bar(token.logprob), part("span", percent(token.logprob)));
    rows.push(own);
  }
  panel.replaceChildren(...rows);
  panel.hidden = false;
  place();
  return undefined;
}

export function hideLikeliest() {
  clearTimeout(timer);
  shown?.span.classList.remove("here");
  shown = null;
  panel.hidden = true;
}

function leaveSoon() {
  clearTimeout(timer);
  // Time enough for the pointer to go from the token to the panel.
  timer = setTimeout(() => {
    if (shown && document.activeElement !== shown.span && !panel.contains(document.activeElement)) hideLikeliest();
  }, 250);
}

function place() {
  const boxes = shown.span.getClientRects();
  const box = boxes[0] ?? shown.span.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = panel;
  const below = box.bottom + 6 + height <= innerHeight || box.top < height + 6;
  panel.style.left = `${Math.max(8, Math.min(box.left - 12, innerWidth - width - 8))}px`;
  panel.style.top = `${below ? box.bottom + 6 : box.top - height - 6}px`;
}

function part(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function bar(logprob) {
  const element = document.createElement("i");
  element.style.setProperty("--share", Math.exp(logprob).toFixed(4));
  return element;
}
