"use strict";
(() => {
  const PAGE = 60;
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;

  /* Text enters the page through textContent only, never as markup. */
  const el = (tag, cls, text) => {
    const e = document.createElement(tag);
    if (cls) e.className = cls;
    if (text !== undefined) e.textContent = text;
    return e;
  };

  const THEMES = ["auto", "light", "dark"];
  let theme = "auto";
  try {
    theme = localStorage.getItem("report-theme") || "auto";
  } catch {
    theme = "auto"; /* storage may be closed to local files; the choice then lasts for this view */
  }
  const setTheme = (t) => {
    theme = THEMES.includes(t) ? t : "auto";
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    byId("theme").textContent = "Theme: " + theme;
  };
  const nextTheme = () => {
    setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
    try {
      localStorage.setItem("report-theme", theme);
    } catch {
      return;
    }
  };
  byId("theme").addEventListener("click", nextTheme);
  setTheme(theme);

  const links = [...document.querySelectorAll(".bar-top nav a")];
  const seen = new IntersectionObserver(
    (entries) => {
      for (const e of entries) {
        if (!e.isIntersecting) continue;
        for (const a of links) a.classList.toggle("here", a.hash === "#" + e.target.id);
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const a of links) {
    const target = byId(a.hash.slice(1));
    if (target) seen.observe(target);
  }
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const d of opened) d.open = true;
  });
  addEventListener("afterprint", () => {
    for (const d of opened) d.open = false;
  });

  const unpack = async () => {
    const box = JSON.parse(byId("data").textContent);
    if (box.encoding === "json") return box.data;
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack the questions (it has no DecompressionStream)");
    const raw = Uint8Array.from(atob(box.data), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };

  const start = (data) => {
    const { n, stages, single, strings, columns: col } = data;
    const sheets = JSON.parse(byId("sheets").textContent);
    const str = (i) => (i < 0 ? "" : strings[i]);
    const GLYPHS = single ? ["", "", "●", "○", ""] : ["▲", "▼", "●", "○", "·"];
    const OUTCOMES = single ? ["", "", "right", "wrong", ""] : ["got better", "got worse", "right in both", "wrong in both", "asked in one only"];
    const okStatus = new Set(["ok", "judged"]);
    const side = single ? "a" : "b";
    const isWrong = (i) => col[side + "c"][i] >= 0 && col[side + "c"][i] < 100;
    const odd = (i) => (col.as[i] >= 0 && !okStatus.has(str(col.as[i]))) || (col.bs[i] >= 0 && !okStatus.has(str(col.bs[i])));
    const FILTERS = [
      ["all", "All", () => true],
      ...(single
        ? [["right", "Right", (i) => col.out[i] === 2]]
        : [
            ["changed", "Changed", (i) => col.out[i] < 2],
            ["better", "Got better", (i) => col.out[i] === 0],
            ["worse", "Got worse", (i) => col.out[i] === 1],
          ]),
      ["wrong", single ? "Wrong" : "Wrong at the end", isWrong],
      ["odd", "Unreadable or failed", odd],
    ];
    const SORTS = [
      ["order", "In order", (i) => i],
      ["outcome", "By outcome", (i) => col.out[i]],
      ["video", "By video", (i) => str(col.video[i])],
      ["long", "Longest answer first", (i) => -Math.max(str(col.a[i]).length, str(col.b[i]).length)],
      ["status", "By how it was read", (i) => str(col[side + "s"][i])],
      ["prompt", "By prompt", (i) => str(col.prompt[i])],
    ];
    const state = { filter: "all", bench: "", sort: "order", query: "", shown: [], at: 0 };
    /* Lower-cased once per distinct string, so that a search over every question walks each text once. */
    let lowered = null;

    const bench = byId("bench");
    const names = [...new Set(col.bench)];
    for (const [value, text] of [["", "All benchmarks"], ...names.map((i) => [String(i), str(i)])]) bench.append(new Option(text, value));
    const sort = byId("sort");
    for (const [value, text] of SORTS) sort.append(new Option(text, value));

    const tabs = new Map();
    for (const [key, text] of FILTERS) {
      const b = el("button", "", text);
      b.type = "button";
      b.append(el("b"));
      b.addEventListener("click", () => set({ filter: key }));
      tabs.set(key, b);
      byId("tabs").append(b);
    }

    const matches = () => {
      const q = state.query.trim().toLowerCase();
      if (!q) return null;
      lowered = lowered || strings.map((s) => s.toLowerCase());
      return new Set(lowered.flatMap((s, i) => (s.includes(q) ? [i] : [])));
    };
    const SEARCHED = ["prompt", "a", "b", "video", "task", "target", "bench"];

    const apply = () => {
      const hits = matches();
      const only = state.bench === "" ? -1 : Number(state.bench);
      const counts = new Map(FILTERS.map(([k]) => [k, 0]));
      const shown = [];
      const chosen = FILTERS.find(([k]) => k === state.filter)[2];
      for (let i = 0; i < n; i++) {
        if (only >= 0 && col.bench[i] !== only) continue;
        if (hits && !SEARCHED.some((c) => hits.has(col[c][i]))) continue;
        for (const [k, , test] of FILTERS) if (test(i)) counts.set(k, counts.get(k) + 1);
        if (chosen(i)) shown.push(i);
      }
      for (const [k, b] of tabs) {
        b.setAttribute("aria-pressed", String(k === state.filter));
        b.lastChild.textContent = counts.get(k).toLocaleString("en");
      }
      if (state.sort !== "order") {
        const key = SORTS.find(([k]) => k === state.sort)[2];
        const keys = new Map(shown.map((i) => [i, key(i)]));
        shown.sort((x, y) => {
          const a = keys.get(x), b = keys.get(y);
          return a < b ? -1 : a > b ? 1 : x - y;
        });
      }
      state.shown = shown;
      state.at = 0;
      draw();
    };

    const set = (change) => {
      Object.assign(state, change);
      bench.value = state.bench;
      sort.value = state.sort;
      apply();
    };

    const trail = (t) => [...t].map((c) => (c === "1" ? "●" : c === "0" ? "○" : c === "h" ? "◐" : "·")).join("");
    const firstLine = (s) => s.split("\n").find((x) => x.trim()) || "(no text)";

    const draw = () => {
      const rows = byId("rows");
      const page = Math.floor(state.at / PAGE);
      const from = page * PAGE;
      rows.replaceChildren();
      for (let j = from; j < Math.min(from + PAGE, state.shown.length); j++) {
        const i = state.shown[j];
        const li = el("li");
        li.id = "row-" + j;
        li.setAttribute("role", "option");
        li.setAttribute("aria-selected", String(j === state.at));
        const g = el("span", "glyph o" + col.out[i], GLYPHS[col.out[i]]);
        g.title = OUTCOMES[col.out[i]];
        const q = el("span", "q", firstLine(str(col.prompt[i])).slice(0, 200));
        q.dir = "auto";
        const t = el("span", "trail", single ? "" : trail(str(col.trail[i])));
        t.title = single ? "" : stages.map((s, k) => s + ": " + ({ 1: "right", 0: "wrong", h: "partly" }[str(col.trail[i])[k]] || "not asked")).join("\n");
        li.append(g, q, t, el("span", "w", str(col.bench[i]) + " · " + str(col.video[i])));
        li.addEventListener("click", () => {
          select(j);
          open(true);
        });
        rows.append(li);
      }
      if (!state.shown.length) {
        const none = el("li");
        none.append(el("span"), el("span", "soft", "Nothing matches."));
        rows.append(none);
      }
      const total = state.shown.length;
      byId("count").textContent = total ? (from + 1).toLocaleString("en") + "–" + Math.min(from + PAGE, total).toLocaleString("en") + " of " + total.toLocaleString("en") : "0 questions";
      byId("prev").disabled = page === 0;
      byId("next").disabled = from + PAGE >= total;
      if (rows.scrollHeight > rows.clientHeight) rows.scrollTop = 0;
      detail();
    };

    const answer = (name, c, i) => {
      const credit = col[c + "c"][i];
      const box = el("div", "answer" + (credit < 0 ? "" : credit >= 100 ? " right" : " wrong"));
      const h = el("h4", "", name);
      h.append(el("span", credit >= 100 ? "better" : credit < 0 ? "soft" : "worse", credit < 0 ? "not asked" : credit >= 100 ? "✓ right" : credit === 0 ? "✕ wrong" : credit + " %"));
      box.append(h);
      if (credit < 0) return box;
      const text = str(col[c][i]);
      const t = el("div", "text" + (text ? "" : " soft"), text || (col[c][i] < 0 ? "(text left out: too many questions)" : "(no text)"));
      t.dir = "auto";
      const why = el("p", "reason", str(col[c + "w"][i]));
      box.append(t, why);
      return box;
    };

    const detail = () => {
      const d = byId("detail");
      d.replaceChildren();
      const back = el("button", "btn back", "‹ All questions");
      back.type = "button";
      back.addEventListener("click", () => open(false));
      d.append(back);
      if (!state.shown.length) return;
      const i = state.shown[state.at];
      d.append(el("h3", "", str(col.bench[i]) + (single ? "" : ", " + OUTCOMES[col.out[i]])));
      d.append(el("div", "meta", str(col.task[i]) + " · video " + str(col.video[i]) + " · question " + (state.at + 1).toLocaleString("en") + " of " + state.shown.length.toLocaleString("en") + " shown"));
      if (col.pic[i] >= 0) {
        const img = el("img");
        img.alt = "Eight frames of the video, left to right, top to bottom";
        img.addEventListener("load", () => img.classList.toggle("tiny", img.naturalWidth <= 320));
        img.src = sheets[col.pic[i]];
        d.append(img);
      }
      const p = el("div", "text prompt", str(col.prompt[i]) || "(prompt left out: too many questions)");
      p.dir = "auto";
      const both = el("div", "answers");
      both.append(answer(stages[0], "a", i));
      if (!single) both.append(answer(stages[stages.length - 1], "b", i));
      const key = el("p", "small soft", "Key: ");
      const k = el("bdi", "", str(col.target[i]));
      key.append(k);
      d.append(p, both, key);
      d.scrollTop = 0;
    };

    const select = (j) => {
      const to = Math.max(0, Math.min(state.shown.length - 1, j));
      if (!state.shown.length) return;
      const same = Math.floor(to / PAGE) === Math.floor(state.at / PAGE);
      const old = byId("row-" + state.at);
      state.at = to;
      if (!same) draw();
      else {
        if (old) old.setAttribute("aria-selected", "false");
        byId("row-" + to).setAttribute("aria-selected", "true");
        detail();
      }
      const row = byId("row-" + to), rows = byId("rows");
      rows.setAttribute("aria-activedescendant", "row-" + to);
      mark();
      if (rows.scrollHeight > rows.clientHeight) {
        const top = row.offsetTop - rows.offsetTop;
        if (top < rows.scrollTop) rows.scrollTop = top;
        else if (top + row.offsetHeight > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + row.offsetHeight - rows.clientHeight;
      }
    };
    /* The address names the question looked at, so that a colleague can be sent to it. */
    const mark = () => {
      try {
        history.replaceState(null, "", "#q" + state.shown[state.at]);
      } catch {
        return; /* some browsers refuse this for local files */
      }
    };
    const fromAddress = () => {
      const found = /^#q(\d+)$/.exec(location.hash);
      if (!found || Number(found[1]) >= n) return false;
      set({ filter: "all", bench: "", query: "", sort: "order" });
      select(Number(found[1]));
      open(true);
      byId("questions").scrollIntoView();
      return true;
    };
    addEventListener("hashchange", fromAddress);
    const narrow = matchMedia("(max-width: 860px)");
    const open = (yes) => {
      byId("browser").classList.toggle("open", yes);
      if (!narrow.matches) return;
      byId("browser").scrollIntoView();
      if (yes) byId("detail").focus({ preventScroll: true });
    };
    const turn = (by) => select((Math.floor(state.at / PAGE) + by) * PAGE);

    let timer = 0;
    byId("search").addEventListener("input", (e) => {
      clearTimeout(timer);
      timer = setTimeout(() => set({ query: e.target.value }), n > 5000 ? 180 : 40);
    });
    bench.addEventListener("change", () => set({ bench: bench.value }));
    sort.addEventListener("change", () => set({ sort: sort.value }));
    byId("prev").addEventListener("click", () => turn(-1));
    byId("next").addEventListener("click", () => turn(1));
    for (const a of document.querySelectorAll("[data-browse]")) {
      a.addEventListener("click", () => set({ bench: String(names.find((i) => str(i) === a.dataset.browse) ?? ""), filter: "changed", query: "" }));
    }

    const keys = {
      j: () => select(state.at + 1),
      k: () => select(state.at - 1),
      ArrowDown: () => select(state.at + 1),
      ArrowUp: () => select(state.at - 1),
      "]": () => turn(1),
      "[": () => turn(-1),
      Home: () => select(0),
      End: () => select(state.shown.length - 1),
      a: () => set({ filter: "all" }),
      c: () => tabs.has("changed") && set({ filter: "changed" }),
      w: () => set({ filter: "wrong" }),
      Enter: () => open(true),
    };
    const everywhere = new Set(["j", "k", "[", "]", "a", "c", "w"]);
    addEventListener("keydown", (e) => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
      const typing = e.target.matches("input, select, textarea");
      if (e.key === "Escape") {
        if (typing) e.target.blur();
        open(false);
        return;
      }
      if (typing) return;
      if (e.key === "/") {
        byId("search").focus();
        byId("questions").scrollIntoView();
        e.preventDefault();
      } else if (e.key === "t") nextTheme();
      else if (keys[e.key] && (everywhere.has(e.key) || e.target === byId("rows"))) {
        keys[e.key]();
        e.preventDefault();
      }
    });

    byId("app").hidden = false;
    if (!fromAddress()) set({ filter: !single && col.out.some((o) => o < 2) ? "changed" : "all" });
    root.dataset.ready = "yes";
  };

  if (byId("data")) {
    unpack().then(start).catch((e) => {
      const p = byId("trouble");
      p.hidden = false;
      p.textContent = "The questions cannot be shown: " + e.message;
    });
  } else root.dataset.ready = "yes";
})();
