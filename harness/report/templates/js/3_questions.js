/* Questions: any two stages side by side. */
const startQuestions = (data, sheets) => {
  const { n, stages, benches, strings, columns: col, answers } = data;
  const str = (i) => (i < 0 ? "" : strings[i]);
  const stageAt = (key) => stages.findIndex(([k]) => k === key);
  const pair = (s) => [stageAt(s.from), stageAt(s.to)];
  const alone = (s) => s.from === s.to;
  const credit = (stage, i) => answers[stage].credit[i];
  const outcome = (s, i) => {
    const [a, b] = pair(s).map((stage) => credit(stage, i));
    if (alone(s)) return a < 0 ? 4 : a >= 100 ? 2 : 3;
    if (a < 0 || b < 0) return 4;
    return b > a ? 0 : b < a ? 1 : a >= 50 ? 2 : 3;
  };
  const GLYPHS = ["▲", "▼", "●", "○", "·"];
  const words = (s) => (alone(s) ? ["", "", "right", "wrong", "not asked"] : ["got better", "got worse", "right in both", "wrong in both", "asked in one only"]);
  const okStatus = new Set(["ok", "judged"]);
  const odd = (stage, i) => answers[stage].status[i] >= 0 && !okStatus.has(str(answers[stage].status[i]));
  const filters = (s) => {
    const [a, b] = pair(s);
    const wrong = (i) => credit(b, i) >= 0 && credit(b, i) < 100;
    return [
      ["all", "All", () => true],
      ...(alone(s)
        ? [["right", "Right", (i) => credit(a, i) >= 100]]
        : [
            ["changed", "Changed", (i) => outcome(s, i) < 2],
            ["better", "Got better", (i) => outcome(s, i) === 0],
            ["worse", "Got worse", (i) => outcome(s, i) === 1],
            ["other", "Other answer, same credit", (i) => outcome(s, i) > 1 && outcome(s, i) < 4 && answers[a].text[i] !== answers[b].text[i]],
          ]),
      ["wrong", alone(s) ? "Wrong" : "Wrong in the second", wrong],
      ["odd", "Unreadable or failed", (i) => odd(a, i) || odd(b, i)],
    ];
  };

  const where = new Map(), siblings = new Map();
  for (let i = 0; i < n; i++) {
    const video = col.bench[i] + "/" + col.video[i];
    if (!siblings.has(video)) siblings.set(video, []);
    siblings.get(video).push(i);
  }
  const address = (i) => [benches[col.bench[i]][0], str(col.video[i]), col.number[i]].map(encodeURIComponent).join("/");
  for (let i = 0; i < n; i++) where.set(address(i), i);
  const tasks = benches.map((_, b) => [...new Set(col.task.filter((_, i) => col.bench[i] === b))]);

  const trail = (i) => stages.map((_, k) => (credit(k, i) < 0 ? "·" : credit(k, i) >= 100 ? "●" : credit(k, i) === 0 ? "○" : "◐")).join("");
  const firstLine = (s) => s.split("\n").find((x) => x.trim()) || "(no text)";
  const said = (c) => (c < 0 ? ["not asked", "soft"] : c >= 100 ? ["✓ right", "better"] : [c === 0 ? "✕ wrong" : c + " %", "worse"]);
  const answer = (stage, i) => {
    const c = credit(stage, i);
    const box = el("div", "answer" + (c < 0 ? "" : c >= 100 ? " right" : " wrong"));
    const h = el("h4", "", stages[stage][1]);
    const [word, cls] = said(c);
    h.append(el("span", cls, word));
    box.append(h);
    if (c < 0) return box;
    const a = answers[stage], text = str(a.text[i]);
    const t = el("div", "text" + (text ? "" : " soft"), text || (a.text[i] < 0 ? "(text left out: too many questions)" : "(no text)"));
    t.dir = "auto";
    box.append(t, el("p", "reason", str(a.why[i])));
    return box;
  };
  const others = (i, s, go) => {
    const p = el("p", "small soft chips");
    p.append("All stages: ");
    stages.forEach(([key, title], k) => {
      const b = button("chip" + (key === s.from || key === s.to ? " on" : ""), title + " " + trail(i)[k], () => go({ to: key }));
      b.title = said(credit(k, i))[0] + (credit(k, i) < 0 ? "" : ": " + str(answers[k].text[i]).slice(0, 200));
      p.append(b);
    });
    return p;
  };
  const family = (i) => {
    const found = siblings.get(col.bench[i] + "/" + col.video[i]);
    const p = el("p", "small soft chips");
    if (found.length < 2) return p;
    p.append("On this video: ");
    for (const j of found) {
      const a = el("a", "chip" + (j === i ? " on" : ""), String(col.number[j]));
      a.href = browser.address(j);
      a.title = firstLine(str(col.prompt[j])).slice(0, 200);
      p.append(a);
    }
    return p;
  };

  let browser = null; /* the first question is drawn before makeBrowser returns */
  browser = makeBrowser({
    prefix: "q", what: "questions", home: "questions", n, strings, filters, address,
    start: () => (answers.length > 1 && answers[0].credit.some((c, i) => c >= 0 && credit(answers.length - 1, i) >= 0 && c !== credit(answers.length - 1, i)) ? "changed" : "all"),
    sorts: [
      ["order", "In order", (i) => i],
      ["outcome", "By outcome", (i, s) => outcome(s, i)],
      ["video", "By video", (i) => str(col.video[i])],
      ["long", "Longest answer first", (i, s) => -Math.max(...pair(s).map((k) => str(answers[k].text[i]).length))],
      ["status", "By how it was read", (i, s) => str(answers[pair(s)[1]].status[i])],
      ["prompt", "By prompt", (i) => str(col.prompt[i])],
    ],
    selects: [
      { name: "from", label: "First stage", free: true, options: () => stages.map(([k, t]) => [k, t]) },
      { name: "to", label: "Second stage", free: true, options: () => stages.map(([k, t]) => [k, t]), initial: stages[stages.length - 1][0] },
      { name: "in", label: "Benchmark", options: () => [["", "All benchmarks"], ...benches], test: (v, i) => benches[col.bench[i]][0] === v },
      {
        name: "task", label: "Subtask", test: (v, i) => str(col.task[i]) === v,
        options: (s) => {
          const found = s.in ? tasks[benches.findIndex(([k]) => k === s.in)] || [] : [];
          return [["", "All subtasks"], ...(found.length > 1 ? found.map((t) => [str(t), str(t)]) : [])];
        },
      },
    ],
    searched: (i, s) => [...["prompt", "video", "task", "target"].map((c) => col[c][i]), ...pair(s).map((k) => answers[k].text[i])],
    find: (path) => where.get(path.split("/").map((x) => encodeURIComponent(decode(x))).join("/")) ?? -1,
    row: (i, s) => ({
      glyph: GLYPHS[outcome(s, i)], cls: "o" + outcome(s, i), title: words(s)[outcome(s, i)],
      text: firstLine(str(col.prompt[i])).slice(0, 200),
      mark: stages.length > 1 ? trail(i) : "",
      under: benches[col.bench[i]][1] + " · " + str(col.video[i]),
    }),
    detail: (i, s) => {
      const head = el("h3", "", benches[col.bench[i]][1] + ", " + words(s)[outcome(s, i)]);
      const meta = el("div", "meta", str(col.task[i]) + " · video " + str(col.video[i]) + " · question " + col.number[i] + " on it · ");
      const link = el("a", "", "link");
      link.href = browser ? browser.address(i) : "#" + address(i);
      link.title = "The address of this question with these filters";
      meta.append(link);
      const p = el("div", "text prompt", str(col.prompt[i]) || "(prompt left out: too many questions)");
      p.dir = "auto";
      const both = el("div", "answers");
      for (const k of new Set(pair(s))) both.append(answer(k, i));
      const key = el("p", "small soft", "Key: ");
      key.append(el("bdi", "", str(col.target[i])));
      const more = stages.length > 2 ? [others(i, s, (what) => browser.set(what))] : [];
      return [head, meta, media(str(col.clip[i]), sheets[col.picture[i]]), p, both, key, ...more, ...(browser ? [family(i)] : [])];
    },
    keys: (s, set) => ({ x: () => set({ from: s.to, to: s.from }) }),
  });
  for (const a of document.querySelectorAll("[data-browse]")) {
    a.addEventListener("click", () => browser.set({ in: a.dataset.browse, task: "", show: "changed", find: "", from: stages[0][0], to: stages[stages.length - 1][0] }));
  }
  return browser;
};
const decode = (x) => {
  try {
    return decodeURIComponent(x);
  } catch {
    return x;
  }
};
