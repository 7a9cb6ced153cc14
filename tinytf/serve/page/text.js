// A text as tokens: each a span colored by its probability, reached by pointer or arrow keys.

/** What a token looks like where it stands alone. */
export function visible(piece) {
  return piece.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "·";
}

/** The tokens of a choice's logprobs, each with the likeliest at its place as [id, logprob, piece]. */
export function readTokens(logprobs) {
  // In a chat, as OpenAI's clients know it: no ids, so that these can be seen and not be gone on from.
  if (logprobs.content) {
    return logprobs.content.map(({ token: piece, logprob, top_logprobs: top }) => (
      { piece, logprob, top: top.map((each) => [each.token === piece ? undefined : null, each.logprob, each.token]) }));
  }
  return logprobs.tokens.map((piece, at) => (
    { id: logprobs.token_ids[at], piece, logprob: logprobs.token_logprobs[at], top: logprobs.top_ids[at] ?? [] }));
}

/** A text that grows by tokens. Its spans are one stop of the Tab key; arrow keys go from token to token. */
export class TokenText {
  constructor(onToken) {
    this.element = document.createElement("div");
    this.element.className = "text";
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "Text; arrow keys go from token to token");
    this.onToken = onToken;
    this.tokens = [];
    this.element.addEventListener("pointerover", (event) => this.#tell(event));
    this.element.addEventListener("focusin", (event) => {
      for (const other of this.element.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
      event.target.tabIndex = 0;
      this.#tell(event);
    });
    this.element.addEventListener("keydown", (event) => this.#move(event));
  }

  get spans() {
    return this.element.children;
  }

  /** `kind` is "given" for the prompt's own, "picked" for one that the reader chose. */
  add(token, kind) {
    const span = document.createElement("span");
    span.textContent = token.piece;
    span.className = kind;
    span.tabIndex = this.tokens.length === 0 ? 0 : -1;
    if (token.piece.includes("\n")) span.classList.add("feed");
    if (token.piece === "") span.classList.add("part");
    if (token.logprob !== null && token.logprob !== undefined) {
      // A token of probability 1 is plain; at 1 in 400 the color is full.
      span.style.setProperty("--surprise", Math.min(1, -token.logprob / 6).toFixed(3));
    }
    this.tokens.push(token);
    this.element.append(span);
  }

  focusToken(at) {
    this.spans[Math.max(0, Math.min(at, this.spans.length - 1))]?.focus();
  }

  #tell(event) {
    const at = [...this.spans].indexOf(event.target);
    if (at >= 0) this.onToken(this, at, event);
  }

  #move(event) {
    const at = [...this.spans].indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.spans.length - 1 }[event.key] ?? this.#line(event.key, at);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.focusToken(to);
  }

  /** The token above or below, as the eye sees it. */
  #line(key, at) {
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const here = this.spans[at].getClientRects()[0];
    const down = key === "ArrowDown" ? 1 : -1;
    let best, nearest = Infinity;
    for (let i = at + down; this.spans[i]; i += down) {
      const box = this.spans[i].getClientRects()[0];
      if (!box || Math.abs(box.top - here.top) < here.height / 2) continue;
      if (best !== undefined && Math.abs(box.top - this.spans[best].getClientRects()[0].top) > here.height / 2) break;
      const distance = Math.abs(box.left - here.left);
      if (distance < nearest) [best, nearest] = [i, distance];
    }
    return best ?? at;
  }
}

export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value >= 99.95) return "100 %";
  if (value >= 10) return `${value.toFixed(0)} %`;
  return value >= 0.1 ? `${value.toFixed(1)} %` : "<0.1 %";
}
