"use strict";
// What is shown, and the controls. Needs data.js and draw.js.

// -- view: kept in the address, so that it can be linked --------------------------------------------------------------

const params = new URLSearchParams(location.hash.slice(1));
const hidden = new Set((params.get("hide") || "").split(",").filter(Boolean));
const BOXES = ["cut", "again", "signal", "all"], TEXTS = ["least", "most", "search", "order", "shade", "curve"];
const CURVES = { reward: "mean reward", accuracy: "share correct", "format only": "share of format only", error: "share of errors",
  truncated: "share truncated", tokens: "mean tokens", kl: "highest KL to the reference" };
for (const [name, title] of Object.entries(CURVES))
  if (head.steps[name].some((value) => value !== null)) $("curve").append(new Option(title, name));
for (const id of TEXTS) if (params.has(id)) $(id).value = params.get(id);
for (const id of BOXES) $(id).checked = params.has(id);
$("step").value = params.get("step") ?? last;
// First and last side by side; batches of an evaluation have no order.
const besides = steps.length > 1 && head.unit === "step" ? String(first) : "";
$("beside").value = params.get("beside") ?? besides;
if (params.has("theme")) document.documentElement.dataset.theme = params.get("theme");
for (const [kind, text] of Object.entries({ unit: head.unit, units }))
  for (const box of document.querySelectorAll("." + kind)) box.textContent = text;
const number = (id) => ($(id).value === "" ? null : Number($(id).value));
// The step that is there and nearest to what was typed.
const nearest = (wanted) => steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best), first);

function remember() {
  const state = new URLSearchParams();
  if (number("step") !== last) state.set("step", $("step").value);
  if ($("beside").value !== besides) state.set("beside", $("beside").value);
  for (const id of TEXTS) if ($(id).value !== "" && $(id).selectedIndex !== 0) state.set(id, $(id).value);
  for (const id of BOXES) if ($(id).checked) state.set(id, "1");
  if (hidden.size) state.set("hide", [...hidden].join(","));
  if (document.documentElement.dataset.theme) state.set("theme", document.documentElement.dataset.theme);
  history.replaceState(null, "", "#" + state);
}

function matching(groups) {
  const least = number("least"), most = number("most"), text = $("search").value.toLowerCase();
  const fits = (rollout, group) =>
    !hidden.has(head.verdicts[rollout.verdict]) &&
    (least === null || (rollout.reward !== null && rollout.reward >= least)) &&
    (most === null || (rollout.reward !== null && rollout.reward <= most)) &&
    (!$("cut").checked || rollout.finish === "length") &&
    (!$("again").checked || rollout.attempt > 1) &&
    (!text || group.promptText.includes(text) || rollout.text.toLowerCase().includes(text));
  const found = [];
  for (const group of groups) {
    const rows = $("signal").checked && !group.signal ? [] : group.all.filter((rollout) => fits(rollout, group));
    if (rows.length) found.push({ group, rows: new Set(rows) });
  }
  const order = $("order").value, name = order.replace("-", ""), sign = order.startsWith("-") ? -1 : 1;
  const value = ({ group }) => (group[name] === null ? Infinity : sign * group[name]);
  return order ? found.sort((a, b) => value(a) - value(b)) : found;
}

// Whether the index rules out that a step has what the filters want, so that a search need not load it.
function cannotMatch(place) {
  const of = (name) => head.steps[name][place];
  return total(head.verdicts.filter((name) => !hidden.has(name)).map(of)) === 0 || ($("cut").checked && of("truncated") === 0);
}

// -- a step, two of them, or a search through all ---------------------------------------------------------------------

let drawing = 0;
async function draw() {
  const mine = ++drawing;
  remember();
  legend();
  plot.redraw(false);
  const left = number("beside"), right = number("step");
  $("earlier").disabled = right === first;
  $("later").disabled = right === last;
  try {
    if ($("all").checked) await search(mine, steps.length - 1, $("panes"));
    else await show(mine, left === null || left === right ? [right] : [left, right]);
  } catch (error) {
    if (mine === drawing) $("panes").replaceChildren(element("p", "faint", error.message));
  }
}

async function show(mine, chosen) {
  const panes = (await Promise.all(chosen.map(load))).map((groups, place) => {
    const found = matching(groups), step = chosen[place], rows = total(found.map((match) => match.rows.size));
    const ends = { [first]: ", the first", [last]: ", the last" }, ending = (head.unit === "step" && ends[step]) || "";
    const of = (name) => head.steps[name][steps.indexOf(step)];
    const sum = rows + " of " + of("rollouts") + " rollouts in " + found.length + " groups, " +
      (100 * of("accuracy")).toFixed(0) + " % correct, mean reward " + digits(of("reward"));
    const singles = groups.every((group) => group.firsts.length === 1);
    const pane = element("section", "pane" + (singles ? " singles" : ""), element("h2", "", head.unit + " " + step + ending, element("span", "faint", sum)));
    if (found.length) drawSome(pane, found);
    else pane.append(element("p", "faint", "Nothing matches."));
    return pane;
  });
  if (mine !== drawing) return;
  $("panes").replaceChildren(...panes);
  mark();
}

// From the last step backwards, until a page is full.
async function search(mine, from, place) {
  const words = element("span", "faint", "searching"), pane = element("section", "pane", element("h2", "", "all " + units, words));
  if (place === $("panes")) place.replaceChildren(pane);
  else place.append(pane);
  const found = [];
  let size = 0, at = from;
  for (; at >= 0 && size < ON_PAGE; at--) {
    if (cannotMatch(at)) continue;
    for (let next = at; next > at - AHEAD && next >= 0; next--) if (!cannotMatch(next)) load(steps[next]).catch(() => {});
    const matches = matching(await load(steps[at]));
    if (mine !== drawing) return;
    words.textContent = "searching, back to " + head.unit + " " + steps[at];
    found.push(...matches);
    size += total(matches.map(({ group }) => group.all.length));
  }
  const next = at >= 0 ? at : null;
  words.textContent = total(found.map((match) => match.rows.size)) + " rollouts in " + found.length + " groups, " +
    units + " " + steps[at + 1] + " to " + steps[from];
  if (!found.length) pane.append(element("p", "faint", "Nothing matches."));
  pane.append(...found.map(drawGroup));
  if (next !== null) pane.append(button("search further, from " + head.unit + " " + steps[next] + " back", () => search(mine, next, pane)));
  mark();
}

// -- the curve, and what is chosen in it ------------------------------------------------------------------------------

function curve() {
  const name = $("curve").value, share = ["format only", "error", "truncated"].includes(name);
  const values = share ? head.steps[name].map((count, place) => count / head.steps.rollouts[place]) : head.steps[name];
  const marks = (plot) => {
    for (const step of new Set([number("step"), number("beside")])) {
      if (step === null || $("all").checked) continue;
      const x = Math.round(plot.valToPos(step, "x", true)), { top, height } = plot.bbox;
      plot.ctx.fillStyle = "rgba(213, 94, 0, .75)";
      plot.ctx.fillRect(x - 1, top, 2, height);
    }
  };
  const line = { label: CURVES[name], stroke: "#3b7ddd", width: 1.6, points: { show: steps.length < 60 }, value: (_, value) => (value === null ? "" : digits(value, 3)) };
  const made = chart($("chart"), {
    x: head.unit === "step" ? "training step" : "batch", y: CURVES[name], height: innerHeight > 850 && innerWidth > 900 ? 165 : 130, hooks: { draw: [marks] },
    cursor: { drag: { x: false, y: false } }, series: [{ label: head.unit }, line],
  }, [steps, values]);
  made.over.addEventListener("click", () => { if (made.cursor.idx !== null) go(steps[made.cursor.idx]); });
  return made;
}
let plot = curve();
$("chart").hidden = $("curve").parentElement.hidden = steps.length === 1;

// -- controls --------------------------------------------------------------------------------------------------------

function go(step) { $("step").value = step; $("all").checked = false; draw(); }
const by = (places) => go(steps[Math.min(steps.length - 1, Math.max(0, steps.indexOf(number("step")) + places))]);
$("earlier").onclick = () => by(-1);
$("later").onclick = () => by(1);
$("step").onchange = () => go(nearest(number("step") ?? last));
$("beside").onchange = () => { if (number("beside") !== null) $("beside").value = nearest(number("beside")); draw(); };
$("curve").onchange = () => { plot.destroy(); plot = curve(); remember(); };
head.verdicts.forEach((name, place) => {
  const made = element("button", "v" + place, name + " " + total(head.steps[name]));
  const press = () => made.setAttribute("aria-pressed", String(!hidden.has(name)));
  made.type = "button";
  made.onclick = () => { if (!hidden.delete(name)) hidden.add(name); press(); draw(); };
  press();
  $("verdicts").append(made);
});
let typing;
for (const id of [...BOXES, ...TEXTS].filter((id) => id !== "curve"))
  $(id).addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(draw, id === "search" ? 200 : 0); });
$("theme").onclick = () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  remember();
};
$("note").textContent = total(head.steps.rollouts).toLocaleString("en") + " rollouts of " + steps.length.toLocaleString("en") + " " + (steps.length > 1 ? units : head.unit);
$("step").value = nearest(number("step"));
draw();
