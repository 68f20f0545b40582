"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  let data = { queries: [], rounds: [] };
  const SVG = "http://www.w3.org/2000/svg";
  const LEGEND =
    "Filled: kept as a beam. Ring: chosen; dashed ring: rejected. Figures: f, nats per token. " +
    "A point opens its candidate.";

  // What a model said only ever becomes the text of a node.
  function filled(node, attributes = {}, ...children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const make = (tag, ...inside) => filled(document.createElement(tag), ...inside);
  const draw = (tag, ...inside) => filled(document.createElementNS(SVG, tag), ...inside);
  const minus = (text) => text.replace("-", "\u2212");
  const number = (value, digits, sign = "") =>
    value === null ? "not finite" : minus((sign && value >= 0 ? sign : "") + value.toFixed(digits));
  const percent = (value) => (value === null ? "not finite" : (100 * value).toFixed(value < 0.1 ? 1 : 0) + "\u00a0%");
  const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

  const tests = {
    pair: (tree) => tree.steps.some((step) => step.pair),
    relaxed: (tree) => tree.steps.some((step) => step.pair && step.pair.weight !== null && step.pair.weight < 1),
    cut: (tree) => tree.steps.some((step) => step.candidates.some((c) => c.end === "length")),
  };
  const state = { round: 0, query: null };
  const tree = () => data.rounds[state.round].trees[state.query];

  function list() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const test = tests[byId("only").value];
    const trees = data.rounds[state.round].trees;
    const found = data.queries.filter((query) => {
      const text = `${query.prompt} ${query.id}`.toLowerCase();
      return trees[query.id] && words.every((word) => text.includes(word)) && (!test || test(trees[query.id]));
    });
    const shown = Object.keys(trees).length;
    const said =
      `${count(found.length, "query", "queries")} of ${shown} shown here; the round has ${data.rounds[state.round].of}.`;
    // What is said again to who listens is what has changed.
    if (byId("count").textContent !== said) byId("count").textContent = said;
    const held = byId("queries").contains(document.activeElement);
    byId("queries").replaceChildren(...found.map(option));
    if (!found.some((query) => query.id === state.query)) state.query = found.length ? found[0].id : null;
    select(state.query, held);
  }
  function option(query) {
    const item = make("li", { role: "option", id: `q-${query.id}`, "aria-selected": "false", tabindex: "-1" }, query.prompt);
    item.addEventListener("click", () => select(query.id));
    return item;
  }
  function select(id, focus = false) {
    state.query = id;
    for (const item of byId("queries").children) {
      const chosen = item.id === `q-${id}`;
      item.setAttribute("aria-selected", String(chosen));
      item.tabIndex = chosen ? 0 : -1;
      if (chosen && focus) item.focus();
    }
    show();
  }
  function move(event) {
    const items = [...byId("queries").children];
    const at = items.findIndex((item) => item.id === `q-${state.query}`);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined || !items[to]) return;
    event.preventDefault();
    select(items[to].id.slice(2), true);
  }

  let drawn = { key: null, tree: null };
  // A tree that has grown keeps what the reader has opened in it.
  function show() {
    const key = `${state.round} ${state.query}`;
    const text = state.query ? JSON.stringify(tree()) : "";
    const same = key === drawn.key;
    if (same && text === drawn.tree) return;
    const place = byId("tree");
    const opened = same ? [...place.querySelectorAll("details[open]")].map((candidate) => candidate.id) : [];
    const held = same && place.contains(document.activeElement) ? document.activeElement.closest("details")?.id : null;
    drawn = { key, tree: text };
    picture(place);
    for (const id of opened) if (byId(id)) byId(id).open = true;
    if (held) byId(held)?.firstElementChild.focus({ preventScroll: true });
  }
  function picture(place) {
    if (!state.query) {
      place.replaceChildren(make("p", {}, "No query matches."));
      return;
    }
    const query = data.queries.find((q) => q.id === state.query);
    const facts = [
      `id ${query.id}`,
      `prompt ${count(query.tokens, "token", "tokens")}`,
      `${count(tree().sampled, "token", "tokens")} sampled`,
    ];
    place.replaceChildren(
      make("h3", {}, "Query"),
      make("pre", { tabindex: "0", "aria-label": "Prompt" }, query.prompt),
      make("p", { class: "note" }, facts.join(" \u00b7 ")),
      overview(),
      make("p", { class: "note" }, LEGEND),
      ...tree().steps.map(step),
    );
  }

  const named = (k, i) => `${k + 1}.${i + 1}`;
  // The candidate of the step before that a beam came from; -1 is the prompt.
  const parent = (k, beam) => (k === 0 ? -1 : tree().steps[k - 1].kept[beam]);

  // Whole answers without a search lead nowhere; of candidates one at least is kept.
  const searched = (s) => s.kept.length > 0;
  const titled = (s, k) => (searched(s) ? `Step ${k + 1}` : "Answers");

  function paired(p, k) {
    const lead = p.lead === null ? "" : `, lead ${number(p.lead, 3)}`;
    const two = `${named(k, p.chosen)} chosen, ${named(k, p.rejected)} rejected`;
    const weight = p.weight === null ? "" : `, weight w ${number(p.weight, 3)}`;
    return `pair: ${two}${weight}${lead}`;
  }

  function step(s, k) {
    const facts = [count(s.candidates.length, "candidate", "candidates")];
    if (s.repeats) facts.push(count(s.repeats, "repeat", "repeats"));
    if (!s.foreseen) facts.push("no foresight: the candidates agree");
    facts.push(s.pair ? paired(s.pair, k) : "no pair");
    const parts = [make("h4", {}, titled(s, k)), make("p", { class: "note" }, facts.join(" \u00b7 "))];
    for (const beam of [...new Set(s.candidates.map((c) => c.beam))].sort((a, b) => a - b)) {
      const from = k === 0 ? "From the prompt" : `From beam ${beam + 1}, candidate ${named(k - 1, parent(k, beam))}`;
      parts.push(make("p", { class: "from" }, from));
      s.candidates.forEach((c, i) => c.beam === beam && parts.push(candidate(s, k, c, i)));
    }
    return make("section", { class: "step" }, ...parts);
  }
  function roles(s, i) {
    const found = [];
    if (s.kept.includes(i)) found.push(["kept", `beam ${s.kept.indexOf(i) + 1}`]);
    if (s.pair && s.pair.chosen === i) found.push(["chosen", "chosen"]);
    if (s.pair && s.pair.rejected === i) found.push(["rejected", "rejected"]);
    return found;
  }
  const ends = {
    end: "The response ended.",
    length: "The response was cut off at a token limit.",
    step: "No future was simulated.",
  };
  function candidate(s, k, c, i) {
    const marks = roles(s, i);
    const share = make("span", { class: "track", "aria-hidden": "true" }, make("span"));
    share.firstChild.style.width = `${100 * (c.share || 0)}%`;
    const figures = [
      make("span", {}, `F ${percent(c.share)}`, share),
      make("span", {}, `A ${number(c.advantage, 3, "+")}`),
    ];
    const said = c.step === null ? "" : c.step.trim().replace(/\s+/g, " ");
    const head = make(
      "span",
      { class: "head" },
      make("b", {}, named(k, i)),
      ...marks.map(([kind, label]) => make("span", { class: `chip ${kind}` }, label)),
      make("span", {}, `f ${number(c.value, 3)}`),
      ...(c.times > 1 ? [make("span", {}, `drawn ${c.times} times`)] : []),
      ...(searched(s) ? figures : []),
    );
    const inside = [
      ...piece(`${searched(s) ? "Step" : "Response"}, ${count(c.tokens[0], "token", "tokens")}`, c.step),
      ...(c.tokens[1] ? piece(`Future, ${count(c.tokens[1], "token", "tokens")}`, c.future) : []),
      make("p", { class: "note" }, ends[c.end]),
    ];
    const kinds = ["candidate", ...marks.map(([kind]) => kind)].join(" ");
    return make(
      "details",
      { class: kinds, id: `c-${k}-${i}` },
      make("summary", {}, head, make("span", { class: "said" }, said)),
      make("div", { class: "inside" }, ...inside),
    );
  }
  function piece(title, text) {
    if (text === null) return [make("p", { class: "note" }, title)];
    // The line breaks that begin and end a piece are part of it, but blank lines would say little.
    const [, before, said, after] = text.match(/^(\n*)([^]*?)(\n*)$/);
    const breaks = (found) => make("span", { class: "soft" }, "\u21b5".repeat(found.length));
    const shown = make("pre", { tabindex: "0", "aria-label": title }, breaks(before), said, breaks(after));
    return [make("h5", {}, title), shown];
  }

  // Columns are steps; candidates stand in the order of their values, the best on top.
  function overview() {
    const steps = tree().steps;
    const width = Math.max(300, byId("tree").clientWidth || 300);
    const rows = Math.max(...steps.map((s) => s.candidates.length));
    const height = 26 * rows + 30;
    const column = (width - 30) / steps.length;
    const places = steps.map((s) => {
      const order = s.candidates.map((_, i) => i).sort((a, b) => (s.candidates[b].value ?? -1e9) - (s.candidates[a].value ?? -1e9));
      const top = 24 + (26 * (rows - order.length)) / 2;
      return s.candidates.map((_, i) => top + 26 * order.indexOf(i) + 8);
    });
    const x = (k) => 14 + column * (k + 0.55);
    const edges = [];
    const nodes = [draw("circle", { cx: 14, cy: height / 2 + 6, r: 6, class: "node kept" })];
    steps.forEach((s, k) => {
      nodes.push(draw("text", { x: x(k), y: 14, class: "middle" }, titled(s, k).toLowerCase()));
      s.candidates.forEach((c, i) => {
        const up = parent(k, c.beam);
        const [x0, y0] = k === 0 ? [14, height / 2 + 6] : [x(k - 1), places[k - 1][up]];
        const [x1, y1] = [x(k), places[k][i]];
        const bend = (x0 + x1) / 2;
        const kind = s.kept.includes(i) ? "edge path" : "edge";
        edges.push(draw("path", { d: `M${x0} ${y0}C${bend} ${y0} ${bend} ${y1} ${x1} ${y1}`, class: kind }));
        nodes.push(node(s, k, i, x1, y1));
      });
    });
    const label = `Tree of ${count(steps.length, "step", "steps")}; every candidate is listed below.`;
    return draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...edges, ...nodes);
  }
  function node(s, k, i, x, y) {
    const marks = roles(s, i).map(([kind]) => kind);
    const group = draw("g", { class: "pick" });
    group.append(draw("circle", { cx: x, cy: y, r: 5, class: marks.includes("kept") ? "node kept" : "node" }));
    const ring = marks.find((kind) => kind !== "kept");
    if (ring) group.append(draw("circle", { cx: x, cy: y, r: 9, class: `ring ${ring}` }));
    group.append(draw("text", { x: x + 12, y: y + 4 }, number(s.candidates[i].value, 2)));
    group.append(draw("title", {}, `${named(k, i)}: ${(s.candidates[i].step || "").trim().slice(0, 120)}`));
    group.addEventListener("click", () => {
      const target = byId(`c-${k}-${i}`);
      target.open = true;
      target.scrollIntoView({ block: "center" });
      target.firstElementChild.focus();
    });
    return group;
  }
  function read() {
    data = JSON.parse(byId("trees-data").textContent);
    byId("explorer").hidden = !data.queries.length;
    if (!data.queries.length) return;
    const rounds = byId("round");
    const latest = data.rounds.findLastIndex((r) => Object.keys(r.trees).length);
    const chosen = rounds.options.length ? rounds.value : String(latest);
    rounds.replaceChildren(...data.rounds.map((r, n) => make("option", { value: n }, String(r.round))));
    rounds.value = chosen;
    state.round = Number(chosen);
    list();
  }

  if (!byId("trees-data")) return;
  byId("unscripted").hidden = true;
  byId("round").addEventListener("change", (event) => {
    state.round = Number(event.target.value);
    list();
  });
  byId("only").addEventListener("change", list);
  byId("search").addEventListener("input", list);
  byId("queries").addEventListener("keydown", move);
  document.addEventListener("trees", read);
  read();
})();
