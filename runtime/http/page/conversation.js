// Turns, settings and keys, for as long as the tab is open: they survive a reload, and nothing is sent or kept elsewhere.

const PLACE = "maskpro-chat";
const KEYS = "maskpro-key ";

function read(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null; // storage is blocked: the page works, and forgets
  }
}

function write(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, value);
  } catch {
    // full or blocked
  }
}

export const session = { read: (name) => read(`maskpro-${name}`), write: (name, value) => write(`maskpro-${name}`, value) };

// The API keys of servers, by address. They are never part of the conversation.
export class Keys {
  #held = new Map(); // where storage is blocked

  get(address) {
    return read(KEYS + address) ?? this.#held.get(address) ?? null;
  }

  set(address, key) {
    if (key === null) this.#held.delete(address);
    else this.#held.set(address, key);
    write(KEYS + address, key);
  }
}

export class Conversation {
  system = "";
  settings = {}; // temperature, top_p, max_tokens, seed as the form has them: texts
  turns = []; // { text, answers: [{ model, address, text, stats, finish, failure, stopped }, ...] }, one answer for each server

  static restore() {
    const made = new Conversation();
    try {
      const { system, settings, turns } = JSON.parse(read(PLACE) ?? "{}");
      Object.assign(made, { system: system ?? "", settings: settings ?? {}, turns: turns ?? [] });
    } catch {
      // not ours: begin again
    }
    return made;
  }

  save() {
    write(PLACE, JSON.stringify({ system: this.system, settings: this.settings, turns: this.turns }));
  }

  // What a request carries of the settings: numbers, without what is empty.
  get parameters() {
    const given = Object.entries(this.settings).filter(([, text]) => text !== "" && text !== undefined);
    return Object.fromEntries(given.map(([name, text]) => [name, Number(text)]));
  }

  // The messages for a server, up to a turn: its own answers, and the other's where it was not asked yet.
  messages(turn, place) {
    const before = this.turns.slice(0, this.turns.indexOf(turn));
    const told = before.flatMap((past) => {
      const answer = past.answers[place] ?? past.answers[0];
      return answer?.text ? [{ role: "user", content: past.text }, { role: "assistant", content: answer.text }] : [];
    });
    const system = this.system.trim() ? [{ role: "system", content: this.system }] : [];
    return [...system, ...told, { role: "user", content: turn.text }];
  }

  export(servers) {
    return {
      exported: new Date().toISOString(),
      servers: servers.map(({ facts, address }) => ({
        address: address || location.origin, model: facts.model, weights: facts.weights, context: facts.context, version: facts.version,
      })),
      system: this.system,
      parameters: this.parameters,
      turns: this.turns,
    };
  }
}
