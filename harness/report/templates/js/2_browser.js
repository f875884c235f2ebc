/* A list with filters, search, pages and a pane for the one selected; questions and pairs are two of these.

`spec`: prefix of the element ids, n, strings, home (id of its section), filters() [[key, text, test]], sorts
[[key, text, key of i]], selects [{name, label, options() [[value, text]], test(value, i), free}], searched(i) string numbers, row(i),
detail(i) nodes, address(i), find(path) -> i or -1, start() the filter to begin with. A select with `free` chooses what is shown, not which. */
const PAGE = 60;
const makeBrowser = (spec) => {
  const part = (name) => byId(spec.prefix + "-" + name);
  const state = { show: spec.start(), find: "", sort: spec.sorts[0][0], shown: [], at: 0 };
  const inputs = new Map();
  let filters = [], tabs = new Map();
  /* Lower-cased once per distinct string, so that a search over every row walks each text once. */
  let lowered = null;

  const fill = (select, options, value) => {
    select.replaceChildren(...options.map(([v, text]) => new Option(text, v)));
    if (options.some(([v]) => v === value)) select.value = value;
    select.hidden = options.length < 2;
    return select.value;
  };
  const offer = () => {
    for (const s of spec.selects) state[s.name] = fill(inputs.get(s.name), s.options(state), state[s.name]);
    filters = spec.filters(state);
    if (!filters.some(([key]) => key === state.show)) state.show = "all";
    tabs = new Map(filters.map(([key, text]) => {
      const b = button("", text, () => set({ show: key }));
      b.append(el("b"));
      return [key, b];
    }));
    part("tabs").replaceChildren(...tabs.values());
  };
  for (const s of spec.selects) {
    const select = el("select");
    select.id = spec.prefix + "-" + s.name;
    select.setAttribute("aria-label", s.label);
    select.addEventListener("change", () => set({ [s.name]: select.value }));
    inputs.set(s.name, select);
    part(s.free ? "free" : "selects").append(select);
    state[s.name] = fill(select, s.options(state), s.initial);
  }
  fill(part("sort"), spec.sorts.map(([value, text]) => [value, text]), state.sort);
  const defaults = { ...Object.fromEntries(spec.selects.map((s) => [s.name, state[s.name]])), find: "", sort: state.sort, show: state.show };

  const matches = () => {
    const q = state.find.trim().toLowerCase();
    if (!q) return null;
    lowered = lowered || spec.strings.map((s) => s.toLowerCase());
    return new Set(lowered.flatMap((s, i) => (s.includes(q) ? [i] : [])));
  };
  const apply = () => {
    const hits = matches();
    const tests = spec.selects.filter((s) => !s.free && state[s.name] !== "");
    const counts = new Map(filters.map(([k]) => [k, 0]));
    const chosen = filters.find(([k]) => k === state.show)[2];
    const shown = [];
    for (let i = 0; i < spec.n; i++) {
      if (!tests.every((s) => s.test(state[s.name], i))) continue;
      if (hits && !spec.searched(i, state).some((c) => hits.has(c))) continue;
      for (const [k, , test] of filters) if (test(i)) counts.set(k, counts.get(k) + 1);
      if (chosen(i)) shown.push(i);
    }
    for (const [k, b] of tabs) {
      b.setAttribute("aria-pressed", String(k === state.show));
      b.lastChild.textContent = number(counts.get(k));
    }
    const sorted = spec.sorts.find(([k]) => k === state.sort);
    if (sorted !== spec.sorts[0]) {
      const keys = new Map(shown.map((i) => [i, sorted[2](i, state)]));
      shown.sort((x, y) => {
        const a = keys.get(x), b = keys.get(y);
        return a < b ? -1 : a > b ? 1 : x - y;
      });
    }
    state.shown = shown;
    state.at = 0;
  };

  /* Change what is shown; the question looked at stays selected where it is still among them. */
  const change = (what, keep) => {
    Object.assign(state, what);
    offer();
    part("sort").value = state.sort;
    if (part("search").value !== state.find) part("search").value = state.find;
    apply();
    const at = keep === undefined ? -1 : state.shown.indexOf(keep);
    if (at > 0) state.at = at;
    draw();
    return keep === undefined || at >= 0;
  };
  const current = () => state.shown[state.at];
  const set = (what) => {
    change(what, Object.keys(what).every((name) => spec.selects.find((s) => s.name === name)?.free) ? current() : undefined);
    mark();
  };

  const draw = () => {
    const rows = part("rows");
    const from = Math.floor(state.at / PAGE) * PAGE;
    const total = state.shown.length;
    rows.replaceChildren();
    for (let j = from; j < Math.min(from + PAGE, total); j++) {
      const { glyph, cls, title, text, mark: side, under } = spec.row(state.shown[j], state);
      const li = el("li");
      li.id = spec.prefix + "-row-" + j;
      li.setAttribute("role", "option");
      li.setAttribute("aria-selected", String(j === state.at));
      const g = el("span", "glyph " + cls, glyph);
      g.title = title;
      const q = el("span", "q", text);
      q.dir = "auto";
      li.append(g, q, el("span", "trail", side), el("span", "w", under));
      li.addEventListener("click", () => {
        select(j);
        open(true);
      });
      rows.append(li);
    }
    if (!total) {
      const none = el("li");
      none.append(el("span"), el("span", "soft", "Nothing matches."));
      rows.append(none);
    }
    part("count").textContent = total ? number(from + 1) + "–" + number(Math.min(from + PAGE, total)) + " of " + number(total) : "0 " + spec.what;
    part("prev").disabled = from === 0;
    part("next").disabled = from + PAGE >= total;
    const row = byId(spec.prefix + "-row-" + state.at);
    rows.setAttribute("aria-activedescendant", row ? row.id : "");
    if (rows.scrollHeight > rows.clientHeight) rows.scrollTop = row && state.at > from ? row.offsetTop - rows.offsetTop - rows.clientHeight / 2 : 0;
    detail();
  };
  const detail = () => {
    const pane = part("detail");
    for (const v of pane.querySelectorAll("video")) v.pause();
    pane.replaceChildren(button("btn back", "‹ All " + spec.what, () => open(false)));
    if (state.shown.length) pane.append(...spec.detail(current(), state));
    pane.scrollTop = 0;
  };
  const select = (j) => {
    if (!state.shown.length) return;
    const to = Math.max(0, Math.min(state.shown.length - 1, j));
    const same = Math.floor(to / PAGE) === Math.floor(state.at / PAGE);
    byId(spec.prefix + "-row-" + state.at)?.setAttribute("aria-selected", "false");
    state.at = to;
    mark();
    if (!same) return draw();
    const row = byId(spec.prefix + "-row-" + to), rows = part("rows");
    row.setAttribute("aria-selected", "true");
    rows.setAttribute("aria-activedescendant", row.id);
    detail();
    if (rows.scrollHeight <= rows.clientHeight) return;
    const top = row.offsetTop - rows.offsetTop;
    if (top < rows.scrollTop) rows.scrollTop = top;
    else if (top + row.offsetHeight > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + row.offsetHeight - rows.clientHeight;
  };

  /* The address names what is looked at and how it was found, so that a colleague can be sent to it. */
  const query = () => {
    const said = new URLSearchParams(Object.keys(defaults).filter((k) => state[k] !== defaults[k]).map((k) => [k, state[k]]));
    return String(said) && "?" + said;
  };
  const address = (i) => "#" + (i === undefined ? spec.home : spec.address(i)) + query();
  const mark = () => {
    active = browser;
    try {
      history.replaceState(null, "", address(current()));
    } catch {
      return; /* some browsers refuse this for local files */
    }
  };
  const restore = (path, said) => {
    const i = path === spec.home ? undefined : spec.find(path);
    if (i === -1) return false;
    const asked = Object.fromEntries(Object.keys(defaults).map((k) => [k, said.get(k) ?? defaults[k]]));
    if (!spec.sorts.some(([k]) => k === asked.sort)) asked.sort = defaults.sort;
    if (!change(asked, i)) {
      /* A link to one question shows it whatever the filters say. */
      const freed = Object.fromEntries(spec.selects.filter((s) => !s.free).map((s) => [s.name, ""]));
      change({ ...freed, show: "all", find: "" }, i);
    }
    open(i !== undefined);
    byId(spec.home).scrollIntoView();
    active = browser;
    return true;
  };

  const narrow = matchMedia("(max-width: 860px)");
  const open = (yes) => {
    part("browser").classList.toggle("open", yes);
    if (!narrow.matches) return;
    part("browser").scrollIntoView();
    if (yes) part("detail").focus({ preventScroll: true });
  };
  const turn = (by) => select((Math.floor(state.at / PAGE) + by) * PAGE);

  let timer = 0;
  part("search").addEventListener("input", (e) => {
    clearTimeout(timer);
    timer = setTimeout(() => set({ find: e.target.value }), spec.n > 5000 ? 180 : 40);
  });
  part("sort").addEventListener("change", () => set({ sort: part("sort").value }));
  part("prev").addEventListener("click", () => turn(-1));
  part("next").addEventListener("click", () => turn(1));
  byId(spec.home).addEventListener("focusin", () => (active = browser));
  byId(spec.home).addEventListener("pointerdown", () => (active = browser));

  const show = (key) => tabs.has(key) && set({ show: key });
  const keys = {
    j: () => select(state.at + 1),
    k: () => select(state.at - 1),
    ArrowDown: () => select(state.at + 1),
    ArrowUp: () => select(state.at - 1),
    "]": () => turn(1),
    "[": () => turn(-1),
    Home: () => select(0),
    End: () => select(state.shown.length - 1),
    a: () => show("all"),
    c: () => show("changed"),
    w: () => show("wrong"),
    v: () => {
      const v = part("detail").querySelector("video");
      if (v && v.paused) v.play();
      else if (v) v.pause();
    },
    Enter: () => open(true),
    ...spec.keys?.(state, (what) => set(what)),
  };
  const browser = {
    keys, set, open, restore, address, state,
    rows: part("rows"),
    search: () => {
      part("search").focus();
      byId(spec.home).scrollIntoView();
    },
  };
  offer();
  apply();
  draw();
  part("app").hidden = false;
  return browser;
};
let active = null;
