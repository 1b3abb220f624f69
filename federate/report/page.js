"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const { charts, config } = read("chart-data");
  const root = document.documentElement;

  // Charts are drawn when they come near the screen, the others when the browser is idle, so that
  // a long page opens at once and prints whole.
  const waiting = new Set(document.querySelectorAll(".chart[data-chart]"));
  const draw = async (place, spec) => {
    waiting.delete(place);
    await vegaEmbed(place, spec, {
      mode: "vega-lite", actions: false, renderer: "svg", config, tooltip: { theme: "custom" },
    });
    if (!waiting.size) root.dataset.drawn = "all";
  };
  const drawNamed = (place) => draw(place, charts[place.dataset.chart]).catch((error) => {
    console.error(error);
    place.textContent = "This chart could not be drawn.";
  });
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 30));
  const rest = () => {
    const [next] = waiting;
    if (next) drawNamed(next).then(() => idle(rest));
  };
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        near.unobserve(target);
        if (waiting.has(target)) drawNamed(target);
      }
    }
  }, { rootMargin: "400px" });
  if (!waiting.size) root.dataset.drawn = "all";
  waiting.forEach((place) => near.observe(place));
  window.addEventListener("load", () => setTimeout(() => idle(rest), 200));
  window.addEventListener("beforeprint", () => [...waiting].forEach(drawNamed));

  // Values of options are numbers or texts; numbers come first.
  const number = (text) => (text.trim() !== "" && isFinite(text) ? Number(text) : Infinity);
  const inOrder = (a, b) => (number(a) === number(b) ? a.localeCompare(b) : number(a) - number(b));

  // Tables: sorted by a click on a heading, filtered by the words that a row must have.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const numbers = heading.classList.contains("n");
        const down = heading.ariaSort ? heading.ariaSort === "ascending" : numbers;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const compare = numbers
          ? (a, b) => (a === "" ? 1 : b === "" ? -1 : (down ? -1 : 1) * (a - b))
          : (a, b) => (down ? -1 : 1) * inOrder(a, b);
        const rows = [...body.rows];
        rows.sort((a, b) => compare(value(a, column), value(b, column)));
        body.append(...rows);
      });
    });
    const tools = document.querySelector(`.tools[data-table="${table.id}"]`);
    if (!tools) continue;
    const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    tools.querySelector("input").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of texts) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      tools.querySelector("output").textContent = `${shown} of ${texts.size}`;
    });
  }

  // The heat map of any two options.
  const heat = document.getElementById("two-options");
  if (heat) {
    const { options, settings, spec } = read("option-data");
    const [x, y] = document.querySelectorAll("select[data-option]");
    const order = (values) => [...new Set(values)].sort(inOrder);
    const redraw = () => {
      const picked = [x, y].map((select) => Number(select.value));
      const cells = new Map();
      for (const { values, accuracy } of settings) {
        const key = JSON.stringify(picked.map((option) => values[option]));
        cells.set(key, [...(cells.get(key) ?? []), accuracy]);
      }
      const rows = [...cells].map(([key, found]) => {
        const [one, other] = JSON.parse(key);
        const accuracy = found.reduce((sum, each) => sum + each, 0) / found.length;
        return { x: one, y: other, accuracy, settings: found.length };
      });
      const own = structuredClone(spec);
      own.data.values = rows;
      const sorts = { x: order(rows.map((row) => row.x)), y: order(rows.map((row) => row.y)) };
      own.height = Math.max(160, Math.min(560, 40 * sorts.y.length));
      const crowded = 8 * sorts.x.join("  ").length > heat.clientWidth - 80;
      for (const { encoding } of own.layer) {
        encoding.x.axis.labelAngle = crowded ? -35 : 0;
        for (const axis of ["x", "y"]) {
          encoding[axis].sort = sorts[axis];
          encoding[axis].title = options[picked[axis === "x" ? 0 : 1]];
        }
      }
      return draw(heat, own);
    };
    for (const select of [x, y]) select.addEventListener("change", redraw);
    waiting.add(heat);
    redraw();
  }
})();
