// What the page says of its servers: name, weights, context, load.

import { element } from "./markdown.js";
import { $, banner } from "./panels.js";

const CHATS = ["What is the capital of France?", "Explain sparse matrices to a child.", "Write a haiku about the sea.", "Give me three ideas for a rainy day."];
const TEXTS = ["Once upon a time", "The most important rules of cooking are", "Dear colleagues,", "The sea was"];
const WAITS = {
  loading: "The model is loading…",
  draining: "The server is shutting down.",
  stopped: "The server has stopped.",
  dead: "Text generation broke down. The server has to be restarted.",
};

export const takesMessages = (facts) => !(facts.status in WAITS);
const tokens = (count) => `${count.toLocaleString("en")} tokens`;

// Shows what the page's own server says of itself; `both` if there is a second one, and `send` is what an example does.
export function showFacts(facts, both, send) {
  banner(WAITS[facts.status] ?? "", facts.status === "loading");
  const context = facts.context ? `${tokens(facts.context)} of context` : "";
  $("model").textContent = facts.model;
  $("facts").textContent = [facts.weights, context, `maskpro-deploy ${facts.version}`].filter(Boolean).join(" · ");
  document.title = `${facts.model} · Chat`;
  showLoad(facts);
  const chat = facts.chat !== false;
  $("greeting").textContent = chat ? `Ask ${both ? "both models" : facts.model} something` : `Let ${facts.model} go on`;
  $("hint").textContent = chat ? "Everything stays between this page and the server." : "This model has no chat template: it continues the text that you write.";
  $("message").placeholder = chat ? "Write a message" : "Write the beginning of a text";
  $("system-field").hidden = !chat;
  showExamples(chat ? CHATS : TEXTS, send);
  for (const [name, known] of Object.entries(facts.sampling ?? {})) {
    $(name).placeholder = String(known.default);
    $(name).max = String(known.high ?? "");
  }
}

function showLoad(facts) {
  $("load").hidden = facts.status === "loading";
  $("running").textContent = facts.running;
  $("waiting").textContent = facts.waiting;
  const part = Math.min(1, facts.cached_tokens / facts.capacity_tokens);
  $("cache").textContent = part > 0 && part < 0.01 ? "< 1 %" : `${Math.round(100 * part)} %`;
  $("cache-bar").style.width = `${100 * part}%`;
}

function showExamples(texts, send) {
  if ($("starters").dataset.first === texts[0]) return;
  $("starters").dataset.first = texts[0];
  const entry = (text) => element("li", {}, element("button", { type: "button", onclick: () => send(text) }, text));
  $("starters").replaceChildren(...texts.map(entry));
}

// The table in the settings.
export function showServers(servers, keys) {
  const rows = servers.flatMap((server) => [
    [servers.length < 2 ? "Model" : server.own ? "This one" : "Second", server.name],
    ["Weights", server.facts.weights ?? "not known"],
    ["Context", server.facts.context ? tokens(server.facts.context) : "not known"],
    ["Version", server.facts.version ?? "not known"],
    ["API", server.own ? new URL("v1", document.baseURI).href : `${server.address}/v1`],
  ]);
  $("server").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  $("forget").hidden = !servers.some((server) => keys.get(server.address));
}
