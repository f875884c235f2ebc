/* Helpers, theme, navigation, printing, unpacking. Text enters the page through textContent only, never as markup. */
const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const el = (tag, cls, text) => {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
};
const button = (cls, text, action) => {
  const b = el("button", cls, text);
  b.type = "button";
  b.addEventListener("click", action);
  return b;
};
const number = (n) => n.toLocaleString("en");

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

const links = [...document.querySelectorAll(".bar-top nav a[href^='#']")];
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

const unpack = async (id) => {
  const box = JSON.parse(byId(id).textContent);
  if (box.encoding === "json") return box.data;
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old to unpack them (it has no DecompressionStream)");
  const raw = Uint8Array.from(atob(box.data), (c) => c.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
};

/* The video where its file is at hand and the browser can play it, else the frames that the page holds. */
const media = (clip, sheet) => {
  const box = el("div", "media");
  const frames = el("details", "frames");
  if (sheet) {
    const img = el("img");
    img.alt = "Eight frames of the video, left to right, top to bottom";
    img.addEventListener("load", () => img.classList.toggle("tiny", img.naturalWidth <= 320));
    img.src = sheet;
    frames.append(el("summary", "", "Frames"), img);
  }
  frames.open = true;
  if (clip) {
    const v = el("video");
    v.controls = v.muted = v.loop = v.playsInline = true;
    v.preload = "metadata";
    v.setAttribute("aria-label", "The video; v plays and stops it");
    v.addEventListener("loadedmetadata", () => v.classList.toggle("tiny", v.videoWidth <= 320));
    v.addEventListener("error", () => {
      v.remove();
      box.prepend(el("p", "small soft", "The video cannot be played here."));
    });
    v.src = clip;
    box.append(v);
  }
  if (sheet) box.append(frames);
  return box;
};
