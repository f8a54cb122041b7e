"use strict";
// The page's controls. Figures come ready from Python; here their traces are chosen and their ink is set.
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector) => [...document.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

// ---- theme: the reader's system decides until the button does
const root = document.documentElement;
const isDark = () =>
  (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function showTheme() {
  byId("theme").setAttribute("aria-pressed", String(isDark()));
  drawAll();
}

byId("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);

function ink(layout) {
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
  return {
    ...layout,
    autosize: true,
    font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { t: 40, r: 20, b: 60, l: 60, ...layout.margin },
    hoverlabel: { bgcolor: colour("--raised"), font: { color: colour("--ink") }, namelength: -1 },
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
}

// ---- figures: a trace is shown when its meta agrees with every control of its figure
function ticked() {
  const groups = new Set(all("[data-group]:checked").map((box) => box.value));
  return new Set(Object.keys(data.arms).filter((key) => groups.has(data.arms[key].group)));
}

function wanted(figure) {
  const arms = ticked();
  const bands = !byId("bands") || byId("bands").checked;
  const chosen = all(`[data-figure="${figure}"]`).map((control) => [control.dataset.field, control.value]);
  return (trace) => {
    const meta = trace.meta || {};
    const agrees = chosen.every(([field, value]) => meta[field] === undefined || meta[field] === value);
    return agrees && (bands || !meta.band) && (meta.arm === undefined || arms.has(meta.arm));
  };
}

// What an earlier control of the figure rules out can't be chosen in a later one.
function narrow(name) {
  let left = data.figures[name].data;
  for (const control of all(`[data-figure="${name}"]`)) {
    const field = control.dataset.field;
    const known = new Set(left.map((trace) => trace.meta[field]));
    for (const option of control.options) option.hidden = option.disabled = !known.has(option.value);
    if (control.selectedOptions[0].disabled) control.value = [...control.options].find((o) => !o.disabled).value;
    left = left.filter((trace) => trace.meta[field] === undefined || trace.meta[field] === control.value);
  }
}

function draw(name) {
  const figure = data.figures[name];
  narrow(name);
  const layout = ink(structuredClone(figure.layout));
  const metric = document.querySelector(`[data-figure="${name}"][data-field="metric"], [data-figure="${name}"][data-field="quantity"]`);
  if (metric) layout.yaxis.title = { text: metric.value };
  if (metric && metric.value.startsWith("recovery")) layout.yaxis.range = [-0.03, 1.03];
  // Plotly keeps what it is given and writes to it: give it copies.
  const traces = structuredClone(figure.data.filter(wanted(name)));
  return Plotly.react(byId(name), traces, layout, { responsive: true, displaylogo: false });
}

const drawAll = () => Promise.all(Object.keys(data.figures).map(draw));

// ---- images: rows of one scene at one attack step
function picture(uri, description, veiled) {
  const image = new Image();
  image.alt = description;
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth < 96));
  image.src = uri;
  if (!veiled) return image;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "veil";
  button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", `Unsafe image, blurred. Show ${description}`);
  button.append(image);
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
  });
  return button;
}

function row(scene, title, uris) {
  const line = document.createElement("div");
  const label = document.createElement("span");
  const cells = document.createElement("div");
  line.className = "row";
  cells.className = "cells";
  label.textContent = title;
  cells.append(...uris.map((uri, i) => picture(uri, `${title}, image ${i + 1}`, scene.veiled)));
  line.append(label, cells);
  return line;
}

const sceneOf = (label) => data.scenes.find((scene) => scene.label === label);

// The images of an arm at a step, or at the last one before it.
function imagesAt(label, arm, step) {
  const earlier = (data.images[label] || []).filter(([key, at, uris]) => key === arm && at <= step && uris.length);
  return earlier.sort((a, b) => b[1] - a[1])[0];
}

function showPanel(select) {
  const grid = byId(`${select.dataset.panel}-grid`);
  const scene = sceneOf(select.value);
  if (!scene) {
    grid.textContent = "No images of this side.";
    return;
  }
  const step = steps()[Number(byId("step").value)];
  // Of the models for single concepts, the safe side shows those for the concept that the other side shows.
  const blocked = data.images[document.querySelector('[data-panel="malicious"]').value];
  const compared = blocked && new Set(blocked.map(([arm]) => arm));
  const real = imagesAt(scene.label, "", -1);
  const arms = ticked();
  const rows = real ? [row(scene, "real images (the attacker's)", real[2])] : [];
  for (const [key, { label }] of Object.entries(data.arms)) {
    const found = arms.has(key) && (!compared || compared.has(key)) && imagesAt(scene.label, key, step);
    if (found) rows.push(row(scene, `${label}, step ${found[1]}`, found[2]));
  }
  grid.replaceChildren(...rows);
}

const panels = all("[data-panel]");

function steps() {
  const shown = panels.flatMap((select) => data.images[select.value] || []);
  return [...new Set(shown.map(([, step]) => step))].filter((step) => step >= 0).sort((a, b) => a - b);
}

function showImages() {
  if (!panels.length) return;
  const slider = byId("step");
  const known = steps();
  slider.max = String(Math.max(0, known.length - 1));
  const said = known.length ? `${known[Number(slider.value)]} of ${known.at(-1)}` : "nothing drawn yet";
  byId("step-value").textContent = said;
  slider.setAttribute("aria-valuetext", `attack step ${said}`);
  panels.forEach(showPanel);
}

function showHovered(event) {
  const point = event.points[0];
  const meta = point.data.meta;
  if (!meta || !meta.arm) return;
  const scenes = data.scenes.filter((s) => s.concept === meta.concept && s.attack === meta.attack);
  const rows = scenes.flatMap((scene) => {
    const found = imagesAt(scene.label, meta.arm, point.x);
    return found ? [row(scene, `${scene.label}; ${data.arms[meta.arm].label}, step ${found[1]}`, found[2])] : [];
  });
  byId("hovered").replaceChildren(...rows);
}

// ---- trials: a point or a line leads to its settings and its MLflow run
function showTrial(event) {
  const custom = event.points[0].customdata;
  const trial = custom && data.trials[custom[0]];
  if (!trial) return;
  const card = byId("trial");
  const title = document.createElement("h3");
  const settings = document.createElement("p");
  const link = document.createElement("a");
  title.textContent = trial.title;
  settings.textContent = Object.entries(trial.values).map(([name, value]) => `${name} = ${value}`).join(", ");
  link.href = trial.link;
  link.rel = "noreferrer";
  link.textContent = `MLflow run ${trial.link.split("/").at(-1)}`;
  card.replaceChildren(title, settings, link);
  card.hidden = false;
}

// ---- begin
all("[data-figure]").forEach((c) => c.addEventListener("change", () => draw(c.dataset.figure)));
if (byId("bands")) byId("bands").addEventListener("change", () => draw("curves"));
all("[data-group]").forEach((box) =>
  box.addEventListener("change", () => {
    ["curves", "training"].filter((name) => data.figures[name]).forEach(draw);
    showImages();
  }),
);
panels.forEach((select) => {
  select.addEventListener("change", () => {
    byId("step").value = byId("step").max;
    showImages();
  });
});
if (panels.length) {
  byId("step").addEventListener("input", showImages);
  byId("step").max = String(Math.max(0, steps().length - 1));
  byId("step").value = byId("step").max;
}
showImages();
drawAll().then(() => {
  for (const name of ["plane", "parallel"]) {
    if (data.figures[name]) byId(name).on("plotly_click", showTrial);
  }
  if (data.figures.curves) {
    byId("curves").on("plotly_hover", showHovered);
    byId("curves").on("plotly_click", showHovered);
  }
  byId("theme").setAttribute("aria-pressed", String(isDark()));
  root.dataset.ready = "true";
});
