// What stands around the conversation: the theme, short notes, dialogs, downloads.

import { element } from "./markdown.js";

export const $ = (id) => document.getElementById(id);

// The address that a text is, as the server reads it too; null if it is none.
export function readAddress(text) {
  const match = /^(https?:\/\/[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?)((?:\/[\w.~-]+)*?)(?:\/v1)?\/*$/i.exec(text.trim());
  return match && match[1].toLowerCase() + match[2];
}

let noteEnds = 0;
export function note(text, label, action) {
  clearTimeout(noteEnds);
  const close = () => $("toast").replaceChildren();
  const act = () => {
    close();
    action();
  };
  $("toast").replaceChildren(...(label ? [text, element("button", { type: "button", onclick: act }, label)] : [text]));
  noteEnds = setTimeout(close, 6000);
}

export function banner(text, calm = false) {
  if ($("banner").textContent !== text) $("banner").textContent = text; // said once by a screen reader
  $("banner").hidden = !text;
  $("banner").classList.toggle("calm", calm);
}

let asking = Promise.resolve();
// Asks for a server's key, one server at a time; whether one was given.
export function askForKey(server, keys) {
  const ask = (resolve) => {
    const dialog = $("key-dialog");
    const where = server.own ? "This server" : server.address;
    $("key-text").textContent = keys.get(server.address) ? `${where} does not take this key. Try another one.` : `${where} answers only with a key.`;
    dialog.returnValue = "cancel";
    const take = () => {
      const given = dialog.returnValue === "cancel" ? "" : $("key").value.trim();
      $("key").value = "";
      if (given) keys.set(server.address, given);
      resolve(Boolean(given));
    };
    dialog.addEventListener("close", take, { once: true });
    dialog.showModal();
  };
  asking = asking.then(() => new Promise(ask));
  return asking;
}

export function download(value) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  const name = `chat-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.json`;
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// Puts a text on the clipboard; a page that came over plain HTTP from another machine has to select and copy it.
export async function copyText(text) {
  if (window.isSecureContext) return navigator.clipboard.writeText(text);
  const field = element("textarea", { class: "unseen" });
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  if (!copied) throw new Error("the browser did not copy");
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

$("theme").setAttribute("aria-pressed", String(isDark()));
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

for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close("cancel"));
}
