const measured = (figures) => Object.entries(figures || {}).filter(([, values]) => Object.keys(values).length).map(([split]) => split);
/** What tells runs apart in a picture: the folder that several of them share, as in a study, else their method. */
function groupOf(runs) {
  const parent = (run) => run.name.replace(/\/?[^/]*$/, "");
  const parents = new Set(runs.map(parent));
  const shared = parents.size > 1 && parents.size < runs.length && !parents.has("");
  return shared ? parent : (run) => run.method;
}
const folderName = (name) => (name.startsWith("/") ? name.replace(/^.*\//, "") : name);

/** Runs side by side; of several tasks one at a time, since their losses don't compare. */
function comparison(runs) {
  const tasks = [...new Set(runs.map((run) => run.task))].map((task) => [task, runs.filter((run) => run.task === task)])
    .sort((a, b) => b[1].length - a[1].length);
  const table = section("Comparison"), pictures = section("What it costs");
  const draw = ([, shown]) => {
    const made = compared(shown, groupOf(shown));
    table.replaceChildren(table.firstChild, ...(tasks.length > 1 ? [select] : []), ...made.table);
    pictures.replaceChildren(pictures.firstChild, ...made.pictures);
    pictures.hidden = !made.pictures.length;
  };
  const select = h("div", { class: "controls" },
    choose("task", tasks.map((task) => [`${task[0] || "unknown"} (${task[1].length} ${task[1].length > 1 ? "runs" : "run"})`, task]), draw));
  draw(tasks[0]);
  return [table, pictures];
}

/** A table that was made elsewhere, such as a study's statistics; texts that begin with a number sort by it. */
function givenTable({ title, header, rows, note, points = [] }) {
  const leading = (cell) => (typeof cell === "string" && /^[+-]?\d/.test(cell) ? parseFloat(cell.replace(/,/g, "")) : cell);
  return [h("h3", {}, title), sortable(title, header.map((name, i) => ({ name, value: (row) => leading(row[i]),
    text: (row) => (isNumber(row[i]) ? short(row[i]) : row[i]), number: i > 0 })), rows), note ? h("p", { class: "note" }, note) : null,
    points.length > 1 ? armPictures(title, points) : null];
}

/** The arms of a table, each at its own rate: mean loss and its 95 % interval over seeds. */
function armPictures(title, arms) {
  const groups = arms.map((each) => each.arm);
  const points = (x) => arms.map((each) => ({ ...each, x: x(each), y: each.loss, name: `mean of ${each.n}`, group: each.arm }));
  const ylabel = "loss, mean and 95 % interval";
  return h("div", { class: "columns" },
    scatter(`${title}: loss against parameters`, { points: points((each) => each.parameters), groups, xlabel: "parameters that train", ylabel, xlog: true }),
    scatter(`${title}: loss against seconds of training`, { points: points((each) => each.seconds), groups, xlabel: "seconds", ylabel }));
}

function compared(runs, group) {
  const groups = [...new Set(runs.map(group))];
  const splits = [...new Set(runs.flatMap((run) => measured(run.figures.last)))];
  const count = (split) => runs.filter((run) => measured(run.figures.last).includes(split)).length;
  splits.sort((a, b) => (a === "dev") - (b === "dev") || count(b) - count(a));
  if (!splits.length) {
    return { pictures: [], table: [sortable("Runs", [{ name: "run", value: (run) => run.name }, { name: "state", value: (run) => run.state },
      { name: "method", value: (run) => run.method }, { name: "note", value: (run) => run.note }], runs)] };
  }
  const of = (run, which, split, metric) => ((run.figures[which] || {})[split] || {})[metric];
  const table = h("div"), pictures = h("div", { class: "columns" }), state = { split: splits[0], which: "last" };

  function draw() {
    const metrics = [...new Set(runs.flatMap((run) => Object.keys((run.figures.last || {})[state.split] || {})))];
    const columns = [
      { name: "run", value: (run) => run.name }, { name: "state", value: (run) => (run.note ? `${run.state}, ${run.note}` : run.state) },
      { name: "method", value: (run) => run.method }, { name: "model", value: (run) => folderName(run.model) },
      { name: "seed", number: true, value: (run) => run.seed, text: (run) => short(run.seed) },
      { name: "rate", number: true, value: (run) => run.learning_rate, text: (run) => short(run.learning_rate) },
      { name: "budget", number: true, value: (run) => run.budget, text: (run) => short(run.budget) },
      { name: "parameters", number: true, value: (run) => run.parameters, text: (run) => whole(run.parameters) },
      ...metrics.flatMap((metric) => ["last", "dev_selected"].map((which) => ({ name: `${metric}, ${which.replace("_", "-")}`, number: true,
        value: (run) => of(run, which, state.split, metric), text: (run) => figure4(of(run, which, state.split, metric)) }))),
      { name: "seconds", number: true, value: (run) => run.seconds, text: (run) => seconds(run.seconds) },
      { name: "searching", number: true, value: (run) => run.search_share, text: (run) => (run.search_share ? `${(100 * run.search_share).toFixed(1)}%` : "") },
    ];
    const differs = (column) => new Set(runs.map((run) => column.value(run) ?? null)).size > 1;
    const figures = columns.slice(columns.findIndex((column) => column.name === "parameters"));
    const kept = columns.filter((column, place) => !place || figures.includes(column) || differs(column));
    const same = columns.filter((column) => !kept.includes(column) && (column.value(runs[0]) ?? null) !== null);
    table.replaceChildren(
      same.length && runs.length > 1 ? h("p", { class: "note" }, `The same in all: ${same.map((column) => `${column.name} ${(column.text || column.value)(runs[0])}`).join(", ")}.`) : "",
      sortable(`Figures on ${state.split}`, kept, runs, { tall: runs.length > 25 }));
    const points = (x) => runs.map((run) => ({ x: x(run), y: of(run, state.which, state.split, "loss"), name: run.name, group: group(run) }));
    const ylabel = `${state.split} loss`;
    pictures.replaceChildren(
      scatter("Loss against parameters", { points: points((run) => run.parameters), groups, xlabel: "adapter parameters", ylabel, xlog: true }),
      scatter("Loss against seconds of training", { points: points((run) => run.seconds), groups, xlabel: "seconds", ylabel }));
  }
  draw();
  const selects = h("div", { class: "controls" },
    splits.length > 1 ? choose("split", splits.map((split) => [split, split]), (split) => { state.split = split; draw(); }) : null,
    choose("checkpoint in the pictures", [["last", "last"], ["dev-selected", "dev_selected"]], (which) => { state.which = which; draw(); }));
  return { table: [selects, table], pictures: [pictures] };
}
