const facts = (pairs, kind) => h("dl", { class: kind }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
  .map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));

function figureTable(run) {
  const rows = [];
  for (const [which, splits] of Object.entries(run.figures))
    for (const [split, figures] of Object.entries(splits))
      if (Object.keys(figures).length) rows.push({ which: which.replace("_", "-"), split, ...figures });
  if (!rows.length) return h("p", { class: "note" }, "Nothing was measured yet.");
  const metrics = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => !["which", "split"].includes(name));
  return sortable("Metrics by checkpoint and split", [
    { name: "checkpoint", value: (row) => row.which }, { name: "split", value: (row) => row.split },
    ...metrics.map((name) => ({ name, number: true, value: (row) => row[name], text: (row) => figure4(row[name]) })),
  ], rows);
}

function overview(run) {
  const spent = run.spent || {};
  const budget = run.budget === null ? null : run.budget < 1 ? `${percent(run.budget)} of the candidates` : short(run.budget);
  return section("What was asked",
    run.state === "finished" ? null : h("p", { class: "told" }, `This run is not finished (${run.note}); what is known so far is shown.`),
    h("div", { class: "columns" },
      facts([["method", run.method], ["model", run.model], ["task", run.task], ["seed", run.seed], ["budget", budget],
        ["learning rate", run.learning_rate], ["steps", run.steps ? `${whole(run.step)} of ${whole(run.steps)}` : whole(run.step)],
        ["training", isNumber(run.seconds) ? `${seconds(run.seconds)} s` : null],
        ["of that searching", spent.search ? `${seconds(spent.search)} s (${(100 * spent.search_share).toFixed(1)}%)` : null]]),
      facts(run.sizes.map(([name, count]) => [name, whole(count)]), "sizes")),
    h("h3", {}, "Figures"), figureTable(run),
    run.data ? h("details", {}, h("summary", {}, "Data"), facts(Object.entries(run.data).map(([name, split]) =>
      [name, `${whole(split.rows)} rows of ${whole(split.tokens && split.tokens.median)} tokens (median), ${whole(split.tokens && split.tokens.longest)} the longest`]))) : null);
}

function curves(run) {
  const { train, dev, end, metrics, edits, searches } = run.curves;
  const marks = [...edits.map((each) => ({ x: each.step, label: each.what, paint: "var(--layer)" })),
    ...(searches.length <= 60 ? searches.filter((step) => step > 0).map((step) => ({ x: step, label: "search" })) : [])];
  const loss = [];
  if (train.step.length) loss.push({ name: "training loss", x: train.step, y: train.loss, paint: "var(--c7)", bare: true });
  if (dev.step.length && dev.loss) loss.push({ name: "dev loss", x: dev.step, y: dev.loss, paint: "var(--c0)" });
  if (!loss.length) return null;
  const told = [edits.length ? "pink lines: edits" : "", marks.length > edits.length ? "grey lines: searches" : ""].filter(Boolean).join("; ");
  const others = metrics.filter((name) => name !== "loss");
  return section("Loss and metrics",
    run.curves.planned && run.curves.planned > end ? h("p", { class: "note" }, `The axes end at step ${whole(end)}, the last one known; ${whole(run.curves.planned)} were planned.`) : null,
    lines("Loss over the optimizer steps", { series: loss, end, ylabel: "loss", marks, format: figure4 }),
    told ? h("p", { class: "note" }, told) : null,
    values("Loss by step", [{ name: "step", number: true, value: (row) => row.step }, ...["training loss", "learning rate", "dev loss"].map((name) =>
      ({ name, number: true, value: (row) => row[name], text: (row) => (name === "learning rate" ? short(row[name]) : figure4(row[name])) }))], () => {
      const rows = new Map();
      const at = (step) => rows.get(step) || rows.set(step, { step }).get(step);
      train.step.forEach((step, i) => Object.assign(at(step), { "training loss": train.loss[i], "learning rate": train.rate[i] }));
      (dev.loss || []).forEach((value, i) => Object.assign(at(dev.step[i]), { "dev loss": value }));
      return [...rows.values()].sort((a, b) => a.step - b.step);
    }),
    others.length ? [h("h3", {}, "Dev metrics"), h("div", { class: "small" }, others.map((name) =>
      lines(`dev ${name}`, { series: [{ name, x: dev.step, y: dev[name], paint: "var(--c0)" }], end, small: true, title: name })))] : null);
}

function heat(run) {
  if (!run.heat) return null;
  const { rows, columns, ranks, share, known } = run.heat;
  const holder = h("div");
  function draw(table, percents) {
    const most = percents ? 1 : Math.max(1, ...table.flat().filter(isNumber));
    const cell = (value) => {
      if (!isNumber(value)) return h("td", { class: "none" }, "");
      if (!value) return h("td", { class: "off" }, percents ? "0" : "·");
      const td = h("td", { class: value / most > 0.5 ? "deep" : null }, percents ? String(Math.round(100 * value)) : known ? short(value) : "on");
      td.style.background = `color-mix(in srgb, var(--heat) ${Math.round(12 + 88 * (value / most))}%, var(--card))`;
      return td;
    };
    holder.replaceChildren(scroll("Heat map by projection or kind and block", h("table", { class: "heat" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "block"), columns.map((column) => h("th", { scope: "col" }, column < 0 ? "other" : String(column))))),
      h("tbody", {}, rows.map((row, i) => h("tr", {}, h("th", { scope: "row" }, row), table[i].map(cell)))))));
  }
  draw(ranks, false);
  const options = [[known ? "rank at the end" : "what is on at the end", [ranks, false]], ...(share ? [["how often it was on, % of the searches", [share, true]]] : [])];
  return section("Ranks by block", h("p", { class: "note" }, known ? "" : "The files of this run do not say all ranks. ", "A dot: off. Empty: no such path. A path across several blocks stands in each of them."),
    options.length > 1 ? h("div", { class: "controls" }, choose("show", options, ([table, percents]) => draw(table, percents))) : null, holder);
}

function pathTable(run) {
  if (run.paths.length < 2) return null;
  const searched = run.curves.searches.length > 0;
  const columns = [
    { name: "path", value: (row) => row.name }, { name: "kind", value: (row) => row.kind },
    { name: "block", number: true, value: (row) => row.blocks[0], text: (row) => (row.blocks.length ? [...new Set([row.blocks[0], row.blocks[row.blocks.length - 1]])].join("-") : "") },
    { name: "rank", number: true, value: (row) => row.r, text: (row) => short(row.r) },
    { name: "on at the end", value: (row) => (row.on ? "yes" : "no") },
    ...(searched ? [{ name: "last score", number: true, value: (row) => row.score, text: (row) => short(row.score) }] : []),
    ...(run.moments.length > 1 ? [{ name: "on, % of the moments", number: true, value: (row) => row.share, text: (row) => percent(row.share) }] : []),
  ];
  return sortable("All paths", columns, run.paths, { tall: true, sortBy: searched ? "last score" : null, descending: true });
}

function scores(run) {
  const found = run.scores, table = pathTable(run);
  if (!found && !table) return null;
  const content = [];
  if (found && found.steps.length > 1) {
    const y = found.logarithmic ? [...found.low.flat(), ...found.high.flat()] : null;
    content.push(h("p", { class: "note" }, `${found.proxy} of each path: median over the blocks, in a band from the lowest to the highest`,
      y ? "; logarithmic scales" : "", found.warm_up ? `; without ${found.warm_up} warm-up searches` : "",
      found.not_finite ? `; ${found.not_finite} scores that were not finite are left out` : "", "."),
    h("div", { class: "small" }, found.rows.map((row, i) => lines(`${found.proxy} of ${row}`, { title: row, small: true, end: run.curves.end, ylog: found.logarithmic,
      series: [{ name: row, x: found.steps, y: found.middle[i], low: found.low[i], high: found.high[i], paint: paintOf(row in ARCS ? row : "linear") }] }))));
  } else if (found) content.push(h("p", { class: "note" }, `${found.proxy}, scored once.`));
  const overlap = run.overlap;
  if (overlap && overlap.steps.length > 1) {
    const series = [{ name: "share of the choice before that was kept", x: overlap.steps, y: overlap.values, paint: "var(--c0)" }];
    if (isNumber(overlap.budget)) series.push({ name: "what fresh random choices would keep", x: [0, run.curves.end], y: [overlap.budget, overlap.budget], paint: "var(--c7)", dash: "5 4", bare: true });
    content.push(h("h3", {}, `Overlap of consecutive choices${isNumber(overlap.mean) ? `, ${percent(overlap.mean)} on average` : ""}`),
      lines("Overlap of consecutive choices", { series, end: run.curves.end, floor: 0, ceiling: 1, format: percent, axis: percent, height: 190 }));
  }
  return section(found ? "Scores" : "All paths", ...content, table);
}

function edits(run) {
  if (!run.edits.length) return null;
  const rows = run.edits.map((each) => ({ ...each, before: each.measured[0], after: each.measured[1],
    change: isNumber(each.measured[0]) && isNumber(each.measured[1]) ? each.measured[1] - each.measured[0] : null }));
  return section("Edits", sortable("Edits", [
    { name: "after step", number: true, value: (row) => row.step, text: (row) => whole(row.step) },
    { name: "what", value: (row) => row.what }, { name: "chosen by", value: (row) => row.metric },
    { name: "dev loss before", number: true, value: (row) => row.before, text: (row) => figure4(row.before) },
    { name: "dev loss after", number: true, value: (row) => row.after, text: (row) => figure4(row.after) },
    { name: "change", number: true, value: (row) => row.change, text: (row) => (isNumber(row.change) ? `${row.change < 0 ? "" : "+"}${row.change.toFixed(4)}` : "") },
    { name: "parameters from then on", number: true, value: (row) => row.enabled, text: (row) => whole(row.enabled) },
    { name: "seconds", number: true, value: (row) => row.seconds, text: (row) => seconds(row.seconds) },
  ], rows), rows.length > 1 ? h("p", { class: "note" }, "Edits made after the same step are measured together where only the first or last has a loss.") : null);
}

function spectra(run) {
  if (!run.spectra) return null;
  const { moments } = run.spectra;
  const holder = h("div");
  const bars = (sigma) => {
    const step = Math.max(3, Math.min(10, 160 / sigma.length)), tall = 26;
    return s("svg", { width: step * sigma.length, height: tall, role: "img", "aria-label": sigma.map(short).join(", ") },
      s("title", {}, sigma.map(short).join(", ")), sigma.map((value, i) => {
        const high = Math.max(1, (value / sigma[0]) * tall);
        return s("rect", { x: i * step, y: tall - high, width: step - 1, height: high, fill: "var(--c0)" });
      }));
  };
  function show(place) {
    const rows = Object.entries(moments[place].paths).filter(([, sigma]) => sigma.length && sigma[0] > 0).map(([name, sigma]) => {
      const sum = sigma.reduce((a, b) => a + b, 0), squares = sigma.reduce((a, b) => a + b * b, 0);
      return { name, sigma, rank: sigma.length, first: sigma[0], share: sigma[0] / sum, effective: (sum * sum) / squares };
    });
    holder.replaceChildren(rows.length ? sortable(`Singular values, ${moments[place].label}`, [
      { name: "path", value: (row) => row.name }, { name: "values", number: true, value: (row) => row.rank },
      { name: "largest", number: true, value: (row) => row.first, text: (row) => short(row.first) },
      { name: "its share of the sum", number: true, value: (row) => row.share, text: (row) => percent(row.share) },
      { name: "effective number", number: true, value: (row) => row.effective, text: (row) => row.effective.toFixed(2) },
      { name: "all, largest first", value: (row) => row.effective, cell: (row) => bars(row.sigma) },
    ], rows, { tall: true }) : h("p", { class: "note" }, "All singular values are zero."));
  }
  const first = Math.max(0, moments.length - 2); // the newest one of the training, before the adapter as it was saved
  show(first);
  const id = fresh("epoch"), told = h("span", { class: "note", "aria-live": "polite" }, moments[first].label);
  const slider = h("input", { id, type: "range", min: 0, max: moments.length - 1, value: first, oninput: () => {
    told.textContent = moments[Number(slider.value)].label; slider.setAttribute("aria-valuetext", told.textContent); show(Number(slider.value)); } });
  return section("Singular values",
    h("p", { class: "note" }, "Of each path's B A (without its scale), at most 32. Bars are relative to the path's own largest; the effective number is (sum)² / sum of squares: 1 when one direction carries it all."),
    moments.length > 1 ? h("div", { class: "controls" }, h("label", { for: id }, "time"), slider, told) : h("p", { class: "note" }, moments[0].label), holder);
}

function gradients(run) {
  const found = run.gradients;
  if (!found) return null;
  return section("Gradients of LoR2C over those of LoRA",
    h("p", { class: "note" }, "Ratio of mean absolute gradients, by block and epoch", isNumber(found.correlation) ? `; rank correlation with the block's number ${found.correlation.toFixed(2)}.` : "."),
    sortable("Gradient ratios", [{ name: "block", number: true, value: (row) => row.block },
      ...found.epochs.map((epoch, i) => ({ name: `epoch ${short(epoch)}`, number: true, value: (row) => row.values[i], text: (row) => short(row.values[i]) }))],
    found.blocks.map((block, i) => ({ block, values: found.values[i] }))));
}

function repeat(run) {
  return section("Run it again",
    run.command ? [h("p", { class: "note" }, "The command that made it:"), h("pre", { class: "wrap", tabindex: 0 }, run.command)] : null,
    h("p", { class: "note" }, "From the recipe in its folder, all defaults written out:"), h("pre", { class: "wrap", tabindex: 0 }, run.again),
    h("details", {}, h("summary", {}, "The recipe"), h("pre", { tabindex: 0 }, run.recipe)),
    run.versions ? h("details", {}, h("summary", {}, "Versions"), facts(Object.entries(run.versions))) : null);
}

const runSections = (run) => [overview, curves, modelSection, heat, scores, edits, spectra, gradients, repeat].map((make) => make(run)).filter(Boolean);
