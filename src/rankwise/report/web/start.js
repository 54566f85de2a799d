(function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const content = document.getElementById("content"), nav = h("nav", { "aria-label": "Parts of this report" }), parts = h("div");
  const link = () => nav.replaceChildren(...[...content.querySelectorAll("section")].map((each) => h("a", { href: `#${each.id}` }, each.querySelector("h2").textContent)));
  const show = (run) => { parts.replaceChildren(...runSections(run)); link(); };
  const state = (run) => h("span", { class: `badge ${run.state}` }, run.state === "finished" ? "finished" : `${run.state}: ${run.note}`);
  const single = !data.comparison;
  content.replaceChildren(
    h("header", {}, h("h1", {}, data.title), single && data.runs.length ? state(data.runs[0]) : null, data.left_out.map((each) => h("p", { class: "note" }, each))), nav,
    data.tables.length ? section("Statistics", data.tables.map(givenTable)) : "",
    ...(single ? [] : comparison(data.comparison)),
    !single && data.runs.length ? h("section", { id: "one-run", "aria-labelledby": "one-run-title" }, h("h2", { id: "one-run-title" }, "One run"),
      h("div", { class: "controls" }, choose("run", data.runs.map((run) => [run.name, run]), show))) : "",
    parts, h("footer", {}, `rankwise ${data.version}. Nothing in this page is loaded from anywhere.`));
  if (data.runs.length) show(data.runs[0]); else link();
})();
