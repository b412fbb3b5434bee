"use strict";
// Sorting, search and filters of the leaderboard; their state is the part of the address behind "#?".
(() => {
  const source = document.getElementById("data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const form = document.getElementById("filters");
  const search = document.getElementById("q");
  const selects = data.filters.map((name) => document.getElementById(`f-${name}`));
  const total = data.groups.reduce((sum, group) => sum + group.lines.length, 0);
  const [SECTION, CELLS, RUNS, FACETS] = [0, 1, 2, 3];
  const [MAIN, SUB, KEY, BEST] = [0, 1, 2, 3];
  let state = {};

  // What is shown

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  const page = (directory) => `runs/${directory}/index.html`;

  const below = (cell) => (cell[SUB] ? [element("small", {}, cell[SUB])] : []);

  const makeCell = ([key, numeric], cell, line) => {
    if (key === "defense") {
      const link = element("a", { href: page(line[RUNS][0][1]) }, cell[MAIN]);
      return element("th", { scope: "row" }, link, ...below(cell));
    }
    if (key === "seeds") {
      const links = line[RUNS].map(([seed, directory]) =>
        element("a", { href: page(directory), "aria-label": `run of seed ${seed}` }, String(seed)),
      );
      return element("td", { class: "seeds" }, ...links);
    }
    if (key === "verdict" || key === "trust") {
      return element("td", {}, element("span", { class: `chip ${cell[MAIN]}` }, cell[MAIN]), ...below(cell));
    }
    const main = cell[BEST] ? element("b", {}, cell[MAIN]) : cell[MAIN];
    return element("td", numeric ? { class: "number" } : {}, main, ...below(cell));
  };

  const makeRow = (group, line) =>
    element("tr", {}, ...group.columns.map((column, place) => makeCell(column, line[CELLS][place], line)));

  const makeBodies = (group) => {
    const shown = group.found.slice(0, group.limit).map((number) => group.lines[number]);
    return data.sections.flatMap((name, section) => {
      const lines = shown.filter((line) => line[SECTION] === section);
      if (!lines.length) return [];
      const body = element("tbody", { class: `s${section}` });
      if (name) {
        const heading = element("th", { scope: "rowgroup", colspan: group.columns.length }, element("span", {}, name));
        body.append(element("tr", { class: "part" }, heading));
      }
      body.append(...lines.map((line) => makeRow(group, line)));
      return [body];
    });
  };

  const draw = (group) => {
    for (const body of [...group.table.tBodies]) body.remove();
    group.table.append(...makeBodies(group));
    offerMore(group);
  };

  const offerMore = (group) => {
    const left = group.found.length - group.limit;
    group.more.replaceChildren();
    if (left > 0) {
      const button = element("button", { type: "button" }, `Show ${Math.min(left, 100)} more of ${left}`);
      button.addEventListener("click", () => {
        group.limit += 100;
        draw(group);
        (group.more.querySelector("button") ?? group.box).focus();
      });
      group.more.append(button);
    }
  };

  const markSorted = (group) => {
    const [key, up] = state.sort ? [state.sort, state.dir === "up"] : ["rank", true];
    group.columns.forEach(([name], place) => {
      const head = group.heads[place];
      if (name === key) head.setAttribute("aria-sort", up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };

  // What fits

  const textOf = (group, line) => {
    line.text ??= [
      group.text,
      ...line[CELLS].flatMap((cell) => [cell[MAIN], cell[SUB]]),
      ...line[RUNS].map((run) => run[1]),
      ...line[FACETS],
    ]
      .join(" ")
      .toLowerCase();
    return line.text;
  };

  const words = () => (state.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);

  const fits = (group, line, sought) =>
    data.filters.every((name, place) => !state[name] || line[FACETS][place] === state[name]) &&
    sought.every((word) => textOf(group, line).includes(word));

  // What has no value stands last, whichever way is sorted; sections stay apart.
  const compare = (group, place, sign) => (a, b) => {
    const [first, second] = [group.lines[a], group.lines[b]];
    if (first[SECTION] !== second[SECTION]) return first[SECTION] - second[SECTION];
    const [x, y] = [first[CELLS][place][KEY], second[CELLS][place][KEY]];
    if (x === y) return a - b;
    if (x === null) return 1;
    if (y === null) return -1;
    return (x < y ? -1 : 1) * sign;
  };

  const choose = (group, sought) => {
    group.found = [];
    group.lines.forEach((line, number) => {
      if (fits(group, line, sought)) group.found.push(number);
    });
    const place = group.columns.findIndex(([key]) => key === state.sort);
    if (place >= 0) group.found.sort(compare(group, place, state.dir === "up" ? 1 : -1));
  };

  // At first the rows of the page stand there already.
  let fresh = true;

  const show = () => {
    const sought = words();
    for (const group of data.groups) choose(group, sought);
    const visible = data.groups.filter((group) => group.found.length);
    const limit = Math.max(data.page, Math.min(100, Math.floor(1000 / Math.max(visible.length, 1))));
    for (const group of data.groups) {
      group.section.hidden = !group.found.length;
      const asItWas = fresh && !Object.keys(state).length;
      group.limit = asItWas ? data.page : limit;
      if (asItWas) offerMore(group);
      else draw(group);
      markSorted(group);
      const found = new Set(group.found.map(String));
      for (const mark of group.marks) mark.classList.toggle("off", !found.has(mark.dataset.line));
    }
    fresh = false;
    const count = visible.reduce((sum, group) => sum + group.found.length, 0);
    const tables = visible.length === 1 ? "1 table" : `${visible.length} tables`;
    document.getElementById("count").textContent = `${count} of ${total} ${total === 1 ? "row" : "rows"} in ${tables}`;
    document.getElementById("nothing").hidden = count > 0;
  };

  // The address

  const known = ["q", ...data.filters, "sort", "dir"];

  const read = () => {
    const hash = window.location.hash;
    // Any other fragment is a place on the page and says nothing about rows.
    if (hash.length > 1 && !hash.startsWith("#?")) return;
    const given = new URLSearchParams(hash.slice(2));
    state = Object.fromEntries(known.filter((key) => given.get(key)).map((key) => [key, given.get(key)]));
    search.value = state.q ?? "";
    selects.forEach((select, place) => {
      const name = data.filters[place];
      select.value = state[name] ?? "";
      if (select.value !== (state[name] ?? "")) {
        select.value = "";
        delete state[name];
      }
    });
    show();
  };

  const write = (change, { typing = false } = {}) => {
    state = { ...state, ...change };
    for (const key of known) if (!state[key]) delete state[key];
    const text = new URLSearchParams(known.filter((key) => state[key]).map((key) => [key, state[key]])).toString();
    const address = text ? `#?${text}` : "#";
    // Letters of one word are one step back.
    if (typing && window.history.state?.typing) window.history.replaceState({ typing }, "", address);
    else window.history.pushState({ typing }, "", address);
    show();
  };

  const clear = () => {
    write(Object.fromEntries(known.map((key) => [key, ""])));
    search.value = "";
    for (const select of selects) select.value = "";
    search.focus();
  };

  const sortBy = ([key, , up]) => {
    const now = state.sort ?? "rank";
    const current = state.sort ? state.dir : "up";
    const dir = now === key ? (current === "up" ? "down" : "up") : up ? "up" : "down";
    // By rank from the top is how the tables stand anyway.
    write(key === "rank" && dir === "up" ? { sort: "", dir: "" } : { sort: key, dir });
  };

  data.groups.forEach((group, number) => {
    group.section = document.getElementById(`group-${number}`);
    group.table = group.section.querySelector("table");
    group.box = group.section.querySelector(".scroll");
    group.more = group.section.querySelector(".more");
    group.marks = [...group.section.querySelectorAll(".mark")];
    group.heads = [...group.table.tHead.rows[0].cells];
    group.heads.forEach((head, place) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      button.addEventListener("click", () => sortBy(group.columns[place]));
      head.append(button);
    });
  });

  let waiting = 0;
  search.addEventListener("input", () => {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(() => write({ q: search.value.trim() }, { typing: true }), 120);
  });
  selects.forEach((select, place) =>
    select.addEventListener("change", () => write({ [data.filters[place]]: select.value })),
  );
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    clear();
  });
  document.getElementById("again").addEventListener("click", clear);
  window.addEventListener("popstate", read);
  window.addEventListener("hashchange", read);
  form.hidden = false;
  read();
})();
