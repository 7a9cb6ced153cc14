// A text as tokens: colored by probability, walked by arrow keys.

/** A column: a heading, and a text that grows. `open(text, element, index)` shows what was likely at a token. */
export class Text {
  constructor(heading, { hidden = 0, open }) {
    this.heading = heading;
    this.tokens = []; // {id, piece, logprob, likeliest: [{id, piece, logprob}]}
    this.hidden = hidden; // how many first tokens are not shown: what an empty prompt starts from
    this.prompt = 0; // how many tokens were given
    this.text = ""; // all of it
    this.length = 0; // of what its tokens show
    this.element = document.createElement("article");
    this.title = this.element.appendChild(document.createElement("h2"));
    this.body = this.element.appendChild(document.createElement("pre"));
    this.body.tabIndex = 0;
    this.body.setAttribute("role", "group");
    this.rest = this.body.appendChild(document.createElement("span"));
    this.title.textContent = heading;
    this.body.setAttribute("aria-label", heading);
    this.current = -1;
    this.body.addEventListener("pointerover", (event) => this.#point(event, open));
    this.body.addEventListener("click", (event) => this.#point(event, open, true));
    this.body.addEventListener("keydown", (event) => this.#key(event, open));
  }

  /** Append text, and tokens; a part of a token's text may come before the token. */
  add(tokens, text) {
    this.text += text;
    for (const token of tokens) {
      const span = document.createElement("span");
      const index = this.tokens.push(token) - 1;
      if (index < this.hidden) token.piece = "";
      span.className = "token";
      span.dataset.index = index;
      span.textContent = token.piece;
      if (index < this.prompt) span.classList.add("given");
      if (token.logprob !== null) {
        const p = Math.exp(token.logprob);
        // 1 for a certain token, 0 for one in a thousand.
        span.style.setProperty("--surprise", Math.min(1, -token.logprob / Math.log(1000)).toFixed(3));
        span.title = percent(p);
      }
      this.body.insertBefore(span, this.rest);
      this.length += token.piece.length;
    }
    this.rest.textContent = this.text.slice(this.length);
  }

  finish(reason) {
    this.element.classList.add("done");
    this.title.textContent = `${this.heading}${reason === "length" ? "" : " · ended"}`;
  }

  /** Ids of what comes before a token. */
  before(index) {
    return this.tokens.slice(0, index).map((token) => token.id);
  }

  #spans() {
    return [...this.body.querySelectorAll(".token")].filter((span) => span.textContent);
  }

  #point(event, open, pin = false) {
    const span = event.target.closest(".token");
    if (span) open(this, span, Number(span.dataset.index), pin);
  }

  #key(event, open) {
    const spans = this.#spans();
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -spans.length, End: spans.length };
    if (!spans.length || !(event.key in steps || event.key === "Enter")) return;
    event.preventDefault();
    const place = Math.max(0, Math.min(spans.length - 1, this.current + (steps[event.key] ?? 0)));
    spans[this.current]?.classList.remove("current");
    this.current = place;
    spans[place].classList.add("current");
    spans[place].scrollIntoView({ block: "nearest" });
    open(this, spans[place], Number(spans[place].dataset.index), event.key === "Enter");
  }
}

/** A token's text with what cannot be seen made visible. */
export function visible(piece) {
  return piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

export function percent(p) {
  return p >= 0.0995 ? `${Math.round(100 * p)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

/** The tokens of a chunk's logprobs, of either API. */
export function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((token) => ({
      id: null, piece: token.token, logprob: token.logprob,
      likeliest: token.top_logprobs.map((other) => ({ id: null, piece: other.token, logprob: other.logprob })),
    }));
  }
  return logprobs.tokens.map((piece, n) => ({
    id: logprobs.token_ids[n], piece, logprob: logprobs.token_logprobs[n],
    likeliest: (logprobs.top_ids[n] ?? []).map(([id, logprob, other]) => ({ id, piece: other, logprob })),
  }));
}
