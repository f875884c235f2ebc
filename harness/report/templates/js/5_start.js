/* Start what the page holds, then go where the address points. */
const browsers = [];
const route = () => {
  const [path, query] = location.hash.slice(1).split("?");
  return browsers.some((b) => (query !== undefined || path.includes("/")) && b.restore(path, new URLSearchParams(query)));
};
const EVERYWHERE = new Set(["j", "k", "[", "]", "a", "c", "w", "v", "x"]);
addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || e.isComposing) return;
  const typing = e.target.matches("input, select, textarea");
  if (e.key === "Escape") {
    if (typing) e.target.blur();
    active?.open(false);
  } else if (typing || e.target.matches("video")) return;
  else if (e.key === "t") nextTheme();
  else if (e.key === "/" && active) {
    active.search();
    e.preventDefault();
  } else if (active?.keys[e.key] && (EVERYWHERE.has(e.key) || e.target === active.rows)) {
    active.keys[e.key]();
    e.preventDefault();
  }
});
const trouble = (id, what) => (e) => {
  const p = byId(id + "-trouble");
  p.hidden = false;
  p.textContent = what + " cannot be shown: " + e.message;
};
const start = async () => {
  const sheets = byId("sheets") ? JSON.parse(byId("sheets").textContent) : [];
  if (byId("pairs-data")) await unpack("pairs-data").then((data) => browsers.push(startPairs(data, sheets))).catch(trouble("p", "The pairs"));
  if (byId("data")) await unpack("data").then((data) => browsers.unshift(startQuestions(data, sheets))).catch(trouble("q", "The questions"));
  active = browsers[0] || null;
  route();
  addEventListener("hashchange", route);
  root.dataset.ready = "yes";
};
start();
