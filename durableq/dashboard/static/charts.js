// Draws the charts of a page from the numbers in it. A canvas knows no CSS: colours are asked for as the page has
// them now, and asked for again when the theme changes.

import { isUtc } from "./times.js";

const HEIGHT = 216;
const charts = new Map();

export function drawCharts() {
  for (const [place, { plot }] of charts) {
    if (place.isConnected) continue;
    plot.destroy();
    charts.delete(place);
  }
  for (const place of document.querySelectorAll("[data-chart]")) {
    const drawn = charts.get(place);
    if (!drawn) build(place);
    else if (drawn.text !== place.dataset.chart) update(place, drawn);
  }
}

export function redrawCharts() {
  for (const [place, { plot }] of [...charts]) {
    plot.destroy();
    build(place);
  }
}

const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) charts.get(target)?.plot.setSize({ width: widthOf(target), height: HEIGHT });
});

function build(place) {
  const text = place.dataset.chart;
  const { unit, series, data } = JSON.parse(text);
  const canvas = place.querySelector(".chart-canvas");
  const plot = new uPlot(optionsOf(place, unit, series), data, canvas);
  charts.set(place, { plot, text });
  resized.observe(place);
}

function update(place, drawn) {
  drawn.text = place.dataset.chart;
  drawn.plot.setData(JSON.parse(drawn.text).data);
}

function optionsOf(place, unit, series) {
  const isDuration = unit === "duration";
  const format = isDuration ? duration : rate;
  const axis = {
    stroke: colourOf("chart-axis"),
    font: `12px ${getComputedStyle(document.body).fontFamily}`,
    grid: { stroke: colourOf("chart-grid"), width: 1 },
    ticks: { show: false },
  };
  return {
    width: widthOf(place),
    height: HEIGHT,
    padding: [12, 18, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "overview" }, points: { size: 6 } },
    tzDate: inZone,
    scales: { x: { time: true }, y: isDuration ? logarithmic() : { range: (_, low, high) => [0, high > 0 ? high * 1.15 : 1] } },
    axes: [
      { ...axis, values: timeLabels, space: 70, size: 30 },
      {
        ...axis,
        size: 62,
        values: (_, splits) => splits.map((value) => (value === null ? "" : format(value))),
        ...(isDuration ? { splits: decades, filter: (_, splits) => splits } : {}),
      },
    ],
    series: [{}, ...series.map((one) => lineOf(one, format))],
    hooks: { setCursor: [(plot) => readOut(place, plot, series, format)] },
  };
}

function lineOf({ label, style, dashed }) {
  return {
    label,
    stroke: colourOf(style),
    width: dashed ? 1.5 : 2,
    dash: dashed ? [5, 4] : undefined,
    spanGaps: false,
    points: { show: (plot, index) => isLonely(plot.data[index]), size: 4, fill: colourOf(style) },
  };
}

// A value between two gaps has no line to show it.
function isLonely(values) {
  return values.filter((value) => value !== null).length <= 2;
}

function logarithmic() {
  return {
    distr: 3,
    range: (_, low, high) =>
      high > 0 ? [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high * 1.05))] : [0.001, 1],
  };
}

function decades(plot, axis, low, high) {
  const found = [];
  for (let power = Math.round(Math.log10(low)); power <= Math.round(Math.log10(high)); power += 1) {
    found.push(10 ** power);
  }
  return found;
}

function timeLabels(plot, splits, axis, space, step) {
  return splits.map((seconds) => {
    const moment = inZone(seconds);
    const day = `${moment.getDate()} ${moment.toLocaleString("en", { month: "short" })}`;
    const time = `${String(moment.getHours()).padStart(2, "0")}:${String(moment.getMinutes()).padStart(2, "0")}`;
    return step >= 86400 || (step >= 21600 && time === "00:00") ? day : time;
  });
}

function inZone(seconds) {
  const moment = new Date(seconds * 1000);
  return isUtc() ? uPlot.tzDate(moment, "Etc/UTC") : moment;
}

function readOut(place, plot, series, format) {
  const line = place.parentElement.querySelector(".chart-readout");
  if (!line) return;
  const at = plot.cursor.idx;
  if (at === null || at === undefined || plot.cursor.left < 0) {
    line.textContent = place.getAttribute("aria-label");
    return;
  }
  const shown = inZone(plot.data[0][at]);
  const time = `${String(shown.getHours()).padStart(2, "0")}:${String(shown.getMinutes()).padStart(2, "0")}`;
  const values = series.map((one, index) => {
    const value = plot.data[index + 1][at];
    return `${one.label} ${value === null ? "–" : format(value)}`;
  });
  line.textContent = `${time}: ${values.join(" · ")}`;
}

function colourOf(style) {
  const probe = document.createElement("span");
  probe.className = style;
  probe.hidden = true;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function widthOf(place) {
  const style = getComputedStyle(place);
  return Math.max(place.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight), 120);
}

function rate(value) {
  if (value >= 10_000) return `${Math.round(value / 1000).toLocaleString("en")} k`;
  return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });
}

function duration(seconds) {
  if (seconds < 0.9995) return `${seconds < 0.00995 ? Number((seconds * 1000).toPrecision(2)) : Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${Number(seconds.toFixed(1))} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${Number((seconds / 3600).toFixed(1))} h`;
}
