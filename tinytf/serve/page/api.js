// The server's API: requests, streams, and errors as one line that says what to do.

const KEY = "tinytf api key";

export class ApiError extends Error {}

/** What a reader can do about an answer, where the server's own words do not say. */
function advice(status, code, retryAfter) {
  if (status === 429) return `Try again in ${retryAfter || 1} s.`;
  if (status === 503) return "Start it again, then try again.";
  if (status === 504) return "Ask for fewer tokens.";
  if (status >= 500) return "Its stderr says more.";
  if (code === "context_length_exceeded") return "";
  return "";
}

function refusal(status, body, retryAfter) {
  const error = body?.error ?? {};
  const message = String(error.message ?? `the server answered ${status}`).trim();
  const sentence = message.charAt(0).toUpperCase() + message.slice(1).replace(/[.:]?$/, ".");
  return new ApiError(`${sentence} ${advice(status, error.code, retryAfter)}`.trim());
}

/** The key as the reader types it; an ApiError if none is given. */
function askForKey(wrong) {
  const dialog = document.querySelector("#key-dialog");
  const input = document.querySelector("#key");
  input.value = "";
  input.placeholder = wrong ? "not this one" : "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" ? input.value.trim() : "";
      dialog.returnValue = "";
      if (!given) reject(new ApiError("The server asks for its API key. Reload the page to enter it."));
      else resolve(given);
    }, { once: true });
  });
}

async function send(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server does not answer. Is tinytf serve still running?");
    }
    if (response.ok) return response;
    if (response.status !== 401) {
      throw refusal(response.status, await response.json().catch(() => null), response.headers.get("retry-after"));
    }
    // Two requests at once ask one time: the second finds the key that the first one got.
    if (key === sessionStorage.getItem(KEY)) {
      asking ??= askForKey(key !== null).finally(() => { asking = null; });
      sessionStorage.setItem(KEY, await asking);
    }
  }
}

let asking = null;

/** The entries of /v1/models. */
export async function listModels() {
  return (await (await send("/v1/models")).json()).data;
}

/**
 * A streamed completion: calls onEvent with each event's object, until the stream ends.
 * Throws ApiError, or AbortError when the signal says so.
 */
export async function stream(path, body, signal, onEvent) {
  const response = await send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (signal.aborted) throw new DOMException("stopped", "AbortError");
      throw new ApiError("The server went away in the middle of the text. Is tinytf serve still running?");
    }
    if (part.done) throw new ApiError("The server ended the text early. Try again.");
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw refusal(500, event);
      onEvent(event);
    }
  }
}
