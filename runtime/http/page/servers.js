// One OpenAI-compatible server: what it is, and answers from it as they stream. What goes wrong is a Failure in plain words.

export const KEY = "key"; // the kinds of Failure that the page reacts to
export const STOPPED = "stopped";
const LEAST_READS = 5; // of an answer whose speed is shown

export class Failure extends Error {
  // `detail` is what the server said, `kind` what the page may do about it
  constructor(message, { detail = "", kind = "" } = {}) {
    super(message);
    this.detail = detail;
    this.kind = kind;
  }
}

export class Server {
  // The server that the page came from has an empty address: its paths are relative to the page's
  constructor(address, keys) {
    this.address = address;
    this.keys = keys;
    this.facts = { status: "unknown", model: "", weights: null, version: null, context: null, chat: true };
  }

  get own() {
    return this.address === "";
  }

  get name() {
    return this.facts.model || (this.own ? "This server" : this.address.replace(/^https?:\/\//, ""));
  }

  // What the server is and how busy; a server of another make only says its model's name.
  async look() {
    const response = await this.#fetch("ui/status", { signal: AbortSignal.timeout(10_000) });
    if (response.ok) {
      this.facts = { ...this.facts, ...(await response.json()) };
    } else {
      const models = await this.#fetch("v1/models", { headers: this.#headers() });
      const [model] = models.ok ? (await models.json()).data : [];
      this.facts = { ...this.facts, status: models.ok || models.status === 401 ? "ready" : "unknown" };
      if (model) this.facts = { ...this.facts, model: model.id, context: model.max_model_len ?? null };
    }
    return this.facts;
  }

  // Streams one answer. `messages` are a conversation; a server without a chat template continues the last of them.
  // `onText` gets the text and the numbers so far. The result is { text, stats, finish }; a Failure has what came before it in `part`.
  async ask(messages, settings, signal, onText) {
    const told = { model: this.facts.model || undefined, ...settings, stream: true, stream_options: { include_usage: true } };
    const chat = this.facts.chat !== false;
    const body = chat ? { ...told, messages } : { ...told, prompt: messages.at(-1).content, max_tokens: settings.max_tokens ?? this.#some() };
    const answer = new Answer();
    try {
      const path = chat ? "v1/chat/completions" : "v1/completions";
      const headers = { "Content-Type": "application/json", ...this.#headers() };
      answer.start();
      const response = await this.#fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
      if (!response.ok) throw await refused(response, this);
      for await (const { data, at } of events(response.body)) {
        if (data === "[DONE]") return answer.result();
        if (answer.take(JSON.parse(data), at)) onText(answer.text, answer.stats);
      }
      throw this.#lost(answer);
    } catch (error) {
      const failure = signal.aborted ? new Failure("Stopped.", { kind: STOPPED }) : error instanceof Failure ? error : this.#lost(answer, error);
      failure.part = answer.result();
      throw failure;
    }
  }

  #some() {
    return Math.min(256, Math.floor((this.facts.context ?? 512) / 2));
  }

  #headers() {
    const key = this.keys.get(this.address);
    return key ? { Authorization: `Bearer ${key}` } : {};
  }

  #fetch(path, options) {
    const target = this.own ? path : `${this.address}/${path}`;
    return fetch(target, { ...options, credentials: this.own ? "same-origin" : "omit", cache: "no-store", redirect: "error" });
  }

  #lost(answer, error) {
    if (answer.count) {
      return new Failure(`The connection was lost after ${answer.count} tokens. What arrived is shown; the rest is missing.`);
    }
    const detail = error instanceof Error ? error.message : "";
    if (this.own) return new Failure("The server cannot be reached. Is it still running?", { detail });
    return new Failure(`${this.address} cannot be reached, or it does not allow this page.`, {
      detail: `If it runs, start it with: --allowed-origins ${location.origin}`,
    });
  }
}

// What has arrived of an answer, and how fast.
class Answer {
  text = "";
  count = 0; // tokens: chunks, until the server says how many it were
  finish = null;
  sent = 0;
  first = 0; // when the first and the last tokens were read, in how many reads, and how many tokens the first of them brought
  last = 0;
  reads = 0;
  early = 0;

  start() {
    this.sent = performance.now();
  }

  // Whether a chunk brought a token; an error inside a stream is a Failure.
  take(chunk, at) {
    if (chunk.error) throw explain(chunk.error, 0);
    if (chunk.usage) this.count = chunk.usage.completion_tokens;
    const choice = chunk.choices?.[0];
    if (!choice) return false;
    const piece = choice.delta?.content ?? choice.text ?? "";
    this.finish = choice.finish_reason ?? this.finish;
    if (!piece && (choice.delta?.role || this.finish)) return false; // an opening or a closing; others are tokens whose text waits
    if (at !== this.last) this.reads++;
    this.last = at;
    this.first ||= at;
    this.count++;
    if (this.reads === 1) this.early++;
    this.text += piece;
    return true;
  }

  // Tokens a second are those after the first read: the first token waits for the prompt, and has a number of its own. Of an answer
  // that came in few reads it is not known: the tokens waited somewhere, and their times say nothing.
  get stats() {
    if (!this.first) return { tokens: 0, first_ms: null, tokens_per_s: null, total_ms: performance.now() - this.sent };
    const seconds = (this.last - this.first) / 1000;
    return {
      tokens: this.count,
      first_ms: this.first - this.sent,
      tokens_per_s: this.reads >= LEAST_READS && seconds > 0 ? (this.count - this.early) / seconds : null,
      total_ms: this.last - this.sent,
    };
  }

  result() {
    return { text: this.text, stats: this.stats, finish: this.finish };
  }
}

// The data of server-sent events, one after the other, with the time at which each was read.
async function* events(body) {
  const decoder = new TextDecoder();
  let buffer = "";
  for await (const bytes of chunks(body)) {
    const at = performance.now();
    buffer += decoder.decode(bytes, { stream: true });
    const parts = buffer.split(/\r?\n\r?\n/);
    buffer = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield { data: data.map((line) => line.slice(5).replace(/^ /, "")).join("\n"), at };
    }
  }
}

async function* chunks(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function refused(response, server) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not JSON: something in between answered
  }
  return explain(error, response.status, response.headers.get("Retry-After"), server);
}

// An error of the API in words for somebody who chats; what the server said goes below.
function explain(error, status, retryAfter = null, server = null) {
  const detail = `${error.message ?? ""}`.slice(0, 500) || (status ? `HTTP status ${status}` : "");
  if (status === 401) return new Failure("The server asks for an API key.", { detail, kind: KEY });
  if (error.code === "context_length_exceeded") {
    const context = server?.facts.context ? ` (${server.facts.context.toLocaleString("en")} tokens)` : "";
    return new Failure(`This conversation does not fit into the model's context${context}. Start a new chat, or set fewer tokens for the answer.`, { detail });
  }
  if (status === 503 || error.code === "server_overloaded") {
    const when = retryAfter ? ` It may have room in ${retryAfter} s.` : "";
    return new Failure(/shutting down/.test(detail) ? "The server is shutting down." : `The server is busy.${when}`, { detail });
  }
  if (status === 504) return new Failure("The answer took longer than the server allows.", { detail });
  if (status === 413) return new Failure("The message is too long for the server.", { detail });
  if (status === 400) return new Failure("The server does not take this request.", { detail });
  if (status === 404) return new Failure("The server does not know the model or the route.", { detail });
  return new Failure(status ? "The server made an error." : "The server ended the answer with an error.", { detail });
}
