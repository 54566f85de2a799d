"use strict";
// Every text of a run reaches the page through text nodes and attributes; nothing is ever parsed as HTML.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const whole = (value) => (isNumber(value) ? Math.round(value).toLocaleString("en-US") : "");

function short(value) {
  if (!isNumber(value)) return "";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

const figure4 = (value) => (isNumber(value) ? value.toFixed(4) : "");
const percent = (value) => (isNumber(value) ? `${Math.round(value * 100)}%` : "");
const seconds = (value) => (isNumber(value) ? (value < 100 ? value.toFixed(1) : whole(value)) : "");

let ids = 0;
const fresh = (name) => `${name}-${++ids}`;

/** Draw into an element at its own width in pixels, so that text keeps its size, and again when that changes. */
function responsive(element, draw) {
  let drawn = 0;
  const again = () => {
    const width = Math.floor(element.clientWidth);
    if (width && width !== drawn) { drawn = width; draw(width); }
  };
  new ResizeObserver(() => requestAnimationFrame(again)).observe(element);
  return () => { drawn = 0; again(); };
}

function section(title, ...children) {
  const id = title.toLowerCase().replace(/[^a-z]+/g, "-");
  return h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), ...children);
}

const scroll = (label, child, tall) =>
  h("div", { class: tall ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": label }, child);

/** A table whose columns sort; a column is {name, value(row), text?(row), number?, cell?(row)}. */
function sortable(label, columns, rows, { sortBy = null, descending = false, tall = false } = {}) {
  const body = h("tbody");
  const heads = columns.map((column) =>
    h("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" },
      h("button", { type: "button", onclick: () => turn(column) }, column.name)));
  let order = { column: null, descending: false };

  function turn(column) {
    const again = order.column === column;
    sort(column, again ? !order.descending : Boolean(column.number));
  }
  function sort(column, down) {
    order = { column, descending: down };
    heads.forEach((head, place) => head.setAttribute("aria-sort",
      columns[place] !== column ? "none" : down ? "descending" : "ascending"));
    const missing = (value) => value === null || value === undefined || value === "";
    const sorted = rows.map((row, place) => [row, column.value(row), place]).sort(([, a, i], [, b, j]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b) || i - j;
      const way = isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return (down ? -way : way) || i - j;
    });
    show(sorted.map(([row]) => row));
  }
  function show(shown) {
    body.replaceChildren(...shown.map((row) => h("tr", {}, columns.map((column, place) => {
      const text = column.text ? column.text(row) : column.value(row);
      const content = column.cell ? column.cell(row) : text === null || text === undefined ? "" : String(text);
      return place ? h("td", { class: column.number ? "number" : null }, content) : h("th", { scope: "row" }, content);
    }))));
  }
  const by = columns.find((column) => column.name === sortBy);
  if (by) sort(by, descending); else show(rows);
  return scroll(label, h("table", { "data-sortable": true }, h("caption", { class: "note", hidden: true }, label),
    h("thead", {}, h("tr", {}, heads)), body), tall);
}

/** Values behind a picture, made only when asked for. */
function values(label, columns, rows) {
  const details = h("details", {}, h("summary", {}, "Values"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(sortable(label, columns, rows(), { tall: true }));
  });
  return details;
}

function choose(label, options, onchange) {
  const id = fresh("choice");
  const select = h("select", { id, onchange: () => onchange(options[select.selectedIndex][1]) },
    options.map(([text]) => h("option", {}, text)));
  return h("span", {}, h("label", { for: id, class: "note" }, `${label} `), select);
}
