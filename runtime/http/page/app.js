// The page as a whole: what is sent where, and when.

import { AnswerView, compareSpeeds, copyText, rate, turnElement } from "./answers.js";
import { Conversation, Keys, session } from "./conversation.js";
import { element } from "./markdown.js";
import { Failure, KEY, STOPPED, Server } from "./servers.js";

const POLL_MS = 2000;
const CHATS = ["What is the capital of France?", "Explain sparse matrices to a ten-year-old.", "Write a haiku about the sea.", "Give me three ideas for a rainy day, as a list."];
const TEXTS = ["Once upon a time", "The three most important rules of cooking are", "Dear colleagues,", "The sea was"];
const FIELDS = ["temperature", "top_p", "max_tokens", "seed"];

const $ = (id) => document.getElementById(id);
const keys = new Keys();
let conversation = Conversation.restore();
const servers = [new Server("", keys)];
let running = null; // the AbortController of the turn that streams
let done = Promise.resolve(); // when it has ended
const views = new Map(); // turn -> its AnswerViews

// ---- what the server is

async function poll() {
  if (!document.hidden) {
    try {
      showFacts(await servers[0].look());
    } catch {
      banner("The server cannot be reached. The page tries again every few seconds.");
      $("load").hidden = true;
    }
    const other = servers[1];
    if (other && !other.facts.model) await other.look().then(refresh, () => {});
  }
  setTimeout(poll, POLL_MS);
}

function showFacts(facts) {
  const waits = { loading: "The model is loading…", draining: "The server is shutting down.", dead: "Text generation broke down. The server has to be restarted.", stopped: "The server has stopped." };
  banner(waits[facts.status] ?? "", facts.status === "loading");
  const context = facts.context ? `${facts.context.toLocaleString("en")} tokens of context` : null;
  $("model").textContent = facts.model;
  $("facts").textContent = [facts.weights, context, `maskpro-deploy ${facts.version}`].filter(Boolean).join(" · ");
  document.title = `${facts.model} · Chat`;
  $("load").hidden = facts.status === "loading";
  $("running").textContent = facts.running;
  $("waiting").textContent = facts.waiting;
  const part = Math.min(1, facts.cached_tokens / facts.capacity_tokens);
  $("cache").textContent = part > 0 && part < 0.01 ? "< 1 %" : `${Math.round(100 * part)} %`;
  $("cache-bar").style.width = `${100 * part}%`;
  $("greeting").textContent = facts.chat === false ? `Let ${facts.model} go on` : `Ask ${facts.model} something`;
  $("hint").textContent = facts.chat === false ? "This model has no chat template: it continues the text that you write." : "Everything stays between this page and the server.";
  $("message").placeholder = facts.chat === false ? "Write the beginning of a text" : "Write a message";
  $("system-field").hidden = facts.chat === false;
  showStarters(facts.chat === false ? TEXTS : CHATS);
  for (const name of ["temperature", "top_p"]) {
    const known = facts.sampling?.[name];
    if (!known) continue;
    $(name).placeholder = String(known.default);
    $(name).max = String(known.high ?? "");
  }
  describeServers();
  setReady();
  const wanted = session.read("compare");
  if (facts.compare_url && !servers[1] && [null, facts.compare_url].includes(wanted)) compareWith(facts.compare_url);
}

function showStarters(texts) {
  if ($("starters").dataset.first === texts[0]) return;
  $("starters").dataset.first = texts[0];
  const entry = (text) => element("li", {}, element("button", { type: "button", onclick: () => send(text) }, text));
  $("starters").replaceChildren(...texts.map(entry));
}

function describeServers() {
  const rows = servers.flatMap((server) => [
    [servers[1] ? (server.own ? "This one" : "Second") : "Model", server.name],
    ["Weights", server.facts.weights ?? "not known"],
    ["Context", server.facts.context ? `${server.facts.context.toLocaleString("en")} tokens` : "not known"],
    ["API", `${server.own ? new URL("v1", document.baseURI).href : `${server.address}/v1`}`],
  ]);
  if (servers[0].facts.version) rows.push(["Version", servers[0].facts.version]);
  $("server").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  $("forget").hidden = !servers.some((server) => keys.get(server.address));
}

function banner(text, calm = false) {
  if ($("banner").textContent !== text) $("banner").textContent = text;
  $("banner").hidden = !text;
  $("banner").classList.toggle("calm", calm);
}

// ---- turns

function redraw() {
  document.body.classList.toggle("two", servers.length > 1);
  $("compare").setAttribute("aria-pressed", String(servers.length > 1));
  $("welcome").hidden = conversation.turns.length > 0;
  views.clear();
  $("turns").replaceChildren(...conversation.turns.map(makeTurn));
  for (const turn of conversation.turns) finishTurn(turn);
  describeServers();
}

const refresh = () => (running ? describeServers() : redraw()); // an answer that streams keeps its place

function makeTurn(turn) {
  const shown = servers.map((server, place) => {
    const past = turn.answers[place];
    const about = { name: past?.model || server.name, weights: past?.weights ?? server.facts.weights, chat: turn.chat, prompt: turn.text };
    return new AnswerView(place, about, () => retry(turn));
  });
  views.set(turn, shown);
  return turnElement(turn, shown, turn.chat);
}

// Shows the answers of a turn as they ended, with their speeds next to each other.
function finishTurn(turn) {
  const last = turn === conversation.turns.at(-1);
  for (const [place, view] of views.get(turn).entries()) {
    const answer = turn.answers[place];
    view.element.hidden = !answer && !running;
    if (answer) view.end(answer, last && !running);
  }
  showRace(turn, turn.answers.map((answer) => answer?.stats));
  const speeds = servers.length > 1 ? compareSpeeds(conversation.turns) : null;
  $("verdict").hidden = !speeds || Boolean(running);
  if (speeds) $("verdict").replaceChildren(...verdict(speeds));
}

function verdict({ middle, least, most, count }) {
  const [fast, slow] = middle >= 1 ? servers : [servers[1], servers[0]];
  const bounds = [least, most].map((ratio) => rate(middle >= 1 ? ratio : 1 / ratio)).sort((a, b) => a - b);
  const [quick, calm] = fast.name === slow.name ? (fast.own ? ["This server", "the second"] : ["The second server", "this one"]) : [fast.name, slow.name];
  const range = count > 1 ? `${count} pairs of answers, from ${bounds[0]}× to ${bounds[1]}×` : "one pair of answers: a hint, not a measurement";
  const how = session.read("in-turn") ? "one after the other" : "at the same time: on one machine they take cores from each other";
  return [`${quick} makes ${rate(Math.max(middle, 1 / middle))}× the tokens per second of ${calm}.`, element("small", {}, `${range}; ${how}`)];
}

function showRace(turn, stats) {
  const rates = stats.map((one) => one?.tokens_per_s ?? 0);
  const best = Math.max(...rates, 1e-9);
  for (const [place, view] of views.get(turn).entries()) {
    view.race.hidden = servers.length < 2;
    view.measure((rates[place] ?? 0) / best);
  }
}

function send(text) {
  if (running || !text.trim() || !ready() || !readSettings()) return;
  const turn = { text, chat: servers[0].facts.chat !== false, answers: [] };
  conversation.turns.push(turn);
  $("welcome").hidden = true;
  const before = conversation.turns.at(-2);
  if (before) finishTurn(before); // its Retry goes
  $("turns").append(makeTurn(turn));
  $("message").value = "";
  $("toast").replaceChildren();
  fitMessage();
  done = answer(turn);
}

function retry(turn) {
  if (running || !ready() || !readSettings()) return;
  turn.answers = [];
  turn.chat = servers[0].facts.chat !== false;
  $("turns").lastElementChild.replaceWith(makeTurn(turn));
  done = answer(turn);
}

async function answer(turn) {
  running = new AbortController();
  setReady();
  scrollDown(true);
  const { signal } = running;
  const stats = servers.map(() => null);
  const one = (server, place) => stream(turn, server, place, signal, stats);
  if (session.read("in-turn")) {
    for (const place of servers.keys()) views.get(turn)[place].wait(place ? "waits for its turn" : "");
    for (const [place, server] of servers.entries()) await one(server, place);
  } else {
    await Promise.all(servers.map(one));
  }
  running = null;
  setReady();
  finishTurn(turn);
  conversation.save();
  speak(turn);
  scrollDown();
  if (!matchMedia("(hover: none)").matches) $("message").focus({ preventScroll: true });
}

// One server's answer to a turn. A wrong key is asked for again, for as long as one is given.
async function stream(turn, server, place, signal, stats) {
  const view = views.get(turn)[place];
  let result;
  try {
    for (;;) {
      view.wait("");
      try {
        const shown = (text, now) => {
          stats[place] = now;
          view.show(text, now);
          if (servers.length > 1) showRace(turn, stats);
        };
        result = await server.ask(conversation.messages(turn, place), conversation.parameters, signal, shown);
        break;
      } catch (error) {
        if (error.kind !== KEY || !(await askForKey(server))) throw error;
      }
    }
  } catch (error) {
    const failure = error.kind === STOPPED ? null : { message: error.message, detail: error instanceof Failure ? error.detail : "" };
    result = { ...(error.part ?? { text: "", stats: { tokens: 0, first_ms: null, tokens_per_s: null }, finish: null }), failure, stopped: !failure };
  }
  turn.answers[place] = { model: server.name, address: server.address, weights: server.facts.weights, ...result };
  view.end(turn.answers[place], false);
  describeServers();
}

// What a screen reader says once an answer is there; a stream read piece by piece would be noise.
function speak(turn) {
  const said = turn.answers.map((one) => [servers.length > 1 ? `${one.model}:` : "", one.text, one.failure?.message ?? ""].filter(Boolean).join(" "));
  $("spoken").textContent = said.join("\n");
}

// ---- the message

const ready = () => !["loading", "draining", "dead", "stopped"].includes(servers[0].facts.status);

function setReady() {
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !ready() || !$("message").value.trim();
}

function fitMessage() {
  if (!CSS.supports("field-sizing", "content")) {
    $("message").style.height = "auto";
    $("message").style.height = `${$("message").scrollHeight}px`;
  }
  setReady();
}

function scrollDown(force = false) {
  const box = $("conversation");
  if (force || box.dataset.follow !== "no") box.scrollTop = box.scrollHeight;
}

$("conversation").addEventListener("scroll", ({ target }) => {
  target.dataset.follow = target.scrollHeight - target.scrollTop - target.clientHeight < 80 ? "yes" : "no";
});
$("turns").addEventListener("drawn", () => scrollDown());
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send($("message").value);
});
$("message").addEventListener("input", fitMessage);
$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send($("message").value);
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else if (!$("settings").hidden) toggleSettings(false);
});
document.addEventListener("click", async ({ target }) => {
  const kind = target.dataset?.copy;
  if (!kind) return;
  const view = [...views.values()].flat().find((one) => one.copy === target);
  const text = kind === "code" ? target.closest(".code").querySelector("code").textContent : view.text;
  const done = await copyText(text).then(() => "Copied", () => "Not copied");
  target.textContent = done;
  setTimeout(() => (target.textContent = "Copy"), 1500);
});

// ---- settings

function readSettings() {
  if (!$("settings-form").checkValidity()) {
    toggleSettings(true);
    $("settings-form").reportValidity();
    return false;
  }
  conversation.system = $("system").value;
  conversation.settings = Object.fromEntries(FIELDS.map((name) => [name, $(name).value]));
  conversation.save();
  return true;
}

function writeSettings() {
  $("system").value = conversation.system;
  for (const name of FIELDS) $(name).value = conversation.settings[name] ?? "";
}

function toggleSettings(open) {
  $("settings").hidden = !open;
  $("settings-button").setAttribute("aria-expanded", String(open));
  if (open) $("settings").querySelector("textarea, input").focus();
  else $("settings-button").focus();
}

$("settings-button").addEventListener("click", () => toggleSettings($("settings").hidden));
$("settings-close").addEventListener("click", () => toggleSettings(false));
$("settings-form").addEventListener("submit", (event) => event.preventDefault());
$("settings-form").addEventListener("change", () => $("settings-form").checkValidity() && readSettings());
$("settings-form").addEventListener("reset", () => setTimeout(readSettings));
$("forget").addEventListener("click", () => {
  for (const server of servers) keys.set(server.address, null);
  describeServers();
  toast("The key is forgotten.");
});

// ---- the other buttons

$("new").addEventListener("click", async () => {
  running?.abort();
  await done;
  const { turns } = conversation;
  const begin = (kept) => {
    conversation.turns = kept;
    $("verdict").hidden = true;
    conversation.save();
    redraw();
    $("message").focus();
  };
  begin([]);
  if (turns.length) toast("A new chat.", "Undo", () => begin(turns));
});

$("export").addEventListener("click", () => {
  const text = JSON.stringify(conversation.export(servers), null, 1);
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const name = `chat-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.json`;
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
});

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

$("theme").addEventListener("click", () => {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  $("theme").setAttribute("aria-pressed", String(next === "dark"));
  try {
    localStorage.setItem("maskpro-theme", next);
  } catch {
    // chosen for as long as the page is open
  }
});
$("theme").setAttribute("aria-pressed", String(isDark()));

let toastEnds = 0;
function toast(text, label, action) {
  clearTimeout(toastEnds);
  const close = () => $("toast").replaceChildren();
  const button = label && element("button", { type: "button", onclick: () => { close(); action(); } }, label);
  $("toast").replaceChildren(...[text, button].filter(Boolean));
  toastEnds = setTimeout(close, 6000);
}

// ---- dialogs

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close("cancel"));

let asking = Promise.resolve();
// Asks for a server's key, one server at a time; whether one was given.
function askForKey(server) {
  const before = keys.get(server.address);
  asking = asking.then(() => new Promise((resolve) => {
    const dialog = $("key-dialog");
    const where = server.own ? "This server" : server.address;
    $("key-text").textContent = before ? `${where} does not take this key. Try another one.` : `${where} answers only with a key.`;
    $("key").value = "";
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "cancel" ? "" : $("key").value.trim();
      $("key").value = "";
      if (given) keys.set(server.address, given);
      resolve(Boolean(given));
    }, { once: true });
    dialog.showModal();
  }));
  return asking;
}

function compareWith(address) {
  servers[1] = new Server(address, keys);
  servers[1].look().then(refresh, () => {});
  redraw();
}

function openCompare(text, address) {
  $("compare-text").textContent = text;
  $("compare-url").value = address;
  $("compare-error").textContent = "";
  $("allow").textContent = `--allowed-origins ${location.origin}`;
  $("in-turn").checked = Boolean(session.read("in-turn"));
  $("compare-off").hidden = servers.length < 2;
  $("compare-dialog").showModal();
}

$("compare").addEventListener("click", () => {
  if (running) return toast("Wait for the answer, or stop it first.");
  openCompare("The same message goes to both servers, such as a sparse model and the dense one it came from.", servers[1]?.address ?? servers[0].facts.compare_url ?? "");
});

$("compare-dialog").querySelector("form").addEventListener("submit", (event) => {
  const address = readAddress($("compare-url").value);
  if (!address) {
    event.preventDefault();
    $("compare-error").textContent = "Write an address such as http://127.0.0.1:8001.";
    $("compare-url").focus();
    return;
  }
  session.write("in-turn", $("in-turn").checked ? "yes" : null);
  session.write("compare", address);
  conversation.save();
  if (address === servers[0].facts.compare_url || address === asked()) return compareWith(address);
  location.assign(`?compare=${encodeURIComponent(address)}`); // the page may then talk to this server, and to no further one
});

$("compare-off").addEventListener("click", () => {
  servers.length = 1;
  session.write("compare", "");
  $("compare-dialog").close();
  $("verdict").hidden = true;
  redraw();
});

// The address that a text is, as the server reads it too; null if it is none.
function readAddress(text) {
  const match = /^(https?:\/\/[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?)((?:\/[\w.~-]+)*?)(?:\/v1)?\/*$/i.exec(text.trim());
  return match && match[1].toLowerCase() + match[2];
}

const asked = () => readAddress(new URLSearchParams(location.search).get("compare") ?? "");

// ---- begin

writeSettings();
const chosen = session.read("compare");
if (asked() && chosen === asked()) compareWith(chosen);
else if (asked() && chosen !== "") openCompare(`The link that you opened wants your messages to go to ${asked()} as well. Do you?`, asked());
redraw();
setReady();
poll();
scrollDown(true);
