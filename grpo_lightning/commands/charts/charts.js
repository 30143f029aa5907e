"use strict";
// Grey that is legible on light and on dark pages, so a change of the theme needs no new drawing.
const INK = "#7a7a7a", GRID = "rgba(128, 128, 128, .22)", FONT = "12px system-ui, sans-serif";

// Draw a chart that is as wide as its box, with titled axes. `options` are uPlot's; series and data are as it wants them.
function chart(box, { x, y, height, limits = null, ...options }, data) {
  const axis = (label, size) => ({
    label, size, labelSize: 16, labelGap: 0, stroke: INK, font: FONT, labelFont: FONT,
    grid: { stroke: GRID, width: 1 }, ticks: { stroke: GRID, width: 1 },
  });
  const size = () => ({ width: box.clientWidth, height });
  const plot = new uPlot({
    ...size(),
    ...options,
    scales: { x: { time: false }, y: limits ? { range: limits } : {} },
    axes: [axis(x, 30), axis(y, 52)],
  }, data, box);
  new ResizeObserver(() => plot.setSize(size())).observe(box);
  return plot;
}
