/* Preference pairs: every question the model asked itself, with the pair that came of it or the reason why none did. */
const startPairs = (data, sheets) => {
  const { n, stages, strings, columns: col } = data;
  const str = (i) => (i < 0 ? "" : strings[i]);
  const is = (word) => (i) => str(col.outcome[i]) === word;
  const GLYPHS = { pair: "▲", unchanged: "●", dropped: "○" };
  const WORDS = { pair: "a pair: the revision is preferred", unchanged: "unchanged: the answer itself is learned", dropped: "no pair" };
  const values = (c) => [...new Set(col[c])].map(str).filter((x) => x).sort();
  const address = (i) => ["pairs", stages[col.stage[i]][0], str(col.id[i]) || String(i)].map(encodeURIComponent).join("/");
  const where = new Map();
  for (let i = 0; i < n; i++) where.set(address(i), i);
  const option = (list) => list.map((x) => [x, x]);
  let browser = null; /* the first question is drawn before makeBrowser returns */
  browser = makeBrowser({
    prefix: "p", what: "pairs", home: "pairs", n, strings, address,
    start: () => "all",
    filters: () => [
      ["all", "All", () => true],
      ["changed", "Pairs", is("pair")],
      ["unchanged", "Unchanged", is("unchanged")],
      ["wrong", "No pair", is("dropped")],
    ].filter(([key], k) => k === 0 || key === "changed" || col.outcome.some((o) => str(o) === (key === "wrong" ? "dropped" : key))),
    sorts: [
      ["order", "In order", (i) => i],
      ["video", "By video", (i) => str(col.video[i])],
      ["question", "By question", (i) => str(col.question[i])],
      ["long", "Longest critique first", (i) => -str(col.critique[i]).length],
    ],
    selects: [
      {
        name: "stage", label: "Iteration", test: (v, i) => stages[col.stage[i]][0] === v,
        options: () => [["", "All iterations"], ...[...new Set(col.stage)].map((k) => [stages[k][0], stages[k][1]])],
      },
      { name: "kind", label: "Kind", options: () => [["", "All kinds"], ...option(values("kind"))], test: (v, i) => str(col.kind[i]) === v },
      { name: "reason", label: "Reason", options: () => [["", "All reasons"], ...option(values("reason"))], test: (v, i) => str(col.reason[i]) === v },
    ],
    searched: (i) => ["question", "initial", "critique", "revision", "chosen", "rejected", "video", "reason"].map((c) => col[c][i]),
    find: (path) => where.get(path.split("/").map((x) => encodeURIComponent(decode(x))).join("/")) ?? -1,
    row: (i) => {
      const outcome = str(col.outcome[i]);
      return {
        glyph: GLYPHS[outcome], cls: outcome === "pair" ? "o0" : "o3", title: WORDS[outcome], text: str(col.question[i]).slice(0, 200) || "(no question)",
        mark: str(col.kind[i]), under: stages[col.stage[i]][1] + " · " + str(col.video[i]) + (col.reason[i] >= 0 && str(col.reason[i]) ? " · " + str(col.reason[i]) : ""),
      };
    },
    detail: (i) => {
      const outcome = str(col.outcome[i]);
      const meta = el("div", "meta", stages[col.stage[i]][1] + " · " + str(col.kind[i]) + " · video " + str(col.video[i]) + " · ");
      const link = el("a", "", "link");
      link.href = browser ? browser.address(i) : "#" + address(i);
      meta.append(link);
      const texts = el("div", "answers");
      const text = (title, c, cls) => {
        if (!str(col[c][i])) return;
        const box = el("div", "answer" + (cls ? " " + cls : ""));
        const t = el("div", "text", str(col[c][i]));
        t.dir = "auto";
        box.append(el("h4", "", title), t);
        texts.append(box);
      };
      if (outcome === "dropped" || ![col.chosen[i], col.rejected[i]].includes(col.initial[i])) text("First answer", "initial");
      if (outcome !== "dropped") text("Rejected" + (col.rejected[i] === col.initial[i] ? ": the first answer" : ""), "rejected", "wrong");
      text("Critique", "critique");
      if (outcome === "dropped") text("Revision", "revision");
      else text(outcome === "unchanged" ? "Chosen: the same" : "Chosen", "chosen", "right");
      const asked = el("div", "text prompt", str(col.question[i]) || "(no question)");
      asked.dir = "auto";
      const why = [str(col.reason[i]), str(col.detail[i])].filter((x) => x).join(": ");
      return [el("h3", "", WORDS[outcome][0].toUpperCase() + WORDS[outcome].slice(1)), meta, media(str(col.clip[i]), sheets[col.picture[i]]), asked, texts, ...(why ? [el("p", "small soft", why)] : [])];
    },
  });
  return browser;
};
