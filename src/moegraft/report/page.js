// Tabs, and the item explorer: filter items, read two configurations side by side.
// Model text only ever goes through textContent.
"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // --- tabs: without this script every panel stands below the other, under its heading
  document.querySelectorAll(".tabs").forEach((tabs, number) => {
    const panels = [...tabs.children];
    const list = element("div", "tablist");
    list.setAttribute("role", "tablist");
    const buttons = panels.map((panel, place) => {
      const heading = panel.querySelector("h3");
      const button = element("button", "", heading.textContent);
      button.type = "button";
      button.id = `tab-${number}-${place}`;
      panel.id = `panel-${number}-${place}`;
      button.setAttribute("role", "tab");
      button.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", button.id);
      heading.hidden = true;
      list.append(button);
      return button;
    });
    const pick = (chosen) => buttons.forEach((button, place) => {
      button.setAttribute("aria-selected", String(place === chosen));
      button.tabIndex = place === chosen ? 0 : -1;
      panels[place].hidden = place !== chosen;
    });
    buttons.forEach((button, place) => {
      button.addEventListener("click", () => pick(place));
      button.addEventListener("keydown", (event) => {
        const end = buttons.length - 1;
        const moves = { ArrowRight: place === end ? 0 : place + 1, ArrowLeft: place === 0 ? end : place - 1, Home: 0, End: end };
        if (!(event.key in moves)) return;
        event.preventDefault();
        pick(moves[event.key]);
        buttons[moves[event.key]].focus();
      });
    });
    tabs.prepend(list);
    pick(0);
    addEventListener("beforeprint", () => panels.forEach((panel) => { panel.hidden = panel.firstElementChild.hidden = false; }));
    addEventListener("afterprint", () => {
      panels.forEach((panel) => { panel.firstElementChild.hidden = true; });
      pick(buttons.findIndex((button) => button.tabIndex === 0));
    });
  });

  // --- explorer
  const data = JSON.parse(by("items").textContent);
  const PAGE = 25;
  let shown = PAGE;
  const fill = (select, names, chosen) => {
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  };
  const FILTERS = {
    all: () => true,
    gained: (a, b) => a.score < b.score,
    lost: (a, b) => a.score > b.score,
    right: (a, b) => a.score >= 1 && b.score >= 1,
    wrong: (a, b) => a.score <= 0 && b.score <= 0,
    split: (a, b, cells) => new Set(cells.map((cell) => cell.score)).size > 1,
    cut: (a, b) => Boolean(a.flags || b.flags),
  };
  const word = (score) => (score >= 1 ? "right" : score <= 0 ? "wrong" : "partly");

  const side = (name, cell) => {
    const made = element("div", "side");
    const how = word(cell.score);
    const flags = (cell.flags ?? []).map((flag) => `, ${flag}`).join("");
    made.append(element("strong", how, `${name}: ${how === "partly" ? cell.score : how}${flags}`));
    const gold = cell.gold === null ? "" : `; log-probability of the gold answer ${cell.gold}`;
    made.append(element("div", "quiet", `extracted: ${cell.extracted ?? "nothing"}${gold}`));
    made.append(element("div", "output", cell.output ?? "(scored by log-likelihood, no text)"));
    return made;
  };

  const body = (item, a, b) => {
    const made = element("div", "body");
    const asked = element("div", "asked");
    asked.append(element("div", "output", item.prompt ?? "(the run kept no prompt)"));
    asked.append(element("div", "quiet", `item ${item.item}, gold answer: ${item.gold}`));
    const sides = element("div", "sides");
    sides.append(side(a, item.cells[a]), side(b, item.cells[b]));
    made.append(asked, sides);
    return made;
  };

  const about = (item) => {
    const lines = (item.prompt ?? "").split("\n").filter((line) => /[a-z]{3}.* /i.test(line));
    return `${item.gold} | ${lines[0] ?? item.item}`;
  };

  const row = (item, names, a, b) => {
    const made = element("details", "item");
    const head = element("summary");
    const marks = element("span", "marks");
    for (const name of names) {
      const cell = item.cells[name];
      const how = cell ? word(cell.score) : "missing";
      const mark = element("span", `mark ${how}`, { right: "✓", wrong: "✗", partly: "~", missing: "" }[how]);
      if (name === a || name === b) mark.classList.add("chosen");
      mark.title = `${name}: ${how}`;
      marks.append(mark);
    }
    const right = names.filter((name) => item.cells[name]?.score >= 1).length;
    marks.setAttribute("role", "img");
    marks.setAttribute("aria-label", `${right} of ${names.length} configurations right`);
    head.append(element("span", "about", about(item)), marks);
    made.append(head);
    made.addEventListener("toggle", () => {
      if (made.open && made.children.length === 1) made.append(body(item, a, b));
    });
    return made;
  };

  const draw = () => {
    const condition = data[by("condition").value];
    const [a, b] = [by("first").value, by("second").value];
    const words = by("words").value.toLowerCase();
    const found = condition.items.filter((item) => {
      const cells = [item.cells[a], item.cells[b]];
      if (!cells[0] || !cells[1]) return false;
      if (!FILTERS[by("filter").value](...cells, Object.values(item.cells))) return false;
      const text = [item.item, item.gold, item.prompt, cells[0].output, cells[1].output].join("\n");
      return text.toLowerCase().includes(words);
    });
    const open = found.slice(0, shown).map((item) => row(item, condition.configurations, a, b));
    by("count").textContent =
      `${found.length} of ${condition.items.length} items match, ${open.length} shown` +
      (condition.items.length < condition.num_items ? `; the page holds ${condition.items.length} of the run's ${condition.num_items}.` : ".");
    by("columns").replaceChildren(...condition.configurations.map((name) => element("span", "", name)));
    by("shared").hidden = !condition.shared;
    by("shared").lastElementChild.textContent = condition.shared;
    by("list").replaceChildren(...open);
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
  by("more").addEventListener("click", () => {
    const before = by("list").children.length;
    shown += PAGE;
    draw();
    by("list").children[before]?.querySelector("summary").focus();
  });
  pickCondition();
})();
