"use strict";
// Rollouts as elements. Model output enters the page only through textContent.

function element(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

// `place` indexes a rollout's pieces: characters, log-probs, log-ratios to the reference, advantages (in hundredths).
const SHADES = {
  logprob: { place: 1, full: 5, words: "log-prob of the token" },
  kl: { place: 2, full: 2, words: "log-ratio to the reference" },
  advantage: { place: 3, full: 2, words: "advantage" },
};
const UP = [40, 110, 230], DOWN = [220, 70, 30];
function colour(shade, value) {
  if (value === null || value === 0) return "";
  const strength = Math.min(1, Math.abs(value) / SHADES[shade].full) * 0.65;
  return "rgba(" + (value > 0 ? UP : DOWN).join(",") + "," + strength.toFixed(3) + ")";
}

function drawText(rollout) {
  const box = element("div", "completion words"), shade = $("shade").value;
  const pieces = shade === "none" ? null : rollout.pieces;
  const values = pieces && pieces[SHADES[shade].place];
  if (!pieces || !pieces[0] || (!values && shade !== "advantage")) {
    box.textContent = rollout.text;
    if (shade === "advantage") box.style.backgroundColor = colour(shade, rollout.advantage);
    return box;
  }
  const characters = Array.from(rollout.text), [lengths, logprobs, ratios, advantages] = pieces;
  const label = (name, list, index) => (list && list[index] !== null ? ", " + name + " " + digits(list[index] / 100) : "");
  let start = 0;
  lengths.forEach((length, index) => {
    if (!length) return;
    const span = element("span", "token", characters.slice(start, start + length).join(""));
    const value = values ? values[index] === null ? null : values[index] / 100 : rollout.advantage;
    span.style.backgroundColor = colour(shade, value);
    span.title = "token " + index + label("log-prob", logprobs, index) +
      label("log-ratio to the reference", ratios, index) + label("advantage", advantages, index);
    start += length;
    box.append(span);
  });
  return box;
}

function facts(rollout, ...parts) {
  const box = element("div", "facts", element("b", "v" + rollout.verdict, head.verdicts[rollout.verdict]));
  if (rollout.advantage !== null) parts.push("advantage " + signed(rollout.advantage));
  for (const part of parts) box.append(element("span", "", part));
  return box;
}

const measured = (rollout) => [
  rollout.tokens + " tokens" + (rollout.finish === "length" ? ", truncated" : ""), "log-prob " + digits(rollout.logprob),
  ...(rollout.kl === null ? [] : ["KL " + digits(rollout.kl, 3)]),
  ...Object.entries(rollout.rewards || {}).map(([name, reward]) => name + " " + digits(reward)),
];

function drawRollout(rollout, rows, top) {
  const kind = "rollout v" + rollout.verdict + (rows.has(rollout) ? "" : " other") + (rollout.attempt > 1 ? " again" : "");
  const card = element("article", kind, top, drawText(rollout));
  if (rollout.feedback && !rollout.children.some((child) => child.turn)) card.append(element("div", "feedback words", rollout.feedback));
  return card;
}

function drawMessage({ role, content, ...others }) {
  const words = [content, ...Object.entries(others).map(([key, value]) => key + ": " + JSON.stringify(value))];
  return element("div", "message", element("div", "role", role), element("div", "words", words.filter(Boolean).join("\n")));
}

// A first attempt with those that follow it, or a conversation: the prompt of a turn is all that was said before it.
function drawColumn(rollout, rows) {
  const parts = turns(rollout);
  if (parts.length > 1) {
    const sum = facts(parts.at(-1), "return " + digits(gained(parts)), parts.length + " turns", total(parts.map((turn) => turn.tokens)) + " tokens");
    const box = element("div", "conversation", sum);
    parts.forEach((turn, place) => {
      if (place) box.append(...turn.messages.slice(parts[place - 1].messages.length + 1).map(drawMessage));
      const top = element("div", "facts", ...["turn " + (place + 1), "reward " + digits(turn.reward), ...measured(turn)].map((part) => element("span", "", part)));
      box.append(drawRollout(turn, rows, top));
    });
    return box;
  }
  const column = element("div", "column", drawRollout(rollout, rows, facts(rollout, "reward " + digits(rollout.reward), ...measured(rollout))));
  for (const next of rollout.children)
    column.append(element("div", "turn", "attempt " + next.attempt + ", after the feedback above:"), drawColumn(next, rows));
  return column;
}

function drawGroup({ group, rows }) {
  const box = element("section", "group"), { messages, answer, metadata } = group.all[0];
  const title = element("h3", "", element("span", "", head.unit + " " + group.step), element("span", "faint", group.name));
  if (group.firsts.length > 1)
    title.append(element("span", "faint", "mean reward " + digits(group.reward) + (group.signal ? "" : ", no signal")));
  box.append(title, ...messages.map(drawMessage));
  if (answer !== null)
    box.append(element("div", "words faint", "answer: " + (typeof answer === "string" ? answer : JSON.stringify(answer))));
  if (Object.keys(metadata).length)
    box.append(element("details", "faint", element("summary", "", "the row's other columns"), element("div", "words", JSON.stringify(metadata, null, 1))));
  box.append(element("div", "columns", ...group.firsts.map((rollout) => drawColumn(rollout, rows))));
  return box;
}

function button(text, action) {
  const made = element("button", "more", text);
  made.type = "button";
  made.onclick = () => { made.remove(); action(); };
  return made;
}

// Draw as many groups as a page holds, and a button for the next ones.
function drawSome(pane, found) {
  let count = 0, size = 0;
  while (count < found.length && size < ON_PAGE) size += found[count++].group.all.length;
  pane.append(...found.slice(0, count).map(drawGroup));
  if (count < found.length)
    pane.append(button("show more of the other " + (found.length - count) + " groups", () => { drawSome(pane, found.slice(count)); mark(); }));
}

function mark() {
  if (!window.CSS || !CSS.highlights) return;
  const text = $("search").value.toLowerCase(), marks = new Highlight();
  CSS.highlights.delete("found");
  for (const box of text ? document.querySelectorAll(".completion, .message .words") : []) {
    const nodes = [], walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    let whole = "";
    while (walker.nextNode()) { nodes.push([whole.length, walker.currentNode]); whole += walker.currentNode.data; }
    const at = (place, end) => nodes.filter(([start]) => (end ? start < place : start <= place)).at(-1);
    const lower = whole.toLowerCase();
    if (lower.length !== whole.length) continue;
    for (let found = lower.indexOf(text); found >= 0; found = lower.indexOf(text, found + text.length)) {
      const range = new Range(), begin = at(found, false), end = at(found + text.length, true);
      range.setStart(begin[1], found - begin[0]);
      range.setEnd(end[1], found + text.length - end[0]);
      marks.add(range);
    }
  }
  CSS.highlights.set("found", marks);
}

function legend() {
  const box = $("legend"), shade = $("shade").value;
  box.replaceChildren();
  if (shade === "none") return;
  const { full, words } = SHADES[shade];
  for (const value of shade === "logprob" ? [-full, -full / 2, -full / 10] : [-full, -full / 2, full / 2, full]) {
    const swatch = element("span", "swatch");
    swatch.style.backgroundColor = colour(shade, value);
    box.append(swatch, " " + value + "  ");
  }
  box.append(words);
}
