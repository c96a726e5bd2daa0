"use strict";
// On paper all that can be unfolded is unfolded.
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });

// Charts: the value under the pointer.
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const { points, x, y, unit } = JSON.parse(svg.dataset.chart);
  const [left, top, width, height] = svg.dataset.plot.split(" ").map(Number);
  const make = (name, attributes) => {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return element;
  };
  let probe = null;
  const clear = () => { probe?.remove(); probe = null; };
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("pointermove", (event) => {
    clear();
    const box = svg.getBoundingClientRect();
    const at = x[0] + (((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width - left) / width * (x[1] - x[0]);
    const near = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    const px = left + (near[0] - x[0]) / (x[1] - x[0]) * width;
    const py = top + (y[1] - near[1]) / (y[1] - y[0]) * height;
    const right = px > left + width / 2;
    probe = make("g", { class: "probe" });
    probe.append(make("line", { x1: px, x2: px, y1: top, y2: top + height }), make("circle", { cx: px, cy: py, r: 4 }));
    const text = make("text", { x: px + (right ? -8 : 8), y: Math.max(top + 12, py - 10), "text-anchor": right ? "end" : "start" });
    text.textContent = `${String(near[1]).replace("-", "−")}${unit} at ${near[0]}`;
    probe.append(text);
    svg.append(probe);
  });
}

// The map: thumbnails where there is room for them, a dot for each of the others. Zooming in makes room.
const figure = document.getElementById("map");
if (figure) {
  const map = JSON.parse(document.getElementById("map-data").textContent);
  const canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d");
  const pop = figure.querySelector(".pop"), [popCanvas, popName, popClass] = pop.children;
  const sprite = new Image();
  const view = { scale: 1, x: 0, y: 0 };
  let width = 0, height = 0, side = 24, shown = [], dots = [], hot = -1, only = -1;
  const colour = (i) => (map.classes.length ? map.colours[map.y[i]] ?? "#8888" : "#7d8ea0");
  const faded = (i) => only >= 0 && map.y[i] !== only;
  const rim = () => side / 2 + 6;
  const inverse = (p, size) => (p - rim()) / (size - 2 * rim());
  const place = (i) => [
    rim() + (map.at[2 * i] * view.scale + view.x) * (width - 2 * rim()),
    rim() + (map.at[2 * i + 1] * view.scale + view.y) * (height - 2 * rim()),
  ];
  const corner = (i) => [(i % map.columns) * map.tile, Math.floor(i / map.columns) * map.tile];

  const arrange = () => {
    const cell = side + 4, taken = new Map();
    shown = []; dots = [];
    // Highlighted images come first, then the drawn order: the same picture every time.
    const order = map.y.map((_, i) => i);
    if (only >= 0) order.sort((a, b) => faded(a) - faded(b) || a - b);
    for (const i of order) {
      const [px, py] = place(i);
      if (px < -side || py < -side || px > width + side || py > height + side) continue;
      const cx = Math.floor(px / cell), cy = Math.floor(py / cell);
      let free = true;
      for (let dx = -1; dx <= 1 && free; dx++) for (let dy = -1; dy <= 1 && free; dy++)
        for (const [qx, qy] of taken.get(`${cx + dx},${cy + dy}`) ?? [])
          if (Math.abs(qx - px) < cell && Math.abs(qy - py) < cell) { free = false; break; }
      if (!free) { dots.push([i, px, py]); continue; }
      const key = `${cx},${cy}`;
      taken.has(key) ? taken.get(key).push([px, py]) : taken.set(key, [[px, py]]);
      shown.push([i, px, py]);
    }
  };
  const stamp = (i, px, py, s) => {
    pen.fillStyle = colour(i);
    pen.fillRect(px - s / 2 - 2, py - s / 2 - 2, s + 4, s + 4);
    pen.drawImage(sprite, ...corner(i), map.tile, map.tile, px - s / 2, py - s / 2, s, s);
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    width = figure.clientWidth; height = Math.round(Math.min(width, 780));
    side = width < 600 ? 20 : 26;
    canvas.width = width * ratio; canvas.height = height * ratio; canvas.style.aspectRatio = `${width} / ${height}`;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.imageSmoothingQuality = "high";
    canvas.classList.toggle("far", view.scale > 1);
    arrange();
    for (const [i, px, py] of dots) {
      pen.globalAlpha = faded(i) ? 0.1 : 0.75;
      pen.fillStyle = colour(i);
      pen.beginPath(); pen.arc(px, py, 2.6, 0, 7); pen.fill();
    }
    for (const [i, px, py] of shown) { pen.globalAlpha = faded(i) ? 0.12 : 1; stamp(i, px, py, side); }
    pen.globalAlpha = 1;
    if (hot >= 0) stamp(hot, ...place(hot), side * 1.7);
  };

  const zoom = (factor, px = width / 2, py = height / 2) => {
    const scale = Math.min(24, Math.max(1, view.scale * factor)), real = scale / view.scale;
    const inside = (value) => Math.min(0, Math.max(1 - scale, value));
    const u = inverse(px, width), v = inverse(py, height);
    view.x = inside(u - (u - view.x) * real);
    view.y = inside(v - (v - view.y) * real);
    view.scale = scale;
    draw();
  };
  const under = (px, py) => {
    let best = -1, least = Infinity;
    for (const [list, reach] of [[shown, side / 2 + 2], [dots, 5]]) {
      for (const [i, qx, qy] of list) {
        const far = Math.max(Math.abs(qx - px), Math.abs(qy - py));
        if (far <= reach && far < least) { best = i; least = far; }
      }
      if (best >= 0) break;
    }
    return best;
  };
  const point = (i) => {
    if (i === hot) return;
    hot = i;
    pop.hidden = i < 0;
    draw();
    if (i < 0) return;
    const [px, py] = place(i), pixels = popCanvas.getContext("2d");
    popCanvas.width = popCanvas.height = map.tile;
    pixels.drawImage(sprite, ...corner(i), map.tile, map.tile, 0, 0, map.tile, map.tile);
    popName.textContent = map.names[i];
    popClass.textContent = map.y[i] >= 0 ? `class ${map.classes[map.y[i]]}` : "";
    pop.style.left = `${px + 200 < width ? px + 26 : Math.max(4, px - 200)}px`;
    pop.style.top = `${Math.max(4, Math.min(py - 60, height - pop.offsetHeight - 4))}px`;
  };
  let drag = null;
  canvas.addEventListener("pointerdown", (e) => { drag = view.scale > 1 ? [e.clientX, e.clientY, view.x, view.y] : null; if (drag) canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("pointermove", (e) => {
    if (drag) {
      view.x = Math.min(0, Math.max(1 - view.scale, drag[2] + (e.clientX - drag[0]) / width));
      view.y = Math.min(0, Math.max(1 - view.scale, drag[3] + (e.clientY - drag[1]) / height));
      hot = -1; pop.hidden = true;
      draw();
    } else point(under(e.offsetX, e.offsetY));
  });
  canvas.addEventListener("dblclick", (e) => zoom(2, e.offsetX, e.offsetY));
  canvas.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !e.metaKey) return;  // a plain wheel scrolls the page
    e.preventDefault();
    zoom(Math.exp(-e.deltaY / 250), e.offsetX, e.offsetY);
  }, { passive: false });
  const buttons = { in: () => zoom(1.6), out: () => zoom(1 / 1.6), all: () => zoom(0) };
  for (const button of figure.querySelectorAll("[data-zoom]")) button.addEventListener("click", buttons[button.dataset.zoom]);
  for (const button of document.querySelectorAll("[data-class]")) button.addEventListener("click", () => {
    only = only === Number(button.dataset.class) ? -1 : Number(button.dataset.class);
    for (const other of document.querySelectorAll("[data-class]")) other.setAttribute("aria-pressed", String(Number(other.dataset.class) === only));
    draw();
  });
  // Neighbours of any image: cosines of the features in the page, of 8 bits each.
  const around = document.getElementById("around"), title = document.getElementById("around-title"), count = map.names.length;
  const bytes = Uint8Array.from(atob(map.features), (c) => c.charCodeAt(0)), features = new Int8Array(bytes.buffer);
  const wide = features.length / count, rows = new Map(map.names.map((name, i) => [name, i]));
  const dot = (i, j) => { let sum = 0; for (let d = 0; d < wide; d++) sum += features[i * wide + d] * features[j * wide + d]; return sum; };
  const tileOf = (i, kind, caption) => {
    const tile = document.createElement("button"), small = document.createElement("canvas"), text = document.createElement("span");
    small.width = small.height = map.tile;
    small.getContext("2d").drawImage(sprite, ...corner(i), map.tile, map.tile, 0, 0, map.tile, map.tile);
    text.textContent = `${caption}${map.y[i] >= 0 ? map.classes[map.y[i]] : map.names[i].split("/").pop()}`;
    tile.append(small, text);
    tile.title = map.names[i];
    tile.className = `tile ${kind}`;
    tile.addEventListener("click", () => showAround(i));
    return tile;
  };
  const showAround = (i) => {
    const own = Math.sqrt(dot(i, i)) || 1, first = tileOf(i, "query", "");
    const found = map.names.map((_, j) => [dot(i, j) / (own * Math.sqrt(dot(j, j)) || 1), j]).filter(([, j]) => j !== i);
    found.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    title.textContent = `Nearest to ${map.names[i]}`;
    around.querySelector(".near").replaceChildren(first, ...found.slice(0, 12).map(([cosine, j]) => {
      const known = map.y[i] >= 0 && map.y[j] >= 0;
      return tileOf(j, known ? (map.y[i] === map.y[j] ? "same" : "other") : "", `${cosine.toFixed(2).replace("-", "−")}\n`);
    }));
    around.dataset.row = i;
    if (!around.open) around.showModal();
    first.focus();
  };
  canvas.addEventListener("click", (e) => { const i = under(e.offsetX, e.offsetY); if (i >= 0) showAround(i); });
  for (const tile of document.querySelectorAll("[data-path]")) {
    const i = rows.get(tile.dataset.path);
    if (i === undefined) continue;
    tile.classList.add("known");
    tile.tabIndex = 0;
    tile.setAttribute("role", "button");
    tile.addEventListener("click", () => showAround(i));
    tile.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); showAround(i); } });
  }
  sprite.onload = draw;
  sprite.src = map.sheet;
  new ResizeObserver(() => { if (sprite.complete && figure.clientWidth !== width) draw(); }).observe(figure);
}
