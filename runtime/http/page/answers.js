// How turns and answers look.

import { Markdown, element } from "./markdown.js";

const ms = (value) => (value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(value < 10_000 ? 2 : 1)} s`);
const rate = (value) => (value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

// One answer: a name, the text, numbers, and what can be done with it.
export class AnswerView {
  #pending = null;

  constructor(place, { name, weights, chat, prompt }, label, again) {
    this.name = name;
    this.weights = element("span", {}, weights ?? "");
    this.body = element("div", { class: chat ? "body" : "body plain" });
    this.markdown = chat ? new Markdown(this.body) : null;
    this.prompt = prompt;
    this.stats = element("div", { class: "stats" });
    this.copy = element("button", { type: "button", "data-copy": "answer" }, "Copy");
    this.again = element("button", { type: "button", onclick: again }, label);
    this.bar = element("i");
    const head = element("div", { class: "name" }, element("b", {}, name), this.weights);
    this.race = element("div", { class: "race", "aria-hidden": "true" }, this.bar);
    this.trouble = element("div", { class: "failure" });
    this.foot = element("div", { class: "foot" }, this.stats, this.copy, this.again);
    this.element = element("article", { class: place ? "answer second" : "answer", "aria-label": `Answer of ${name}` });
    this.element.append(head, this.race, this.body, this.trouble, this.foot);
    this.trouble.hidden = this.copy.hidden = this.again.hidden = true;
    this.text = "";
  }

  wait(words) {
    this.element.setAttribute("aria-busy", "true");
    this.body.classList.add("waits");
    this.stats.replaceChildren(words);
    if (!this.markdown) this.body.replaceChildren(element("span", { class: "given" }, this.prompt));
  }

  // Shows a text that grows, once for each frame that is drawn.
  show(text, stats) {
    this.text = text;
    this.latest = stats;
    this.#pending ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#pending = null;
    this.body.classList.remove("waits");
    this.body.classList.toggle("streams", this.element.hasAttribute("aria-busy"));
    if (this.markdown) this.markdown.update(this.text);
    else this.body.replaceChildren(element("span", { class: "given" }, this.prompt), this.text);
    this.numbers(this.latest);
    this.element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
  }

  numbers(stats) {
    const shown = [];
    if (stats.tokens_per_s) shown.push(element("span", {}, element("b", {}, rate(stats.tokens_per_s)), " tokens/s"));
    if (stats.first_ms !== null) shown.push(element("span", { title: "Time to the first token" }, "first token after ", element("b", {}, ms(stats.first_ms))));
    if (stats.tokens) shown.push(element("span", {}, element("b", {}, String(stats.tokens)), stats.tokens === 1 ? " token" : " tokens"));
    this.stats.replaceChildren(...shown);
  }

  // The bar that two answers share: as long as this one's speed is, compared with the faster one's.
  measure(shown, part) {
    this.race.hidden = !shown;
    this.bar.style.width = `${Math.round(100 * part)}%`;
  }

  // The answer as it ended.
  end(answer, last) {
    if (this.#pending !== null) cancelAnimationFrame(this.#pending);
    this.element.removeAttribute("aria-busy");
    this.text = answer.text;
    this.latest = answer.stats;
    this.#draw();
    this.body.hidden = this.markdown && !answer.text && Boolean(answer.failure);
    const note = answer.stopped ? "stopped" : answer.finish === "length" ? "cut off: no tokens left" : !answer.text && !answer.failure ? "empty answer" : "";
    if (note) this.stats.append(element("span", {}, note));
    if (answer.failure) {
      const detail = answer.failure.detail ? element("small", {}, answer.failure.detail) : null;
      this.trouble.replaceChildren(...[answer.failure.message, detail].filter(Boolean));
    }
    this.trouble.hidden = !answer.failure;
    this.copy.hidden = !answer.text;
    this.again.hidden = !last;
  }
}

// A turn: what was asked, and an answer for each server.
export function turnElement(turn, views) {
  const asked = turn.chat ? element("p", { class: "asked" }, turn.text) : null;
  return element("section", { class: "turn", "aria-label": "Turn" }, asked, element("div", { class: "answers" }, ...views.map((view) => view.element)));
}

// How much faster the first server was, over all turns that both answered: the middle one of the ratios and their range.
export function compareSpeeds(turns) {
  const pairs = turns.map(({ answers }) => answers).filter((pair) => pair.length > 1 && pair.every((one) => one?.stats?.tokens_per_s && !one.failure));
  const ratios = pairs.map(([one, two]) => one.stats.tokens_per_s / two.stats.tokens_per_s).sort((a, b) => a - b);
  if (!ratios.length) return null;
  const middle = (ratios[Math.floor((ratios.length - 1) / 2)] + ratios[Math.ceil((ratios.length - 1) / 2)]) / 2;
  return { middle, least: ratios[0], most: ratios.at(-1), count: ratios.length, names: pairs.at(-1).map((one) => one.model) };
}

// The same in words.
export function describeSpeeds({ middle, least, most, count, names }, inTurn) {
  const ahead = middle >= 1;
  const shown = names[0] === names[1] ? ["The first", "the second"] : names;
  const [fast, slow] = ahead ? shown : [shown[1], shown[0]];
  const bounds = (ahead ? [least, most] : [1 / most, 1 / least]).map((ratio) => `${rate(ratio)}×`);
  const range = count > 1 ? `The middle of ${count} pairs of answers, ${bounds.join(" to ")}` : "From one pair of answers, so a hint and not a measurement";
  const how = inTurn ? "one after the other" : "both at the same time: on one machine they take cores from each other";
  return [`${fast} makes ${rate(ahead ? middle : 1 / middle)}× the tokens per second of ${slow}.`, element("small", {}, `${range}; ${how}.`)];
}
