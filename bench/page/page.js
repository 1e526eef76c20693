"use strict";
// The charts of bench's page. The page's data: {report, figures}; window.Chart is Chart.js, or missing.

const page = JSON.parse(document.getElementById("data").textContent);
const rows = page.report.rows;
const figures = page.figures;
const kClasses = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
const kColours = {
  light: ["#0b66c3", "#d1570b", "#13795b", "#8a3ffc", "#b3261e", "#7a6000", "#00768a", "#a3216f"],
  dark: ["#6cb1ff", "#ffa061", "#5fd0a5", "#c49bff", "#ff8a80", "#e2c04f", "#5cd0e0", "#ff8cc6"],
};
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");
const colour = (i) => kColours[darkScheme.matches ? "dark" : "light"][i % 8];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const byId = (id) => document.getElementById(id);
const isPeer = (row) => !row.file;
const label = (row) => row.name + (rows.filter((r) => r.name === row.name).length > 1 ? ` (${row.engine}, ${row.isa})` : "");

let charts = [];
function draw(id, configuration) {
  const options = configuration.options;
  options.responsive = true;
  options.maintainAspectRatio = false;
  options.animation = false;
  charts.push(new Chart(byId(id), configuration));
}

function axis(title, more) {
  return Object.assign({ title: { display: true, text: title } }, more);
}

// Names beside the points of a scatter chart; a name that would cover another one goes below its point.
const names = {
  id: "names",
  afterDatasetsDraw(chart) {
    const context = chart.ctx;
    const taken = chart.data.datasets.flatMap((dataset, d) => (dataset.named
      ? chart.getDatasetMeta(d).data.map((point) => ({ x: point.x - 6, y: point.y, width: 12 })) : []));
    context.save();
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    chart.data.datasets.forEach((dataset, d) => {
      if (!dataset.named) return;
      context.fillStyle = dataset.borderColor;
      chart.getDatasetMeta(d).data.forEach((point, i) => {
        const text = dataset.data[i].name;
        const width = context.measureText(text).width;
        const right = point.x + 9 + width <= chart.chartArea.right;
        const x = right ? point.x + 9 : point.x - 9 - width;
        const spots = [0, 14, -14, 28, -28, 42, -42, 56].map((shift) => ({ x, y: point.y + shift, width }));
        const free = spots.find((spot) => spot.y > chart.chartArea.top && spot.y < chart.chartArea.bottom &&
          taken.every((t) => Math.abs(t.y - spot.y) > 12 || t.x > spot.x + width || spot.x > t.x + t.width));
        if (!free) return;
        taken.push(free);
        context.fillText(text, free.x, free.y);
      });
    });
    context.restore();
  },
};

// Accuracy against a cost: whatever is neither cheaper nor more accurate than another is off the front.
function drawPareto(id, title, cost) {
  const measured = rows.some((row) => !isPeer(row) && row.top1 !== null);
  const value = (row) => (measured ? row.top1 : row.agreement);
  const points = rows.filter((row) => value(row) !== null && cost(row) !== null)
    .map((row) => ({ x: cost(row), y: value(row) * 100, exact: value(row) * 100, name: label(row), peer: isPeer(row) }));
  if (!points.length) return nothing(id, "nothing was measured");
  // Far below the others a point would press them together: it stands at the bottom, its value in its name.
  const best = Math.max(...points.map((p) => p.y));
  const near = points.filter((p) => p.y > best - 25).map((p) => p.y);
  const lowest = Math.min(...near);
  const bottom = Math.max(0, Math.floor(lowest - Math.max(0.5, 0.25 * (best - lowest))));
  for (const p of points) {
    if (p.y >= bottom) continue;
    p.y = bottom;
    p.name += ` (${p.exact.toFixed(1)} %)`;
  }
  const sorted = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  const front = [];
  for (const p of sorted) if (!front.length || p.y > front[front.length - 1].y) front.push(p);
  const group = (peer, i, name, shape) => ({
    label: name, named: true, data: points.filter((p) => p.peer === peer), pointStyle: shape,
    borderColor: colour(i), backgroundColor: colour(i), pointRadius: 5, pointHoverRadius: 7,
  });
  draw(id, {
    type: "scatter",
    data: {
      datasets: [group(false, 0, "Nibble", "circle"), group(true, 1, "other engines", "triangle"), {
        label: "Pareto front", type: "line", data: front, stepped: "before", pointRadius: 0, borderWidth: 1.5,
        borderColor: style("--muted"), borderDash: [5, 4],
      }].filter((d) => d.data.length),
    },
    options: {
      layout: { padding: { right: 8 } },
      clip: false,
      scales: {
        x: axis(title, {
          type: "logarithmic", min: sorted[0].x / 1.25, max: sorted[sorted.length - 1].x * 1.6,
          ticks: { maxTicksLimit: 7, callback: (v) => Number(v.toPrecision(2)) },
        }),
        y: axis(measured ? "top-1, %" : "agreement with FP32, % (no data set, no top-1)", { min: bottom, grace: "5%" }),
      },
      plugins: {
        tooltip: { callbacks: { label: (c) => `${c.raw.name}: ${(c.raw.exact ?? c.raw.y).toFixed(2)} %, ${Number(c.raw.x.toPrecision(4))}` } },
      },
    },
    plugins: [names],
  });
}

// One colour a kernel in all charts.
const kernelOf = (layer) => layer.kernel || "element-wise";
const allKernels = [...new Set(rows.flatMap((row) => (row.layers || []).map(kernelOf)))];
const kernelColour = (kernel) => (kernel === "element-wise" ? style("--muted") : colour(allKernels.indexOf(kernel)));

function drawLayers() {
  const row = rows[Number(byId("layers-row").value)];
  const kernels = [...new Set(row.layers.map(kernelOf))];
  const milliseconds = (s) => (s === null ? null : s * 1e3);
  byId("layers").parentElement.style.height = `${row.layers.length * 19 + 110}px`;
  draw("layers", {
    type: "bar",
    data: {
      labels: row.layers.map((layer) => layer.name),
      datasets: [{
        label: "floor: instruction peak", type: "line", showLine: false, pointStyle: "line", rotation: 90,
        pointRadius: 7, pointBorderWidth: 3, borderColor: style("--text"),
        data: row.layers.map((layer) => milliseconds(layer.floor_seconds ?? null)),
      }, ...kernels.map((kernel) => ({
        label: kernel, stack: "time", backgroundColor: kernelColour(kernel),
        data: row.layers.map((layer) => (kernelOf(layer) === kernel ? milliseconds(layer.seconds) : null)),
      }))],
    },
    options: {
      indexAxis: "y",
      scales: {
        x: axis(`milliseconds for ${row.batch} images`, { stacked: false, beginAtZero: true }),
        y: { stacked: true, ticks: { autoSkip: false, font: { size: 11 } } },
      },
      plugins: { legend: { labels: { usePointStyle: true } } },
    },
  });
}

// One bar a network: its layers' time added up by kernel.
function drawKernels() {
  const profiled = rows.filter((row) => row.layers);
  const sum = (row, kernel) => row.layers.filter((layer) => kernelOf(layer) === kernel)
    .reduce((total, layer) => total + layer.seconds * 1e3, 0);
  draw("kernels", {
    type: "bar",
    data: {
      labels: profiled.map(label),
      datasets: [...allKernels.map((kernel) => ({
        label: kernel, stack: "time", backgroundColor: kernelColour(kernel), data: profiled.map((row) => sum(row, kernel)),
      })), {
        label: "floor: instruction peak", type: "line", showLine: false, pointStyle: "line", rotation: 90,
        pointRadius: 9, pointBorderWidth: 3, borderColor: style("--text"), order: -1,
        data: profiled.map((row) => (row.layers.some((layer) => layer.floor_seconds)
          ? row.layers.reduce((total, layer) => total + (layer.floor_seconds ?? 0) * 1e3, 0) : null)),
      }],
    },
    options: {
      indexAxis: "y",
      scales: { x: axis("milliseconds a batch", { stacked: false, beginAtZero: true }), y: { stacked: true } },
      plugins: { legend: { labels: { usePointStyle: true } } },
    },
  });
}

function lines(id, labels, series, yTitle, xTitle, more) {
  draw(id, {
    type: "line",
    data: {
      labels,
      datasets: series.map((s, i) => ({
        label: s.name, data: s.values, borderColor: colour(i), backgroundColor: colour(i), borderWidth: 2,
        pointRadius: labels.length > 60 ? 0 : 2.5, spanGaps: true,
      })),
    },
    options: {
      scales: {
        x: { title: { display: !!xTitle, text: xTitle }, ticks: { maxRotation: 60, font: { size: 11 } } },
        y: axis(yTitle, more || {}),
      },
      interaction: { mode: "index", intersect: false },
    },
  });
}

function drawSensitivity() {
  const s = figures.sensitivity;
  lines("sensitivity", s.layers, s.networks.map((n) => ({ name: n.name, values: n.sqnr })), "SQNR, dB");
}

function drawHistograms() {
  const layer = figures.histograms[Number(byId("histogram-layer").value)];
  const network = layer.weights[Number(byId("histogram-network").value)];
  const x = network.fp32.map((_, i) => network.low + (i + 0.5) * network.width);
  const share = (counts) => {
    const total = counts.reduce((a, b) => a + b, 0);
    return counts.map((count) => (count * 100) / total);
  };
  draw("weights", {
    type: "bar",
    data: {
      labels: x.map((v) => Number(v.toFixed(2))),
      datasets: [{
        type: "line", label: "FP32 weights, folded", data: share(network.fp32), borderColor: colour(0), stepped: "middle",
        backgroundColor: colour(0) + "33", fill: true, pointRadius: 0, borderWidth: 1.5, yAxisID: "y", order: 1,
      }, {
        label: `integers of ${network.name}`, data: share(network.integers), backgroundColor: colour(1), yAxisID: "integers",
        barPercentage: 0.9, categoryPercentage: 1, order: 2,
      }],
    },
    options: {
      scales: {
        x: axis("weight, in steps of its channel's scale", { ticks: { maxTicksLimit: 12, maxRotation: 0 }, grid: { display: false } }),
        y: axis("FP32, % a bin", { beginAtZero: true }),
        integers: axis("integers, %", { position: "right", beginAtZero: true, grid: { display: false } }),
      },
    },
  });
  const activations = layer.activations;
  if (!activations) {
    byId("activations").parentElement.hidden = true;
    return;
  }
  byId("activations").parentElement.hidden = false;
  const heights = share(activations.counts);
  const top = Math.max(...heights);
  const bottom = Math.min(...heights.filter((h) => h > 0)) / 2;
  draw("activations", {
    type: "scatter",
    data: {
      datasets: [{
        label: "FP32 output", type: "line", stepped: "middle", fill: true, pointRadius: 0, borderWidth: 1.5,
        borderColor: colour(0), backgroundColor: colour(0) + "33",
        data: heights.map((h, i) => ({ x: (i + 0.5) * activations.width, y: Math.max(h, bottom) })),
      }, ...activations.clips.map((clip, i) => ({
        label: `${clip.name}: largest of ${clip.levels} levels, step ${Number(clip.scale.toPrecision(3))}`,
        type: "line", pointRadius: 0, borderWidth: 2, borderDash: [[], [6, 3], [2, 2]][i % 3], borderColor: colour(i + 1),
        backgroundColor: colour(i + 1),
        data: [{ x: clip.scale * (clip.levels - 1), y: bottom }, { x: clip.scale * (clip.levels - 1), y: top }],
      }))],
    },
    options: {
      scales: {
        x: axis("value after ReLU and residual", { type: "linear", beginAtZero: true }),
        y: axis("share, % a bin", { type: "logarithmic", min: bottom, ticks: { maxTicksLimit: 6, callback: (v) => Number(v.toPrecision(2)) } }),
      },
    },
  });
}

function showConfusion() {
  const chosen = figures.confusion[Number(byId("confusion-row").value)];
  const table = byId("confusion");
  table.replaceChildren();
  const head = table.insertRow();
  const cell = (row, text, header) => {
    const c = document.createElement(header ? "th" : "td");
    c.textContent = text;
    row.append(c);
    return c;
  };
  cell(head, "truth \\ said", true);
  kClasses.forEach((name) => cell(head, name.slice(0, 5), true));
  const worst = Math.max(...chosen.counts.flatMap((counts, i) => counts.filter((_, j) => i !== j)), 1);
  chosen.counts.forEach((counts, truth) => {
    const row = table.insertRow();
    cell(row, kClasses[truth], true);
    counts.forEach((count, said) => {
      const c = cell(row, count, false);
      const share = truth === said ? count / Math.max(1, counts.reduce((a, b) => a + b, 0)) : count / worst;
      const tint = truth === said ? "--good" : "--accent";
      c.style.background = `color-mix(in srgb, ${style(tint)} ${Math.round(share * (truth === said ? 45 : 70))}%, transparent)`;
      c.title = `${kClasses[truth]} taken for ${kClasses[said]}: ${count}`;
    });
  });
}

function showImages() {
  const place = byId("images");
  for (const image of figures.lost.images) {
    const bytes = atob(image.pixels);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 32;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(32, 32);
    for (let i = 0; i < 1024; ++i) {
      for (let c = 0; c < 3; ++c) pixels.data[4 * i + c] = bytes.charCodeAt(3 * i + c);
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const right = document.createElement("span");
    right.className = "right";
    right.textContent = kClasses[image.truth];
    caption.append(right, document.createElement("br"), `not ${kClasses[image.said]} (${image.index})`);
    figure.append(canvas, caption);
    place.append(figure);
  }
}

function drawCurves() {
  const log = figures.curves[Number(byId("curves-log").value)];
  const labels = log.epochs.map((e) => e.epoch);
  const series = (pairs, factor) => pairs.map(([name, key]) => ({
    name, values: log.epochs.map((e) => (e[key] === null || e[key] === undefined ? null : e[key] * factor)),
  })).filter((s) => s.values.some((v) => v !== null));
  lines("curve-loss", labels, series([["training", "train_loss"], ["validation", "validation_loss"], ["test", "test_loss"]], 1), "loss", "epoch");
  lines("curve-top1", labels, series([["training", "train_top1"], ["validation", "validation_top1"], ["test", "test_top1"]], 100), "top-1, %", "epoch");
  lines("curve-rate", labels, series([["learning rate", "learning_rate"]], 1), "learning rate", "epoch");
  lines("curve-speed", labels, series([["images/s", "images_per_second"]], 1), "images/s", "epoch", { beginAtZero: true });
}

function nothing(id, why) {
  const text = document.createElement("p");
  text.className = "hint";
  text.textContent = why;
  byId(id).parentElement.replaceWith(text);
}

function drawAll() {
  charts.forEach((chart) => chart.destroy());
  charts = [];
  if (figures.confusion) showConfusion();
  if (!window.Chart) return;
  Chart.defaults.color = style("--muted");
  Chart.defaults.borderColor = style("--line");
  Chart.defaults.font.family = "system-ui, sans-serif";
  Chart.defaults.plugins.legend.labels.boxWidth = 14;
  if (byId("accuracy-time")) drawPareto("accuracy-time", "seconds for all images, the loader inside", (row) => row.seconds && row.seconds.mean);
  if (byId("accuracy-size")) drawPareto("accuracy-size", "file, MB", (row) => row.file_bytes && row.file_bytes / 1e6);
  if (byId("layers")) { drawKernels(); drawLayers(); }
  if (byId("sensitivity")) drawSensitivity();
  if (byId("weights")) drawHistograms();
  if (byId("curve-loss")) drawCurves();
}

function choices(id, texts, first) {
  const select = byId(id);
  if (!select) return;
  texts.forEach(([value, text]) => select.add(new Option(text, value)));
  if (first !== undefined) select.value = first;
  select.addEventListener("change", drawAll);
}

const profiled = rows.map((row, i) => [i, label(row)]).filter(([i]) => rows[i].layers);
choices("layers-row", profiled, profiled.length ? profiled[profiled.length - 1][0] : undefined);
if (figures.histograms) {
  choices("histogram-layer", figures.histograms.map((h, i) => [i, h.layer]), Math.min(1, figures.histograms.length - 1));
  choices("histogram-network", figures.histograms[0].weights.map((w, i) => [i, w.name]), figures.histograms[0].weights.length - 1);
}
if (figures.confusion) choices("confusion-row", figures.confusion.map((c, i) => [i, c.name]));
if (figures.curves) choices("curves-log", figures.curves.map((c, i) => [i, c.name]));
if (figures.lost) showImages();
drawAll();
darkScheme.addEventListener("change", drawAll);
