"use strict";
// One set of panels, over the axis that is chosen. Names come from the user, and enter the page only as text.
const data = JSON.parse(document.getElementById("curves").textContent);
const chosen = new URLSearchParams(location.hash.slice(1)).get("over");
let over = (data.axes.find((axis) => axis.name === chosen) || data.axes[0]).name;
const hidden = new Set(), plots = [];
const number = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));

function buttons(id, items, pressed, press) {
  for (const item of items) {
    const made = document.createElement("button");
    made.type = "button";
    made.append(item.text);
    if (item.method) made.prepend(swatch(item.method));
    made.onclick = () => {
      press(item.value);
      for (const [place, other] of [...document.getElementById(id).children].entries())
        other.setAttribute("aria-pressed", String(pressed(items[place].value)));
      draw();
    };
    made.setAttribute("aria-pressed", String(pressed(item.value)));
    document.getElementById(id).append(made);
  }
}

function swatch(method) {
  const line = document.createElement("span");
  line.className = "swatch";
  line.style.borderTop = "3px " + (method.dash.length ? method.dash[0] > 4 ? "dashed " : "dotted " : "solid ") + method.colour;
  return line;
}

// The curves of a panel as uPlot wants them: columns that share one axis, each with its look, and bands between columns.
function columns(panel) {
  const tables = [], series = [{}], bands = [];
  const curves = panel.curves[over] || [], ends = curves.filter((curve) => curve && curve.x).flatMap((curve) => [curve.x[0], curve.x.at(-1)]);
  curves.forEach((curve, index) => {
    if (!curve || hidden.has(index) || !ends.length) return;
    const { name, colour, dash } = data.methods[index], line = { label: name, stroke: colour, width: 2, dash, spanGaps: true };
    const few = { show: Boolean(curve.x && curve.x.length <= 40), size: 5, fill: colour };
    const edge = { isEdge: true, stroke: "transparent", spanGaps: true, points: { show: false } };
    if (curve.x) tables.push([curve.x, curve.mean]);
    else tables.push([[Math.min(...ends), Math.max(...ends)], [curve.level, curve.level]]);
    series.push(curve.x ? { ...line, points: few } : { ...line, dash: [2, 4], points: { show: false } });
    if (curve.low) {
      const place = series.push({ ...edge }, { ...edge }) - 2;
      tables.at(-1).push(curve.low, curve.high);
      bands.push({ series: [place + 1, place], fill: colour + "2e" });
    }
  });
  return { series, bands, table: tables.length > 1 ? uPlot.join(tables) : tables[0] };
}

// What the curves are where the pointer is; between the points of a curve, at the next one before.
function tooltip(plot, box) {
  const at = plot.cursor.idx;
  box.replaceChildren();
  if (at === null || at === undefined) return;
  box.append(number(plot.data[0][at]));
  plot.series.forEach((series, place) => {
    if (series.isEdge || place === 0) return;
    let row = at;
    while (row >= 0 && plot.data[place][row] == null) row--;
    if (row < 0) return;
    const line = document.createElement("div"), colour = document.createElement("b");
    colour.style.color = series.stroke();
    colour.append("● ");
    line.append(colour, number(plot.data[place][row]) + "  " + series.label);
    box.append(line);
  });
  box.style.left = plot.cursor.left > plot.over.clientWidth / 2 ? "8px" : "auto";
  box.style.right = plot.cursor.left > plot.over.clientWidth / 2 ? "auto" : "8px";
}

function draw() {
  for (const plot of plots.splice(0)) plot.destroy();
  const place = document.getElementById("panels"), label = data.axes.find((axis) => axis.name === over).label;
  place.replaceChildren();
  for (const panel of data.panels) {
    const { series, bands, table } = columns(panel);
    if (!table) continue;
    const box = document.createElement("div"), tip = document.createElement("div");
    box.className = "chart";
    tip.className = "tip";
    place.append(box);
    const plot = chart(box, {
      x: label, y: panel.title, height: 260, series, bands, limits: panel.share ? [-0.02, 1.02] : null, legend: { show: false },
      cursor: { sync: { key: "panels", scales: ["x", null] }, drag: { x: true, y: false } },
      hooks: { setCursor: [(plot) => tooltip(plot, tip)] },
    }, table);
    plot.over.append(tip);
    plots.push(plot);
  }
  history.replaceState(null, "", over === data.axes[0].name ? "#" : "#over=" + over);
}

buttons("axes", data.axes.map(({ name, label }) => ({ value: name, text: "over " + label })), (name) => name === over, (name) => { over = name; });
buttons("legend", data.methods.map((method, index) => ({ value: index, text: method.name, method })), (index) => !hidden.has(index),
  (index) => { if (!hidden.delete(index)) hidden.add(index); });
draw();
