const ARCS = { res1: ["in", "mid"], res2: ["mid", "out"], in: ["in", "out"], cut: ["before", "mid"], layer: ["in", "out"] };
const MEANS = {
  linear: "along a projection (LoRA)", res1: "block input to attention sum", res2: "mid to feed-forward sum",
  in: "block input to block output", cut: "mid of the block before to this mid", layer: "across one or several blocks (LoR2C)",
};
const paintOf = (kind) => `var(--${kind})`;
const shortRow = (row) => row.replace(/_proj$/, "").replace(/^attention\.|^self_attn\.|^mlp\./, "").replace(/\.dense$/, "");

/** The blocks with their projections as cells and the other paths as arcs beside the residual stream. */
function drawModel(holder, run, moment, width) {
  const paths = run.paths, on = new Set(moment.on), frozen = new Set(moment.frozen), gained = new Set(moment.gained);
  const rows = run.heat.rows.filter((row) => paths.some((path) => path.row === row && path.kind === "linear" && path.blocks.length));
  const kinds = Object.keys(ARCS).filter((kind) => paths.some((path) => path.kind === kind));
  const blocks = 1 + Math.max(-1, ...paths.flatMap((path) => path.blocks));
  const most = Math.max(1, ...paths.map((path) => path.r || 1));
  const left = 44, narrow = kinds.length ? 44 + 24 * kinds.length : 52;
  const cell = Math.max(15, Math.min(64, (width - left - narrow) / Math.max(rows.length, 1)));
  const lane = Math.max(24, Math.min(64, (width - left - cell * rows.length - 60) / Math.max(kinds.length, 1)));
  const beside = kinds.length ? 44 + lane * kinds.length : 52;
  const names = rows.map(shortRow);
  const tilted = names.some((name) => name.length * 6.5 > cell);
  const top = rows.length ? (tilted ? 18 + Math.min(14, Math.max(...names.map((name) => name.length))) * 4.6 : 26) : 16;
  const band = blocks <= 12 ? 46 : blocks <= 24 ? 36 : 28;
  const total = left + cell * rows.length + beside;
  const stream = left + cell * rows.length + 20, height = top + band * blocks + 22;
  const svg = s("svg", { width: total, height, role: "img", class: "model",
    "aria-label": `${blocks} blocks; after step ${moment.step} ${on.size} of ${paths.length} paths are on` });
  svg.style.maxWidth = "none";
  const hatch = fresh("hatch");
  svg.append(s("defs", {}, s("pattern", { id: hatch, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    s("rect", { width: 3, height: 6, fill: "var(--linear)", opacity: 0.55 }))));
  const yIn = (block) => top + block * band + 3, yMid = (block) => top + (block + 0.5) * band, yOut = (block) => top + (block + 1) * band - 3;
  const tip = (path, i) => s("title", {}, `${path.name}${path.r ? `, rank ${path.r}` : ""}: ${on.has(i) ? "on" : frozen.has(i) ? "frozen" : "off"}`);

  names.forEach((name, i) => {
    const x = left + (i + 0.5) * cell, cut = name.length > 14 ? `${name.slice(0, 13)}…` : name;
    svg.append(s("text", tilted ? { x, y: top - 8, transform: `rotate(-50 ${x} ${top - 8})`, class: "strong" }
      : { x, y: top - 8, "text-anchor": "middle", class: "strong" }, cut, s("title", {}, rows[i])));
  });
  svg.append(s("text", { x: left - 8, y: top - 8, "text-anchor": "end" }, "block"));
  for (let block = 0; block < blocks; block++) {
    svg.append(s("rect", { x: left - 2, y: top + block * band + 1, width: total - left, height: band - 2, rx: 5, fill: "var(--bg)" }),
      s("text", { x: left - 8, y: yMid(block) + 4, "text-anchor": "end", class: "strong" }, String(block)));
  }
  svg.append(s("line", { x1: stream, x2: stream, y1: top - 6, y2: top + band * blocks + 6, stroke: "var(--dim)", "stroke-width": 2.5 }),
    s("path", { d: `M${stream - 4.5},${top + band * blocks + 2}l4.5,7l4.5,-7z`, fill: "var(--dim)" }),
    s("text", { x: stream, y: height - 2, "text-anchor": "middle" }, "output"));
  for (let block = 0; block < blocks; block++) svg.append(s("circle", { cx: stream, cy: yMid(block), r: 2.6, fill: "var(--dim)" }));

  paths.forEach((path, i) => {
    if (path.kind === "linear" && path.blocks.length) {
      const place = rows.indexOf(path.row), x = left + place * cell + 1.5, y = top + path.blocks[0] * band + 5, tall = band - 10;
      const lit = on.has(i), strength = 0.35 + (0.65 * (path.r || 1)) / most;
      svg.append(s("g", { class: lit ? "path on" : frozen.has(i) ? "path frozen" : "path off", "data-path": path.name },
        s("rect", { x, y, width: cell - 3, height: tall, rx: 3, fill: lit ? "var(--linear)" : frozen.has(i) ? `url(#${hatch})` : "none",
          "fill-opacity": lit ? strength : null, stroke: gained.has(i) ? "var(--ink)" : lit ? "none" : "var(--line)",
          "stroke-width": gained.has(i) ? 2 : 1 }),
        lit && path.r && cell >= 15 ? s("text", { x: x + (cell - 3) / 2, y: y + tall / 2 + 4, "text-anchor": "middle", class: strength > 0.75 ? "onpaint" : "strong" }, String(path.r)) : null, tip(path, i)));
    }
  });
  const order = paths.map((path, i) => [path, i]).filter(([path, i]) => path.kind in ARCS && path.blocks.length &&
    (on.has(i) || frozen.has(i) || path.blocks.length === 1)).sort(([, a], [, b]) => on.has(a) - on.has(b));
  for (const [path, i] of order) {
    const [from, to] = ARCS[path.kind], first = path.blocks[0], last = path.blocks[path.blocks.length - 1];
    const points = { in: yIn(first), mid: yMid(first), out: yOut(last), before: yMid(Math.max(first - 1, 0)) };
    const y1 = points[from], y2 = points[to], reach = 12 + lane * (kinds.indexOf(path.kind) + 1), lit = on.has(i);
    const x = stream + 3, paint = lit || frozen.has(i) ? paintOf(path.kind) : "var(--line)", bend = stream + reach * 1.33;
    const d = `M${x},${y1}C${bend},${y1} ${bend},${y2} ${x + 5},${y2}`;
    svg.append(s("g", { class: lit ? "path on" : frozen.has(i) ? "path frozen" : "path off", "data-path": path.name },
      s("path", { d, fill: "none", stroke: paint, "stroke-width": lit ? 1.6 + (2.4 * (path.r || 1)) / most : 1,
        "stroke-dasharray": lit ? null : frozen.has(i) ? "5 3" : "1 3" }),
      lit || frozen.has(i) ? s("path", { d: `M${x},${y2}l7,-3.5v7z`, fill: paint }) : null,
      lit && path.r ? s("text", { x: stream + reach - 1, y: (y1 + y2) / 2 + 4, "text-anchor": "middle", class: gained.has(i) ? "arc title" : "arc strong" }, String(path.r)) : null,
      tip(path, i)));
  }
  holder.replaceChildren(svg);
}

/** The picture with its slider, its words and its legend. */
function modelSection(run) {
  if (!run.moments.length) return null;
  const holder = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The paths on the model" });
  const told = h("div", { class: "readout told", "aria-live": "polite", id: fresh("told") });
  const change = h("div", { class: "readout" }), outside = h("div", { class: "readout" });
  const last = run.moments.length - 1;
  let place = last;
  const id = fresh("moment");
  const slider = h("input", { id, type: "range", min: 0, max: last, step: 1, value: last, oninput: () => show(Number(slider.value)) });
  const redraw = responsive(holder, (width) => drawModel(holder, run, run.moments[place], width));
  const list = (places) => places.slice(0, 8).map((i) => run.paths[i].name).join(", ") + (places.length > 8 ? ` and ${places.length - 8} more` : "");

  function show(to) {
    place = Math.max(0, Math.min(last, to));
    slider.value = place;
    const moment = run.moments[place];
    const parameters = isNumber(moment.enabled) ? `, ${whole(moment.enabled)} parameters` : "";
    told.textContent = last === 0 ? `${moment.on.length} of ${run.paths.length} paths are on${parameters}`
      : `${place + 1} of ${last + 1}: ${moment.title}, after step ${whole(moment.step)}: ${moment.on.length} of ${run.paths.length} paths on${parameters}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    change.textContent = last === 0 ? "" : [moment.gained.length ? `switched on: ${list(moment.gained)}` : "",
      moment.lost.length ? `switched off: ${list(moment.lost)}` : ""].filter(Boolean).join("; ") || "nothing changed";
    const elsewhere = moment.on.map((i) => run.paths[i]).filter((path) => !path.blocks.length);
    outside.textContent = elsewhere.length ? `outside the blocks: ${elsewhere.map((path) => `${path.name}${path.r ? ` (rank ${path.r})` : ""}`).join(", ")}` : "";
    redraw();
  }
  const button = (text, label, to) => h("button", { type: "button", class: "plain", "aria-label": label, onclick: () => show(to()) }, text);
  show(last);
  const kinds = ["linear", ...Object.keys(ARCS)].filter((kind) => run.paths.some((path) => path.kind === kind));
  return section("Paths on the model",
    h("p", { class: "note" }, "Blocks downwards, as the data flows. A filled cell is a projection with a path, an arc a path beside the residual stream ",
      "(vertical line, dot: the point between attention and feed-forward); numbers are ranks, faint what is off",
      run.moments.some((moment) => moment.frozen.length) ? ", hatched or dashed what acts without being trained" : "",
      last ? ", outlined (an arc: its number bold) what was just switched on." : "."),
    last ? h("div", { class: "controls" }, h("label", { for: id }, "moment"), button("‹", "one moment back", () => place - 1), slider,
      button("›", "one moment on", () => place + 1)) : null,
    told, change, holder, outside,
    legend(kinds.map((kind) => ({ name: `${kind}: ${MEANS[kind]}`, paint: paintOf(kind), shape: kind === "linear" ? "square" : null }))),
    run.thinned ? h("p", { class: "note" }, `The slider shows ${last + 1} of ${run.thinned} moments, evenly spread.`) : null);
}
