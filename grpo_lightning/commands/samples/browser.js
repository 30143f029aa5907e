"use strict";
// Model output enters the page only through textContent.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const $ = (id) => document.getElementById(id);
const head = read("head"), prompts = read("prompts");
const rollouts = read("rollouts").map((row, index) => {
  const rollout = { index, children: [] };
  head.fields.forEach((name, place) => { rollout[name] = row[place]; });
  return rollout;
});
const ON_PAGE = 64;

// -- data ------------------------------------------------------------------------------------------------------------

const chunks = new Map();
function tokensOf(rollout) {
  const number = Math.floor(rollout.index / head.chunk);
  if (!chunks.has(number)) chunks.set(number, read("tokens-" + number));
  return chunks.get(number)[rollout.index % head.chunk];
}

const groups = new Map();
for (const rollout of rollouts) {
  const key = rollout.step + " " + rollout.group;
  if (!groups.has(key)) groups.set(key, { step: rollout.step, name: rollout.group, prompt: rollout.prompt, all: [], firsts: [] });
  groups.get(key).all.push(rollout);
  if (rollout.parent === null) groups.get(key).firsts.push(rollout);
  else rollouts[rollout.parent].children.push(rollout);
}
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const known = (rows, name) => rows.map((rollout) => rollout[name]).filter((value) => value !== null);
for (const group of groups.values()) {
  const rewards = known(group.firsts, "reward");
  group.reward = rewards.length ? mean(rewards) : null;
  group.signal = new Set(rewards).size > 1;
  group.tokens = Math.max(...group.all.map((rollout) => rollout.tokens));
  const kls = known(group.all, "kl");
  group.kl = kls.length ? Math.max(...kls) : null;
  group.promptText = prompts[group.prompt][0].map((turn) => turn.content).join("\n").toLowerCase();
}

// -- filters and view, kept in the address so that a view can be linked -----------------------------------------------

const params = new URLSearchParams(location.hash.slice(1));
const hidden = new Set((params.get("hide") || "").split(",").filter(Boolean));
const BOXES = ["cut", "again", "signal"], TEXTS = ["from", "to", "least", "most", "search", "order", "shade"];
for (const id of TEXTS) if (params.has(id)) $(id).value = params.get(id);
for (const id of BOXES) $(id).checked = params.has(id);
let page = Math.max(0, Number(params.get("page") || 1) - 1) || 0;
if (params.has("theme")) document.documentElement.dataset.theme = params.get("theme");
for (const option of $("shade").options) {
  const without = { kl: () => !rollouts.some((rollout) => rollout.kl !== null), none: () => false }[option.value];
  option.disabled = Boolean(without && without());
}
const number = (id) => ($(id).value === "" ? null : Number($(id).value));

function remember() {
  const state = new URLSearchParams();
  for (const id of TEXTS) if ($(id).value !== "" && $(id).selectedIndex !== 0) state.set(id, $(id).value);
  for (const id of BOXES) if ($(id).checked) state.set(id, "1");
  if (hidden.size) state.set("hide", [...hidden].join(","));
  if (page) state.set("page", page + 1);
  if (document.documentElement.dataset.theme) state.set("theme", document.documentElement.dataset.theme);
  history.replaceState(null, "", "#" + state);
}

function matchingGroups() {
  const from = number("from"), to = number("to"), least = number("least"), most = number("most");
  const text = $("search").value.toLowerCase();
  const fits = (rollout, group) =>
    !hidden.has(head.verdicts[rollout.verdict]) &&
    (least === null || (rollout.reward !== null && rollout.reward >= least)) &&
    (most === null || (rollout.reward !== null && rollout.reward <= most)) &&
    (!$("cut").checked || rollout.finish === "length") &&
    (!$("again").checked || rollout.attempt > 1) &&
    (!text || group.promptText.includes(text) || rollout.text.toLowerCase().includes(text));
  const found = [];
  for (const group of groups.values()) {
    if ((from !== null && group.step < from) || (to !== null && group.step > to)) continue;
    if ($("signal").checked && !group.signal) continue;
    const rows = group.all.filter((rollout) => fits(rollout, group));
    if (rows.length) found.push({ group, rows: new Set(rows) });
  }
  const order = $("order").value, name = order.replace("-", ""), sign = order.startsWith("-") ? -1 : 1;
  const value = ({ group }) => (group[name] === null ? sign * Infinity : group[name]);
  return found.sort((a, b) => {
    const x = value(a), y = value(b);
    return x === y ? a.group.step - b.group.step : sign * (x < y ? -1 : 1);
  });
}

// -- drawing ---------------------------------------------------------------------------------------------------------

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}
const digits = (value, count = 2) => (value === null ? "none" : value.toFixed(count));
const signed = (value) => (value > 0 ? "+" : "") + digits(value);

// `place` indexes a rollout's tokens: characters, log-probs, log-ratios to the reference, advantages (in hundredths).
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

function words(rollout, shade) {
  const box = element("div", "completion words");
  const tokens = shade === "none" ? null : tokensOf(rollout);
  const values = tokens && tokens[SHADES[shade].place];
  if (!tokens || !tokens[0] || (!values && shade !== "advantage")) {
    box.textContent = rollout.text;
    if (shade === "advantage") box.style.backgroundColor = colour(shade, rollout.advantage);
    return box;
  }
  const characters = Array.from(rollout.text);
  let start = 0;
  tokens[0].forEach((length, index) => {
    const value = values ? values[index] === null ? null : values[index] / 100 : rollout.advantage;
    if (!length) return;
    const span = element("span", "", characters.slice(start, start + length).join(""));
    span.dataset.token = index;
    span.style.backgroundColor = colour(shade, value);
    start += length;
    box.append(span);
  });
  box.dataset.rollout = rollout.index;
  return box;
}

function drawRollout(rollout, rows, shade) {
  const card = element("article", "rollout v" + rollout.verdict + (rows.has(rollout) ? "" : " other") + (rollout.attempt > 1 ? " again" : ""));
  const facts = element("div", "facts");
  facts.append(element("b", "", head.verdicts[rollout.verdict]));
  facts.append(element("span", "", "reward " + digits(rollout.reward)));
  if (rollout.advantage !== null) facts.append(element("span", "", "advantage " + signed(rollout.advantage)));
  facts.append(element("span", "", rollout.tokens + " tokens" + (rollout.finish === "length" ? ", truncated" : "")));
  facts.append(element("span", "", "log-prob " + digits(rollout.logprob)));
  if (rollout.kl !== null) facts.append(element("span", "", "KL " + digits(rollout.kl, 3)));
  for (const [name, reward] of Object.entries(rollout.rewards || {}))
    facts.append(element("span", "", name + " " + digits(reward)));
  card.append(facts, words(rollout, shade));
  const continues = rollout.children.some((next) => saidBetween(rollout, next).length);
  if (rollout.feedback && !continues) card.append(element("div", "feedback words", rollout.feedback));
  return card;
}

// In an episode the prompt of a turn is all that has been said: that of the turn before, its reply, and what followed.
function saidBetween(rollout, next) {
  return prompts[next.prompt][0].slice(prompts[rollout.prompt][0].length + 1);
}

function drawMessage(turn) {
  const box = element("div", "prompt");
  box.append(element("div", "faint", turn.role), element("div", "words", turn.content));
  return box;
}

function drawColumn(rollout, rows, shade, column) {
  column.append(drawRollout(rollout, rows, shade));
  for (const next of rollout.children) {
    const said = saidBetween(rollout, next);
    if (!said.length) column.append(element("div", "turn", "attempt " + next.attempt + ", after the feedback above:"));
    for (const message of said) column.append(drawMessage(message));
    drawColumn(next, rows, shade, column);
  }
  return column;
}

function drawGroup({ group, rows }, shade) {
  const box = element("section", "group");
  const title = element("h2");
  title.append(element("span", "", "step " + group.step), element("span", "faint", group.name));
  title.append(element("span", "faint", "mean reward " + digits(group.reward)));
  if (!group.signal) title.append(element("span", "faint", "no signal"));
  box.append(title);
  const [messages, answer, metadata] = prompts[group.prompt];
  for (const turn of messages) box.append(drawMessage(turn));
  if (answer !== null)
    box.append(element("div", "words faint", "answer: " + (typeof answer === "string" ? answer : JSON.stringify(answer))));
  if (Object.keys(metadata).length) {
    const more = element("details", "faint");
    more.append(element("summary", "", "the row's other columns"), element("div", "words", JSON.stringify(metadata, null, 1)));
    box.append(more);
  }
  const columns = element("div", "columns");
  for (const rollout of group.firsts) columns.append(drawColumn(rollout, rows, shade, element("div", "column")));
  box.append(columns);
  return box;
}

function legend(shade) {
  const box = $("legend");
  box.replaceChildren();
  if (shade === "none") return;
  const { full, words: meaning } = SHADES[shade];
  const steps = shade === "logprob" ? [-full, -full / 2, -full / 10] : [-full, -full / 2, full / 2, full];
  for (const value of steps) {
    const swatch = element("span", "swatch");
    swatch.style.backgroundColor = colour(shade, value);
    box.append(swatch, " " + value + "  ");
  }
  box.append(meaning);
}

function mark(text) {
  if (!window.CSS || !CSS.highlights) return;
  CSS.highlights.delete("found");
  if (!text) return;
  const marks = new Highlight();
  for (const box of document.querySelectorAll(".completion, .prompt .words")) {
    const nodes = [], walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
    let whole = "";
    while (walker.nextNode()) { nodes.push([whole.length, walker.currentNode]); whole += walker.currentNode.data; }
    const at = (place, last) => nodes.filter(([start]) => (last ? start < place : start <= place)).at(-1);
    const lower = whole.toLowerCase();
    if (lower.length !== whole.length) continue;
    for (let found = lower.indexOf(text); found >= 0; found = lower.indexOf(text, found + text.length)) {
      const range = new Range(), first = at(found, false), last = at(found + text.length, true);
      range.setStart(first[1], found - first[0]);
      range.setEnd(last[1], found + text.length - last[0]);
      marks.add(range);
    }
  }
  CSS.highlights.set("found", marks);
}

function drawCurve() {
  const byStep = new Map();
  for (const group of groups.values())
    if (group.reward !== null) byStep.set(group.step, [...(byStep.get(group.step) || []), group.reward]);
  const points = [...byStep].map(([step, rewards]) => [step, mean(rewards)]).sort((a, b) => a[0] - b[0]);
  if (!points.length) return;
  const svg = $("curve"), space = "http://www.w3.org/2000/svg";
  const first = points[0][0], wide = Math.max(1, points.at(-1)[0] - first);
  const low = Math.min(...points.map((p) => p[1])), high = Math.max(...points.map((p) => p[1]));
  const x = (step) => 4 + (992 * (step - first)) / wide, y = (reward) => 40 - (36 * (reward - low)) / (high - low || 1);
  svg.setAttribute("viewBox", "0 0 1000 44");
  svg.setAttribute("preserveAspectRatio", "none");
  const from = number("from"), to = number("to");
  svg.replaceChildren();
  if (from !== null || to !== null) {
    const band = document.createElementNS(space, "rect");
    const left = x(from === null ? first : from) - 3, right = x(to === null ? first + wide : to) + 3;
    for (const [name, value] of Object.entries({ x: left, y: 0, width: Math.max(0, right - left), height: 44 }))
      band.setAttribute(name, value);
    svg.append(band);
  }
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", points.map(([step, reward]) => x(step) + "," + y(reward)).join(" "));
  const title = document.createElementNS(space, "title");
  title.textContent = "mean reward per step, from " + digits(low) + " to " + digits(high) + "; click to select a step";
  svg.append(line, title);
  svg.onclick = (event) => {
    const place = svg.getBoundingClientRect();
    const wanted = first + (wide * (((event.clientX - place.left) / place.width) * 1000 - 4)) / 992;
    const step = points.reduce((best, p) => (Math.abs(p[0] - wanted) < Math.abs(best - wanted) ? p[0] : best), first);
    $("from").value = $("to").value = step;
    renew();
  };
}

function draw() {
  const found = matchingGroups(), shade = $("shade").value;
  const size = Math.max(1, Math.round(ON_PAGE / mean([...groups.values()].map((group) => group.all.length))));
  const pages = Math.max(1, Math.ceil(found.length / size));
  page = Math.min(page, pages - 1);
  const matching = found.reduce((sum, { rows }) => sum + rows.size, 0);
  $("count").textContent = matching + " rollouts in " + found.length + " groups";
  $("place").textContent = "page " + (page + 1) + " of " + pages;
  $("previous").disabled = page === 0;
  $("next").disabled = page >= pages - 1;
  $("groups").replaceChildren(...found.slice(page * size, (page + 1) * size).map((match) => drawGroup(match, shade)));
  if (!found.length) $("groups").append(element("p", "faint", "Nothing matches."));
  legend(shade);
  mark($("search").value.toLowerCase());
  drawCurve();
  remember();
}

// -- controls --------------------------------------------------------------------------------------------------------

function renew() { page = 0; draw(); }
function turn(by) { page += by; draw(); scrollTo(0, 0); }
head.verdicts.forEach((name, place) => {
  const count = rollouts.filter((rollout) => rollout.verdict === place).length;
  const button = element("button", "v" + place, name + " " + count);
  button.type = "button";
  button.setAttribute("aria-pressed", String(!hidden.has(name)));
  button.onclick = () => {
    if (!hidden.delete(name)) hidden.add(name);
    button.setAttribute("aria-pressed", String(!hidden.has(name)));
    renew();
  };
  $("verdicts").append(button);
});
let typing;
for (const id of [...BOXES, ...TEXTS])
  $(id).addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(renew, id === "search" ? 200 : 0); });
$("previous").onclick = () => turn(-1);
$("next").onclick = () => turn(1);
$("theme").onclick = () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  remember();
};
$("groups").addEventListener("mouseover", (event) => {
  const span = event.target.closest("[data-token]");
  if (!span || span.title) return;
  const rollout = rollouts[span.closest("[data-rollout]").dataset.rollout];
  const [, logprobs, gaps, advantages] = tokensOf(rollout), index = span.dataset.token;
  const label = (name, values) => (values && values[index] !== null ? name + " " + digits(values[index] / 100) : "");
  span.title = [
    "token " + index, label("log-prob", logprobs), label("log-ratio to the reference", gaps), label("advantage", advantages),
  ].filter(Boolean).join(", ");
});
$("note").textContent = head.note;
draw();
