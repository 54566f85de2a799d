const MARKS = ["circle", "square", "triangle", "diamond", "cross", "ring", "down", "bar"];
const HINT = "Point at the picture, or use the arrow keys on it, to read values.";
const colour = (place) => `var(--c${(place + 3 * Math.floor(place / 8)) % 8})`; // 64 pairs of mark and colour

function mark(shape, x, y, size, paint) {
  const at = (points) => s("polygon", { points: points.map(([a, b]) => `${x + a * size},${y + b * size}`).join(" "), fill: paint });
  switch (shape) {
    case "square": return s("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size, fill: paint });
    case "triangle": return at([[0, -1.2], [1.1, 0.9], [-1.1, 0.9]]);
    case "down": return at([[0, 1.2], [1.1, -0.9], [-1.1, -0.9]]);
    case "diamond": return at([[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]]);
    case "bar": return s("rect", { x: x - 1.4 * size, y: y - 0.6 * size, width: 2.8 * size, height: 1.2 * size, fill: paint });
    case "cross": return s("path", { d: `M${x - size},${y - size}l${2 * size},${2 * size}m0,${-2 * size}l${-2 * size},${2 * size}`, stroke: paint, "stroke-width": 2.2 });
    case "ring": return s("circle", { cx: x, cy: y, r: size, fill: "none", stroke: paint, "stroke-width": 2.2 });
    default: return s("circle", { cx: x, cy: y, r: size, fill: paint });
  }
}

/** Round numbers inside a range: about `count`, or powers of ten (with 2 and 5 where they are few) on a log scale. */
function ticks(low, high, count, log) {
  if (log) {
    for (const factors of [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const factor of factors) found.push(factor * 10 ** power);
      const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
      if (inside.length >= 3) return thinned(inside, count + 2);
    }
  }
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step)
    found.push(Number(value.toPrecision(12)));
  return found;
}

const thinned = (list, most) => list.filter((_, place) => place % Math.ceil(list.length / most) === 0);

function scale(low, high, from, to, log) {
  const f = log ? Math.log10 : (value) => value;
  const a = f(low), b = f(high);
  return (value) => (a === b ? (from + to) / 2 : from + ((f(value) - a) / (b - a)) * (to - from));
}

function range(numbers, log, room = 0.06) {
  const kept = numbers.filter((value) => isNumber(value) && (!log || value > 0));
  if (!kept.length) return [0, 1];
  let low = Math.min(...kept), high = Math.max(...kept);
  if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** room, high * (high / low) ** room];
  if (low === high) { const spread = Math.abs(low) * 0.1 || 1; return [low - spread, high + spread]; }
  return [low - (high - low) * room, high + (high - low) * room];
}

/** Axes in an empty SVG: returns the scales and the place inside. */
function frame(svg, width, height, { x, y, xlabel, ylabel, xlog, ylog, small, yformat = short, xformat = short }) {
  const left = small ? 44 : 56, right = 12, top = small ? 20 : 12, bottom = small ? 22 : 38;
  const sx = scale(x[0], x[1], left, width - right, xlog), sy = scale(y[0], y[1], height - bottom, top, ylog);
  const across = Math.max(3, Math.floor((width - left) / (small ? 70 : 90)));
  for (const value of ticks(y[0], y[1], small ? 3 : 5, ylog)) {
    svg.append(s("line", { x1: left, x2: width - right, y1: sy(value), y2: sy(value), stroke: "var(--grid)" }),
      s("text", { x: left - 6, y: sy(value) + 4, "text-anchor": "end" }, yformat(value)));
  }
  for (const value of ticks(x[0], x[1], across, xlog)) {
    const near = sx(value) > width - right - 14;
    svg.append(s("line", { x1: sx(value), x2: sx(value), y1: height - bottom, y2: height - bottom + 4, stroke: "var(--dim)" }),
      s("text", { x: near ? width - 2 : sx(value), y: height - bottom + 15, "text-anchor": near ? "end" : "middle" }, xformat(value)));
  }
  svg.append(s("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, stroke: "var(--dim)" }));
  if (xlabel) svg.append(s("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xlabel));
  if (ylabel) svg.append(s("text", { x: 12, y: (top + height - bottom) / 2, "text-anchor": "middle",
    transform: `rotate(-90 12 ${(top + height - bottom) / 2})` }, ylabel));
  return { sx, sy, left, right, top, bottom };
}

const legend = (items) => h("ul", { class: "legend" }, items.map(({ name, paint, shape, dash }) => h("li", {},
  s("svg", { width: 22, height: 12, "aria-hidden": "true" }, shape ? mark(shape, 11, 6, 4, paint)
    : s("line", { x1: 1, x2: 21, y1: 6, y2: 6, stroke: paint, "stroke-width": 2.5, "stroke-dasharray": dash || null })), name)));

/** Lines over steps; arrow keys or the pointer read values off. A series is {name, x, y, paint, dash?, low?, high?}. */
function lines(label, { series, end, xlabel = "optimizer step", ylabel, marks = [], ylog = false, small = false, title,
  height = small ? 130 : 260, floor = null, ceiling = null, format = short, axis = short }) {
  const shown = series.filter((each) => each.y.some(isNumber));
  const readout = h("div", { class: "readout", "aria-live": "polite" }, HINT);
  const holder = h("div");
  const all = [...new Set(shown.flatMap((each) => each.x))].sort((a, b) => a - b);
  let place = -1;

  function draw(width) {
    const svg = s("svg", { width, height, role: "img", tabindex: small ? null : 0, "aria-label": `${label}. Arrow keys read values.` });
    const numbers = shown.flatMap((each) => [...each.y, ...(each.low || []), ...(each.high || [])]);
    const y = range(numbers, ylog);
    if (floor !== null) y[0] = floor;
    if (ceiling !== null) y[1] = ceiling;
    const x = [0, Math.max(end || 0, all.length ? all[all.length - 1] : 1) || 1];
    const { sx, sy, left, right, top, bottom } = frame(svg, width, height, { x, y, xlabel: small ? null : xlabel, ylabel, ylog, small, yformat: axis });
    if (title) svg.append(s("text", { x: left, y: 12, class: "title" }, title));
    for (const each of marks) svg.append(s("line", { x1: sx(each.x), x2: sx(each.x), y1: top, y2: height - bottom,
      stroke: each.paint || "var(--dim)", "stroke-dasharray": "2 3", class: "mark" }, s("title", {}, each.label)));
    const fits = (value) => isNumber(value) && (!ylog || value > 0);
    for (const each of shown) {
      if (each.low) {
        const there = each.x.map((_, i) => i).filter((i) => fits(each.low[i]) && fits(each.high[i]));
        svg.append(s("path", { fill: each.paint, opacity: 0.2, d: there.length ? "M" + [...there.map((i) => `${sx(each.x[i])},${sy(each.high[i])}`),
          ...there.reverse().map((i) => `${sx(each.x[i])},${sy(each.low[i])}`)].join("L") + "Z" : "" }));
      }
      let d = "", pen = "M";
      each.y.forEach((value, i) => {
        if (fits(value)) { d += `${pen}${sx(each.x[i]).toFixed(1)},${sy(value).toFixed(1)}`; pen = "L"; } else pen = "M";
      });
      svg.append(s("path", { d, fill: "none", stroke: each.paint, "stroke-width": small ? 1.6 : 2, "stroke-dasharray": each.dash || null, class: "curve" }));
      const count = each.y.filter(isNumber).length;
      if (count <= 30 && !each.bare) each.y.forEach((value, i) => fits(value) && svg.append(mark("circle", sx(each.x[i]), sy(value), small ? 1.8 : 2.6, each.paint)));
    }
    if (!small && all.length) {
      const hair = s("line", { y1: top, y2: height - bottom, stroke: "var(--ink)", opacity: 0.5, visibility: "hidden" });
      svg.append(hair);
      const read = (to) => {
        place = Math.max(0, Math.min(all.length - 1, to));
        const at = all[place];
        hair.setAttribute("x1", sx(at)); hair.setAttribute("x2", sx(at)); hair.setAttribute("visibility", "visible");
        const told = shown.map((each) => [each.name, each.y[each.x.indexOf(at)]]).filter(([, value]) => isNumber(value));
        readout.textContent = `step ${whole(at)}: ${told.map(([name, value]) => `${name} ${format(value)}`).join(", ")}`;
      };
      svg.addEventListener("pointermove", (event) => {
        const inside = event.clientX - svg.getBoundingClientRect().left;
        read(all.reduce((best, value, i) => (Math.abs(sx(value) - inside) < Math.abs(sx(all[best]) - inside) ? i : best), 0));
      });
      svg.addEventListener("keydown", (event) => {
        const way = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
        if (way) { event.preventDefault(); read(place + way); }
      });
    }
    holder.replaceChildren(svg);
  }
  responsive(holder, draw);
  if (small) return h("figure", {}, holder);
  const items = shown.map(({ name, paint, dash }) => ({ name, paint, dash }));
  return h("figure", {}, shown.length > 1 ? legend(items) : null, holder, readout);
}

/** Points, one a run or an arm; arrow keys or the pointer read them off. A point is {x, y, name, group, low?, high?}. */
function scatter(label, { points, groups, xlabel, ylabel, xlog = false, height = 300 }) {
  const readout = h("div", { class: "readout", "aria-live": "polite" }, HINT);
  const holder = h("div");
  const shown = points.filter((each) => isNumber(each.x) && isNumber(each.y) && (!xlog || each.x > 0)).sort((a, b) => a.x - b.x || a.y - b.y);
  let place = -1;
  function draw(width) {
    const svg = s("svg", { width, height, role: "img", tabindex: 0, "aria-label": `${label}: ${shown.length} points. Arrow keys read them.` });
    const { sx, sy } = frame(svg, width, height, { x: range(shown.map((each) => each.x), xlog), y: range(shown.flatMap((each) => [each.y, each.low, each.high])), xlabel, ylabel, xlog });
    const ring = s("circle", { r: 9, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, visibility: "hidden" });
    for (const each of shown) {
      const group = groups.indexOf(each.group);
      if (isNumber(each.low) && isNumber(each.high)) svg.append(s("line", { x1: sx(each.x), x2: sx(each.x), y1: sy(each.low), y2: sy(each.high),
        stroke: colour(group), "stroke-width": 1.5, class: "interval" }));
      svg.append(s("g", { class: "point", opacity: 0.9 }, mark(MARKS[group % 8], sx(each.x), sy(each.y), 4.5, colour(group)), s("title", {}, each.name)));
    }
    svg.append(ring);
    const read = (to) => {
      if (!shown.length) return;
      place = Math.max(0, Math.min(shown.length - 1, to));
      const at = shown[place];
      ring.setAttribute("cx", sx(at.x)); ring.setAttribute("cy", sy(at.y)); ring.setAttribute("visibility", "visible");
      readout.textContent = `${at.name} (${at.group}): ${xlabel} ${short(at.x)}, ${ylabel.split(",")[0]} ${figure4(at.y)}${isNumber(at.low) ? ` [${figure4(at.low)}, ${figure4(at.high)}]` : ""}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      const far = (each) => (sx(each.x) - x) ** 2 + (sy(each.y) - y) ** 2;
      read(shown.reduce((best, each, i) => (far(each) < far(shown[best]) ? i : best), 0));
    });
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 }[event.key];
      if (way) { event.preventDefault(); read(place + way); }
    });
    holder.replaceChildren(svg);
  }
  responsive(holder, draw);
  const items = groups.map((name, i) => ({ name, paint: colour(i), shape: MARKS[i % 8] })).filter(({ name }) => shown.some((each) => each.group === name));
  return h("figure", {}, h("figcaption", {}, label), legend(items), holder, readout,
    shown.length < points.length ? h("p", { class: "note" }, `${points.length - shown.length} of ${points.length} runs have no such figure and are not shown.`) : null);
}
