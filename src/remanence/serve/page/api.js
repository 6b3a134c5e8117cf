// Talking to the server: the key, errors in plain words, and answers as they are generated.

const KEY = "remanence.key"; // in sessionStorage: this tab only, gone when it closes

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What went wrong. kind: "offline", "key", "busy", "refused" or "broken". wait: seconds until trying again, or null. */
export class Failure extends Error {
  constructor(kind, message, wait = null) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

const offline = () => new Failure("offline", "The server cannot be reached. Nothing was lost that it had confirmed.");

async function failureOf(response) {
  let said = "";
  try {
    const { error } = await response.json();
    said = typeof error === "string" ? error : (error?.message ?? "");
  } catch {
    // no JSON: the status has to do
  }
  if (response.status === 401 || response.status === 403) {
    return new Failure("key", key.get() ? "The server does not accept this key." : "This server asks for an API key.");
  }
  if (response.status === 429) {
    const wait = Number(response.headers.get("Retry-After")) || null;
    return new Failure("busy", `The server has more to do than it can take${wait ? `. Try again in ${wait} s.` : " right now."}`, wait);
  }
  const kind = response.status >= 500 ? "broken" : "refused";
  return new Failure(kind, said || `The server answered with status ${response.status}.`);
}

/** Send a request; a Response with a good status, or a Failure is thrown. An aborted one throws AbortError. */
async function send(method, path, { body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (key.get()) all.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined && !(body instanceof Blob)) {
    all["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { method, body, headers: all, signal, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : offline();
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

const json = async (...request) => (await send(...request)).json();
const of = (name, rest = "") => `v1/memories/${encodeURIComponent(name)}${rest}`;

export const models = () => json("GET", "v1/models");
export const memories = () => json("GET", "v1/memories");
export const make = (name) => json("POST", "v1/memories", { body: { name } });
export const memory = (name) => json("GET", of(name));
export const remove = (name) => send("DELETE", of(name));
export const write = (name, text) => json("POST", of(name, "/write"), { body: { text, source: "page" } });
export const search = (name, query, k = 8) => json("POST", of(name, "/search"), { body: { query, k } });
export const history = (name, offset, limit) => json("GET", of(name, `/history?offset=${offset}&limit=${limit}`));
export const forget = (name, what, dryRun) => json("POST", of(name, "/forget"), { body: { ...what, dry_run: dryRun } });
export const fork = (name, copy) => json("POST", of(name, "/fork"), { body: { name: copy } });
export const take = (name, file) => json("PUT", of(name, "/import"), { body: file });
export const give = async (name) => (await send("GET", of(name, "/export"))).blob();

/** The data of server-sent events, one by one, as they arrive. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest = (rest + (value ?? "")).replaceAll("\r\n", "\n");
      const blocks = rest.split("\n\n");
      rest = done ? "" : blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Ask, and get the answer piece by piece.
 * @param {string} name of the memory
 * @param {{role: string, content: string}[]} messages of the conversation, the new one last
 * @param {(piece: string) => void} onPiece called with every piece of text
 * @param {AbortSignal} signal ends the answer
 * @returns {Promise<object>} what was read: the "remanence" field of the last event
 */
export async function ask(name, model, messages, onPiece, signal) {
  const response = await send("POST", "v1/chat/completions", {
    body: { model, messages, user: name, stream: true },
    headers: { "X-Remanence-Memory": name },
    signal,
  });
  let read = null;
  let whole = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        whole = true;
        break;
      }
      const event = JSON.parse(data);
      if (event.error) throw new Failure("broken", event.error.message ?? "The server stopped answering.");
      const piece = event.choices?.[0]?.delta?.content;
      if (piece) onPiece(piece);
      read = event.remanence ?? read;
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw offline();
  }
  if (!whole) throw new Failure("broken", "The answer was cut off: the server ended it early.");
  return read;
}
