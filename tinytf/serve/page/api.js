// Requests to this page's own server.

let key = sessionStorage.getItem("key") ?? "";

/** An answer that is an error; `message` is the server's own line. */
export class ApiError extends Error {}

/** The JSON of a path, or, with a body, the response of a POST. Asks for the key once when the server wants one. */
export async function call(path, body, signal) {
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.status === 401) {
    await askForKey();
    return call(path, body, signal);
  }
  if (!response.ok) {
    const found = await response.json().catch(() => null);
    throw new ApiError(found?.error?.message ?? `the server answered ${response.status}`);
  }
  return body ? response : response.json();
}

/** The events of a streamed completion, parsed. */
export async function* stream(path, body, signal) {
  const response = await call(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError("the server ended the stream too early");
    const events = (pending + value).split("\n\n");
    pending = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw new ApiError(content.error.message);
      yield content;
    }
  }
}

async function askForKey() {
  const dialog = document.querySelector("#key");
  const input = dialog.querySelector("input");
  input.value = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (!input.value) throw new ApiError("this server needs its API key: reload the page to give it");
  key = input.value;
  sessionStorage.setItem("key", key);
}
