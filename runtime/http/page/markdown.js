// Markdown as elements: paragraphs, headings, lists, quotes, tables, fenced code, bold, italic, code, links. Text stays text: every
// character goes through a text node, so that nothing an answer says is read as HTML. An image is shown as a link to it.

const DEEPEST = 8; // lists and quotes inside each other; deeper ones are shown as text
const INLINE = /(`+)([^`]|[^`][^]*?[^`])\1(?!`)|\*\*(?=\S)([^]+?)\*\*(?!\*)|__(?=\S)([^]+?)__(?!\w)|\*(?=[^\s*])([^*]*[^\s*])\*(?!\w)|(?<!\w)_(?=[^\s_])([^_]*[^\s_])_(?!\w)|~~(?=\S)([^~]+)~~|!?\[([^\[\]]*)\]\(([^()\s]*)\)|\\([\\`*_{}\[\]()#+\-.!~|>])/;
const LONGEST_INLINE = 5000; // characters of one paragraph that are searched for signs

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// The blocks of a text, each as { kind, lines }; a fence that is not closed yet goes to the end.
function blocks(lines) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const from = at;
    const fence = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/.exec(line);
    if (!line.trim()) {
      at++;
      continue;
    } else if (fence) {
      do at++;
      while (at < lines.length && !(lines[at].trim().startsWith(fence[1]) && !lines[at].trim().replaceAll(fence[1][0], "")));
      found.push({ kind: "code", language: fence[2].trim(), lines: lines.slice(from + 1, at++) });
    } else if (/^#{1,6}\s/.test(line)) {
      found.push({ kind: "heading", lines: lines.slice(from, ++at) });
    } else if (/^ {0,3}([-*_])(\s*\1){2,}\s*$/.test(line)) {
      found.push({ kind: "rule", lines: lines.slice(from, ++at) });
    } else if (/^ {0,3}>/.test(line)) {
      while (at < lines.length && /^ {0,3}>/.test(lines[at])) at++;
      found.push({ kind: "quote", lines: lines.slice(from, at) });
    } else if (MARK.test(line)) {
      at = endOfList(lines, at);
      found.push({ kind: "list", lines: lines.slice(from, at) });
    } else if (line.includes("|") && isRuler(lines[at + 1])) {
      while (at < lines.length && lines[at].includes("|")) at++;
      found.push({ kind: "table", lines: lines.slice(from, at) });
    } else {
      do at++;
      while (at < lines.length && lines[at].trim() && !STARTS.test(lines[at]));
      found.push({ kind: "text", lines: lines.slice(from, at) });
    }
  }
  return found;
}

const MARK = /^(\s*)([-*+]|\d{1,9}[.)])\s+(?=\S)/;
const STARTS = /^ {0,3}(#{1,6}\s|>|`{3,}|~{3,}|[-*+]\s+\S|1[.)]\s+\S|([-*_])(\s*\2){2,}\s*$)/;
const isRuler = (line) => line !== undefined && line.includes("-") && /^[\s|:-]+$/.test(line) && line.includes("|");

// A list goes on with marks of its kind and with indented lines; other text only goes on without an empty line in between.
function endOfList(lines, at) {
  const [, indent, first] = MARK.exec(lines[at]);
  for (let next = at + 1; next < lines.length; next++) {
    if (!lines[next].trim()) continue;
    const mark = MARK.exec(lines[next]);
    const inside = mark ? mark[1].length > indent.length + 1 || /\d/.test(mark[2]) === /\d/.test(first) : /^\s{2,}/.test(lines[next]);
    if (!inside && (mark || !lines[next - 1].trim() || STARTS.test(lines[next]))) return next;
  }
  return lines.length;
}

function inline(text, depth = 0) {
  const parts = [];
  let rest = text;
  while (rest) {
    const match = depth < DEEPEST && rest.length < LONGEST_INLINE ? INLINE.exec(rest) : null;
    if (!match) {
      parts.push(rest);
      break;
    }
    parts.push(rest.slice(0, match.index));
    const [whole, , code, bold, bold2, italic, italic2, struck, label, target, escaped] = match;
    if (code !== undefined) parts.push(element("code", {}, code.trim() || code));
    else if (bold ?? bold2) parts.push(element("strong", {}, ...inline(bold ?? bold2, depth + 1)));
    else if (italic ?? italic2) parts.push(element("em", {}, ...inline(italic ?? italic2, depth + 1)));
    else if (struck) parts.push(element("s", {}, ...inline(struck, depth + 1)));
    else if (escaped) parts.push(escaped);
    else parts.push(link(whole, label, target));
    rest = rest.slice(match.index + whole.length);
  }
  return parts;
}

function link(whole, label, target) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return whole;
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, label || target);
}

function list(lines, depth) {
  const indent = MARK.exec(lines[0])[1].length;
  const items = [];
  for (const line of lines) {
    const mark = MARK.exec(line);
    if (mark && mark[1].length <= indent + 1) items.push({ mark: mark[2], lines: [line.slice(mark[0].length)] });
    else items.at(-1).lines.push(line);
  }
  const numbered = /\d/.test(items[0].mark);
  const shown = items.map((item) => {
    const inner = item.lines.slice(1).filter((line) => line.trim());
    const cut = Math.min(...inner.map((line) => line.length - line.trimStart().length));
    const body = [item.lines[0], ...item.lines.slice(1).map((line) => line.slice(Math.min(cut, line.length)))];
    const made = elements(body, depth + 1);
    return element("li", {}, ...made.flatMap((child, i) => (i === 0 && child.tagName === "P" ? [...child.childNodes] : [child])));
  });
  return element(numbered ? "ol" : "ul", { start: numbered ? String(parseInt(items[0].mark, 10)) : undefined }, ...shown);
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (kind, line) => element("tr", {}, ...cells(line).map((cell) => element(kind, {}, ...inline(cell))));
  const head = element("thead", {}, row("th", lines[0]));
  const rows = element("tbody", {}, ...lines.slice(2).map((line) => row("td", line)));
  return element("div", { class: "scroll", tabindex: "0" }, element("table", {}, head, rows));
}

function code(block) {
  const text = block.lines.join("\n");
  const copy = element("button", { type: "button", "data-copy": "code" }, "Copy");
  const head = element("div", {}, element("span", {}, block.language.split(/\s/)[0].slice(0, 30) || "text"), copy);
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0" }, element("code", {}, text)));
}

function show(block, depth) {
  switch (block.kind) {
    case "code":
      return code(block);
    case "heading": {
      const [, signs, text] = /^(#+)\s+(.*?)\s*#*$/.exec(block.lines[0]) ?? [null, "#", ""];
      return element(`h${Math.min(signs.length + 2, 5)}`, {}, ...inline(text));
    }
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...elements(block.lines.map((line) => line.replace(/^\s*> ?/, "")), depth + 1));
    case "list":
      return list(block.lines, depth);
    case "table":
      return table(block.lines);
  }
  const parts = block.lines.flatMap((line, i) => (i ? [element("br"), ...inline(line.trim())] : inline(line.trim())));
  return element("p", {}, ...parts);
}

function elements(lines, depth) {
  if (depth > DEEPEST) return [element("p", {}, lines.join("\n"))];
  return blocks(lines).map((block) => show(block, depth));
}

// Keeps an element in step with a text that grows: only blocks that changed are made again.
export class Markdown {
  constructor(target) {
    this.target = target;
    this.known = [];
  }

  update(text) {
    const now = blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
    const signs = now.map((block) => `${block.kind} ${block.language ?? ""}\n${block.lines.join("\n")}`);
    let same = 0;
    while (same < signs.length && signs[same] === this.known[same]) same++;
    while (this.target.childNodes.length > same) this.target.lastChild.remove();
    this.target.append(...now.slice(same).map((block) => show(block, 0)));
    this.known = signs;
  }
}
