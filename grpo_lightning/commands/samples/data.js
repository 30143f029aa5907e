"use strict";
// What the page knows: the index, and the rollouts of the steps that have been shown.
const $ = (id) => document.getElementById(id);
const head = JSON.parse($("head").textContent);
const units = head.unit === "batch" ? "batches" : "steps";
const steps = head.steps.step, first = steps[0], last = steps.at(-1);
const ON_PAGE = 48, KEPT = 16, AHEAD = 8;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const total = (values) => values.reduce((sum, value) => sum + value, 0);
const digits = (value, count = 2) => (value === null ? "none" : value.toFixed(count));
const signed = (value) => (value > 0 ? "+" : "") + digits(value);

// -- data: the rollouts of a step are a script beside the page, added when they are shown ---------------------------

const handed = new Map(), kept = new Map();
function arrived(step, data) { handed.set(step, data); }

function load(step) {
  if (!kept.has(step)) {
    kept.set(step, new Promise((resolve, reject) => {
      const script = document.createElement("script"), file = head.folder + "/step-" + step + ".js";
      script.onload = () => { script.remove(); resolve(grouped(step, handed.get(step))); handed.delete(step); };
      script.onerror = () => { script.remove(); kept.delete(step); reject(new Error("Cannot load " + file + ": keep this folder next to the page.")); };
      script.src = encodeURIComponent(head.folder) + "/step-" + step + ".js";
      document.head.append(script);
    }));
    if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(step);
}

function grouped(step, { prompts, rollouts, tokens }) {
  const rows = rollouts.map((row, index) => {
    const rollout = { children: [], pieces: tokens[index] };
    head.fields.forEach((name, place) => { rollout[name] = row[place]; });
    [rollout.messages, rollout.answer, rollout.metadata] = prompts[rollout.prompt];
    return rollout;
  });
  const groups = new Map();
  for (const rollout of rows) {
    if (!groups.has(rollout.group)) groups.set(rollout.group, { step, name: rollout.group, all: [], firsts: [] });
    groups.get(rollout.group).all.push(rollout);
    if (rollout.parent === null) groups.get(rollout.group).firsts.push(rollout);
    else rows[rollout.parent].children.push(rollout);
  }
  for (const group of groups.values()) {
    const known = (name) => group.all.map((rollout) => rollout[name]).filter((value) => value !== null);
    const rewards = group.firsts.map((rollout) => gained(turns(rollout))).filter((reward) => reward !== null);
    group.reward = rewards.length ? mean(rewards) : null;
    group.signal = new Set(rewards).size > 1;
    group.tokens = Math.max(...known("tokens"));
    group.kl = known("kl").length ? Math.max(...known("kl")) : null;
    group.promptText = group.all[0].messages.map((message) => message.content).join("\n").toLowerCase();
  }
  return [...groups.values()];
}

// The turns of the conversation that a rollout begins; only itself, without an environment.
function turns(rollout) {
  const next = rollout.children.find((child) => child.turn);
  return next ? [rollout, ...turns(next)] : [rollout];
}
const gained = (parts) => (parts.some((turn) => turn.reward === null) ? null : total(parts.map((turn) => turn.reward)));
