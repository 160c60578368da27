"use strict";
// The annotation page. The server owns annotations and solution; the page only shows them.
// Pixel (u, v) has its centre at integer coordinates, so its square begins at u - 0.5.

const $ = (id) => document.getElementById(id);
const canvas = $("picture");
const ink = canvas.getContext("2d");

let session = null;          // frames, slots, bones: never changes
let state = null;            // annotations, projections, solution: replaced by every answer
let frame = 0, slot = 0;     // what is being annotated
let calibrated = true;       // which projection is drawn
let view = { scale: 1, x: 0, y: 0 };   // screen = image * scale + (x, y), image counted from its corner
let drag = null;
let queue = Promise.resolve();         // changes reach the server in the order they were made
const pictures = new Map();

// ------------------------------------------------------------------ server

function say(text, error = false) {
  $("message").textContent = text;
  $("message").className = error ? "error" : "";
}

function change(path, body = () => ({})) {   // the body is made when its turn has come
  queue = queue.then(async () => {
    try {
      const reply = await fetch(path, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body()),
      });
      const answer = await reply.json();
      if (!reply.ok) throw new Error(answer.error);
      state = answer;
      say(answer.saved || "");
      if (answer.undone) {
        frame = session.frames.findIndex((f) => f.name === answer.undone[0]);
        slot = session.slots.findIndex((s) => s.name === answer.undone[1]);
      }
    } catch (error) {
      say(error instanceof TypeError ? "The server does not answer; is the command still running?" : error.message, true);
    }
    show();
  });
  return queue;
}

function annotate(move) {   // move: the joint's present pixel, or undefined → its new one, or null
  const where = { frame: session.frames[frame].name, slot: session.slots[slot].name };
  return change("/api/annotate", () => {
    const pixel = move(state.frames[where.frame].annotations[where.slot]);
    return { ...where, pixel: pixel && pixel.map((v) => Math.round(v * 100) / 100) };
  });
}

// ------------------------------------------------------------------ state in short

const here = () => state.frames[session.frames[frame].name];
const annotation = () => here().annotations[session.slots[slot].name];
const projections = () => (calibrated ? here().calibrated : here().nominal);

function picture() {
  if (!pictures.has(frame)) {
    const image = new Image();
    image.onload = draw;
    image.src = `/image/${frame}`;
    pictures.set(frame, image);
  }
  return pictures.get(frame);
}

// ------------------------------------------------------------------ geometry

const toScreen = ([u, v]) => [(u + 0.5) * view.scale + view.x, (v + 0.5) * view.scale + view.y];
const toImage = (x, y) => [(x - view.x) / view.scale - 0.5, (y - view.y) / view.scale - 0.5];

function fit() {
  const { width, height } = session.frames[frame];
  const scale = Math.min(canvas.clientWidth / width, canvas.clientHeight / height) * 0.98;
  view = { scale, x: (canvas.clientWidth - width * scale) / 2, y: (canvas.clientHeight - height * scale) / 2 };
  draw();
}

function zoom(x, y, factor) {
  const scale = Math.min(64, Math.max(0.2, view.scale * factor));
  view.x = x - ((x - view.x) * scale) / view.scale;
  view.y = y - ((y - view.y) * scale) / view.scale;
  view.scale = scale;
  draw();
}

// ------------------------------------------------------------------ drawing

function draw() {
  if (!state) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * ratio);
  canvas.height = Math.round(canvas.clientHeight * ratio);
  ink.setTransform(ratio, 0, 0, ratio, 0, 0);
  ink.imageSmoothingEnabled = view.scale < 3;
  const image = picture();
  const { width, height } = session.frames[frame];
  if (image.complete) ink.drawImage(image, view.x, view.y, width * view.scale, height * view.scale);
  drawSkeleton();
  drawAnnotations();
}

function drawSkeleton() {
  const points = projections();
  ink.lineWidth = 1.5;
  for (const [a, b] of session.bones) {
    if (points[a] && points[b]) line(toScreen(points[a]), toScreen(points[b]), session.slots[b].colour, 0.55);
  }
  points.forEach((point, i) => {
    if (!point) return;
    const [x, y] = toScreen(point);
    ink.beginPath();
    ink.arc(x, y, i === slot ? 6 : 3.5, 0, 2 * Math.PI);
    ink.lineWidth = i === slot ? 2.5 : 1.5;
    ink.strokeStyle = i === slot ? "#fff" : session.slots[i].colour;
    ink.stroke();
  });
}

function drawAnnotations() {
  const points = projections();
  session.slots.forEach(({ name, colour }, i) => {
    const pixel = here().annotations[name];
    if (!pixel) return;
    const [x, y] = toScreen(pixel);
    if (points[i]) line([x, y], toScreen(points[i]), "#ff5d5d", 1);
    const arm = i === slot ? 9 : 6;
    for (const [style, thick] of [["#000", 4], [i === slot ? "#fff" : colour, 2]]) {
      ink.lineWidth = thick;
      line([x - arm, y], [x + arm, y], style, 1);
      line([x, y - arm], [x, y + arm], style, 1);
    }
  });
  ink.lineWidth = 1.5;
}

function line([x0, y0], [x1, y1], style, alpha) {
  ink.globalAlpha = alpha;
  ink.strokeStyle = style;
  ink.beginPath();
  ink.moveTo(x0, y0);
  ink.lineTo(x1, y1);
  ink.stroke();
  ink.globalAlpha = 1;
}

// ------------------------------------------------------------------ lists and numbers

function element(tag, text = "", classes = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = classes;
  return made;
}

function show() {
  $("frame").textContent = `${session.frames[frame].name}  (${frame + 1} of ${session.frames.length})`;
  $("view").textContent = calibrated ? (state.result ? "Calibrated" : "Nominal (nothing solved yet)") : "Nominal";
  showResult();
  showFrames();
  showSlots();
  draw();
}

function showResult() {
  const result = state.result;
  $("rms").textContent = result ? `RMS ${result.rms.toFixed(2)} px ` : "no solution yet";
  if (result) $("rms").append(element("small", `nominal mount ${result.nominal_rms.toFixed(1)} px`));
  $("parameters").replaceChildren(...(result ? result.parameters : []).map((row) => {
    const line = element("tr", "", row.held ? "held" : "");
    const deviation = row.held ? "at its bound" : `± ${row.deviation.toFixed(2)}`;
    line.append(element("td", row.name), element("td", `${row.value.toFixed(2)} ${row.unit}`), element("td", deviation));
    return line;
  }));
  const words = result ? [...new Set([...result.cautions, result.observability])].join(" ") : state.problem;
  $("observability").textContent = words;
  $("observability").className = result && result.cautions.length === 0 ? "" : "bad";
}

function showFrames() {
  $("frames").replaceChildren(...session.frames.map(({ name }, i) => {
    const count = Object.keys(state.frames[name].annotations).length;
    const item = element("li", `${i + 1}${count ? ` · ${count}` : ""}`, `${count ? "done" : ""} ${i === frame ? "current" : ""}`);
    item.title = `${name}: ${count} annotated`;
    item.onclick = () => goto(i);
    return item;
  }));
}

function showSlots() {
  const points = projections();
  $("slots").replaceChildren(...session.slots.map(({ name, colour }, i) => {
    const pixel = here().annotations[name];
    const item = element("li", "", `${pixel ? "placed" : ""} ${i === slot ? "current" : ""}`);
    const dot = element("i");
    dot.style.borderColor = colour;
    if (pixel) dot.style.background = colour;
    const error = pixel && points[i] ? Math.hypot(points[i][0] - pixel[0], points[i][1] - pixel[1]) : null;
    // far above the others: most likely another joint was clicked
    const bad = error !== null && calibrated && state.result && error > 3 * Math.max(1, state.result.rms);
    item.append(dot, element("span", name.replaceAll("_", " ")), element("em", error === null ? "" : `${error.toFixed(1)} px`, bad ? "bad" : ""));
    item.onclick = () => select(i);
    return item;
  }));
  $("slots").children[slot].scrollIntoView({ block: "nearest" });
}

// ------------------------------------------------------------------ what the user does

const clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
function select(i) { slot = clamp(i, session.slots.length); show(); }
function goto(i) {
  const before = session.frames[frame];
  frame = clamp(i, session.frames.length);
  const now = session.frames[frame];
  if (before.width !== now.width || before.height !== now.height) fit();
  show();
}
function toggle() { calibrated = !calibrated; show(); }

async function place(x, y) {
  const pixel = toImage(x, y);
  if (!inPicture(pixel, 0)) return;
  const fresh = !annotation();
  await annotate(() => pixel);
  if (fresh && annotation()) select(following());   // a correction stays at its joint
}

function inPicture([u, v], margin) {
  const { width, height } = session.frames[frame];
  return u > -0.5 - margin && v > -0.5 - margin && u < width - 0.5 + margin && v < height - 0.5 + margin;
}

function following() {   // the next joint without a pixel that may be in this picture
  const points = projections();
  const margin = calibrated && state.result ? 0 : 0.1 * session.frames[frame].width;
  const open = session.slots.findIndex(({ name }, i) => i > slot && points[i] && inPicture(points[i], margin) && !here().annotations[name]);
  return open < 0 ? slot : open;
}

function nudge(du, dv) {
  if (annotation()) annotate(([u, v]) => [u + du, v + dv]);
}

const ARROWS = { ArrowUp: [0, -0.25], ArrowDown: [0, 0.25], ArrowLeft: [-0.25, 0], ArrowRight: [0.25, 0] };
const KEYS = {
  ArrowUp: () => select(slot - 1),
  ArrowDown: () => select(slot + 1),
  ArrowLeft: () => goto(frame - 1),
  ArrowRight: () => goto(frame + 1),
  Delete: () => annotation() && annotate(() => null),
  Backspace: () => annotation() && annotate(() => null),
  f: fit, p: toggle, s: () => change("/api/save"),
};

document.addEventListener("keydown", (event) => {
  if (!state) return;
  const command = event.ctrlKey || event.metaKey;
  let action = null;
  if (command) action = event.key.toLowerCase() === "z" ? () => change("/api/undo") : null;
  else if (event.shiftKey && ARROWS[event.key]) action = () => nudge(...ARROWS[event.key]);
  else action = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(event.offsetX, event.offsetY, Math.exp(-event.deltaY * 0.0015));
}, { passive: false });

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drag = { x: event.offsetX, y: event.offsetY, left: event.button === 0, moved: false, from: { ...view } };
});
canvas.addEventListener("pointermove", (event) => {
  const [u, v] = toImage(event.offsetX, event.offsetY);
  $("pointer").textContent = `${u.toFixed(1)}, ${v.toFixed(1)} px   ${view.scale.toFixed(1)}×`;
  if (!drag) return;
  const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
  drag.moved = drag.moved || Math.hypot(dx, dy) > 4;
  if (drag.moved) { view.x = drag.from.x + dx; view.y = drag.from.y + dy; draw(); }
});
canvas.addEventListener("pointerup", (event) => {
  if (drag && drag.left && !drag.moved) place(event.offsetX, event.offsetY);
  drag = null;
});
canvas.addEventListener("pointercancel", () => { drag = null; });
canvas.addEventListener("contextmenu", (event) => event.preventDefault());

$("previous").onclick = () => goto(frame - 1);
$("next").onclick = () => goto(frame + 1);
$("view").onclick = toggle;
$("fit").onclick = fit;
$("undo").onclick = () => change("/api/undo");
$("save").onclick = () => change("/api/save");
new ResizeObserver(draw).observe(canvas);

fetch("/api/session").then((reply) => reply.json()).then((answer) => {
  session = answer;
  state = answer.state;
  document.title = `Calibration of ${session.robot}`;
  fit();
  show();
}).catch(() => say("The server does not answer; is the command still running?", true));
