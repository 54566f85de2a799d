function comparison(runs) {
  const splits = [...new Set(runs.flatMap((run) => Object.entries(run.figures.last || {}).filter(([, f]) => Object.keys(f).length).map(([split]) => split)))];
  const count = (split) => runs.filter((run) => run.figures.last && run.figures.last[split] && Object.keys(run.figures.last[split]).length).length;
  splits.sort((a, b) => (a === "dev") - (b === "dev") || count(b) - count(a));
  const of = (run, which, split, metric) => ((run.figures[which] || {})[split] || {})[metric];
  const groups = [...new Set(runs.map((run) => run.method))];
  const table = h("div"), pictures = h("div", { class: "columns" });
  const state = { split: splits[0], which: "last" };

  function draw() {
    const metrics = [...new Set(runs.flatMap((run) => Object.keys(((run.figures.last || {})[state.split]) || {})))];
    const columns = [
      { name: "run", value: (run) => run.name }, { name: "state", value: (run) => (run.state === "finished" ? "finished" : `${run.state}, ${run.note}`) },
      { name: "method", value: (run) => run.method }, { name: "task", value: (run) => run.task }, { name: "model", value: (run) => run.model },
      { name: "seed", number: true, value: (run) => run.seed }, { name: "rate", number: true, value: (run) => run.learning_rate, text: (run) => short(run.learning_rate) },
      { name: "budget", number: true, value: (run) => run.budget, text: (run) => short(run.budget) },
      { name: "parameters", number: true, value: (run) => run.parameters, text: (run) => whole(run.parameters) },
      ...metrics.flatMap((metric) => ["last", "dev_selected"].map((which) => ({ name: `${metric}, ${which.replace("_", "-")}`, number: true,
        value: (run) => of(run, which, state.split, metric), text: (run) => figure4(of(run, which, state.split, metric)) }))),
      { name: "seconds", number: true, value: (run) => run.seconds, text: (run) => seconds(run.seconds) },
      { name: "searching", number: true, value: (run) => run.search_share, text: (run) => (run.search_share ? `${(100 * run.search_share).toFixed(1)}%` : "") },
    ];
    const differing = columns.filter((column, place) => place < 1 || column.name === "parameters" || new Set(runs.map((run) => column.value(run) ?? null)).size > 1);
    const same = columns.filter((column) => !differing.includes(column) && !column.number && column.value(runs[0]));
    table.replaceChildren(same.length ? h("p", { class: "note" }, `The same in all: ${same.map((column) => `${column.name} ${column.value(runs[0])}`).join(", ")}.`) : "",
      sortable(`Figures on ${state.split}`, differing, runs, { tall: runs.length > 25 }));
    const points = (x) => runs.map((run) => ({ x: x(run), y: of(run, state.which, state.split, "loss"), name: run.name, group: run.method }));
    const ylabel = `${state.split} loss`;
    pictures.replaceChildren(
      scatter("Loss against parameters", { points: points((run) => run.parameters), groups, xlabel: "adapter parameters", ylabel, xlog: true }),
      scatter("Loss against seconds of training", { points: points((run) => run.seconds), groups, xlabel: "seconds", ylabel }));
  }
  const tasks = new Set(runs.map((run) => run.task)).size;
  if (splits.length) draw();
  else table.append(sortable("Runs", [{ name: "run", value: (run) => run.name }, { name: "state", value: (run) => run.state }, { name: "note", value: (run) => run.note }], runs));
  const selects = h("div", { class: "controls" },
    splits.length > 1 ? choose("split", splits.map((split) => [split, split]), (split) => { state.split = split; draw(); }) : null,
    splits.length ? choose("checkpoint in the pictures", [["last", "last"], ["dev-selected", "dev_selected"]], (which) => { state.which = which; draw(); }) : null);
  return [section("Comparison", tasks > 1 ? h("p", { class: "note" }, "Runs of several tasks: losses compare within a task only.") : null, selects, table),
    splits.length ? section("What it costs", pictures) : null].filter(Boolean);
}
