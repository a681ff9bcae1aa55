// The item explorer: pick a condition and two configurations, filter, read them side by side.
// Model text only ever goes through textContent.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("items").textContent);
  const by = (id) => document.getElementById(id);
  const PAGE = 20;
  let shown = PAGE;

  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const fill = (select, names, chosen) => {
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  };

  const FILTERS = {
    all: () => true,
    gained: (a, b) => a < b,
    lost: (a, b) => a > b,
    right: (a, b) => a >= 1 && b >= 1,
    wrong: (a, b) => a <= 0 && b <= 0,
  };

  const side = (name, cell) => {
    const made = element("div", "side");
    const verdict = cell.score >= 1 ? "right" : cell.score <= 0 ? "wrong" : String(cell.score);
    const title = element("div", verdict, `${name}: ${verdict}`);
    const output = cell.output === null ? "(scored by log-likelihood)" : cell.output;
    made.append(title, element("div", "quiet", `extracted: ${cell.extracted ?? "nothing"}`));
    made.append(element("div", "output", output));
    return made;
  };

  const draw = () => {
    const [a, b] = [by("first").value, by("second").value];
    const words = by("words").value.toLowerCase();
    const found = data[by("condition").value].items.filter((item) => {
      const cells = [item.cells[a], item.cells[b]];
      if (!cells[0] || !cells[1] || !FILTERS[by("filter").value](cells[0].score, cells[1].score)) return false;
      const text = `${item.item} ${item.gold} ${cells[0].output} ${cells[1].output}`;
      return text.toLowerCase().includes(words);
    });
    by("count").textContent = `${found.length} items match; showing ${Math.min(shown, found.length)}.`;
    by("list").replaceChildren(...found.slice(0, shown).map((item) => {
      const made = element("article", "item");
      const sides = element("div", "sides");
      sides.append(side(a, item.cells[a]), side(b, item.cells[b]));
      made.append(element("header", "", `item ${item.item}, gold answer: ${item.gold}`), sides);
      return made;
    }));
    by("more").hidden = found.length <= shown;
  };

  const pickCondition = () => {
    const names = data[by("condition").value].configurations;
    fill(by("first"), names, names[0]);
    fill(by("second"), names, names[names.length > 1 ? 1 : 0]);
    shown = PAGE;
    draw();
  };

  fill(by("condition"), Object.keys(data));
  by("condition").addEventListener("change", pickCondition);
  for (const id of ["first", "second", "filter", "words"]) {
    by(id).addEventListener("input", () => { shown = PAGE; draw(); });
  }
  by("more").addEventListener("click", () => { shown += PAGE; draw(); });
  pickCondition();
})();
