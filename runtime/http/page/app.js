// The page as a whole: what is sent where, and when.

import { AnswerView, compareSpeeds, describeSpeeds, turnElement } from "./answers.js";
import { Conversation, Keys, session } from "./conversation.js";
import { showFacts, showServers, takesMessages } from "./facts.js";
import { $, askForKey, banner, copyText, download, note, readAddress } from "./panels.js";
import { Failure, KEY, STOPPED, Server } from "./servers.js";

const POLL_MS = 2000;
const FIELDS = ["temperature", "top_p", "max_tokens", "seed"];

const keys = new Keys();
const conversation = Conversation.restore();
const servers = [new Server("", keys)];
const views = new Map(); // turn -> its AnswerViews
let running = null; // the AbortController of the turn that streams
let done = Promise.resolve(); // when it has ended

// ---- what the servers are

async function look() {
  try {
    const facts = await servers[0].look();
    showFacts(facts, servers.length > 1, send);
    const wanted = session.read("compare");
    if (facts.compare_url && !servers[1] && [null, facts.compare_url].includes(wanted)) compareWith(facts.compare_url);
    setReady();
  } catch {
    banner("The server cannot be reached. The page tries again every few seconds.");
    $("load").hidden = true;
  }
  if (servers[1] && !servers[1].facts.model) await servers[1].look().then(refresh, () => {});
  else showServers(servers, keys);
}

async function poll() {
  if (!document.hidden) await look();
  setTimeout(poll, POLL_MS);
}

// ---- turns

function redraw() {
  document.body.classList.toggle("two", servers.length > 1);
  $("compare").setAttribute("aria-pressed", String(servers.length > 1));
  $("welcome").hidden = conversation.turns.length > 0;
  views.clear();
  $("turns").replaceChildren(...conversation.turns.map(makeTurn));
  $("verdict").hidden = true;
  for (const turn of conversation.turns) finishTurn(turn);
  showServers(servers, keys);
}

const refresh = () => (running ? showServers(servers, keys) : redraw()); // an answer that streams keeps its place

function makeTurn(turn) {
  const shown = servers.map((server, place) => {
    const past = turn.answers[place];
    const about = { name: past?.model || server.name, weights: past?.weights ?? server.facts.weights, chat: turn.chat, prompt: turn.text };
    return new AnswerView(place, about, servers.length > 1 ? "Retry both" : "Retry", () => retry(turn));
  });
  views.set(turn, shown);
  return turnElement(turn, shown);
}

// Shows the answers of a turn as they ended, with their speeds next to each other.
function finishTurn(turn) {
  const last = turn === conversation.turns.at(-1) && !running;
  for (const [place, view] of views.get(turn).entries()) {
    const answer = turn.answers[place];
    view.element.hidden = !answer;
    if (answer) view.end(answer, last);
  }
  showRace(turn, turn.answers.map((answer) => answer?.stats));
  const speeds = servers.length > 1 && !running ? compareSpeeds(conversation.turns) : null;
  $("verdict").hidden = !speeds;
  if (speeds) $("verdict").replaceChildren(...describeSpeeds(speeds, Boolean(session.read("in-turn"))));
}

function showRace(turn, stats) {
  const rates = stats.map((one) => one?.tokens_per_s ?? 0);
  const best = Math.max(...rates, 1e-9);
  for (const [place, view] of views.get(turn).entries()) view.measure(servers.length > 1, (rates[place] ?? 0) / best);
}

function send(text) {
  if (running || !text.trim() || !takesMessages(servers[0].facts) || !readSettings()) return;
  const turn = { text, chat: servers[0].facts.chat !== false, answers: [] };
  conversation.turns.push(turn);
  $("welcome").hidden = true;
  $("toast").replaceChildren();
  $("turns").append(makeTurn(turn));
  $("message").value = "";
  fitMessage();
  done = answer(turn);
}

function retry(turn) {
  if (running || !takesMessages(servers[0].facts) || !readSettings()) return;
  turn.answers = [];
  turn.chat = servers[0].facts.chat !== false;
  $("turns").lastElementChild.replaceWith(makeTurn(turn));
  done = answer(turn);
}

async function answer(turn) {
  running = new AbortController();
  const before = conversation.turns.at(-2);
  if (before) finishTurn(before); // its Retry goes
  setReady();
  scrollDown(true);
  const stats = servers.map(() => null);
  const one = (server, place) => stream(turn, server, place, running.signal, stats);
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
  if (!matchMedia("(hover: none)").matches && !document.querySelector("dialog[open]")) $("message").focus({ preventScroll: true });
  look();
}

// One server's answer to a turn. A key is asked for until one is right or none is given.
async function stream(turn, server, place, signal, stats) {
  const view = views.get(turn)[place];
  const show = (text, now) => {
    stats[place] = now;
    view.show(text, now);
    showRace(turn, stats);
  };
  let result;
  for (;;) {
    view.wait("");
    try {
      result = await server.ask(conversation.messages(turn, place), conversation.parameters, signal, show);
      break;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (error.kind === KEY && (await askForKey(server, keys))) continue;
      const stopped = error.kind === STOPPED;
      result = { ...error.part, stopped, failure: stopped ? null : { message: error.message, detail: error.detail } };
      break;
    }
  }
  turn.answers[place] = { model: server.name, address: server.address, weights: server.facts.weights, ...result };
  view.end(turn.answers[place], false);
  conversation.save();
}

// What a screen reader says once an answer is there; a stream read piece by piece would be noise.
function speak(turn) {
  const said = turn.answers.map((one) => [servers.length > 1 ? `${one.model}:` : "", one.text, one.failure?.message ?? ""].join(" "));
  $("spoken").textContent = said.join("\n");
}

// ---- the message

function setReady() {
  const focused = document.activeElement === $("stop");
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !takesMessages(servers[0].facts) || !$("message").value.trim();
  if (focused && !running) $("message").focus();
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
  const text = kind === "code" ? target.closest(".code").querySelector("code").textContent : [...views.values()].flat().find((one) => one.copy === target).text;
  target.textContent = await copyText(text).then(() => "Copied", () => "Not copied");
  setTimeout(() => (target.textContent = "Copy"), 1500);
});

// ---- settings

// Takes over what the form says; false if a number in it is out of its range.
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

function toggleSettings(open) {
  $("settings").hidden = !open;
  $("settings-button").setAttribute("aria-expanded", String(open));
  $(open ? "settings-close" : "settings-button").focus();
}

$("system").value = conversation.system;
for (const name of FIELDS) $(name).value = conversation.settings[name] ?? "";
$("settings-button").addEventListener("click", () => toggleSettings($("settings").hidden));
$("settings-close").addEventListener("click", () => toggleSettings(false));
$("settings-form").addEventListener("submit", (event) => event.preventDefault());
$("settings-form").addEventListener("change", () => $("settings-form").checkValidity() && readSettings());
$("settings-form").addEventListener("reset", () => setTimeout(readSettings));
$("forget").addEventListener("click", () => {
  for (const server of servers) keys.set(server.address, null);
  showServers(servers, keys);
  note("The key is forgotten.");
});

// ---- a new chat, and what was said

$("new").addEventListener("click", async () => {
  running?.abort();
  await done;
  const { turns } = conversation;
  const begin = (kept) => {
    conversation.turns = kept;
    conversation.save();
    redraw();
    $("message").focus();
  };
  begin([]);
  if (turns.length) note("A new chat.", "Undo", () => begin(turns));
});
$("export").addEventListener("click", () => download(conversation.export(servers)));

// ---- a second server

const asked = () => readAddress(new URLSearchParams(location.search).get("compare") ?? "");

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
  if (running) return note("Wait for the answer, or stop it first.");
  openCompare("The same message goes to both servers, such as a sparse model and the dense one it came from.", servers[1]?.address ?? servers[0].facts.compare_url ?? "");
});
$("compare-dialog").querySelector("form").addEventListener("submit", (event) => {
  const address = readAddress($("compare-url").value);
  if (!address) {
    event.preventDefault();
    $("compare-error").textContent = "Write an address such as http://127.0.0.1:8001.";
    return;
  }
  session.write("in-turn", $("in-turn").checked ? "yes" : null);
  session.write("compare", address);
  if (address === servers[0].facts.compare_url || address === asked()) return compareWith(address);
  location.assign(`?compare=${encodeURIComponent(address)}`); // the page may then talk to this server, and to no further one
});
$("compare-off").addEventListener("click", () => {
  servers.length = 1;
  session.write("compare", "");
  $("compare-dialog").close("cancel");
  redraw();
});

// ---- begin

redraw();
setReady();
scrollDown(true);
if (asked() && session.read("compare") === asked()) compareWith(asked());
else if (asked() && session.read("compare") !== "") {
  openCompare(`The link that you opened asks to send your messages to ${asked()} as well. Cancel if you do not know it.`, asked());
}
poll();
